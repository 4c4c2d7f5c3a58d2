"""The drawing of a rectangle of coloured cells: what heatmaps and attention patterns are made of.

Owns: cells, their numbers, their labels, the marks around some of them, the colour legend.
Invariant: every value can be read exactly (to 4 digits of the largest) by pointing at its cell, and a
missing value never looks like zero.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechscope.figures.drawing import LETTER
from mechscope.figures.legend import hue_of
from mechscope.figures.markup import Markup, element, rounded
from mechscope.figures.scale import LEVELS, ColourScale
from mechscope.figures.shown import Number, decimals_for, fixed, shown, width_of

MOST_LETTERS = 14
STRONG = 0.62  # from here on, text on a cell reads better in the colour of the page


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells in rows and columns, and where they lie in their drawing (pixels)."""

    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    row_name: str
    column_name: str
    unit: str
    scale: ColourScale
    cell_width: Number
    cell_height: Number

    @property
    def left(self) -> float:
        """Room for the row labels and the row axis' name, and for slanted column labels that reach out."""
        longest = max((width_of(shown(label, MOST_LETTERS)) for label in self.rows), default=0)
        room = 24.0 + (longest * LETTER if self.has_row_labels else 0)
        if not (self.has_column_labels and self.is_slanted):
            return room
        widths = (width_of(shown(label, MOST_LETTERS)) * LETTER * 0.72 for label in self.columns)
        return max(room, *(width - (i + 0.5) * self.cell_width + 4 for i, width in enumerate(widths)))

    @property
    def below(self) -> float:
        """Room for the column labels and the column axis' name."""
        if not self.has_column_labels:
            return 22.0
        return 30.0 + (self._longest_column * LETTER * 0.72 if self.is_slanted else 9)

    @property
    def width(self) -> float:
        return len(self.columns) * self.cell_width

    @property
    def height(self) -> float:
        return len(self.rows) * self.cell_height

    @property
    def has_row_labels(self) -> bool:
        return self.cell_height >= 10

    @property
    def has_column_labels(self) -> bool:
        return self.cell_width >= 10

    @property
    def is_slanted(self) -> bool:
        return self._longest_column * LETTER > self.cell_width - 3

    @property
    def _longest_column(self) -> int:
        return max((width_of(shown(label, MOST_LETTERS)) for label in self.columns), default=0)


def draw_grid(grid: Grid, *, x: Number, y: Number, numbers: bool = True) -> Markup:
    """The grid with its labels, its upper left cell at (x, y)."""
    data = {
        "rows": [shown(label) for label in grid.rows],
        "columns": [shown(label) for label in grid.columns],
        "rowName": grid.row_name,
        "columnName": grid.column_name,
        "unit": grid.unit,
        "cell": [grid.cell_width, grid.cell_height],
        **_values_for_script(grid),
    }
    return element(
        "g",
        element("rect", class_="ms-ground", width=grid.width, height=grid.height),
        *_cells(grid),
        *(_numbers(grid) if numbers and grid.cell_width >= 36 and grid.cell_height >= 16 else ()),
        *_row_labels(grid),
        *_column_labels(grid),
        element("rect", class_="ms-catch", width=grid.width, height=grid.height),
        class_="ms-grid",
        transform=f"translate({rounded(x)} {rounded(y)})",
        data_grid=json.dumps(data, ensure_ascii=False, separators=(",", ":")),
    )


def draw_marks(grid: Grid, places: Sequence[tuple[int, int]], *, x: Number, y: Number) -> Markup:
    """Outlines around some cells (row, column)."""
    w, h = grid.cell_width, grid.cell_height
    outlines = [
        element("rect", class_="ms-mark", x=x + column * w, y=y + row * h, width=w, height=h, rx=2)
        for row, column in places
    ]
    return element("g", *outlines)


def _cells(grid: Grid) -> list[Markup]:
    """One path a colour step: a few bytes a cell, so that a large pattern stays a small file."""
    gap = 1 if min(grid.cell_width, grid.cell_height) >= 12 else 0
    w, h = grid.cell_width - gap, grid.cell_height - gap
    paths: dict[int | None, list[str]] = defaultdict(list)
    for row, column in np.ndindex(grid.values.shape):
        value = float(grid.values[row, column])
        level = None if math.isnan(value) else grid.scale.level(value)
        if level != 0:
            left, top = rounded(column * grid.cell_width + gap / 2), rounded(row * grid.cell_height + gap / 2)
            paths[level].append(f"M{left} {top}h{rounded(w)}v{rounded(h)}h-{rounded(w)}z")
    missing = paths.pop(None, [])
    drawn = [
        element("path", class_=hue_of(level), fill_opacity=abs(level) / LEVELS, d="".join(parts))
        for level, parts in sorted(paths.items(), key=lambda item: item[0] or 0)
        if level is not None
    ]
    return drawn + ([element("path", class_="ms-missing", d="".join(missing))] if missing else [])


def _numbers(grid: Grid) -> list[Markup]:
    texts, decimals = [], decimals_for(grid.scale.limit, 3 if grid.scale.limit >= 1 else 2)
    for row, column in np.ndindex(grid.values.shape):
        value = float(grid.values[row, column])
        strong = not math.isnan(value) and abs(grid.scale.level(value)) > STRONG * LEVELS
        texts.append(
            element(
                "text",
                fixed(value, decimals),
                class_="ms-number ms-strong" if strong else "ms-number",
                x=(column + 0.5) * grid.cell_width,
                y=(row + 0.5) * grid.cell_height + 3.5,
            )
        )
    return texts


def _row_labels(grid: Grid) -> list[Markup]:
    name = element(
        "text",
        grid.row_name,
        class_="ms-axis",
        text_anchor="middle",
        transform=f"translate({rounded(-grid.left + 10)} {rounded(grid.height / 2)}) rotate(-90)",
    )
    if not grid.has_row_labels:
        return [name]
    return [name] + [
        element(
            "text",
            shown(label, MOST_LETTERS),
            class_="ms-label",
            text_anchor="end",
            x=-6,
            y=(i + 0.5) * grid.cell_height + 3.5,
        )
        for i, label in enumerate(grid.rows)
    ]


def _column_labels(grid: Grid) -> list[Markup]:
    name = element(
        "text",
        grid.column_name,
        class_="ms-axis",
        text_anchor="middle",
        x=grid.width / 2,
        y=grid.height + grid.below - 5,
    )
    if not grid.has_column_labels:
        return [name]
    labels = []
    for i, label in enumerate(grid.columns):
        x, y = (i + 0.5) * grid.cell_width, grid.height + 14
        if grid.is_slanted:
            place = {
                "transform": f"translate({rounded(x + 4)} {rounded(y - 3)}) rotate(-45)",
                "text_anchor": "end",
            }
        else:
            place = {"x": x, "y": y, "text_anchor": "middle"}
        labels.append(element("text", shown(label, MOST_LETTERS), class_="ms-label", **place))
    return [name, *labels]


def _values_for_script(grid: Grid) -> dict[str, object]:
    """Whole multiples of a step: short to write, exact to 4 digits of the largest."""
    values = np.asarray(grid.values, dtype=float)
    finite = np.abs(values[np.isfinite(values)])
    step = (float(finite.max()) if finite.size and finite.max() > 0 else 1.0) / 9999
    whole = [None if not math.isfinite(value) else round(value / step) for value in values.ravel().tolist()]
    return {"step": float(f"{step:.9g}"), "values": whole}
