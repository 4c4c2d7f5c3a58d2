"""Writing: from interventions (anything that satisfies `Write`) to the functions that a session applies.

Values go to a write in token form, `[n_tokens, *site]`, and come back; what lies outside the selection keeps its
old value to the bit. The token axis of `k` and `v` is the key axis, so while generating they are written over
the whole of it at every step.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.models.frame import Frame
from mechscope.vocabulary.points import Point
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where


@dataclass(frozen=True)
class SelectedTokens:
    """What a write is told about the rows of a value in token form; satisfies `vocabulary.protocols.Tokens`.

    Args:
        rows: Row of the batch that interventions speak of, of which a run may compute a part, [n_tokens].
        positions: Position among the row's real tokens, [n_tokens].
        columns: Column of the left-padded batch, [n_tokens].
        site: The site being written.
        n_pad: Padding columns of the token's row, [n_tokens]: a key at column c has position c - n_pad.
        n_columns: Columns of the run so far; a shorter key axis holds the last of them.
    """

    rows: Tensor
    positions: Tensor
    columns: Tensor
    site: Site
    n_pad: Tensor
    n_columns: int


def to_token_form(value: Tensor, row: Point) -> Tensor:
    """A point's tensor with batch and tokens first: [batch, pos, *site]."""
    if row.is_attention_map:
        return value.permute(0, 2, 1, 3)
    return value.permute(0, 2, 1) if row.axes[1] == "head" else value


def from_token_form(value: Tensor, row: Point) -> Tensor:
    """Inverse of `to_token_form`; both permutations are their own inverses."""
    return to_token_form(value, row)


def writers_for(
    writes: Sequence[tuple[Write, Iterable[Site]]], frame: Frame
) -> dict[Site, Callable[[Tensor], Tensor]]:
    """One function per site that applies its writes in the order in which they were declared.

    Args:
        writes: Each write with the sites that its pattern means here.
        frame: Read at call time, so one set of functions serves a whole generation.
    """
    by_site: dict[Site, list[Write]] = defaultdict(list)
    for write, sites in writes:
        for site in sites:
            by_site[site].append(write)

    def writer(site: Site, all_writes: list[Write]) -> Callable[[Tensor], Tensor]:
        def write_all(value: Tensor) -> Tensor:
            for write in all_writes:
                value = write_value(write, site, value, frame)
            return value

        return write_all

    return {site: writer(site, found) for site, found in by_site.items()}


def write_value(write: Write, site: Site, value: Tensor, frame: Frame) -> Tensor:
    """Apply one write to a point's tensor; returns a new tensor, or the old one if nothing was selected."""
    row = site.row
    tokens_first = to_token_form(value, row)
    batch, n = tokens_first.shape[:2]
    columns = frame.last_columns(n)
    chosen = frame.selected(write.where, columns)
    if chosen is None:
        rows = torch.arange(batch).repeat_interleave(n)
        inner = torch.arange(n).repeat(batch)
    else:
        rows, inner = (index.to(columns.device) for index in chosen.nonzero(as_tuple=True))
        if len(rows) == 0:
            return value
    tokens = tokens_of(rows, columns[inner], frame, site)
    if chosen is None:
        old = tokens_first.flatten(0, 1)
        new = blend(write, old, tokens)
        return from_token_form(new.unflatten(0, (batch, n)), row)
    at = (rows.to(value.device), inner.to(value.device))
    new = blend(write, tokens_first[at], tokens)
    return from_token_form(tokens_first.index_put(at, new), row)


def tokens_of(rows: Tensor, columns: Tensor, frame: Frame, site: Site) -> SelectedTokens:
    """What a write is told about tokens given by row and column of a frame."""
    n_pad = frame.n_pad.to(rows.device)[rows]
    return SelectedTokens(
        rows=frame.in_batch(rows),
        positions=columns - n_pad,
        columns=columns,
        site=site,
        n_pad=n_pad,
        n_columns=frame.ids.shape[1],
    )


def blend(write: Write, old: Tensor, tokens: SelectedTokens) -> Tensor:
    """The write's value inside its heads and units, the old one outside. Token form in and out."""
    new = write.apply(old, tokens)
    inside = _inside(write.where, old, tokens)
    new = new.to(old.dtype)
    return new if inside is None else torch.where(inside, new, old)


def _inside(where: Where, old: Tensor, tokens: SelectedTokens) -> Tensor | None:
    if where.heads is None and where.units is None:
        return None
    inside = torch.ones([1] * old.ndim, dtype=torch.bool, device=old.device)
    if where.heads is not None:
        heads = torch.zeros(old.shape[1], dtype=torch.bool, device=old.device)
        heads[list(where.heads)] = True
        inside = inside & heads.reshape(1, -1, *[1] * (old.ndim - 2))
    if where.units is not None:
        inside = inside & _units(where.units, old, tokens)
    return inside


def _units(units: tuple[int, ...], old: Tensor, tokens: SelectedTokens) -> Tensor:
    if not tokens.site.row.is_attention_map:
        mask = torch.zeros(old.shape[-1], dtype=torch.bool, device=old.device)
        mask[list(units)] = True
        return mask.reshape(*[1] * (old.ndim - 1), -1)
    # Units of an attention map are key positions, and those start at another column in each padded row.
    columns = torch.arange(tokens.n_columns - old.shape[-1], tokens.n_columns, device=old.device)
    positions = columns[None, :] - tokens.n_pad.to(old.device)[:, None]
    wanted = torch.tensor(units, device=old.device)
    return torch.isin(positions, wanted)[:, None, :]
