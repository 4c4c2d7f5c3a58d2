"""Our attention function: one for every family that calls the library's attention interface.

A session puts a *desk* at attention modules for the duration of a run; the function asks the module's desk.
Where nobody reads or writes scores and patterns, the model's own implementation goes on computing, on its own mask,
between our taps: reading costs nothing. Elsewhere, and for families whose attention is an inner method, ours computes,
and forms maps only when they are wanted. The mask comes from the library, so sliding windows need no knowledge here.
"""

import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mechscope.models.anatomy import Attention, InnerMethod

IMPLEMENTATION = "mechscope"
"""Name under which the function is registered. It must not contain "sdpa": some families refuse that substring."""

_AROUND = {"sdpa": f"{IMPLEMENTATION}-around-fused", "eager": f"{IMPLEMENTATION}-around-eager"}
"""By the model's own implementation, the name under which it goes on computing between our taps."""

Tap = Callable[[Tensor], Tensor]
"""A tensor in the table's axes to the tensor to use in its place."""

Own = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""The model's own attention from query, key and value: z as [batch, query, head, d_head], and a pattern or None."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the attention function, in the library's axes.

    Args:
        query: [batch, head, query, d_head], rotated and normed as the scores see it.
        key: [batch, kv_head, key, d_head].
        value: [batch, kv_head, key, d_head].
        mask: Additive [batch or 1, 1, query, key] in the score's dtype, boolean (True attends), or None.
        scaling: Factor on the scores.
        softcap: c in c * tanh(scores / c), or None.
        sinks: Logit of the valueless entry, [head], or None.
        is_causal: Whether a missing mask means a causal one.
        is_wide: Scores are computed in float32.
        own: The model's own attention on this call's mask, where that goes on computing; None where ours does.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    is_causal: bool
    is_wide: bool = False
    own: Own | None = None

    def to(self, device: str | torch.device) -> "Call":
        """The same call with its tensors on another device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


MAP_TAPS = ("scores", "used scores", "sink", "pattern", "used pattern")
"""Taps for which ours has to compute."""

Desk = Callable[[Call], tuple[Tensor, Tensor | None]]
_DESKS: dict[nn.Module, Desk] = {}
_ANY = Attention(module="", n_heads=0, n_kv_heads=0, d_head=0, output="")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    call = _call(module, (query, key, value), attention_mask, kwargs | {"scaling": scaling})
    desk = _DESKS.get(module)
    # Another model may read the very configuration object that was switched for ours: it runs plainly.
    return attend(call, _ANY, {}) if desk is None else desk(call)


def _call(
    module: nn.Module, tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, told: dict[str, Any]
) -> Call:
    query, key, value = tensors
    scaling, is_causal = told.get("scaling"), told.get("is_causal")
    return Call(
        query=query,
        key=key,
        value=value,
        mask=mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=told.get("softcap"),
        sinks=told.get("s_aux"),
        is_causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
    )


def _around(implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Attention by the model's own implementation, with desks around it."""

    def attend_around(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        own, desk = _own_attention(module, implementation), _DESKS.get(module)
        if own is None:
            return _attention(module, query, key, value, attention_mask, **kwargs)
        if desk is None:
            return own(module, query, key, value, attention_mask, **kwargs)
        call = _call(module, (query, key, value), attention_mask, kwargs)
        return desk(replace(call, own=lambda q, k, v: own(module, q, k, v, attention_mask, **kwargs)))

    return attend_around


def _own_attention(module: nn.Module, implementation: str) -> Callable[..., Any] | None:
    """The function that a module calls under one of the library's implementations; None if it can't be told."""
    if implementation in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[implementation]
    # The eager one is no entry of the registry: each family keeps its own beside its attention module.
    names = [kind.__module__ for kind in type(module).__mro__]
    homes = [vars(sys.modules[name]) for name in names if name in sys.modules]
    return next((home[_EAGER] for home in homes if _EAGER in home), None)


_EAGER = "eager_attention_forward"
AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
for _name, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(_AROUND[_name], _around(_name))
    AttentionMaskInterface.register(_AROUND[_name], _mask)
_NARROW = f"{IMPLEMENTATION}-narrow-mask"


def _narrow_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return eager_mask(*args, **(kwargs | {"dtype": torch.float32}))


AttentionMaskInterface.register(_NARROW, _narrow_mask)


@contextmanager
def narrow_masks(config: Any) -> Generator[None, None, None]:
    """Masks whose smallest entry is finite in single precision, for a family with an attention of its own."""
    before = config._attn_implementation_internal
    try:
        config._attn_implementation_internal = _NARROW
        yield
    finally:
        config._attn_implementation_internal = before


def _inner_attention(module: nn.Module, method: InnerMethod) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What stands in for a family's inner attention method: the same arguments, through the module's desk."""

    def attend_inside(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Any:
        if method.window is not None:
            seen = module.get_buffer(method.window)
            seen = seen[:, :, key.shape[-2] - query.shape[-2] : key.shape[-2], : key.shape[-2]]
            dtype = query.dtype if attention_mask is None else attention_mask.dtype
            none = torch.zeros((), dtype=dtype, device=query.device)
            mask = none if attention_mask is None else attention_mask[..., : key.shape[-2]]
            attention_mask = torch.where(seen, mask, torch.finfo(dtype).min)
        z, pattern = _DESKS[module](
            Call(
                query=query,
                key=key,
                value=value,
                mask=attention_mask,
                scaling=method.scale,
                softcap=None,
                sinks=None,
                is_causal=True,
                is_wide=method.is_wide,
            )
        )
        return z.transpose(1, 2), pattern

    return attend_inside


def configurations(modules: Iterable[nn.Module]) -> dict[int, Any]:
    """The configuration objects that modules read at call time, each once, by identity."""
    found: list[Any] = [module.config for module in modules]
    return {id(config): config for config in found}


@contextmanager
def desks_at(
    modules: Mapping[nn.Module, Desk], anatomy: Attention, *, keeps_own: bool = False
) -> Generator[None, None, None]:
    """Route the attention of `modules` through their desks; configuration and desks are restored on exit.

    The modules share configuration objects that they read at call time; those are switched and switched back.

    Args:
        modules: Every attention module of the model, with its desk.
        anatomy: Of the model's attention.
        keeps_own: The model's own implementation computes, where it is one that we can stand around.
    """
    # `_attn_implementation` is a property that writes to sub-configurations too, so the private field is set.
    configs = configurations(modules)
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    _DESKS.update(modules)
    try:
        if anatomy.inner is not None:
            for module in modules:
                module.__dict__[anatomy.inner.name] = _inner_attention(module, anatomy.inner)
        for key, config in configs.items():
            around = _AROUND.get(before[key] or "", IMPLEMENTATION) if keeps_own else IMPLEMENTATION
            config._attn_implementation_internal = around
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
        if anatomy.inner is not None:
            for module in modules:
                module.__dict__.pop(anatomy.inner.name, None)
        for module in modules:
            _DESKS.pop(module, None)


def attend(
    call: Call, anatomy: Attention, taps: Mapping[str, Tap], *, forms_pattern: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Attention with taps at its points; returns z as [batch, query, head, d_head] and the pattern if formed.

    Args:
        call: Tensors as the library passes them.
        anatomy: For the softmax's dtype.
        taps: By point: "q" "k" "v" "scores" "sink" "pattern" "z"; each sees and returns the table's axes.
            Masked entries of maps ignore what a tap returns; "used scores" and "used pattern" see the maps after
            that, as they act.
        forms_pattern: Form it even where no tap asks for it.
    """
    call = tap_inputs(call, taps)
    has_map_taps = any(name in taps for name in MAP_TAPS)
    needs_maps = has_map_taps or call.softcap is not None or call.sinks is not None or call.is_wide
    needs_maps = needs_maps or forms_pattern
    pattern = None
    if call.own is not None and not has_map_taps:
        z, pattern = call.own(call.query, call.key, call.value)
    elif needs_maps:
        pattern = _pattern(call, anatomy, taps)
        z = torch.matmul(pattern, _for_each_head(call.value, call.query)).transpose(1, 2)
    else:
        z = _fused(call).transpose(1, 2)
    if "z" in taps:
        z = taps["z"](z)
    return z.contiguous(), pattern


def tap_inputs(call: Call, taps: Mapping[str, Tap]) -> Call:
    """The call after its taps on queries, keys and values."""
    for name, field in (("q", "query"), ("k", "key"), ("v", "value")):
        if name in taps:
            tensor = getattr(call, field).transpose(1, 2)
            new = taps[name](tensor)
            # With gradients, what was read must be what goes on, not a view beside the path.
            if new is not tensor or torch.is_grad_enabled():
                call = replace(call, **{field: new.transpose(1, 2)})
    return call


def attention_pattern(
    call: Call, anatomy: Attention, taps: Mapping[str, Tap] = MappingProxyType({})
) -> Tensor:
    """Attention weights, [batch, head, query, key], with taps at scores, sink and pattern."""
    return _pattern(call, anatomy, taps)


def attention_scores(call: Call) -> Tensor:
    """Scaled, soft-capped scores before the mask, [batch, head, query, key]."""
    query, keys = call.query, _for_each_head(call.key, call.query)
    if call.is_wide:
        query, keys = query.to(torch.float32), keys.to(torch.float32)
    scores = torch.matmul(query, keys.transpose(-1, -2)) * call.scaling
    return scores if call.softcap is None else torch.tanh(scores / call.softcap) * call.softcap


def blocked_entries(call: Call) -> Tensor | None:
    """True where a query may not see a key, broadcastable to the scores; None if nothing is hidden."""
    mask = call.mask
    n_queries, n_keys = call.query.shape[-2], call.key.shape[-2]
    if mask is None:
        if not call.is_causal or n_queries == 1:
            return None
        ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=call.query.device)
        return ones.triu(n_keys - n_queries + 1)  # aligned lower right: queries are the last keys
    mask = mask[..., :n_keys]
    return ~mask if mask.dtype == torch.bool else mask < torch.finfo(mask.dtype).min / 2


