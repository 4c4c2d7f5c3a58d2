"""Row blocks: some rows of a graph's matrix that share their columns, kept dense or as what is not zero.

Whichever form is smaller is kept (`packed`); both give the same numbers to the bit. What is not zero is not left out
unless somebody asks for the strongest effects only (`keep_strongest`), and then its size stays on record.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Some rows, dense.

    Args:
        targets: Node of each row, [row].
        sources: Node of each column, rising, [column].
        values: Direct effects, [row, column].
        dropped: Sum of the absolute effects that are not in it, [row]; None if all are.
    """

    targets: Int[np.ndarray, " row"]
    sources: Int[np.ndarray, " column"]
    values: Float[np.ndarray, "row column"]
    dropped: Float[np.ndarray, " row"] | None = None

    @property
    def n_edges(self) -> int:
        """Entries that are not zero."""
        return int(np.count_nonzero(self.values))

    @property
    def n_bytes(self) -> int:
        """Memory of the entries and their columns."""
        return self.values.nbytes + self.sources.nbytes

    def row(self, i: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Sources of a row, rising, and their effects; zeros may be among them."""
        return self.sources, self.values[i]

    def column(self, i: int) -> Float[np.ndarray, " row"]:
        """Effects of one source on every row."""
        return self.values[:, i]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Some rows, as what is not zero and a bit for each place.

    Args:
        targets: Node of each row, [row].
        sources: Node of each column, rising, [column].
        bits: Which places hold an effect, eight columns a byte, [row, byte].
        effects: These, row after row.
        dropped: As in `RowBlock`.
    """

    targets: Int[np.ndarray, " row"]
    sources: Int[np.ndarray, " column"]
    bits: UInt8[np.ndarray, "row byte"]
    effects: Float[np.ndarray, " edge"]
    dropped: Float[np.ndarray, " row"] | None = None

    @classmethod
    def of(cls, block: RowBlock) -> "SparseRows":
        """The same rows."""
        present = block.values != 0
        bits, effects = np.packbits(present, axis=1), block.values[present]
        return cls(block.targets, block.sources, bits, effects, block.dropped)

    @property
    def values(self) -> Float[np.ndarray, "row column"]:
        """The rows, dense; made when asked for, for as long as somebody holds them."""
        out = np.zeros((len(self.targets), len(self.sources)), self.effects.dtype)
        out[self._present(self.bits)] = self.effects
        return out

    @property
    def n_edges(self) -> int:
        """Entries that are not zero."""
        return len(self.effects)

    @property
    def n_bytes(self) -> int:
        """Memory of the entries, their places and columns."""
        return self.effects.nbytes + self.bits.nbytes + self.sources.nbytes

    def row(self, i: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Sources of a row, rising, and their effects."""
        before = int(self._present(self.bits[:i]).sum())
        here = np.flatnonzero(self._present(self.bits[i]))
        return self.sources[here], self.effects[before : before + len(here)]

    def column(self, i: int) -> Float[np.ndarray, " row"]:
        """Effects of one source on every row."""
        return self.values[:, i]

    def _present(self, bits: UInt8[np.ndarray, "*rows byte"]) -> Bool[np.ndarray, "*rows column"]:
        return np.unpackbits(bits, axis=-1, count=len(self.sources)).view(bool)


Block = RowBlock | SparseRows


def packed(block: Block) -> Block:
    """The same rows in the form that takes less memory."""
    if isinstance(block, SparseRows):
        return block
    n_rows, n_columns = block.values.shape
    n_bytes = block.n_edges * block.values.itemsize + n_rows * -(-n_columns // 8)
    return SparseRows.of(block) if n_bytes < block.values.nbytes else block


def input_sizes(block: Block, values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, " row"]:
    """Sum of all absolute effects on each row, what was dropped included; `values` are the block's."""
    sizes = np.abs(values).sum(1)
    return sizes if block.dropped is None else sizes + block.dropped


def keep_strongest(block: RowBlock, share: float) -> tuple[RowBlock, Float[np.ndarray, " row"]]:
    """Keep each row's fewest strongest effects that hold `share` of its absolute sum, and ties with the last of them.

    Returns:
        The block, with the size of what is gone, and the (signed) sum of what is gone, [row].
    """
    if share >= 1 or not block.values.size:
        return block, np.zeros(len(block.targets))
    sizes = np.abs(block.values)
    falling = -np.sort(-sizes, axis=1)
    held = np.cumsum(falling, axis=1, dtype=np.float64)
    last = np.minimum((held < share * held[:, -1:]).sum(1), sizes.shape[1] - 1)
    weak = sizes < falling[np.arange(len(falling)), last][:, None]
    gone = np.where(weak, block.values, 0)
    dropped = np.abs(gone).sum(1, dtype=np.float64)
    kept = replace(block, values=np.where(weak, 0, block.values).astype(block.values.dtype), dropped=dropped)
    return kept, gone.sum(1, dtype=np.float64)
