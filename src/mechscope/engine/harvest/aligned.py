"""Aligned: the same tokens through several models, their activations side by side, token by token.

Every model reads the same rows in the same batches, so that value i of one model belongs to the token of value i of
another. Refuses parts that would come apart: another corpus, other rows of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mechscope.engine.harvest.blocks import ModelBlocks
from mechscope.vocabulary.errors import PairLengthMismatch
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True, repr=False)
class SiteOf(Site):
    """A site in one of several models; equal to the same site of no other model, nor to the site by itself.

    Args:
        model: The model's label.

    >>> str(SiteOf("resid_post", 2, "base"))
    'base: resid_post.2'
    """

    model: str = ""

    @property
    def bare(self) -> Site:
        """The site, whosever it is."""
        return Site(self.point, self.layer)

    def __str__(self) -> str:
        return f"{self.model}: {self.bare}"

    def __repr__(self) -> str:
        return f"SiteOf({self.point!r}, {self.layer}, {self.model!r})"


@dataclass(frozen=True, eq=False)
class AlignedBlocks:
    """Activations of several models on one corpus; satisfies `Blocks`.

    Args:
        parts: By the model's label; the same corpus in the same order, and rows in the same batches.

    Raises:
        PairLengthMismatch: their tokens would not stand side by side.
    """

    parts: Mapping[str, ModelBlocks]

    def __post_init__(self) -> None:
        told = {
            (part.corpus.data_sha256, part.rows_per_block, part.rows_at_once) for part in self.parts.values()
        }
        if len(told) != 1:
            raise PairLengthMismatch(
                "The models' activations would not belong to the same tokens.",
                got="; ".join(
                    f"{label}: text {part.corpus.data_sha256[:12]}, {part.rows_per_block} rows a block, "
                    f"{part.rows_at_once} at once"
                    for label, part in self.parts.items()
                ),
                because="what one model has at a token is compared with what another has at the same token",
                instead="one corpus in one order, with rows_per_block and rows_at_once alike",
            )

    @property
    def shapes(self) -> dict[Site, tuple[int, ...]]:
        """What each site of each model carries at one position."""
        return {
            SiteOf(site.point, site.layer, label): shape
            for label, part in self.parts.items()
            for site, shape in part.shapes.items()
        }

    @property
    def sizes(self) -> Sequence[int]:
        """Tokens of each block."""
        return next(iter(self.parts.values())).sizes

    def block(self, index: int) -> dict[Site, Tensor]:
        """Values of one block by site and model, [tokens, width], on each model's device.

        Raises:
            NonFiniteActivations: names the site.

        Cost: the block's rows through every model.
        """
        return {
            SiteOf(site.point, site.layer, label): values
            for label, part in self.parts.items()
            for site, values in part.block(index).items()
        }