def _pattern(call: Call, anatomy: Attention, taps: Mapping[str, Tap]) -> Tensor:
    scores = attention_scores(call)
    blocked = blocked_entries(call)
    if "scores" in taps or "used scores" in taps:
        shown = scores if blocked is None else scores.masked_fill(blocked, float("-inf"))
        shown = _tapped(taps, "scores", shown, blocked)
        scores = shown if blocked is None else torch.where(blocked, scores, shown)
    if blocked is not None:
        scores = scores + _additive(call.mask, blocked, scores)
    sinks = None
    if call.sinks is not None:
        sinks = call.sinks.reshape(1, -1, 1).expand(scores.shape[:-1]).to(scores.dtype)
        sinks = taps["sink"](sinks) if "sink" in taps else sinks
    pattern = _softmax(scores, sinks, anatomy).to(call.value.dtype)
    return _tapped(taps, "pattern", pattern, blocked)


def _tapped(taps: Mapping[str, Tap], point: str, value: Tensor, blocked: Tensor | None) -> Tensor:
    # What is masked stays masked: a query must not see its future, which no cache could give it either.
    if point in taps:
        written = taps[point](value)
        value = written if blocked is None or written is value else torch.where(blocked, value, written)
    if f"used {point}" not in taps:
        return value
    used = taps[f"used {point}"](value)
    # A gradient at a masked entry is that of a write there: none.
    return (
        used if blocked is None or not torch.is_grad_enabled() else torch.where(blocked, value.detach(), used)
    )


