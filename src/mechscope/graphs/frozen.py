"""Frozen: one prompt's run with attention patterns, norm denominators and gates held, as matrices.

What is left is linear in the residual stream. Built from one forward pass over one prompt; weights are views of the
model's own. Refuses models that form no attention pattern, and norms after attention or MLP that are not RMS norms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from mechscope.attribution.linearization import Linearization
from mechscope.attribution.linearization import attribution_graph as outputs_held
from mechscope.graphs.stations import ATTN_IN, LN_FINAL, MLP_IN, PER_LAYER
from mechscope.models.anatomy import Norm, Part
from mechscope.models.cache import Cache
from mechscope.models.capturing import cache_at
from mechscope.models.derived import norm_scale, norm_weight
from mechscope.models.inputs import TokenBatch
from mechscope.models.limits import refuse_normed_stream
from mechscope.models.model import Model
from mechscope.vocabulary.errors import PointUnavailable, ShapeError
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True, eq=False, kw_only=True)
class FrozenNorm:
    """A norm whose denominator is held: y = (x - mean) * weight / scale + bias.

    Args:
        inverse_scale: One over the denominator, [pos, 1].
        weight: [d_model] or None.
        bias: [d_model] or None.
        is_centred: The mean is taken off first.
    """

    inverse_scale: Tensor
    weight: Tensor | None
    bias: Tensor | None
    is_centred: bool

    def forward(self, x: Tensor, *, with_bias: bool) -> Tensor:
        """The norm's output for [..., pos, d_model]."""
        x = self.directions(x) * self.inverse_scale
        return x + self.bias if with_bias and self.bias is not None else x

    def directions(self, x: Tensor) -> Tensor:
        """[..., d_model] centred and weighed: the output without bias, where the denominator is 1."""
        x = x - x.mean(-1, keepdim=True) if self.is_centred else x
        return x if self.weight is None else x * self.weight

    def fold(self, matrix: Tensor) -> Tensor:
        """Rows [n, d_model] that multiply the norm's output, as rows that multiply x times the inverse scale."""
        matrix = matrix if self.weight is None else matrix * self.weight
        return matrix - matrix.mean(-1, keepdim=True) if self.is_centred else matrix


@dataclass(frozen=True, eq=False, kw_only=True)
class FrozenMlp:
    """An MLP with its gates held: W_out (gate * (W_in x + b_in)) + b_out."""

    gate: Tensor
    W_in: Tensor
    b_in: Tensor | None
    W_out: Tensor
    b_out: Tensor | None


@dataclass(frozen=True, eq=False, kw_only=True)
class FrozenLayer:
    """One layer.

    Args:
        pattern: Attention weights, [head, query, key].
        W_V: [kv_head, d_model, d_head], with b_V [kv_head, d_head] or None.
        W_O: [head, d_head, d_model], with b_O [d_model] or None.
        norm1: Before attention, or None.
        norm2: Before the MLP, or None.
        attn_factor: From `attn_raw` to `attn_out`: [pos, d_model], a number, or None for none.
        mlp_factor: From `mlp_raw` to `mlp_out` likewise.
        has_mlp: Whether there is an MLP.
        mlp: The MLP with its gates held; None where its output is a constant.
    """

    pattern: Tensor
    W_V: Tensor
    b_V: Tensor | None
    W_O: Tensor
    b_O: Tensor | None
    norm1: FrozenNorm | None
    norm2: FrozenNorm | None
    attn_factor: Tensor | float | None
    mlp_factor: Tensor | float | None
    has_mlp: bool
    mlp: FrozenMlp | None

    @property
    def output_rows(self) -> Tensor:
        """The output projection of all heads, [head * d_head, d_model]."""
        return self.W_O.reshape(-1, self.W_O.shape[-1])

    @property
    def value_rows(self) -> Tensor:
        """The value projection as rows that multiply what attention reads, [kv_head * d_head, d_model]."""
        return self.W_V.transpose(1, 2).reshape(-1, self.W_V.shape[1])

    @cached_property
    def input_rows(self) -> Tensor:
        """`value_rows` with the norm before attention folded in; its denominator is in `pattern_to_input`."""
        return self.value_rows if self.norm1 is None else self.norm1.fold(self.value_rows)

    @cached_property
    def pattern_to_input(self) -> Tensor:
        """The pattern over the held denominators of the keys, [head, query, key]."""
        return self.pattern if self.norm1 is None else self.pattern * self.norm1.inverse_scale.T


