"""JumpReLU (Rajamanoharan et al. 2024; Conerly et al. 2025): a learned threshold for each latent.

Thresholds get gradients by straight-through estimators inside a band around them; they are kept themselves, not
their logarithm, under which Adam hardly moves them. In a narrow band gradients are so rare that Adam takes each at its
full step, thresholds drift off, and their latents die; in a wide one so many latents take part that a step is no faster
than a dense one. Nothing lowers the threshold of a latent that died, so it is given the living ones' median, and AuxK
can bring it back.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mechscope.dictionaries.architectures.base import (
    Architecture,
    Fired,
    View,
    decoder_norms,
    per_row,
    register_architecture,
)
from mechscope.dictionaries.settings import Gate


@register_architecture("jumprelu")
@dataclass(frozen=True, kw_only=True)
class JumpReLU(Architecture):
    """A threshold for each latent.

    Args:
        width: Latents.
        l0: Active latents per token to aim at ("quadratic"); elsewhere only where thresholds start.
        sparsity: "quadratic": coefficient x (L0 / l0 - 1)^2; "step": coefficient x L0 / l0; "tanh": coefficient x
            the sum of tanh(steepness x value x decoder norm) / l0.
        coefficient: Weight of the penalty beside the mean squared error, which is 1 for a dictionary of nothing.
        bandwidth: Of the band around a threshold, in units of normalised values (Conerly et al. take 2).
        start: L0 of the first batch, as a multiple of `l0`: thresholds start there.
        steepness: Of "tanh".
    """

    decoder_norm = "unit"
    has_aim = True

    l0: float = 32.0
    sparsity: Literal["quadratic", "step", "tanh"] = "quadratic"
    coefficient: float = 1.0
    bandwidth: float = 1.0
    start: float = 4.0
    steepness: float = 4.0

    def gate(self) -> Gate:
        return Gate(rule="jumprelu")

    def own_tensors(self, encoder: Tensor) -> dict[str, Tensor]:
        return {"threshold": torch.zeros_like(encoder[:, 0])}

    def prepare(self, view: View) -> None:
        pre = view.encoder.product().float()
        n = min(max(1, round(self.start * self.l0 * len(pre))), pre.numel() - 1)
        value = pre.reshape(-1).kthvalue(pre.numel() - n).values.clamp_min(0.0)
        view.tensors["threshold"].data.fill_(float(value))

    def fire(self, view: View) -> Fired:
        threshold = view.tensors["threshold"]
        floor = threshold.detach() - (self.bandwidth / 2 if torch.is_grad_enabled() else 0.0)
        active = view.encoder.above(floor)
        at = active.at(threshold)
        values = _Jump.apply(active.pre, at, self.bandwidth)
        return Fired(active, values, self._penalty(view, active, values, at) * view.pressure)

    def after_step(self, tensors: "Any") -> None:
        tensors["threshold"].data.clamp_min_(0.0)

    def revive(self, tensors: "Any", is_dead: Tensor) -> None:
        threshold = tensors["threshold"].data
        threshold.copy_(torch.where(is_dead, threshold.minimum(threshold[~is_dead].median()), threshold))

    def _penalty(self, view: View, active: Any, values: Tensor, at: Tensor) -> Tensor:
        aim = self.l0 * view.looseness
        if self.sparsity == "tanh":
            size = values * active.at(decoder_norms(view))
            return self.coefficient * per_row(view, active, (self.steepness * size).tanh()) / aim
        l0 = per_row(view, active, _Step.apply(active.pre, at, self.bandwidth)) / aim
        return self.coefficient * ((l0 - 1) ** 2 if self.sparsity == "quadratic" else l0)


class _Jump(torch.autograd.Function):
    """pre where pre > threshold, else 0; the threshold's gradient is that of a band."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        is_on = pre > threshold
        ctx.save_for_backward(pre, threshold, is_on)
        ctx.bandwidth = bandwidth
        return torch.where(is_on, pre, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        pre, threshold, is_on = ctx.saved_tensors
        band = ((pre - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        of_threshold = -threshold * band * grad
        return grad * is_on, _like(of_threshold, threshold), None


class _Step(torch.autograd.Function):
    """1 where pre > threshold; only the threshold has a gradient, that of a band."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        pre, threshold = ctx.saved_tensors
        band = ((pre - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return None, _like(-band * grad, threshold), None


def _like(grad: Tensor, threshold: Tensor) -> Tensor:
    """Summed over rows where one threshold serves a column of a dense matrix."""
    return grad.sum(0) if grad.ndim > threshold.ndim else grad
