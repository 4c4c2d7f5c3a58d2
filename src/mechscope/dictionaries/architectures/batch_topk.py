"""BatchTopK (Bussmann et al. 2024): the k x n largest pre-activations of a batch of n tokens.

Kept as a JumpReLU whose one threshold is the running mean of the smallest value that passed. Latents of a crosscoder
are ranked by pre-activation x summed norms of their decoder rows, since no one norm holds these to a length; kept, each
has the threshold that is the same one on that scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.dictionaries.architectures.base import (
    Architecture,
    Fired,
    View,
    register_architecture,
    sizes_by_site,
)
from mechscope.dictionaries.settings import Gate

MEMORY = 0.99
"""Weight of the past in the running threshold."""


@register_architecture("batch_topk")
@dataclass(frozen=True, kw_only=True)
class BatchTopK(Architecture):
    """k latents per token on average.

    Args:
        width: Latents.
        k: Active latents per token, on average; need not be whole.
    """

    has_aim = True

    k: float

    def gate(self) -> Gate:
        return Gate(rule="jumprelu")

    def own_buffers(self, encoder: Tensor) -> dict[str, Tensor]:
        # [sum of smallest values with fading weights, sum of the weights]
        return {"passed": torch.zeros(2, dtype=torch.float64, device=encoder.device)}

    def fire(self, view: View) -> Fired:
        n = max(1, round(self.k * view.looseness * view.encoder.n_rows))
        n = min(n, view.encoder.n_rows * view.encoder.n_latents)
        sizes = sizes_by_site(view.decoder.detach(), view.widths)
        active = view.encoder.top_of_batch(n, sizes)
        values = active.pre.relu()
        with torch.no_grad():
            ranked = values if sizes is None else values * active.at(sizes)
            smallest = torch.where(values > 0, ranked, torch.inf).amin().double()
            is_any = smallest.isfinite()
            seen = torch.stack([torch.where(is_any, smallest, 0.0), is_any.double()])
            view.buffers["passed"] = view.buffers["passed"] * MEMORY + (1 - MEMORY) * seen
        return Fired(active, values)

    def finished(
        self, tensors: dict[str, Tensor], buffers: Mapping[str, Tensor], sizes: Tensor | None
    ) -> dict[str, Tensor]:
        total, weight = buffers["passed"]
        threshold = (total / weight if weight > 0 else total).to(tensors["b_enc"])
        each = torch.full_like(tensors["b_enc"], float(threshold))
        if sizes is not None:  # a latent that writes nothing is never above the threshold
            each = torch.where(sizes > 0, each / sizes, torch.inf)
        return tensors | {"threshold": each}
