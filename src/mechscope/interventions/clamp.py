"""Clamp: a dictionary's latent held at a value, the reconstruction error kept.

Where the latent acts on the site that it is read from, that is a function of the value. A transcoder's latent is read
earlier than it acts: what it lacks to the wanted value is kept token by token on the way, and added where it writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechscope.interventions.intervention import Intervention, register_kind
from mechscope.interventions.token_memory import TokenMemory
from mechscope.models.splicing import FittedCodec, joined_values, part_written
from mechscope.vocabulary.errors import InterventionMismatch, NotSerializable
from mechscope.vocabulary.protocols import Codec, Facts, Tokens, Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Phase, Where

Ends = tuple[tuple[Site, ...], tuple[Site, ...]]
"""Sites that a latent reads, and sites that it writes."""


@register_kind("clamp")
@dataclass(frozen=True, kw_only=True)
class Clamp(Intervention):
    """A latent set to a value."""

    dictionary: Codec
    feature: int
    to: float

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> Write:  # pyright: ignore[reportIncompatibleMethodOverride]
        """With a memory of its own for one run, where the latent is read elsewhere than it acts."""
        reads, writes = ends_of(self.dictionary, self.feature)
        if reads == writes and len(reads) == 1:
            return self
        deaf = [str(site) for site in reads if site not in sites]
        if deaf:
            raise InterventionMismatch(
                "This latent can't be clamped in one forward pass.",
                got=f"feature {self.feature}, read at {', '.join(deaf)}",
                because="the model computes that when it is asked for; nobody can listen to it on the way",
                instead="a dictionary that reads a formed site, such as mlp_in",
            )
        return HeldLatent(self, (reads, writes))

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        codes = self.dictionary.encode(value)
        error = value - self.dictionary.decode(codes, value).to(value.device)
        codes = codes.clone()
        codes[..., self.feature] = self.to
        return self.dictionary.decode(codes, value).to(value.device) + error

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        raise NotSerializable(
            "A clamp holds a dictionary, which is saved by its own file.",
            got=f"feature {self.feature} at {self.at}",
            instead="save the dictionary, and name its file and hash beside the feature",
        )


class HeldLatent:
    """A clamp in one run, of a latent that reads and acts at several sites; satisfies `Write`.

    Args:
        clamp: What to do.
        ends: Where the latent reads and writes.
    """

    def __init__(self, clamp: Clamp, ends: Ends) -> None:
        self.at, self.where = clamp.at, clamp.where
        self._clamp, (self._reads, self._writes) = clamp, ends
        codec = clamp.dictionary
        needs_values = not isinstance(codec, FittedCodec) or codec.needs_values
        self._keeps_values = needs_values or len(self._reads) > 1
        said = f"feature {clamp.feature}, clamped at {clamp.at}"
        self._heard = {site: TokenMemory(said) for site in self._reads}
        self._lacks, self._n_latents = TokenMemory(said), 0

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> Write:
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        if tokens.site in self._reads:
            self._listen(value, tokens)
        return value + self._moved(value, tokens) if tokens.site in self._writes else value

    def _listen(self, value: Tensor, tokens: Tokens) -> None:
        if self._keeps_values:
            self._heard[tokens.site].put(tokens, value)
        if tokens.site == max(self._reads):
            heard = {tokens.site: value} if not self._keeps_values else self._values(tokens)
            codes = self._clamp.dictionary.encode(joined_values(self._clamp.dictionary, heard))
            self._n_latents = codes.shape[-1]
            self._lacks.put(tokens, self._clamp.to - codes[..., self._clamp.feature])

    def _moved(self, value: Tensor, tokens: Tokens) -> Tensor:
        """What the latent writes too little, at this site; decoders are linear in the codes."""
        codec, lacks = self._clamp.dictionary, self._lacks.of(tokens)
        if self._keeps_values:
            codes = lacks.new_zeros(len(lacks), self._n_latents)
            codes[:, self._clamp.feature] = lacks
            values = joined_values(codec, self._values(tokens))
            written = codec.decode(codes, values) - codec.decode(torch.zeros_like(codes), values)
        else:
            codes = lacks.new_zeros(2, self._n_latents)
            codes[0, self._clamp.feature] = 1
            written = codec.decode(codes)
            written = lacks.reshape(-1, *[1] * (written.ndim - 1)) * (written[:1] - written[1:])
        return part_written(codec, written, tokens.site).reshape(value.shape).to(value)

    def _values(self, tokens: Tokens) -> dict[Site, Tensor]:
        return {site: memory.of(tokens) for site, memory in self._heard.items()}


def ends_of(dictionary: Codec, feature: int) -> Ends:
    """Sites that a latent reads, and sites that it writes."""
    if isinstance(dictionary, FittedCodec):
        reads, writes = dictionary.sites_of(feature)
        return tuple(reads), tuple(writes)
    return tuple(dictionary.reads), tuple(dictionary.writes)


def clamp(
    dictionary: Codec, *, feature: int, to: float, positions: Any = None, phase: Phase = "both"
) -> Clamp:
    """Hold a latent at a value; what the dictionary does not explain is kept.

    A transcoder's latent acts at the sites that it writes; of a cross-layer transcoder, at each of them.

    Raises:
        InterventionMismatch: the latent acts at an earlier site than it is read from (most crosscoders).
        DictionaryMismatch: the dictionary has no such latent.
    """
    reads, writes = ends_of(dictionary, feature)
    later = [str(site) for site in reads if site > min(writes)]
    if later:
        raise InterventionMismatch(
            "This latent can't be clamped in one forward pass.",
            got=f"feature {feature} acts at {min(writes)} and is read at {', '.join(later)} too",
            because="those sites are computed later than the one it would act at",
            instead="ms.add of its decoder row at a site",
        )
    where = Where.of(positions, phase=phase)
    at = ",".join(str(site) for site in sorted({*reads, *writes}))
    return Clamp(at=at, dictionary=dictionary, feature=feature, to=float(to), where=where)