def _additive(mask: Tensor | None, blocked: Tensor, scores: Tensor) -> Tensor:
    if mask is not None and mask.dtype != torch.bool:
        return mask[..., : scores.shape[-1]]
    zeros = torch.zeros(blocked.shape, dtype=scores.dtype, device=scores.device)
    return zeros.masked_fill(blocked, torch.finfo(scores.dtype).min)


def _softmax(scores: Tensor, sinks: Tensor | None, anatomy: Attention) -> Tensor:
    if sinks is not None:
        scores = torch.cat([scores, sinks[..., None]], dim=-1)
    if anatomy.is_softmax_native:
        scores = scores - scores.max(dim=-1, keepdim=True).values
        weights = F.softmax(scores, dim=-1, dtype=scores.dtype)
    else:
        dtype = torch.promote_types(scores.dtype, torch.float32)
        weights = F.softmax(scores, dim=-1, dtype=dtype)
    return weights if sinks is None else weights[..., :-1]


def _fused(call: Call) -> Tensor:
    mask = call.mask
    if mask is not None:
        mask = mask[..., : call.key.shape[-2]]
    return F.scaled_dot_product_attention(
        call.query,
        call.key,
        call.value,
        attn_mask=mask,
        is_causal=mask is None and call.is_causal and call.query.shape[-2] > 1,
        scale=call.scaling,
        enable_gqa=call.key.shape[1] != call.query.shape[1],
    )


def _for_each_head(kv: Tensor, query: Tensor) -> Tensor:
    n_groups = query.shape[1] // kv.shape[1]
    return kv if n_groups == 1 else kv.repeat_interleave(n_groups, dim=1)
