"""Clamp: a dictionary's latent held at a value, the reconstruction error kept."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mechscope.interventions.intervention import Intervention, register_kind
from mechscope.vocabulary.errors import InterventionMismatch, NotSerializable
from mechscope.vocabulary.protocols import Codec, Tokens
from mechscope.vocabulary.where import Phase, Where


@register_kind("clamp")
@dataclass(frozen=True, kw_only=True)
class Clamp(Intervention):
    """A latent set to a value where a dictionary reads and writes the same site."""

    dictionary: Codec
    feature: int
    to: float

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        codes = self.dictionary.encode(value)
        error = value - self.dictionary.decode(codes, value)
        codes = codes.clone()
        codes[..., self.feature] = self.to
        return self.dictionary.decode(codes, value) + error

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        raise NotSerializable(
            "A clamp holds a dictionary, which is saved by its own file.",
            got=f"feature {self.feature} at {self.at}",
            instead="save the dictionary, and name its file and hash beside the feature",
        )


def clamp(
    dictionary: Codec, *, feature: int, to: float, positions: Any = None, phase: Phase = "both"
) -> Clamp:
    """Hold a latent at a value; what the dictionary does not explain is kept.

    Raises:
        InterventionMismatch: the dictionary reads one site and writes another (a transcoder).
    """
    reads, writes = list(dictionary.reads), list(dictionary.writes)
    if len(reads) != 1 or reads != writes:
        raise InterventionMismatch(
            "A clamp needs a dictionary that reads and writes one site.",
            got=f"reads {reads}, writes {writes}",
            because="a transcoder's latent acts at another site than it is read from",
            instead="model.run(splice=[transcoder])",
        )
    where = Where.of(positions, phase=phase)
    return Clamp(at=str(reads[0]), dictionary=dictionary, feature=feature, to=float(to), where=where)