@dataclass(frozen=True, eq=False, kw_only=True)
class Frozen:
    """A model frozen on one prompt.

    Args:
        tokens: The prompt.
        layers: In forward order.
        norm_final: Before the unembedding, or None.
        is_parallel: Attention and MLP read the same stream.
        is_causal: Later positions do not reach earlier ones.
        cache: What the run kept: the values at all stations in use.
        dtype: Of the products: float32 at least.
    """

    tokens: TokenBatch
    layers: list[FrozenLayer]
    norm_final: FrozenNorm | None
    is_parallel: bool
    is_causal: bool
    cache: Cache
    dtype: torch.dtype

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_positions(self) -> int:
        return self.tokens.shape[1]

    def norm_before(self, station: int) -> FrozenNorm | None:
        """The norm whose output is read at a station; None where there is none."""
        layer, kind = divmod(station, PER_LAYER)
        if layer == self.n_layers:
            return self.norm_final if kind == LN_FINAL else None
        if kind == ATTN_IN:
            return self.layers[layer].norm1
        return self.layers[layer].norm2 if kind == MLP_IN else None

    def value(self, site: Site) -> Tensor:
        """What the run had at a site, [pos, *site], in the dtype of the products."""
        return self.cache[site][0].to(self.dtype)


def linearization_of(mlps: str) -> Linearization:
    """What the frozen model holds, as attribution patching and RelP say it too."""
    if mlps == "constant":
        return outputs_held()
    return Linearization(patterns="held", norms="held", activations="ratio", gates="held")


def freeze_model(model: Model, batch: TokenBatch, *, linear_mlps: Sequence[int] = ()) -> Frozen:
    """Run one prompt and hold its patterns, denominators and gates.

    Args:
        model: An open model.
        batch: One prompt, unpadded.
        linear_mlps: Layers whose MLP keeps its linear path, with its gates held; elsewhere its output is constant.

    Raises:
        ShapeError: several prompts.
        PointUnavailable: a point that freezing needs is not formed by this family.

    Cost: one forward pass with attention patterns formed.
    """
    if len(batch) != 1:
        raise ShapeError(
            "An attribution graph is about one prompt.",
            got=f"{len(batch)} prompts",
            because="patterns and denominators are held at that prompt's values",
            instead="one graph for each prompt",
        )
    refuse_without_pattern(model)
    wanted = _wanted(model, linear_mlps)
    cache = cache_at(model, batch, wanted)
    dtype = torch.promote_types(model.dtype, torch.float32)
    layers = [_layer(model, cache, i, dtype, has_gates=i in linear_mlps) for i in range(model.n_layers)]
    last = cache[Site("resid_post", model.n_layers - 1)]
    return Frozen(
        tokens=batch,
        layers=layers,
        norm_final=_norm(model, model.hf, "ln_final", last, dtype),
        is_parallel=model.binding.anatomy.is_parallel,
        is_causal=model.binding.anatomy.is_causal,
        cache=cache,
        dtype=dtype,
    )


def refuse_without_pattern(model: Model) -> None:
    """Refuse a model whose attention is out of reach, or whose residual stream is normed as a whole.

    Raises:
        PointUnavailable
    """
    refuse_normed_stream(model.binding.anatomy, "Attribution graphs")
    formed = set(model.binding.formed)
    for layer in range(model.n_layers):
        for point in ("pattern", "v", "attn_raw", "attn_out"):
            if Site(point, layer) not in formed:
                raise PointUnavailable(
                    f"{model.identity.name} can't be frozen for an attribution graph.",
                    got=f"{model.binding.anatomy.family}, no {point}.{layer}",
                    because=model.binding.anatomy.why_missing.get(
                        point, "its attention forms no such tensor in reach"
                    ),
                    instead="a model of a family that forms pattern and v: gpt2, llama, gemma2, qwen3, gpt_neox, ...",
                )


def _wanted(model: Model, linear_mlps: Sequence[int]) -> list[Site]:
    points = ["resid_pre", "resid_mid", "resid_post", "attn_in", "attn_raw", "attn_out", "pattern"]
    points += ["ln1", "ln2", "mlp_in", "mlp_raw", "mlp_out"]
    formed = set(model.binding.formed)
    sites = [Site(point, layer) for layer in range(model.n_layers) for point in points]
    sites += [Site(point, layer) for layer in linear_mlps for point in ("mlp_pre", "mlp_post")]
    missing = [str(s) for s in sites if s.point in ("mlp_pre", "mlp_post") and s not in formed]
    if missing:
        raise PointUnavailable(
            "These MLPs have no gates to hold.",
            got=", ".join(missing),
            because="a mixture of experts, or no MLP, forms no such tensor",
            instead='transcoders for these layers, or mlps="constant"',
        )
    ends = [Site("ln_final")] if Site("ln_final") in formed else []
    return [site for site in sites if site in formed] + ends


