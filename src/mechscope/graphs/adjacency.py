"""Adjacency: direct effects between nodes, rows the targets, in blocks whose rows share their columns.

Sources that no path connects to a target have no column there, and a block of mostly zeros keeps what is not zero, so
the matrix is as sparse as the model is causal. Blocks stand in topological order, last targets first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechscope.graphs.row_blocks import Block, RowBlock, input_sizes, packed


@dataclass(frozen=True, eq=False)
class Adjacency:
    """A graph's matrix.

    Args:
        n_nodes: Rows and columns of the whole matrix.
        blocks: In topological order, last targets first.
    """

    n_nodes: int
    blocks: Sequence[Block]

    @property
    def n_edges(self) -> int:
        """Entries that are not zero."""
        return sum(block.n_edges for block in self.blocks)

    @property
    def n_bytes(self) -> int:
        """Memory of the entries and their columns."""
        return sum(block.n_bytes for block in self.blocks)

    def to_dense(self) -> Float[np.ndarray, "target source"]:
        """The whole matrix. Memory: the square of the number of nodes."""
        dtype = self.blocks[0].values.dtype if self.blocks else np.float32
        out = np.zeros((self.n_nodes, self.n_nodes), dtype)
        for block in self.blocks:
            out[np.ix_(block.targets, block.sources)] = block.values
        return out

    def row(self, target: int) -> tuple[Int[np.ndarray, " column"], Float[np.ndarray, " column"]]:
        """Sources of a target, rising, and their effects; zeros may be among them."""
        for block in self.blocks:
            here = np.flatnonzero(block.targets == target)
            if len(here):
                return block.row(int(here[0]))
        return np.zeros(0, np.int64), np.zeros(0)

    def column(self, source: int) -> tuple[Int[np.ndarray, " row"], Float[np.ndarray, " row"]]:
        """Targets of a source, and its effects on them."""
        targets, values = [np.zeros(0, np.int64)], [np.zeros(0)]
        for block in self.blocks:
            here = np.searchsorted(block.sources, source)
            if here < len(block.sources) and block.sources[here] == source:
                targets.append(block.targets)
                values.append(block.column(int(here)))
        return np.concatenate(targets), np.concatenate(values)

    def weight(self, target: int, source: int) -> float:
        """The direct effect of one node on another; zero where no path connects them."""
        sources, values = self.row(target)
        here = np.searchsorted(sources, source)
        return float(values[here]) if here < len(sources) and sources[here] == source else 0.0

    def take(self, kept: Int[np.ndarray, " n"]) -> "Adjacency":
        """The matrix of some nodes only, renumbered; memory of one block beyond the result."""
        place = np.full(self.n_nodes, -1, dtype=np.int64)
        place[kept] = np.arange(len(kept))
        return Adjacency(len(kept), list(self._taken(place)))

    def dropped(self) -> Float[np.ndarray, " node"]:
        """Share of each target's inputs, by size, that is not in its row because only the strongest were kept."""
        out = np.zeros(self.n_nodes)
        for block in self.blocks:
            if block.dropped is not None:
                out[block.targets] = block.dropped / np.maximum(input_sizes(block, block.values), 1e-10)
        return out

    def _taken(self, place: Int[np.ndarray, " node"]) -> Iterator[Block]:
        for block in self.blocks:
            rows, columns = place[block.targets], place[block.sources]
            if (rows >= 0).any():
                values = block.values[np.ix_(rows >= 0, columns >= 0)]
                dropped = None if block.dropped is None else block.dropped[rows >= 0]
                yield packed(RowBlock(rows[rows >= 0], columns[columns >= 0], values, dropped))
