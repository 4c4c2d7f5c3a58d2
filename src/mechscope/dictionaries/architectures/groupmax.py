"""GroupMax: the largest latent of each of k groups of consecutive latents."""

from dataclasses import dataclass

import torch

from mechscope.dictionaries.architectures.base import Architecture, Fired, View, register_architecture
from mechscope.dictionaries.kernels.pattern import Pattern
from mechscope.dictionaries.settings import Gate


@register_architecture("groupmax")
@dataclass(frozen=True, kw_only=True)
class GroupMax(Architecture):
    """One latent of each group for every token.

    Args:
        width: Latents; a multiple of k.
        k: Groups.
    """

    prices_sites = False

    k: int

    def gate(self) -> Gate:
        return Gate(rule="groupmax", k=self.k)

    def fire(self, view: View) -> Fired:
        encoder = view.encoder
        with torch.no_grad():
            grouped = encoder.product().view(encoder.n_rows, self.k, -1)
            first = torch.arange(self.k, device=grouped.device) * grouped.shape[2]
            chosen = grouped.argmax(2) + first
        active = encoder.at(Pattern.of_rectangle(chosen, encoder.n_latents))
        return Fired(active, active.pre.relu())
