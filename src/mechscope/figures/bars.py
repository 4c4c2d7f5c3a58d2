"""Bars: one axis as horizontal bars from zero, with interval whiskers where the array has them."""

import math
from dataclasses import dataclass

import numpy as np

from mechscope.figures.block import Block, framed
from mechscope.figures.drawing import LETTER, WIDTH, drawing_of, whisker
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.scale import Axis
from mechscope.figures.shown import Number, number, shown, width_of, with_interval
from mechscope.vocabulary.errors import ShapeError

ROW = 22
MOST_LETTERS = 30


@dataclass(frozen=True)
class Bars(Block):
    """One labelled axis as bars; `low` and `high` of the array become whiskers.

    Args:
        array: One axis.
        caption: What to see in it.
        at_most: Show only the strongest so many, by magnitude, strongest first; None shows all as they stand.
    """

    array: LabelledArray
    caption: str = ""
    at_most: int | None = None

    def __post_init__(self) -> None:
        if len(self.array.dims) != 1:
            raise ShapeError(
                "Bars have one axis.",
                got=f"axes {list(self.array.dims)}",
                instead="Heatmap, Lines, or array.sel(...)",
            )

    def markup(self) -> Markup:
        array, left_out = self.array, 0
        if self.at_most is not None and self.array.shape[0] > self.at_most:
            (dim,) = array.dims
            array = array.sel(**{dim: [labels[dim] for labels, _ in array.top(self.at_most)]})
            left_out = self.array.shape[0] - array.shape[0]
        said = f"{self.caption} ({left_out} weaker ones not shown.)".strip() if left_out else self.caption
        return framed(_draw(array), title=self.array.title, caption=said, conventions=array.conventions)


def _draw(array: LabelledArray) -> Markup:
    labels = [shown(label, MOST_LETTERS) for label in array.labels(array.dims[0])]
    left = 14 + LETTER * max((width_of(label) for label in labels), default=0)
    bounds = [array.values] + [bound for bound in (array.low, array.high) if bound is not None]
    axis = Axis.around(
        np.concatenate([np.asarray(b, dtype=float) for b in bounds]), start=left, end=WIDTH - 150
    )
    height = len(labels) * ROW
    rows = [_row(array, i, label, axis, left) for i, label in enumerate(labels)]
    return drawing_of(
        joined(*_frame(axis, height, array.unit), *rows),
        width=WIDTH,
        height=height + 44,
        described=f"Bars: {array.title}",
    )


def _frame(axis: Axis, height: Number, unit: str) -> list[Markup]:
    lines = [
        joined(
            element(
                "line",
                class_="ms-zero" if tick == 0 else "ms-rule",
                x1=axis(tick),
                x2=axis(tick),
                y1=2,
                y2=height + 4,
            ),
            element(
                "text", number(tick), class_="ms-tick", x=axis(tick), y=height + 18, text_anchor="middle"
            ),
        )
        for tick in axis.ticks()
    ]
    return [
        *lines,
        element(
            "text",
            shown(unit) if unit else "",
            class_="ms-axis",
            text_anchor="middle",
            x=(axis.start + axis.end) / 2,
            y=height + 36,
        ),
    ]


def _row(array: LabelledArray, index: int, label: str, axis: Axis, left: Number) -> Markup:
    value = float(array.values[index])
    middle = (index + 0.5) * ROW + 2
    parts = [element("text", label, class_="ms-label", text_anchor="end", x=left - 8, y=middle + 3.5)]
    text = number(value)
    if not math.isnan(value):
        start, end = sorted((axis(0.0), axis(value)))
        parts.append(
            element(
                "rect",
                class_="ms-plus ms-bar" if value >= 0 else "ms-minus ms-bar",
                x=start,
                y=middle - 7,
                width=max(end - start, 0.5),
                height=14,
            )
        )
    if array.low is not None and array.high is not None:
        low, high = float(array.low[index]), float(array.high[index])
        text = " ".join(with_interval(value, low, high))
        if math.isfinite(low) and math.isfinite(high):
            parts.append(whisker(axis(low), axis(high), middle))
    parts.append(element("text", text, class_="ms-tick", x=axis.end + 10, y=middle + 3.5))
    return element("g", *parts)
