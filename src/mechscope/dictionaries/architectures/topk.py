"""TopK (Makhzani & Frey 2013; Gao et al. 2024): the k largest pre-activations of each token."""

from dataclasses import dataclass

from mechscope.dictionaries.architectures.base import Architecture, Fired, View, register_architecture
from mechscope.dictionaries.settings import Gate


@register_architecture("topk")
@dataclass(frozen=True, kw_only=True)
class TopK(Architecture):
    """k latents for every token.

    Args:
        width: Latents.
        k: Active latents per token.
    """

    has_aim = True
    prices_sites = False

    k: int

    def gate(self) -> Gate:
        return Gate(rule="topk", k=self.k)

    def fire(self, view: View) -> Fired:
        active = view.encoder.top(view.loosened(self.k))
        return Fired(active, active.pre.relu())
