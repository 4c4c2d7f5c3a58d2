"""Passes: one forward and one backward pass, from prompts to values and to the metric's gradients at sites.

Only the positions that the metric reads are unembedded, only the columns that it reads; weights get no gradient.
Several copies of the prompts (the steps of an integral) go through as one batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechscope.attribution.holding import Writer, holding
from mechscope.attribution.linearization import Linearization
from mechscope.engine.naive import read_columns
from mechscope.interventions.metrics import Metric
from mechscope.models.attention import Call
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.models.running import Order, forward
from mechscope.vocabulary.errors import NoGradient
from mechscope.vocabulary.sites import Site

BYTES_OF_GRAPH = 2**31
"""Activations that one pass may keep for its backward pass; more prompts or steps go through in several."""

_ZERO_DIVERGENCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a pass is asked for.

    Args:
        values: Sites whose values are kept.
        at: Sites where the gradient is taken.
        linearization: What gradients see.
        writers: Values written, by site.
        start: A layer to start from, and what arrives there.
        n_copies: Copies of the prompts, one after the other, in the batch.
        keeps_calls: Keep each layer's attention call.
        dropped: Sites whose gradient is set to zero, one backward pass for each group of them.
    """

    values: tuple[Site, ...] = ()
    at: tuple[Site, ...] = ()
    linearization: Linearization = field(default_factory=Linearization)
    writers: Mapping[Site, Writer] = field(default_factory=dict)
    start: tuple[int, Tensor] | None = None
    n_copies: int = 1
    keeps_calls: bool = False
    dropped: tuple[tuple[Site, ...], ...] = ()


@dataclass(frozen=True)
class Pass:
    """What a pass gave; nothing here holds a graph.

    Args:
        values: Tensors by site.
        gradients: Of the metric summed over rows, by site; zeros where it does not depend on the site.
        final: Gradient at the residual stream that the logits read, [batch, read, d_model].
        columns: Columns read, [batch, read].
        measured: The metric, [copy, row].
        calls: Attention calls by layer.
        dropped: Gradients by site, one mapping for each group of dropped sites.
    """

    values: dict[Site, Tensor]
    gradients: dict[Site, Tensor]
    final: Tensor
    columns: Tensor
    measured: Tensor
    calls: dict[int, Call]
    dropped: tuple[dict[Site, Tensor], ...] = ()


