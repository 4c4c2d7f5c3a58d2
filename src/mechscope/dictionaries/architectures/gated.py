"""Gated (Rajamanoharan et al. 2024): one path decides whether a latent fires, another how strongly."""

from dataclasses import dataclass
from typing import ClassVar

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


@register_architecture("gated")
@dataclass(frozen=True, kw_only=True)
class Gated(Architecture):
    """A gate path under L1, a magnitude path that is not shrunk.

    Args:
        width: Latents.
        l1: Weight of the penalty on the gate path; see `ReLU`.
    """

    has_encoder_bias: ClassVar[bool] = False

    l1: float = 0.05

    def gate(self) -> Gate:
        return Gate(rule="gated")

    def own_tensors(self, encoder: Tensor) -> dict[str, Tensor]:
        zeros = torch.zeros_like(encoder[:, 0])
        return {"b_gate": zeros, "b_mag": zeros.clone(), "r_mag": zeros.clone()}

    def fire(self, view: View) -> Fired:
        b_gate, b_mag, r_mag = (view.tensors[name] for name in ("b_gate", "b_mag", "r_mag"))
        active = view.encoder.above(-b_gate.detach())
        opening = active.pre + active.at(b_gate)
        size = (active.pre * active.at(r_mag).exp() + active.at(b_mag)).relu()
        values = torch.where(opening > 0, size, 0.0)
        opening = opening.relu()
        cost = per_row(view, active, opening * active.at(decoder_norms(view)))
        penalty = self.l1 * view.pressure * cost / view.encoder.inputs.shape[1] ** 0.5
        # The gate path learns to reconstruct through a decoder that does not move for it.
        frozen = active.decode(opening, view.decoder.detach())
        return Fired(active, values, penalty, extra=[(1.0, frozen)])