def _layer(model: Model, cache: Cache, layer: int, dtype: torch.dtype, *, has_gates: bool) -> FrozenLayer:
    weights, module, formed = model.weights, model.binding.layers[layer], set(model.binding.formed)

    def taken(name: str) -> Tensor | None:
        return weights[name, layer].detach().to(dtype) if weights.has(name, layer) else None

    W_V, W_O = taken("W_V"), taken("W_O")
    assert W_V is not None and W_O is not None
    before_mlp = "ln2" if "ln2" in model.binding.anatomy.norms else "ln1"
    is_parallel, has_mlp = model.binding.anatomy.is_parallel, Site("mlp_out", layer) in formed
    pre = cache[Site("resid_pre", layer)]
    read = pre if is_parallel or not has_mlp else cache[Site("resid_mid", layer)]
    has_norm2 = has_mlp and (before_mlp == "ln2" or is_parallel)
    return FrozenLayer(
        pattern=cache[Site("pattern", layer)][0].to(dtype),
        W_V=W_V,
        b_V=taken("b_V"),
        W_O=W_O,
        b_O=taken("b_O"),
        norm1=_norm(model, module, "ln1", pre, dtype),
        norm2=_norm(model, module, before_mlp, read, dtype) if has_norm2 else None,
        attn_factor=_factor(model, cache, layer, "attn", dtype),
        mlp_factor=_factor(model, cache, layer, "mlp", dtype) if has_mlp else None,
        has_mlp=has_mlp,
        mlp=_mlp(cache, layer, taken) if has_gates else None,
    )


def _mlp(cache: Cache, layer: int, taken: "object") -> FrozenMlp:
    pre, post = cache[Site("mlp_pre", layer)][0], cache[Site("mlp_post", layer)][0]
    safe = torch.where(pre == 0, torch.ones_like(pre), pre)
    W_in, W_out = taken("W_in"), taken("W_out")  # pyright: ignore[reportCallIssue]
    dtype = W_in.dtype
    return FrozenMlp(
        gate=torch.where(pre == 0, torch.zeros_like(pre), post / safe).to(dtype),
        W_in=W_in,
        b_in=taken("b_in"),  # pyright: ignore[reportCallIssue]
        W_out=W_out,
        b_out=taken("b_out"),  # pyright: ignore[reportCallIssue]
    )


def _norm(
    model: Model, home: nn.Module, name: str, arriving: Tensor, dtype: torch.dtype
) -> FrozenNorm | None:
    norm = model.binding.anatomy.norms.get(name)
    if norm is None:
        return None
    found = norm_weight(home.get_submodule(norm.module), norm)
    wide = arriving[0].to(dtype)

    def own(which: str) -> Tensor | None:
        tensor = found[which]
        return None if tensor is None else tensor.detach().to(dtype)

    return FrozenNorm(
        inverse_scale=1 / norm_scale(wide, norm),
        weight=own("weight"),
        bias=own("bias"),
        is_centred=norm.kind == "layer",
    )


def _factor(
    model: Model, cache: Cache, layer: int, part: Literal["attn", "mlp"], dtype: torch.dtype
) -> Tensor | float | None:
    """What multiplies a projection's output on its way to the residual stream: nothing, a number, or a frozen norm."""
    parts = model.binding.parts_of(layer)
    raw_part, out_part = parts.get(f"{part}_raw"), parts[f"{part}_out"]
    if raw_part is None or raw_part == out_part:
        return None
    raw, out = cache[Site(f"{part}_raw", layer)][0].to(dtype), cache[Site(f"{part}_out", layer)][0].to(dtype)
    if raw_part.module == out_part.module:
        return float((raw * out).sum() / (raw * raw).sum())
    return rms_factor(model, layer, part=out_part, raw=raw, out=out)


def rms_factor(model: Model, layer: int, *, part: Part, raw: Tensor, out: Tensor) -> Tensor:
    """The factor weight / denominator of an RMS norm with input `raw` and output `out`, shaped like `raw`.

    The denominator is found from the two tensors, so that no epsilon has to be known.

    Raises:
        PointUnavailable: the norm is of another kind.
    """
    module = model.binding.layers[layer].get_submodule(part.module)
    offset = model.binding.anatomy.norms["ln_final"].weight_offset
    found = norm_weight(module, Norm(part.module, "rms", 0.0, offset))
    weight = torch.ones_like(raw[..., :1]) if found["weight"] is None else found["weight"].detach().to(raw)
    flat_raw, flat_out = (
        t.reshape(len(raw), -1, max(weight.numel(), 1)) if weight.ndim == 1 else t for t in (raw, out)
    )
    scaled = flat_raw * weight
    inverse = (scaled * flat_out).sum(-1, keepdim=True) / (scaled * scaled).sum(-1, keepdim=True)
    factor = (inverse * weight).expand_as(flat_raw)
    # The library computes RMS norms in single precision whatever the model's own.
    precision = max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)
    rounding = 64 * precision * max(1.0, float(flat_out.abs().max()))
    if found["bias"] is not None or float((flat_raw * factor - flat_out).abs().max()) > rounding:
        raise PointUnavailable(
            f"What layer {layer} adds passes a norm that can't be held.",
            got=f"{part.module} of {model.binding.anatomy.family}",
            because="only RMS norms are a factor on each coordinate once their denominator is held",
            instead="a model whose norms after attention and MLP are RMS norms",
        )
    return factor.reshape(raw.shape)
