"""What the parts of the self-check share: two batches of random tokens, the passes over them, and the comparison.

In a mixture of experts two passes that differ by rounding may choose another expert at a near tie, and are far apart
from there on; weights of experts magnify rounding too. Passes that are compared therefore take the same routes: choice
and weight of the pass that is wanted are written into the other. What the routers themselves say is compared apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.running import Kept, Order, call_model, forward
from mechscope.vocabulary.sites import Site

if TYPE_CHECKING:
    import mechscope.models.model

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest difference allowed, as a fraction of the compared tensor's range. The double-precision figure is set by
families that compute their softmax in single precision whatever the model's dtype."""

_LONG, _SHORT = 9, 6

_ROUTE = ("expert_choice", "expert_weight")

Routes = Mapping[Site, Tensor]
"""The experts chosen in a pass and their weights, [row, position, chosen]; empty for models without a mixture."""


@dataclass(frozen=True)
class Finding:
    """One line of the self-check.

    Args:
        part: One of the six parts.
        what: What was compared, with its layer.
        difference: Largest absolute difference over the compared tensor's range.
        holds: Whether it passed.
        note: Why not, in words.
    """

    part: str
    what: str
    difference: float
    holds: bool
    note: str = ""


def tolerance_of(model: "mechscope.models.model.Model") -> float:
    """Largest difference that a model's self-check allows, as a fraction of the compared tensor's range."""
    return _TOLERANCE[model.dtype]


class Probe:
    """Random tokens of two lengths, and the passes that several parts share.

    Args:
        model: An open model.
    """

    def __init__(self, model: "mechscope.models.model.Model") -> None:
        self.model = model
        self.binding = model.binding
        self.tolerance = tolerance_of(model)
        generator = torch.Generator().manual_seed(0)
        length = min(_LONG, model.n_context)
        rows = torch.randint(0, model.d_vocab, (2, length), generator=generator).tolist()
        self.long = batch_of(rows, pad_id=model.reader.pad_id)
        self.padded = batch_of([rows[0], rows[1][: min(_SHORT, length - 1) or 1]], pad_id=model.reader.pad_id)
        self.routers = tuple(Site("router_logits", layer) for layer in self.binding.experts)
        self.route_sites = tuple(Site(point, layer) for layer in self.binding.experts for point in _ROUTE)

    def plain(self, batch: TokenBatch) -> Tensor:
        """Logits of the untouched model under its own attention."""
        return call_model(self.binding, Frame.of(batch)).logits

    def plain_rows(self, batch: TokenBatch) -> Tensor:
        """As `plain`, row by row where the untouched model's padded forward is not finite.

        In double precision the library's additive mask overflows single-precision softmaxes to -inf.
        """
        logits = self.plain(batch)
        if bool(torch.isfinite(logits[batch.mask.bool()]).all()):
            return logits
        rows = [self.plain(batch.select([row]))[0] for row in range(len(batch))]
        return torch.stack([F.pad(row, (0, 0, batch.shape[1] - len(row), 0)) for row in rows])

    def plain_routes(self, batch: TokenBatch) -> tuple[Routes, Mapping[Site, Tensor]]:
        """Which experts the model takes under its own attention, and what its routers say."""
        if not self.routers:
            return {}, {}
        kept = forward(self.binding, Frame.of(batch), Order(capture=(*self.routers, *self.route_sites)))
        return self.routes_in(kept), {site: kept.tensors[site] for site in self.routers}

    def routes_in(self, kept: Kept) -> Routes:
        """The experts taken in a pass."""
        return {site: kept.tensors[site] for site in self.route_sites}

    def ours(self, batch: TokenBatch, routes: Routes | None = None, **order: object) -> Kept:
        """A pass under our attention function, everything formed kept.

        Args:
            batch: Tokens.
            routes: Experts to take instead of the pass's own, at as many first positions as are given.
            order: Further settings of `Order`.
        """
        wanted = order.pop("capture", tuple(self.binding.formed))
        writers = {site: _routed_as(route) for site, route in (routes or {}).items()}
        writers |= order.pop("writers", {})  # pyright: ignore
        how = Order(capture=wanted, is_ours=True, writers=writers, **order)  # pyright: ignore
        return forward(self.binding, Frame.of(batch), how)

    def compare(self, part: str, what: str, got: Tensor, wanted: Tensor) -> Finding:
        """A finding from two tensors that should be equal."""
        difference = relative_difference(got, wanted)
        return Finding(part, what, difference, difference <= self.tolerance)


def relative_difference(got: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference over the wanted tensor's range; infinite if either is not finite."""
    got, wanted = got.double().cpu(), wanted.double().cpu()
    if not bool(torch.isfinite(got).all() and torch.isfinite(wanted).all()):
        return float("inf")
    span = float(wanted.max() - wanted.min()) or 1.0
    return float((got - wanted).abs().max()) / span


def _routed_as(route: Tensor) -> Callable[[Tensor], Tensor]:
    def write(own: Tensor) -> Tensor:
        new = own.clone()
        new[:, : route.shape[1]] = route.to(own)
        return new

    return write
