"""Planted activations as blocks of a harvest, so that the dictionaries' trainer reads them as it reads a model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mechscope.specimens.planted.stream import PlantedStream
from mechscope.vocabulary.sites import Site

PLANTED_SITE = Site("resid_post", layer=0)
"""Planted activations belong to no model; they are called this where a site must be named."""


@dataclass(frozen=True, eq=False)
class PlantedBlocks:
    """A stream whose batches are blocks; satisfies `engine.harvest.blocks.Blocks`."""

    stream: PlantedStream

    @property
    def shapes(self) -> Mapping[Site, tuple[int, ...]]:
        """What the site carries at one position."""
        return {PLANTED_SITE: (self.stream.truth.settings.d_model,)}

    @property
    def sizes(self) -> Sequence[int]:
        """Tokens of each block."""
        size, n = self.stream.batch_tokens, self.stream.n_tokens
        return [min(size, n - start) for start in range(0, n, size)]

    def block(self, index: int) -> dict[Site, Tensor]:
        """Activations of one block by site, [token, d_model]."""
        return {PLANTED_SITE: self.stream.batch(index).activations}
