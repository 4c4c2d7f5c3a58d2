"""Heatmap: a labelled array as a grid of cells: layer x position, layer x head, and small multiples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mechscope.figures.block import Block, framed
from mechscope.figures.drawing import WIDTH, drawing_of
from mechscope.figures.grid import Grid, draw_grid, draw_marks
from mechscope.figures.labelled import Label, LabelledArray
from mechscope.figures.legend import draw_legend
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.scale import ColourScale
from mechscope.figures.shown import Number, shown
from mechscope.vocabulary.errors import ShapeError

LEGEND = 78


@dataclass(frozen=True)
class Heatmap(Block):
    """Two axes as rows and columns; a third, the first, as small multiples on one colour scale.

    Args:
        array: Two or three axes.
        caption: What to see in it.
        marks: Cells to outline, by coordinate: `[{"layer": 2, "head": 1}]`.
        limit: Value of full colour; the largest magnitude if None.
    """

    array: LabelledArray
    caption: str = ""
    marks: Sequence[Mapping[str, Label]] = ()
    limit: Number | None = None

    def __post_init__(self) -> None:
        if len(self.array.dims) not in (2, 3):
            raise ShapeError(
                "A heatmap has two axes, or three with the first as small multiples.",
                got=f"axes {list(self.array.dims)}",
                instead="Bars for one axis; array.sel(...) to choose a part",
            )
        for mark in self.marks:
            if set(mark) != set(self.array.dims):
                raise ShapeError(
                    "A mark names one coordinate an axis.", got=dict(mark), instead=", ".join(self.array.dims)
                )
            for dim, label in mark.items():
                self.array.index_of(dim, label)

    def markup(self) -> Markup:
        scale = ColourScale.of(self.array.values, self.limit)
        drawing = (
            _panel(self.array, scale, WIDTH, self.marks) if len(self.array.dims) == 2 else self._panels(scale)
        )
        return framed(
            drawing, title=self.array.title, caption=self.caption, conventions=self.array.conventions
        )

    def _panels(self, scale: ColourScale) -> Markup:
        first = self.array.dims[0]
        names, labels = self.array.labels(first), self.array.coords[first]
        width = WIDTH / 2 if len(labels) > 1 else WIDTH
        panels: list[Markup] = []
        for name, label in zip(names, labels, strict=True):
            own = [mark for mark in self.marks if mark[first] == label]
            drawing = _panel(self.array.sel(**{first: label}), scale, width, own)
            panels.append(element("div", element("h4", f"{first} {shown(name)}"), drawing, class_="ms-panel"))
        return element("div", *panels, class_="ms-panels")


def _panel(
    array: LabelledArray, scale: ColourScale, width: Number, marks: Sequence[Mapping[str, Label]]
) -> Markup:
    grid = grid_of(array, scale, width - LEGEND)
    x, y = grid.left, 8
    row, column = array.dims
    places = [(array.index_of(row, mark[row]), array.index_of(column, mark[column])) for mark in marks]
    return drawing_of(
        joined(
            draw_grid(grid, x=x, y=y),
            draw_marks(grid, places, x=x, y=y),
            draw_legend(scale, x=x + grid.width + 14, y=y, height=grid.height, unit=array.unit),
        ),
        width=x + grid.width + LEGEND + 6,
        height=y + grid.height + grid.below,
        described=f"Heatmap: {array.title}",
    )


def grid_of(array: LabelledArray, scale: ColourScale, width: Number) -> Grid:
    """Cells as large as the width allows, never wider than is pleasant."""
    rows, columns = (array.labels(dim) for dim in array.dims)
    draft = _grid(array, scale, 40, 26)
    cell_width = min(56.0, max(3.0, (width - draft.left) / max(len(columns), 1)))
    cell_height = min(26.0, max(3.0, 620 / max(len(rows), 1)))
    return _grid(array, scale, cell_width, cell_height)


def _grid(array: LabelledArray, scale: ColourScale, cell_width: Number, cell_height: Number) -> Grid:
    row_name, column_name = array.dims
    return Grid(
        values=np.asarray(array.values, dtype=float),
        rows=array.labels(row_name),
        columns=array.labels(column_name),
        row_name=row_name,
        column_name=column_name,
        unit=array.unit,
        scale=scale,
        cell_width=cell_width,
        cell_height=cell_height,
    )
