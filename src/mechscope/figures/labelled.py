"""LabelledArray: numbers that know what their axes, their unit and their conventions are.

Owns: the one form in which results with axes travel: from the engine's tables to figures, reports and files.
Refuses: labels that do not fit the values, labels that do not exist, two equal labels on one axis.
Invariant: values never change after creation, and each can be found by name: `grid.sel(layer=3, pos=7)`.

It lives in figures, not in records: siblings on a floor don't know each other, and it must draw itself.
It writes no files: `to_json` gives plain JSON, and a result on a higher floor saves that through records.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from mechscope.figures.shown import Number, shown
from mechscope.vocabulary.errors import BadFile, PositionOutOfRange, ShapeError

KIND = "labelled-array"
Label = str | int | float


@dataclass(frozen=True, eq=False, repr=False)
class LabelledArray:
    """Values with named axes; frozen, comparable, saveable, and able to draw itself.

    Args:
        values: A NumPy array of real numbers or booleans, of any dimension; copied, made read-only.
        dims: One name an axis, singular, from the legend where it has one: `layer pos head component`.
        coords: What identifies a place on an axis: numbers or words, no two equal. 0, 1, 2 ... if absent.
        texts: What is shown on an axis in place of its coordinates, repeats allowed: token strings.
        unit: Of the values: "nats", "recovered fraction", "probability".
        title: One line; also the figure's title.
        conventions: What must be known to compare the numbers: direction, ablation value, norm handling.
        low: Lower interval ends, in the shape of `values`, or None.
        high: Upper interval ends.

    Raises:
        ShapeError: axes, labels, texts or intervals that do not fit the values; all problems at once.
    """

    values: np.ndarray
    dims: Sequence[str]
    coords: Mapping[str, Sequence[Label]] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unit: str = ""
    title: str = ""
    conventions: Mapping[str, Any] = field(default_factory=dict)
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def __post_init__(self) -> None:
        values = _frozen(self.values)
        dims = tuple(self.dims)
        coords = {dim: tuple(_plain(item) for item in self.coords[dim]) for dim in dims if dim in self.coords}
        for dim, length in zip(dims, values.shape, strict=False):
            coords.setdefault(dim, tuple(range(length)))
        settled = {
            "values": values,
            "dims": dims,
            "coords": {dim: coords[dim] for dim in dims if dim in coords},
            "texts": {dim: tuple(map(str, texts)) for dim, texts in self.texts.items()},
            "conventions": dict(self.conventions),
            "low": None if self.low is None else _frozen(self.low),
            "high": None if self.high is None else _frozen(self.high),
        }
        strangers = sorted((set(self.coords) | set(self.texts)) - set(dims))
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        _refuse_unless_consistent(self, strangers)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def labels(self, dim: str) -> tuple[str, ...]:
        """What an axis shows: its texts where it has them, else its coordinates."""
        self._axis(dim)
        return tuple(self.texts.get(dim) or map(str, self.coords[dim]))

    def sel(self, **wanted: Label | Sequence[Label]) -> "LabelledArray":
        """The part at these coordinates: one label drops its axis, a list of labels keeps it.

        Raises:
            PositionOutOfRange: no such axis or coordinate; the message names the ones that exist.
        """
        keys: list[Any] = [slice(None)] * len(self.dims)
        for dim, labels in wanted.items():
            axis = self._axis(dim)
            many = isinstance(labels, (list, tuple, range, np.ndarray))
            found = [self.index_of(dim, label) for label in (labels if many else [labels])]  # pyright: ignore
            keys[axis] = np.array(found, dtype=int) if many else found[0]
        return self._part(keys)

    def index_of(self, dim: str, label: Label) -> int:
        """Where a coordinate stands on its axis; refused with the nearest ones where it does not."""
        self._axis(dim)
        labels = self.coords[dim]
        if _plain(label) in labels and not isinstance(label, bool):
            return labels.index(_plain(label))
        few = ", ".join(repr(item) for item in labels[:8]) + (", ..." if len(labels) > 8 else "")
        raise PositionOutOfRange(
            f'axis "{dim}" has no {label!r}.',
            got=f"{dim}={label!r}",
            because=f"it has {len(labels)} coordinates",
            instead=few,
        )

    def top(
        self, k: int = 10, by: Literal["magnitude", "largest", "smallest"] = "magnitude"
    ) -> list[tuple[dict[str, Label], float]]:
        """The k strongest cells as (coordinates, value), strongest first; NaN never counts.

        Ties keep reading order, so the answer is the same on every machine.
        """
        flat = self.values.astype(float).ravel()
        strength = {"magnitude": np.abs(flat), "largest": flat, "smallest": -flat}[by]
        order = np.argsort(-np.where(np.isnan(flat), -np.inf, strength), kind="stable")
        ranked = (int(i) for i in order if not math.isnan(flat[i]))
        return [(self._coordinates(i), float(flat[i])) for i in islice(ranked, k)]

    def plot(self, kind: Literal["auto", "heatmap", "bars", "lines"] = "auto") -> Any:
        """A Plotly `Figure`: bars for one axis, a heatmap for two, small multiples for three."""
        from mechscope.figures.plotly_figures import draw

        return draw(self, kind)

    def to_json(self) -> dict[str, Any]:
        """Everything as strict JSON; NaN becomes null and infinities become words."""
        return {
            "kind": KIND,
            "format": 1,
            "values": _numbers_to_json(self.values),
            "dtype": self.values.dtype.name,
            "shape": list(self.shape),
            "dims": list(self.dims),
            "coords": {dim: list(labels) for dim, labels in self.coords.items()},
            "texts": {dim: list(texts) for dim, texts in self.texts.items()},
            "unit": self.unit,
            "title": self.title,
            "conventions": dict(self.conventions),
            "low": None if self.low is None else _numbers_to_json(self.low),
            "high": None if self.high is None else _numbers_to_json(self.high),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "LabelledArray":
        """The inverse of `to_json`, equal to what was saved.

        Raises:
            BadFile: not a labelled array, of another format, or one whose parts do not fit.
        """
        if saved.get("kind") != KIND or saved.get("format") != 1:
            raise BadFile(
                "This is no saved labelled array.",
                got={name: saved.get(name) for name in ("kind", "format")},
                instead=f'what to_json wrote: kind "{KIND}", format 1',
            )
        try:
            dtype, shape = np.dtype(saved["dtype"]), tuple(saved["shape"])
            arrays = {
                name: None if saved[name] is None else _numbers_from_json(saved[name], dtype, shape)
                for name in ("values", "low", "high")
            }
            rest = {name: saved[name] for name in ("dims", "coords", "texts", "unit", "title", "conventions")}
            return cls(**arrays, **rest)  # pyright: ignore[reportArgumentType]
        except (KeyError, TypeError, ValueError, ShapeError) as error:
            raise BadFile(
                "A saved labelled array is not whole.", got=error, because="its parts don't fit"
            ) from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype) if copy else np.asarray(self.values, dtype=dtype)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelledArray):
            return NotImplemented
        return self.to_json() == other.to_json()

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        from mechscope.figures.text_table import text_table

        return text_table(self)

    def _repr_html_(self) -> str:
        from mechscope.figures.choice import figure_of

        return figure_of(self)._repr_html_()

    def _axis(self, dim: str) -> int:
        if dim not in self.dims:
            raise PositionOutOfRange(
                f'this array has no axis "{dim}".',
                got=dim,
                instead=", ".join(self.dims) or "it is a single number",
            )
        return self.dims.index(dim)

    def _part(self, keys: list[Any]) -> "LabelledArray":
        def cut(array: np.ndarray) -> np.ndarray:
            for axis in reversed(
                range(len(keys))
            ):  # one axis at a time: two lists select a grid, not a diagonal
                array = array[(slice(None),) * axis + (keys[axis],)]
            return np.asarray(array)

        kept = {dim: key for dim, key in zip(self.dims, keys, strict=True) if not isinstance(key, int)}

        def pick(items: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
            return {
                dim: tuple(items[dim]) if isinstance(key, slice) else tuple(items[dim][i] for i in key)
                for dim, key in kept.items()
                if dim in items
            }

        gone = [
            f"{dim} {shown(self.labels(dim)[key])}"
            for dim, key in zip(self.dims, keys, strict=True)
            if isinstance(key, int)
        ]
        return LabelledArray(
            cut(self.values),
            tuple(kept),
            coords=pick(self.coords),
            texts=pick(self.texts),
            unit=self.unit,
            title=", ".join([self.title, *gone] if self.title else gone),
            conventions=self.conventions,
            low=None if self.low is None else cut(self.low),
            high=None if self.high is None else cut(self.high),
        )

    def _coordinates(self, flat_index: int) -> dict[str, Label]:
        places = np.unravel_index(flat_index, self.shape) if self.dims else ()
        return {dim: self.coords[dim][int(i)] for dim, i in zip(self.dims, places, strict=True)}


def _refuse_unless_consistent(array: LabelledArray, strangers: list[str]) -> None:
    problems: list[str] = []
    shape, dims = array.values.shape, tuple(array.dims)
    if array.values.dtype.kind not in "fiub":
        problems.append(f"the values are of dtype {array.values.dtype}, not real numbers")
    if len(dims) != len(shape) or len(set(dims)) != len(dims):
        problems.append(f"{len(dims)} axis names {list(dims)} for values of shape {shape}")
    if strangers:
        problems.append(f"labels for axes that it has not: {', '.join(strangers)}")
    for dim, length in zip(dims, shape, strict=False):
        labels = array.coords[dim]
        if len(labels) != length:
            problems.append(f'axis "{dim}" is {length} long and has {len(labels)} coordinates')
        if len(set(labels)) != len(labels):
            problems.append(f'axis "{dim}" has two equal coordinates; repeated tokens go into texts=')
        if dim in array.texts and len(array.texts[dim]) != length:
            problems.append(f'axis "{dim}" is {length} long and has {len(array.texts[dim])} texts')
    for name, bound in (("low", array.low), ("high", array.high)):
        if bound is not None and bound.shape != shape:
            problems.append(f"{name} is of shape {bound.shape}, the values of {shape}")
    if problems:
        raise ShapeError(
            "These labels don't fit these values.",
            got="; ".join(problems),
            instead="one name an axis, as many labels as the axis is long",
        )


def _frozen(values: Any) -> np.ndarray:
    array = np.array(values)
    array.setflags(write=False)
    return array


def _plain(label: Any) -> Label:
    return label.item() if isinstance(label, np.generic) else label


def _numbers_to_json(array: np.ndarray) -> list[Any]:
    return [_to_word(item) for item in array.ravel().tolist()]


def _to_word(item: Number | bool) -> Any:
    if not isinstance(item, float) or math.isfinite(item):
        return item
    return None if math.isnan(item) else ("inf" if item > 0 else "-inf")


def _numbers_from_json(items: list[Any], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    plain = [math.nan if item is None else float(item) if item in ("inf", "-inf") else item for item in items]
    return np.array(plain, dtype=dtype).reshape(shape)
