"""Matching pursuit (Costa et al. 2025): k greedy steps against what is left; encoder and decoder are one."""

from dataclasses import dataclass
from typing import ClassVar

from mechscope.dictionaries.architectures.base import Architecture, Fired, View, register_architecture
from mechscope.dictionaries.kernels.active import Active
from mechscope.dictionaries.kernels.pattern import Pattern
from mechscope.dictionaries.pursuit import pursue
from mechscope.dictionaries.settings import Gate


@register_architecture("matching_pursuit")
@dataclass(frozen=True, kw_only=True)
class MatchingPursuit(Architecture):
    """k steps for every token; gradients go through the steps, not through the choices.

    Args:
        width: Latents.
        k: Steps.
    """

    decoder_norm: ClassVar[str] = "unit"
    has_encoder_bias: ClassVar[bool] = False
    ties_encoder: ClassVar[bool] = True
    has_aim: ClassVar[bool] = True
    prices_sites: ClassVar[bool] = False

    k: int

    def gate(self) -> Gate:
        return Gate(rule="matching_pursuit", k=self.k)

    def fire(self, view: View) -> Fired:
        encoder = view.encoder
        inputs = encoder.inputs if encoder.shift is None else encoder.inputs - encoder.shift
        values, latents = pursue(inputs, view.decoder, k=view.loosened(self.k))
        pattern = Pattern.of_rectangle(latents, encoder.n_latents)
        return Fired(Active(values.reshape(-1), pattern), values.reshape(-1))
