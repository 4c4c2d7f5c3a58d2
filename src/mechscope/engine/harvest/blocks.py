"""Blocks: a corpus's activations in pieces that fit memory, each computed anew from its number.

A block is some rows of the (shuffled) corpus, run through the model up to the last site asked for; its content
depends on nothing but its number, so that whoever was interrupted goes on from a number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mechscope.engine.harvest.corpus import TokenCorpus
from mechscope.models.model import Model
from mechscope.models.writing import to_token_form
from mechscope.vocabulary.errors import NonFiniteActivations
from mechscope.vocabulary.sites import Site


@runtime_checkable
class Blocks(Protocol):
    """Activations by block: from a model (`ModelBlocks`) or a store (`ActivationStore`)."""

    @property
    def shapes(self) -> Mapping[Site, tuple[int, ...]]:
        """What each site carries at one position."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """Tokens of each block."""
        ...

    def block(self, index: int) -> dict[Site, Tensor]:
        """Values of one block by site, [tokens, width]."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelBlocks:
    """Activations computed when they are asked for.

    Args:
        model: An open model.
        corpus: In the order in which it is to be read: `corpus.shuffled(seed)`.
        sites: Sites wanted.
        rows_per_block: Rows of the corpus in a block.
        rows_at_once: Rows of one forward pass.
        dtype: Of the values given; None leaves them as the model forms them.
    """

    model: Model
    corpus: TokenCorpus
    sites: tuple[Site, ...]
    rows_per_block: int = 512
    rows_at_once: int = 32
    dtype: torch.dtype | None = None

    @property
    def shapes(self) -> dict[Site, tuple[int, ...]]:
        """What each site carries at one position, read off one token."""
        return self._shapes

    @property
    def sizes(self) -> list[int]:
        """Tokens of each block."""
        return self._sizes

    @cached_property
    def _shapes(self) -> dict[Site, tuple[int, ...]]:
        first = self.corpus.row(0)[:1].long()
        run = self.model.run(first, capture=list(self.sites), stop_after=max(self.sites))
        return {site: tuple(to_token_form(run[site], site.row).shape[2:]) for site in self.sites}

    @cached_property
    def _sizes(self) -> list[int]:
        starts = range(0, self.corpus.n_rows, self.rows_per_block)
        return [int(self.corpus.wanted[start : start + self.rows_per_block].sum()) for start in starts]

    def block(self, index: int) -> dict[Site, Tensor]:
        """Values of one block by site, [tokens, width], on the model's device.

        Raises:
            NonFiniteActivations: names the site.

        Cost: the block's rows through the model, up to the last site.
        """
        parts: dict[Site, list[Tensor]] = {site: [] for site in self.sites}
        for rows in self.row_batches(index):
            for site, values in self._of_rows(rows).items():
                parts[site].append(values)
        found = {site: torch.cat(values) for site, values in parts.items()}
        refuse_non_finite(found, f"block {index}")
        return found

    def row_batches(self, index: int) -> list[list[int]]:
        """A block's rows, those of like length together so that little is padded."""
        start = index * self.rows_per_block
        rows = torch.arange(start, min(start + self.rows_per_block, self.corpus.n_rows))
        rows = rows[self.corpus.wanted[rows] > 0]
        order = rows[self.corpus.lengths[rows].argsort(stable=True)].tolist()
        return [order[at : at + self.rows_at_once] for at in range(0, len(order), self.rows_at_once)]

    def tokens_of(self, index: int) -> dict[str, Tensor]:
        """Token id, row of the corpus and position of every value of a block, in the same order."""
        found: dict[str, list[Tensor]] = {"token": [], "row": [], "position": []}
        for rows in self.row_batches(index):
            batch, mask = self.corpus.batch(rows)
            places, columns = mask.nonzero(as_tuple=True)
            found["token"].append(batch.ids[mask])
            found["row"].append(torch.tensor(rows)[places])
            found["position"].append(columns - batch.n_pad[places])
        return {name: torch.cat(values).to(torch.int32) for name, values in found.items()}

    def _of_rows(self, rows: list[int]) -> dict[Site, Tensor]:
        batch, mask = self.corpus.batch(rows, self.model.reader.pad_id)
        run = self.model.run(batch, capture=list(self.sites), stop_after=max(self.sites))
        found: dict[Site, Tensor] = {}
        for site in self.sites:
            values = to_token_form(run[site], site.row)
            found[site] = values[mask.to(values.device)].flatten(1).to(self.dtype or values.dtype)
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class KeptBlocks:
    """Blocks that stay in memory once they were computed: later passes over a short text cost no forward pass.

    Args:
        source: Where they come from.
    """

    source: Blocks
    _kept: dict[int, dict[Site, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def shapes(self) -> Mapping[Site, tuple[int, ...]]:
        """Those of the source."""
        return self.source.shapes

    @property
    def sizes(self) -> Sequence[int]:
        """Those of the source."""
        return self.source.sizes

    def block(self, index: int) -> dict[Site, Tensor]:
        """Values of one block by site, computed the first time; not to be written to."""
        if index not in self._kept:
            self._kept[index] = self.source.block(index)
        return dict(self._kept[index])


@dataclass(frozen=True, eq=False)
class TensorBlocks:
    """Activations that are in memory already; satisfies `Blocks`.

    Args:
        values: By site, [tokens, *shape].
        tokens_per_block: Tokens shuffled together.
    """

    values: Mapping[Site, Tensor]
    tokens_per_block: int = 2**17

    @property
    def shapes(self) -> dict[Site, tuple[int, ...]]:
        return {site: tuple(value.shape[1:]) for site, value in self.values.items()}

    @property
    def sizes(self) -> list[int]:
        n = len(next(iter(self.values.values())))
        return [min(self.tokens_per_block, n - at) for at in range(0, n, self.tokens_per_block)]

    def block(self, index: int) -> dict[Site, Tensor]:
        """Values of one block by site, [tokens, width].

        Raises:
            NonFiniteActivations
        """
        start = index * self.tokens_per_block
        found = {s: v[start : start + self.tokens_per_block].flatten(1) for s, v in self.values.items()}
        refuse_non_finite(found, f"block {index}")
        return found


def refuse_non_finite(values: Mapping[Site, Tensor], where: str) -> None:
    """Refuse NaN and infinite activations.

    Raises:
        NonFiniteActivations
    """
    bad = [str(site) for site, value in values.items() if not bool(value.isfinite().all())]
    if bad:
        raise NonFiniteActivations(
            f"The activations at {', '.join(bad)} are not finite.",
            got=where,
            because="one NaN makes every weight of a dictionary NaN",
            instead="run the model in bfloat16 or float32; look at the text of that block",
        )
