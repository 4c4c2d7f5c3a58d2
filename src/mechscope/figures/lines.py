"""Lines: series over an ordered axis: a logit lens over layers, an effect over doses. Bands are intervals."""

import math
from dataclasses import dataclass

import numpy as np

from mechscope.figures.block import Block, framed
from mechscope.figures.drawing import LETTER, WIDTH, drawing_of
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.scale import Axis
from mechscope.figures.shown import number, shown, width_of
from mechscope.vocabulary.errors import ShapeError

HEIGHT = 280
MOST_SERIES = 8
MOST_LETTERS = 22


@dataclass(frozen=True)
class Lines(Block):
    """One axis as a line; of two, the first is the series and the last runs along the page.

    Each series has its own colour, dash and label at its end, so that none rests on colour alone.

    Args:
        array: One or two axes; at most 8 series. NaN breaks a line.
        caption: What to see in it.
    """

    array: LabelledArray
    caption: str = ""

    def __post_init__(self) -> None:
        dims = self.array.dims
        if len(dims) not in (1, 2) or (len(dims) == 2 and self.array.shape[0] > MOST_SERIES):
            raise ShapeError(
                f"Lines have one axis, or at most {MOST_SERIES} series over one.",
                got=f"axes {list(dims)} of shape {self.array.shape}",
                instead="array.sel(...) to choose the series, or Heatmap",
            )

    def markup(self) -> Markup:
        array = self.array
        names = array.labels(array.dims[0]) if len(array.dims) == 2 else ("",)
        table = [
            np.atleast_2d(np.asarray(b, dtype=float))
            for b in (array.values, array.low, array.high)
            if b is not None
        ]
        right = 26 + LETTER * max(width_of(shown(name, MOST_LETTERS)) for name in names)
        y = Axis.around(np.concatenate(table), start=HEIGHT, end=10)
        x = Axis(0, max(table[0].shape[1] - 1, 1), 64, WIDTH - right)
        bands = (
            [_band(table[1][i], table[2][i], x, y, i) for i in range(len(names))] if len(table) == 3 else []
        )
        curves = [_curve(row, x, y, i) for i, row in enumerate(table[0])]
        drawing = drawing_of(
            joined(*_frame(array, x, y), *bands, *curves, *_end_labels(names, table[0], x, y)),
            width=WIDTH,
            height=HEIGHT + 46,
            described=f"Lines: {array.title}",
        )
        return framed(drawing, title=array.title, caption=self.caption, conventions=array.conventions)


def _frame(array: LabelledArray, x: Axis, y: Axis) -> list[Markup]:
    labels = array.labels(array.dims[-1])
    every = max(1, math.ceil(len(labels) / 24))
    rules = [
        joined(
            element(
                "line",
                class_="ms-zero" if tick == 0 else "ms-rule",
                x1=x.start,
                x2=x.end,
                y1=y(tick),
                y2=y(tick),
            ),
            element(
                "text", number(tick), class_="ms-tick", x=x.start - 8, y=y(tick) + 3.5, text_anchor="end"
            ),
        )
        for tick in y.ticks(6)
    ]
    names = [
        element("text", shown(label, 9), class_="ms-tick", x=x(i), y=HEIGHT + 18, text_anchor="middle")
        for i, label in enumerate(labels)
        if i % every == 0
    ]
    middle = f"translate(14 {HEIGHT // 2}) rotate(-90)"
    return [
        *rules,
        *names,
        element(
            "text",
            array.dims[-1],
            class_="ms-axis",
            text_anchor="middle",
            x=(x.start + x.end) / 2,
            y=HEIGHT + 40,
        ),
        element(
            "text",
            shown(array.unit) if array.unit else "",
            class_="ms-axis",
            text_anchor="middle",
            transform=middle,
        ),
    ]


def _curve(row: np.ndarray, x: Axis, y: Axis, index: int) -> Markup:
    path, pen_down = [], False
    for i, value in enumerate(row.tolist()):
        if math.isfinite(value):
            path.append(f"{'L' if pen_down else 'M'}{x(i):.1f} {y(value):.1f}")
        pen_down = math.isfinite(value)
    dots = [
        element("circle", cx=x(i), cy=y(value), r=3, data_tip=number(value, 4))
        for i, value in enumerate(row.tolist())
        if math.isfinite(value) and len(row) <= 64
    ]
    return element("g", element("path", d="".join(path)), *dots, class_=f"ms-line ms-series-{index + 1}")


def _band(low: np.ndarray, high: np.ndarray, x: Axis, y: Axis, index: int) -> Markup:
    known = [i for i in range(len(low)) if math.isfinite(low[i]) and math.isfinite(high[i])]
    there = [f"{x(i):.1f} {y(float(high[i])):.1f}" for i in known]
    back = [f"{x(i):.1f} {y(float(low[i])):.1f}" for i in reversed(known)]
    path = "M" + "L".join(there + back) + "z" if known else ""
    return element("path", d=path, class_=f"ms-band ms-series-{index + 1}")


def _end_labels(names: tuple[str, ...], table: np.ndarray, x: Axis, y: Axis) -> list[Markup]:
    """Names at the lines' ends, pushed apart where they would lie on each other."""
    ends = []
    for index, row in enumerate(table):
        known = np.flatnonzero(np.isfinite(row))
        ends.append((y(float(row[known[-1]])) if known.size else y(0.0), index))
    labels, lowest = [], -math.inf
    for height, index in sorted(ends):
        lowest = max(height, lowest + 14)
        name = shown(names[index], MOST_LETTERS) if names[index] else ""
        labels.append(
            element("text", name, class_=f"ms-label ms-series-{index + 1}", x=x.end + 10, y=lowest + 3.5)
        )
    return labels
