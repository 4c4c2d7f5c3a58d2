"""Paths: the metric's gradient at a site, averaged over values between two runs: integrated gradients.

Each site is moved alone; everything before it stays as it is in the run where the gradient is taken, everything after
follows. The steps go through as copies of the prompts, as many at once as fit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from mechscope.attribution.holding import Writer
from mechscope.attribution.linearization import Linearization
from mechscope.attribution.passes import Pass, Request, run_backward
from mechscope.attribution.settings import steps_of
from mechscope.interventions.metrics import Metric
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Prompts and the steps of an integral.

    Args:
        model: An open model.
        prompts: Where the gradient is taken.
        metric: For these prompts.
        steps: How many.
        rule: Where between the ends they lie; see `steps_of`.
        linearization: What gradients see.
        n_at_once: Rows of one pass.
    """

    model: Model
    prompts: TokenBatch
    metric: Metric
    steps: int
    rule: str
    linearization: Linearization
    n_at_once: int

    def gradient(
        self,
        site: Site,
        ends: tuple[Tensor, Tensor],
        arriving: Tensor,
        *,
        writers: Mapping[Site, Writer] = MappingProxyType({}),
    ) -> tuple[Tensor, list[Pass]]:
        """The mean gradient at a site, shaped as it is, and the passes that it is from.

        Args:
            site: Of a layer.
            ends: Its values at 0 (the corrupt end) and 1 (the clean end).
            arriving: The residual stream at that layer's input in the prompts' own run.
            writers: More that is written, by site.
        """
        start, end = ends
        mean, passes = torch.zeros_like(end), list[Pass]()
        for places, weights in self._steps():
            n = len(places)
            path = between(start, end, places)
            request = Request(
                at=(site,),
                writers=dict(writers) | {site: lambda _, path=path: path},
                start=(site.layer, _copies(arriving, n)) if site.layer else None,
                n_copies=n,
                linearization=self.linearization,
            )
            found = run_backward(self.model, self.prompts, self.metric, request)
            passes.append(found)
            gradients = found.gradients[site].unflatten(0, (n, -1))
            mean += torch.tensordot(weights.to(gradients), gradients, dims=1)
        return mean, passes

    def _steps(self) -> Iterator[tuple[Tensor, Tensor]]:
        places, weights = steps_of(self.steps, self.rule)
        n = max(1, self.n_at_once // len(self.prompts))
        return zip(places.split(n), weights.split(n), strict=True)


def between(corrupt: Tensor, clean: Tensor, places: Tensor) -> Tensor:
    """Values between two, [place * batch, ...]; masked entries of scores stay -inf."""
    steps = places.to(corrupt).reshape(-1, *[1] * corrupt.ndim)
    both = corrupt + steps * torch.where(torch.isfinite(corrupt), clean - corrupt, 0.0)
    return both.flatten(0, 1).requires_grad_()


def _copies(value: Tensor, n: int) -> Tensor:
    return value.repeat(n, *[1] * (value.ndim - 1)).requires_grad_()
