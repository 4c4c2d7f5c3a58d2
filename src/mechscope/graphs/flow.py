"""Flow: vectors of many rows at the positions that paths reach, laid out position by position.

A row is a target whose gradient is carried down (`sweep`) or a source whose effect is carried up (`rise`). It lives at
the positions that paths connect with its own, so that every product is one matrix product over all rows:

    flat index = offset[position] + row, rows sorted so that those alive at a position are the first ones.

Until the first attention a row lives at its own position alone (`is_narrow`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows are carried together.

    Args:
        own: Position of each row, [row].
        n_alive: Rows alive at each position, [pos].
    """

    own: Int[Tensor, " row"]
    n_alive: list[int]

    @classmethod
    def of_targets(cls, positions: Tensor, n_positions: int, *, is_causal: bool) -> "Rows":
        """Targets at `positions`, which fall: alive where they stand and before."""
        if not is_causal:
            return cls(positions, [len(positions)] * n_positions)
        counts = torch.bincount(positions, minlength=int(positions.max()) + 1)
        return cls(positions, counts.flip(0).cumsum(0).flip(0).tolist())

    @classmethod
    def of_sources(cls, positions: Tensor, n_positions: int, *, is_causal: bool) -> "Rows":
        """Sources at `positions`, which rise: alive where they stand and after."""
        if not is_causal:
            return cls(positions, [len(positions)] * n_positions)
        return cls(positions, torch.bincount(positions, minlength=n_positions).cumsum(0).tolist())

    @property
    def n_positions(self) -> int:
        return len(self.n_alive)

    @cached_property
    def offsets(self) -> list[int]:
        """First flat entry of each position, and the number of entries."""
        out = [0]
        for n in self.n_alive:
            out.append(out[-1] + n)
        return out

    @property
    def is_rectangle(self) -> bool:
        """Every row is alive at every position."""
        return min(self.n_alive) == len(self.own)

    @cached_property
    def entries(self) -> tuple[Tensor, Tensor]:
        """Position and row of each flat entry."""
        alive = torch.tensor(self.n_alive)
        positions = torch.repeat_interleave(torch.arange(len(alive)), alive)
        rows = torch.arange(len(positions)) - torch.tensor(self.offsets[:-1])[positions]
        return positions.to(self.own.device), rows.to(self.own.device)

    @cached_property
    def own_entries(self) -> Tensor:
        """Flat entry of each row's own position, [row]."""
        offsets = torch.tensor(self.offsets[:-1], device=self.own.device)
        return offsets[self.own] + torch.arange(len(self.own), device=self.own.device)

    def to_dense(self, values: Tensor) -> Tensor:
        """Flat entries [entry, ...] as [pos * row, ...], zero where a row is not alive."""
        if self.is_rectangle:
            return values
        positions, rows = self.entries
        dense = values.new_zeros(self.n_positions * len(self.own), *values.shape[1:])
        dense[positions * len(self.own) + rows] = values
        return dense

    def to_flat(self, dense: Tensor) -> Tensor:
        """The way back."""
        if self.is_rectangle:
            return dense
        positions, rows = self.entries
        return dense[positions * len(self.own) + rows]


@dataclass(frozen=True, eq=False)
class Flow:
    """Vectors at one station: narrow [row, width], each at its own position, or flat [entry, width]."""

    values: Tensor
    is_narrow: bool

    def times(self, factor: Tensor | float | None, rows: Rows) -> "Flow":
        """Scaled by a number, or by what belongs to each position, [pos, width or 1]."""
        if factor is None:
            return self
        if isinstance(factor, Tensor):
            factor = factor[rows.own if self.is_narrow else rows.entries[0]]
        return Flow(self.values * factor, self.is_narrow)

    def per_position(self, rows: Rows) -> Iterator[tuple[int, Tensor, slice]]:
        """Cut by position: (position, vectors [alive rows, width], which rows)."""
        if not self.is_narrow:
            for position, n in enumerate(rows.n_alive):
                first = rows.offsets[position]
                yield position, self.values[first : first + n], slice(0, n)
            return
        own, counts = torch.unique_consecutive(rows.own, return_counts=True)
        first = 0
        for position, n in zip(own.tolist(), counts.tolist(), strict=True):
            window = slice(first, first + n)
            yield position, self.values[window], window
            first += n


def sum_of(a: Flow | None, b: Flow | None, rows: Rows) -> Flow | None:
    """The sum of two flows of the same rows; None is nothing."""
    if a is None or b is None:
        return b if a is None else a
    if a.is_narrow == b.is_narrow:
        return Flow(a.values + b.values, a.is_narrow)
    wide, narrow = (b, a) if a.is_narrow else (a, b)
    return Flow(wide.values.index_add(0, rows.own_entries, narrow.values), False)
