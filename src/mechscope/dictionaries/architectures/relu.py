"""ReLU with an L1 penalty (Bricken et al. 2023; Conerly et al. 2024), or an annealed Lp (Karvonen et al. 2024)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.dictionaries.architectures.base import (
    Architecture,
    Fired,
    View,
    decoder_norms,
    per_row,
    register_architecture,
)
from mechscope.dictionaries.settings import Gate

_SMALL = 1e-8


@register_architecture("relu")
@dataclass(frozen=True, kw_only=True)
class ReLU(Architecture):
    """The positive part, under an L1 penalty on value x decoder norm.

    Args:
        width: Latents.
        l1: Weight of the penalty. Values have norm sqrt(d), and the penalty is divided by that, so that the same
            number means about the same at every width of the model.
    """

    l1: float = 0.05

    def gate(self) -> Gate:
        return Gate(rule="relu")

    def fire(self, view: View) -> Fired:
        active = view.encoder.above(None)
        values = active.pre.relu()
        size = values * active.at(decoder_norms(view))
        cost = per_row(view, active, self.cost_of(size, view)) / view.encoder.inputs.shape[1] ** 0.5
        return Fired(active, values, self.l1 * view.pressure * cost)

    def cost_of(self, size: Tensor, view: View) -> Tensor:
        """What each active latent costs, from its size."""
        return size


@register_architecture("p_anneal")
@dataclass(frozen=True, kw_only=True)
class PAnneal(ReLU):
    """L1 that turns into Lp: small activations end up costing more than they bring.

    The weight is adapted so that the penalty of the batch stays what it was under L1, as p falls.

    Args:
        width: Latents.
        l1: Weight of the penalty while p is 1.
        p: Where p ends.
        begins: Fraction of training after which p falls, linearly, until the end.
    """

    p: float = 0.3
    begins: float = 0.3

    def cost_of(self, size: Tensor, view: View) -> Tensor:
        part = max(0.0, (view.done - self.begins) / (1 - self.begins))
        p = 1 + (self.p - 1) * min(1.0, part)
        if p == 1:
            return size
        # The root's slope is infinite at zero, where relu gives many exact zeros.
        powered = torch.where(size > 0, size.clamp_min(_SMALL) ** p, 0.0)
        with torch.no_grad():
            factor = size.sum() / powered.sum().clamp_min(_SMALL)
        return powered * factor
