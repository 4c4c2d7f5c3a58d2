"""Frame: which tokens a forward pass is about, and which of them a selection means.

Positions count real tokens; columns count the left-padded tensor. Negative positions count from the end of the
prompt, so a selection means the same tokens at every step of a generation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.models.inputs import TokenBatch
from mechscope.vocabulary.errors import PositionOutOfRange
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Matching, PerRow, Span, Where


@dataclass
class Frame:
    """The tokens of a run, and which columns the forward pass under way computes.

    Args:
        ids: All tokens so far, [batch, n_columns].
        n_pad: Padding columns of each row, [batch].
        n_prompt: Real tokens of each row's prompt, [batch].
        first: First column that this pass computes.
        n_room: Columns that may still be generated; selections may name them.
        part_rows: Row of the batch that interventions speak of, of each row, [batch]; None if this is that batch.
    """

    ids: Tensor
    n_pad: Tensor
    n_prompt: Tensor
    first: int = 0
    n_room: int = 0
    part_rows: Tensor | None = None

    @classmethod
    def of(cls, batch: TokenBatch, *, n_room: int = 0) -> "Frame":
        """The frame of a whole prompt."""
        return cls(batch.ids, batch.n_pad, batch.n_real, 0, n_room)

    def as_batch(self) -> TokenBatch:
        """The frame's tokens as a batch."""
        return TokenBatch(self.ids, self.n_pad)

    def part(self, rows: Tensor) -> "Frame":
        """Some rows, to be run on their own; the rows that interventions name stay those of the batch.

        All columns are kept, so that values given by column need no moving.
        """
        ids, n_pad, n_prompt = self.ids[rows], self.n_pad[rows], self.n_prompt[rows]
        return Frame(ids, n_pad, n_prompt, self.first, self.n_room, self.in_batch(rows))

    def in_batch(self, rows: Tensor) -> Tensor:
        """The rows of the batch that interventions speak of, of rows of this frame."""
        return rows if self.part_rows is None else self.part_rows.to(rows.device)[rows]

    @property
    def n_rows(self) -> int:
        return self.ids.shape[0]

    def last_columns(self, n: int) -> Tensor:
        """The last n columns: what a pass computes, and what a (possibly cropped) key axis holds."""
        return torch.arange(self.ids.shape[1] - n, self.ids.shape[1])

    def positions(self, columns: Tensor) -> Tensor:
        """Positions of columns in each row, [batch, n]; negative in the padding."""
        return columns[None, :].to(self.n_pad.device) - self.n_pad[:, None]

    def selected(self, where: Where, columns: Tensor) -> Tensor | None:
        """True where a selection means a row's column, [batch, n]; None if it means every column."""
        if where.positions is None and where.rows is None and where.phase == "both":
            return None
        positions = self.positions(columns)
        chosen = positions >= 0
        if where.phase != "both":
            is_prompt = positions < self.n_prompt[:, None]
            chosen &= is_prompt if where.phase == "prompt" else ~is_prompt
        if where.rows is not None:
            wanted = torch.tensor(where.rows, dtype=torch.long)
            chosen &= torch.isin(self._own_rows(), wanted).to(chosen.device)[:, None]
        if where.positions is not None:
            chosen &= self._named(where, positions, columns)
        return chosen

    def _named(self, where: Where, positions: Tensor, columns: Tensor) -> Tensor:
        end = self.n_prompt[:, None]
        match where.positions:
            case Span(start, stop):
                low = 0 if start is None else start
                floor = end + low if low < 0 else torch.full_like(end, low)
                chosen = positions >= floor
                if stop is not None:
                    chosen &= positions < (end + stop if stop < 0 else stop)
                return chosen
            case Matching(tokens):
                wanted = torch.tensor([t for t in tokens if isinstance(t, int)], device=positions.device)
                return torch.isin(self.ids[:, columns.to(self.ids.device)].to(positions.device), wanted)
            case PerRow(rows):
                out = torch.zeros_like(positions, dtype=torch.bool)
                for row, named in enumerate(self._own_rows().tolist()):
                    out[row] = self._at(rows[named], positions[row : row + 1], end[row : row + 1])[0]
                return out
            case indices:
                assert isinstance(indices, tuple)
                return self._at(indices, positions, end)

    def _own_rows(self) -> Tensor:
        return self.in_batch(torch.arange(self.n_rows))

    @staticmethod
    def _at(indices: tuple[int, ...], positions: Tensor, end: Tensor) -> Tensor:
        chosen = torch.zeros_like(positions, dtype=torch.bool)
        for index in indices:
            chosen |= positions == (end + index if index < 0 else index)
        return chosen


def refuse_unless_inside(where: Where, frame: Frame, site: Site, sizes: dict[str, int]) -> None:
    """Refuse a selection that names positions, rows, heads or units that do not exist.

    Args:
        sizes: Size of the site's axes, by name.

    Raises:
        PositionOutOfRange: names the site, the index and what exists.
    """
    refuse_positions_outside(where, frame, site)
    axes = site.row.axes
    head_axis = next((axis for axis in ("head", "kv_head") if axis in axes), None)
    for name, axis, indices in (("head", head_axis, where.heads), ("unit", axes[-1], where.units)):
        if indices is None or axis == "key":
            continue
        size = sizes.get(axis or "")
        if axis is None or (name == "unit" and axis == head_axis):
            raise _outside(site, name, list(indices), f"the point's axes are {' '.join(axes)}")
        if size is not None and any(not 0 <= index < size for index in indices):
            raise _outside(site, name, list(indices), f"there are {size} of them")
    if where.rows is not None and any(not 0 <= row < frame.n_rows for row in where.rows):
        raise _outside(site, "row", list(where.rows), f"the batch has {frame.n_rows} rows")


def refuse_positions_outside(where: Where, frame: Frame, site: Site | None = None) -> None:
    """Refuse a selection that names positions that do not exist, at a site or wherever it is used.

    Raises:
        PositionOutOfRange: names the index and what exists.
    """
    shortest = int(frame.n_prompt.min())
    match where.positions:
        case PerRow(rows):
            if len(rows) != frame.n_rows:
                raise _outside(site, "rows of positions", len(rows), f"the batch has {frame.n_rows} rows")
            named = [(index, int(n)) for row, n in zip(rows, frame.n_prompt, strict=True) for index in row]
        case tuple() as indices:
            named = [(index, shortest) for index in indices]
        case Span() as wanted:
            here = frame.selected(Where(positions=wanted), torch.arange(frame.ids.shape[1] + frame.n_room))
            if here is not None and not bool(here.any()):
                raise _outside(site, "position", wanted, "no row of the batch has a token there")
            named = []
        case Matching() as wanted:
            here = frame.selected(Where(positions=wanted), torch.arange(frame.ids.shape[1]))
            if frame.n_room == 0 and here is not None and not bool(here.any()):
                raise _outside(site, "position", wanted, "no row of the batch has a token there")
            named = []
        case None:
            named = []
    for index, n in named:
        if (
            not -n <= index < n + frame.n_room
        ):  # what is still to be written has no place counted from the end
            raise _outside(
                site,
                "position",
                index,
                (f"the shortest row has {n} positions" if n == shortest else f"its row has {n}")
                + (f" and room for {frame.n_room} more" if frame.n_room else ""),
            )


def _outside(site: Site | None, what: str, got: object, because: str) -> PositionOutOfRange:
    return PositionOutOfRange(
        f"There is no such {what}." if site is None else f"There is no such {what} at {site}.",
        got=f"{what} {got}",
        because=because,
        instead="positions count real tokens from 0, or from the prompt's end with -1",
    )
