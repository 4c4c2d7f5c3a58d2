"""Where: at which positions, heads, units, rows and phase something is done. Plain data, no tensors.

Positions count the real tokens of each row: padding is not counted, and -1 is each row's last real token.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from mechscope.vocabulary.errors import InterventionMismatch

Phase = Literal["prompt", "generated", "both"]


@dataclass(frozen=True)
class Span:
    """A range of positions, `start` included, `stop` excluded; negative values count from the row's end."""

    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True)
class PerRow:
    """Own positions for each row of the batch."""

    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Matching:
    """The positions whose token is one of `tokens` (ids, or words that are single tokens)."""

    tokens: tuple[int | str, ...]


Positions = tuple[int, ...] | Span | PerRow | Matching


@dataclass(frozen=True, kw_only=True)
class Where:
    """A selection inside a site; None means all of that axis.

    Args:
        positions: Indices, a `Span`, `PerRow` or `Matching`. For attention maps: the query positions.
        heads: Heads as the point counts them (key/value heads for `k` and `v`).
        units: Indices on the last axis (neurons, residual coordinates, vocabulary columns, key positions).
        rows: Rows of the batch.
        phase: While generating: the prompt, the generated tokens, or both.
    """

    positions: Positions | None = None
    heads: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    phase: Phase = field(default="both")

    @classmethod
    def of(
        cls,
        positions: object = None,
        *,
        heads: object = None,
        units: object = None,
        rows: object = None,
        phase: Phase = "both",
    ) -> "Where":
        """A selection from the forms that people write: ints, lists, slices, nested lists, words."""
        return cls(
            positions=_positions(positions),
            heads=_ints(heads),
            units=_ints(units),
            rows=_ints(rows),
            phase=phase,
        )

    @property
    def is_everywhere(self) -> bool:
        """True if nothing is left out."""
        return self == Where()

    def to_json(self) -> dict[str, object]:
        """JSON form; `from_json` is its inverse."""
        out: dict[str, object] = {}
        match self.positions:
            case None:
                pass
            case Span(start, stop):
                out["positions"] = {"span": [start, stop]}
            case PerRow(rows):
                out["positions"] = {"per_row": [list(row) for row in rows]}
            case Matching(tokens):
                out["positions"] = {"matching": list(tokens)}
            case indices:
                out["positions"] = list(indices)
        for name in ("heads", "units", "rows"):
            if (value := getattr(self, name)) is not None:
                out[name] = list(value)
        if self.phase != "both":
            out["phase"] = self.phase
        return out

    @classmethod
    def from_json(cls, saved: dict[str, object]) -> "Where":
        """Rebuild a selection from `to_json`."""
        positions = saved.get("positions")
        if isinstance(positions, dict):
            ((kind, value),) = cast("dict[str, list[Any]]", positions).items()
            match kind:
                case "span":
                    positions = Span(*value)
                case "per_row":
                    positions = PerRow(tuple(tuple(row) for row in value))
                case _:
                    positions = Matching(tuple(value))
        return cls.of(positions, **{key: value for key, value in saved.items() if key != "positions"})  # pyright: ignore


def _ints(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, int | list | tuple | range):
        raise _no_indices(value)
    given: Any = cast("Any", value)
    indices: tuple[Any, ...] = (given,) if isinstance(value, int) else tuple(given)
    # A mask read as indices would mean the first two places, and 1.9 would mean 1.
    if any(isinstance(index, bool) for index in indices):
        raise _no_indices(given)
    try:
        return tuple(operator.index(index) for index in indices)
    except TypeError as error:
        raise _no_indices(given) from error


def _row(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple | range):
        raise _no_indices(value)
    return _ints(value) or ()


def _no_indices(value: object) -> InterventionMismatch:
    return InterventionMismatch(
        "A selection must be an index or a list of indices.",
        got=repr(value),
        because="it holds what is no whole number; True and False are a mask's, not indices",
        instead="an int, a list of ints, or None for all",
    )


def _positions(value: Any) -> Positions | None:
    match value:
        case None | Span() | PerRow() | Matching():
            return value
        case slice(step=None | 1):
            span = cast("slice[int | None, int | None, Any]", value)
            return Span(span.start, span.stop)
        case str():
            return Matching((value,))
        case [str(), *_]:
            return Matching(tuple(value))
        case [list() | tuple(), *_]:
            return PerRow(tuple(_row(row) for row in cast("Iterable[Any]", value)))
        case _:
            return _ints(value)