def run_plain(model: Model, batch: TokenBatch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Values at sites of an ordinary run, up to the last layer's output."""
    last = Site("resid_post", model.n_layers - 1)
    with torch.no_grad(), model.ready():
        order = Order(capture=tuple(sorted(set(sites))), stop_after=last)
        return forward(model.binding, Frame.of(batch), order).tensors


def run_backward(model: Model, batch: TokenBatch, metric: Metric, request: Request) -> Pass:
    """Run prompts and take the metric's gradients.

    Args:
        model: An open model.
        batch: The prompts, once.
        metric: For these prompts.
        request: What is wanted.

    Raises:
        NoGradient: the metric is not differentiable.

    Cost: one forward pass, and one backward pass (one more for each group of dropped sites).
    """
    batch = copies_of(batch, request.n_copies)
    frame = Frame.of(batch)
    last = Site("resid_post", model.n_layers - 1)
    drops = {site for group in request.dropped for site in group}
    wanted = {*request.values, *request.at, *drops, last}
    with model.ready(), holding(model, request.linearization) as rules:
        order = Order(
            capture=tuple(sorted(wanted)),
            writers=rules | dict(request.writers),
            stop_after=last,
            start=request.start,
            keeps_calls=request.keeps_calls,
            grad=True,
        )
        kept = forward(model.binding, frame, order)
        with torch.inference_mode(False), torch.enable_grad():
            final = kept.tensors[last]
            columns = read_columns(frame, metric.reading().positions).to(final.device)
            read = final[torch.arange(len(batch), device=final.device)[:, None], columns]
            measured = measure(model, metric, read, request.n_copies)
            sites, taken = list(request.at), [kept.tensors[site] for site in request.at]
            gradients, *rest = _backward(measured, [*taken, read], kept.tensors, request.dropped)
    return Pass(
        values={site: kept.tensors[site].detach() for site in request.values},
        gradients=dict(zip(sites, gradients, strict=False)),
        final=gradients[-1],
        columns=columns,
        measured=measured.detach(),
        calls=kept.calls,
        dropped=tuple(dict(zip(sites, found, strict=False)) for found in rest),
    )


def measure(model: Model, metric: Metric, residual: Tensor, n_copies: int) -> Tensor:
    """The metric of each copy, [copy, row], from the residual stream where it reads; keeps the graph."""
    head, wanted = head_of(model.binding), metric.reading().columns
    if wanted is None:
        logits = head(residual)
    else:
        unique, places = torch.unique(wanted, return_inverse=True)
        index = places.reshape(wanted.shape).repeat(n_copies, 1).to(residual.device)
        logits = head(residual, unique.to(residual.device))
        logits = logits.gather(-1, index[:, None].expand(-1, logits.shape[1], -1))
    return torch.stack([metric.measure(part) for part in logits.chunk(n_copies)])


def copies_of(batch: TokenBatch, n: int) -> TokenBatch:
    """The prompts n times, one after the other."""
    return batch if n == 1 else TokenBatch(batch.ids.repeat(n, 1), batch.n_pad.repeat(n), batch.bos)


def rows_at_once(model: Model, n_columns: int) -> int:
    """Rows of a pass whose graph fits into `BYTES_OF_GRAPH`."""
    widths = 14 * model.d_model + 4 * model.sizes.get("d_mlp", 4 * model.d_model)
    widths += 2 * n_columns * model.n_heads
    per_row = n_columns * model.n_layers * widths * model.dtype.itemsize
    return max(1, BYTES_OF_GRAPH // per_row)


def refuse_flat_metric(metric: Metric, passes: Sequence[Pass]) -> None:
    """Refuse a metric whose gradient is zero wherever it was taken.

    Raises:
        NoGradient
    """
    is_flat = all(not bool(p.final.any()) for p in passes)
    is_flat = is_flat or (
        metric.kind == "kl" and all(float(p.measured.abs().max()) < _ZERO_DIVERGENCE for p in passes)
    )
    if is_flat:
        raise NoGradient(
            "The metric's gradient is zero where it is taken, so every score would be zero.",
            got=f"{metric.kind}, {float(passes[0].measured.mean()):.3g} in the run where the gradient is taken",
            because="a divergence is at its minimum in its own reference run"
            if metric.kind == "kl"
            else "nothing that the metric reads depends on the prompts' activations",
            instead='direction="denoising", an integrated method ("ig", "eap-ig"), or a logit difference',
        )


def _backward(
    measured: Tensor,
    at: Sequence[Tensor],
    tensors: Mapping[Site, Tensor],
    dropped: Sequence[Sequence[Site]],
) -> list[list[Tensor]]:
    """Gradients of the sum of the metric at tensors: as they are, then with each group of sites dropped."""
    if not measured.requires_grad:
        raise NoGradient(
            "The metric has no gradient.",
            got=f"values such as {measured.detach().flatten()[:3].tolist()}",
            because="it counts or ranks, so small changes of the logits do not change it",
            instead="a logit difference, a log-probability or a probability difference",
        )
    found: list[list[Tensor]] = []
    for index, group in enumerate([(), *dropped]):
        gone = [tensors[site] for site in group]
        handles = [tensor.register_hook(torch.zeros_like) for tensor in gone]
        gradients = torch.autograd.grad(
            measured.sum(), list(at), allow_unused=True, retain_graph=index < len(dropped)
        )
        for handle in handles:
            handle.remove()
        # Autograd hands out the gradient of a tensor that is asked for from before its hook.
        is_zero = [g is None or any(t is dead for dead in gone) for g, t in zip(gradients, at, strict=True)]
        found.append(
            [torch.zeros_like(t) if z else g for z, g, t in zip(is_zero, gradients, at, strict=True)]
        )
    return found
