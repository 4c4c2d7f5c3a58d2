"""Running: one forward pass under a plan, from tokens to captured tensors and logits.

Everything goes through here: `run`, `run_with_cache`, gradients, stop-after and start-from. The model is left as
it was found, also after an exception.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mechscope.models.attention import Call
from mechscope.models.binding import Binding
from mechscope.models.experts import runnable_experts
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.session import Plan, Stopped, session
from mechscope.vocabulary.sites import Site


@dataclass
class Kept:
    """What a pass kept: tensors by site, attention calls by layer, and the logits unless it stopped before."""

    tensors: dict[Site, Tensor] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    logits: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a pass is asked to do.

    Args:
        capture: Formed sites to keep.
        writers: Functions by site.
        stop_after: Last site to compute.
        start: A layer to start from, with its residual stream [batch, pos, d_model].
        keeps_calls: Keep the attention call of layers whose queries or keys are captured, so that their maps can
            be formed later.
        grad: Record the graph.
        is_ours: Our attention computes even where the model's own could go on, as the self-check wants it.
    """

    capture: tuple[Site, ...] = ()
    writers: Mapping[Site, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    stop_after: Site | None = None
    start: tuple[int, Tensor] | None = None
    keeps_calls: bool = False
    grad: bool = False
    is_ours: bool = False


def forward(binding: Binding, frame: Frame, order: Order) -> Kept:
    """Run the model once over the frame's tokens."""
    kept = Kept()
    plan = Plan(
        writers=dict(order.writers),
        readers={site: _keeper(kept, site, order.grad) for site in order.capture},
        stop_after=order.stop_after,
        shape=(frame.n_rows, frame.ids.shape[1]),
        is_ours=order.is_ours,
    )
    if order.keeps_calls:
        layers = [site.layer for site in order.capture if site.point in ("q", "k")]
        plan.calls = {layer: partial(kept.calls.__setitem__, layer) for layer in layers if layer is not None}
    skipped = 0
    if order.start is not None:
        skipped, arriving = order.start
        if skipped:
            find_out_what_layers_return(binding)
        site = Site("resid_pre", skipped)
        later = plan.writers.get(site)
        plan.writers[site] = lambda _old: arriving if later is None else later(arriving)
    with (
        suppress(Stopped),
        torch.inference_mode(False) if order.grad else nullcontext(),
        torch.set_grad_enabled(order.grad),
        session(binding, plan),
        passing_through(binding, skipped),
    ):
        kept.logits = call_model(binding, frame).logits
    return kept


def call_model(binding: Binding, frame: Frame, **more: Any) -> Any:
    """Call the transformers model on the frame's tokens, padding and positions said explicitly."""
    device = binding.embedding_device
    columns = torch.arange(frame.ids.shape[1])
    positions = frame.positions(columns)
    inputs: dict[str, Any] = {
        "input_ids": frame.ids[:, frame.first :].to(device),
        "attention_mask": (positions >= 0).long().to(device),
    }
    if binding.takes_positions:
        inputs["position_ids"] = positions.clamp(min=0)[:, frame.first :].to(device)
    if binding.takes_cache:
        inputs["use_cache"] = "past_key_values" in more
    with runnable_experts(binding.experts.values()):
        return binding.hf(**inputs, **more, return_dict=True)


@contextmanager
def passing_through(binding: Binding, n_layers: int) -> Generator[None, None, None]:
    """Replace the first layers by the identity for the duration of a block."""

    def forward_nothing(*args: Any, **kwargs: Any) -> Any:
        arriving = args[0] if args else kwargs["hidden_states"]
        return (arriving,) if binding.layer_returns_tuple else arriving

    with standing_in(dict.fromkeys(binding.layers[:n_layers], forward_nothing)):
        yield


@contextmanager
def standing_in(functions: Mapping[nn.Module, Callable[..., Any]]) -> Generator[None, None, None]:
    """Let functions stand in for modules' own forward passes for the duration of a block."""
    # Other libraries put a `forward` of their own on a module, so what was there comes back.
    before = {module: module.__dict__.get("forward") for module in functions}
    try:
        for module, function in functions.items():
            module.__dict__["forward"] = function
        yield
    finally:
        for module, own in before.items():
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own


def find_out_what_layers_return(binding: Binding) -> None:
    """Note whether layers return their output alone or in a tuple. Cost: one token through the model, once."""
    if binding.layer_returns_tuple is not None:
        return

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        binding.layer_returns_tuple = isinstance(output, tuple)

    handle = binding.layers[0].register_forward_hook(note)
    try:
        with torch.no_grad():
            call_model(
                binding, Frame.of(TokenBatch(torch.zeros((1, 1), dtype=torch.long), torch.zeros(1).long()))
            )
    finally:
        handle.remove()


def _keeper(kept: Kept, site: Site, grad: bool) -> Callable[[Tensor], None]:
    def keep(value: Tensor) -> None:
        if grad and value.requires_grad:
            value.retain_grad()
        kept.tensors[site] = value

    return keep
