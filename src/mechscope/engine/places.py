"""Places: the position axis of a grid, as labels and the selection of tokens that each stands for.

Owns: what a person may give as `positions`.
Refuses: "each" where prompts differ in length, since position 7 is then another word in every prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mechscope.models.frame import Frame, refuse_positions_outside
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import InterventionMismatch, PositionOutOfRange, ShapeError
from mechscope.vocabulary.where import PerRow, Where

Label = str | int
EACH, FROM_END, ALL = "each", "from-end", "all"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Selections of positions, one a column of the grid.

    Args:
        selections: As `Where.positions`; None is every position.
        labels: One a selection; empty if there is one selection and so no position axis.
        texts: Shown in place of the labels; empty for none.
        described: For the conventions: "each", "all", or the selection.
    """

    selections: tuple[Any, ...]
    labels: tuple[Label, ...] = ()
    texts: tuple[str, ...] = ()
    described: str = ALL

    def select(self, rows: Sequence[int]) -> "Places":
        """The same places for some rows of the batch only."""
        return replace(self, selections=tuple(_of_rows(item, rows) for item in self.selections))


def places_of(positions: Any, model: Model, *batches: TokenBatch) -> Places:
    """Read what was given as positions.

    Args:
        positions: "each": one column a position, for prompts of one length. "from-end": the same, counted from
            the end, over the length of the shortest prompt. "all": every position at once, no axis. A mapping
            from names to selections: one column a name. Anything else is one selection, patched together.
        model: Turns ids into texts.
        batches: The prompts; those of a pair have equal lengths.

    Raises:
        ShapeError: "each" with prompts of several lengths.
        PositionOutOfRange: a selection that names positions that some prompt does not have, or none at all.
    """
    if positions in (None, ALL):
        return Places(selections=(None,))
    if isinstance(positions, Mapping):
        selections = tuple(Where.of(value).positions for value in positions.values())
        _refuse_outside(dict(zip(positions, selections, strict=True)), batches)
        return Places(selections=selections, labels=tuple(positions), described="named")
    if positions not in (EACH, FROM_END):
        if isinstance(positions, str):
            raise InterventionMismatch(
                f'"{positions}" is no set of positions.',
                got=repr(positions),
                instead=f'"{EACH}", "{FROM_END}", "{ALL}", an index, a list, or a mapping of names to them',
            )
        selection = Where.of(positions).positions
        _refuse_outside({str(positions): selection}, batches)
        return Places(selections=(selection,), described=str(positions))
    lengths = sorted({int(n) for batch in batches for n in batch.n_real})
    if positions == EACH and len(lengths) > 1:
        raise ShapeError(
            "Prompts of several lengths share no positions.",
            got=f"lengths {lengths}",
            because="a column of the grid would mean another word in every prompt",
            instead='positions="from-end", or names: positions={"subject": [[3], [4], ...], "end": -1}',
        )
    labels = range(lengths[0]) if positions == EACH else range(-lengths[0], 0)
    return Places(
        selections=tuple((label,) for label in labels),
        labels=tuple(labels),
        texts=_texts_at(labels, model, batches),
        described=positions,
    )


def each_position(batches: Sequence[TokenBatch]) -> str:
    """How single positions are named: "each" if all prompts have one length, else "from-end"."""
    return EACH if len({int(n) for batch in batches for n in batch.n_real}) == 1 else FROM_END


def _refuse_outside(selections: Mapping[Label, Any], batches: Sequence[TokenBatch]) -> None:
    for name, selection in selections.items():
        for batch in batches:
            frame, where = Frame.of(batch), Where(positions=selection)
            refuse_positions_outside(where, frame)
            chosen = frame.selected(where, torch.arange(batch.ids.shape[1]))
            if chosen is not None and not bool(chosen.any()):
                raise PositionOutOfRange(
                    "There is no position to look at.",
                    got=f"{name!r}, which names no token of any prompt",
                    because="what is measured nowhere is always 0",
                    instead="positions=-1, or leave out the name",
                )


def _of_rows(selection: Any, rows: Sequence[int]) -> Any:
    return (
        PerRow(tuple(selection.positions[row] for row in rows))
        if isinstance(selection, PerRow)
        else selection
    )


def _texts_at(labels: Sequence[int], model: Model, batches: Sequence[TokenBatch]) -> tuple[str, ...]:
    """The token at each position where all prompts have the same, "a|b" for two, "[3]" for more; () if all vary."""
    found = [
        list(dict.fromkeys(batch.row(row)[label] for batch in batches for row in range(len(batch))))
        for label in labels
    ]
    if all(len(ids) > 2 for ids in found):
        return ()
    return tuple(
        f"[{label}]" if len(ids) > 2 else "|".join(model.reader.strings(ids))
        for label, ids in zip(labels, found, strict=True)
    )
