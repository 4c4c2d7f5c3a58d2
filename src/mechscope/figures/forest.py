"""ForestPlot: a claim's predictions, each with its effect, its interval, its bound and its controls.

Invariant: rows of one unit share one axis, the axis holds zero, every control and the bound, and a
prediction's outcome is written as a word beside its colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from mechscope.figures.block import Block, framed
from mechscope.figures.drawing import whisker
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.prose import badge
from mechscope.figures.scale import Axis
from mechscope.figures.shown import Number, fixed, number, shown, with_interval
from mechscope.vocabulary.errors import ShapeError

WIDTH, HEIGHT, BINS = 330, 50, 44


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """One prediction.

    Args:
        label: In words, such as "ablating it lowers the logit difference".
        effect: The estimate; `low` and `high` are its interval's ends.
        unit: Rows of one unit in a row share an axis.
        at_least: The bound x of "at least x", or None.
        within: The bound z of "spared within z", or None.
        controls: The same effect for each control.
        p: Share of controls at least as strong, or None.
        outcome: "holds", "fails" or "undecided".
        note: A few words under the label, such as which controls.
    """

    label: str
    effect: Number
    low: Number
    high: Number
    unit: str = ""
    at_least: Number | None = None
    within: Number | None = None
    controls: Sequence[Number] = ()
    p: Number | None = None
    outcome: str = ""
    note: str = ""


@dataclass(frozen=True)
class ForestPlot(Block):
    """Predictions under each other, as a table with a drawing in it."""

    rows: Sequence[ForestRow]
    title: str = "Predictions"
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ShapeError(
                "A forest plot has at least one row.",
                got="no rows",
                instead="Prose where nothing was predicted",
            )

    def plot(self) -> Any:
        """A Plotly `Figure`: one panel for each unit, predictions under each other.

        Raises:
            OptionalPackageMissing: Plotly is not installed.
        """
        from mechscope.figures.plotly_forest import draw_forest

        return draw_forest(self.rows, self.title)

    def markup(self) -> Markup:
        heads = ("prediction", "effect, 95% interval and controls", "effect", "bound", "p", "outcome")
        body: list[Markup] = []
        for unit, group in groupby(self.rows, key=lambda row: row.unit):
            rows = list(group)
            axis = Axis.around(_extent(rows), start=8, end=WIDTH - 8)
            body += [_table_row(row, axis) for row in rows]
            body.append(
                element(
                    "tr",
                    element("td"),
                    element("td", _axis(axis, unit)),
                    element("td", colspan=4),
                    class_="ms-axis-row",
                )
            )
        table = element(
            "table",
            element("thead", element("tr", *(element("th", head) for head in heads))),
            element("tbody", *body),
            class_="ms-forest",
        )
        return framed(joined(table, _key()), title=self.title, caption=self.caption)


def _extent(rows: list[ForestRow]) -> np.ndarray:
    bounds = [
        bound for row in rows for bound in (row.effect, row.low, row.high, row.at_least) if bound is not None
    ]
    bounds += [sign * row.within for row in rows if row.within is not None for sign in (-1.2, 1.2)]
    return np.array(bounds + [float(control) for row in rows for control in row.controls], dtype=float)


def _table_row(row: ForestRow, axis: Axis) -> Markup:
    bound = f"≥ {number(row.at_least)}" if row.at_least is not None else ""
    bound = f"± {number(row.within)}" if row.within is not None else bound
    value, interval = with_interval(row.effect, row.low, row.high)
    effect = joined(element("b", value), element("small", interval))
    p = "–" if row.p is None else fixed(row.p, 3) if row.p >= 0.0005 else "< 0.001"
    return element(
        "tr",
        element("td", row.label, element("small", row.note) if row.note else None, class_="ms-what"),
        element("td", _row_drawing(row, axis)),
        element("td", effect, class_="ms-effect"),
        element("td", bound or "–"),
        element("td", p),
        element("td", badge(row.outcome) if row.outcome else None),
    )


def _row_drawing(row: ForestRow, axis: Axis) -> Markup:
    middle, tone = 17, {"holds": "ms-good", "fails": "ms-bad"}.get(row.outcome, "ms-unsure")
    low, high = (axis(end) for end in (row.low, row.high))
    parts = [
        *_bound(row, axis),
        element("line", class_="ms-zero", x1=axis(0), x2=axis(0), y1=0, y2=HEIGHT),
        *_controls(row, axis),
    ]
    if math.isfinite(row.low) and math.isfinite(row.high):
        parts.append(whisker(low, high, middle, class_="ms-interval"))
    if math.isfinite(row.effect):
        parts.append(element("circle", class_="ms-effect-dot", cx=axis(row.effect), cy=middle, r=5))
    interval = f"[{number(row.low, 4)}, {number(row.high, 4)}]"
    tip = f"effect {number(row.effect, 4)} {interval} {row.unit}; {len(row.controls)} controls"
    return element(
        "svg",
        *parts,
        class_=f"ms-svg {tone}",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        width=WIDTH,
        height=HEIGHT,
        role="img",
        aria_label=tip,
        data_tip=tip,
    )


def _bound(row: ForestRow, axis: Axis) -> list[Markup]:
    """The region in which the prediction holds, and its edges."""
    if row.within is not None:
        start, end, edges = axis(-row.within), axis(row.within), [-row.within, row.within]
    elif row.at_least is not None:
        start, end, edges = axis(row.at_least), axis.end + 8, [row.at_least]
    else:
        return []
    region = element("rect", class_="ms-region", x=start, y=0, width=max(end - start, 0), height=HEIGHT)
    return [region] + [
        element("line", class_="ms-bound", x1=axis(e), x2=axis(e), y1=0, y2=HEIGHT) for e in edges
    ]


def _controls(row: ForestRow, axis: Axis) -> list[Markup]:
    """A tick for each of a few controls, a silhouette of many; and their 95th percentile."""
    values = np.array([value for value in row.controls if math.isfinite(value)], dtype=float)
    if not values.size:
        return []
    base = HEIGHT - 4
    if values.size <= 40:
        drawn = "".join(f"M{axis(value):.1f} {base - 11}v11" for value in values.tolist())
        shape = element("path", class_="ms-control-ticks", d=drawn)
    else:
        counts, edges = np.histogram(values, bins=BINS, range=(axis.low, axis.high))
        tops = [base - 16 * count / counts.max() for count in counts.tolist()]
        steps = "".join(
            f"L{axis(a):.1f} {top:.1f}L{axis(b):.1f} {top:.1f}"
            for a, b, top in zip(edges[:-1].tolist(), edges[1:].tolist(), tops, strict=True)
        )
        shape = element(
            "path",
            class_="ms-control-shape",
            d=f"M{axis(axis.low):.1f} {base}{steps}L{axis(axis.high):.1f} {base}z",
        )
    percentile = axis(float(np.percentile(values, 95)))
    return [shape, element("path", class_="ms-percentile", d=f"M{percentile:.1f} {base - 18}v20")]


def _axis(axis: Axis, unit: str) -> Markup:
    parts = [
        joined(
            element("path", class_="ms-whisker", d=f"M{axis(tick):.1f} 0v4"),
            element("text", number(tick), class_="ms-tick", x=axis(tick), y=15, text_anchor="middle"),
        )
        for tick in axis.ticks()
    ]
    name = (
        element("text", shown(unit), class_="ms-axis", text_anchor="middle", x=WIDTH / 2, y=30)
        if unit
        else None
    )
    line = element("path", class_="ms-whisker", d=f"M{axis.start} 0H{axis.end}")
    return element(
        "svg", line, *parts, name, class_="ms-svg", viewBox=f"0 0 {WIDTH} 34", width=WIDTH, height=34
    )


def _key() -> Markup:
    def mark(name: str, text: str) -> Markup:
        return element("span", element("i", class_=f"ms-key-{name}"), text)

    return element(
        "div",
        mark("effect", "effect with its 95% interval"),
        mark("controls", "controls"),
        mark("percentile", "their 95th percentile"),
        mark("bound", "bound; the prediction holds in the shaded region"),
        class_="ms-key",
    )
