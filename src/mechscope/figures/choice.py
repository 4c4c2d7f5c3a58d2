"""Which figure suits an array, if nobody says: one axis as bars, two or three as cells, more as a table."""

from mechscope.figures.bars import Bars
from mechscope.figures.block import Block
from mechscope.figures.heatmap import Heatmap
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.prose import Prose, Table
from mechscope.figures.shown import number

MOST_PANELS, MOST_BARS = 12, 40


def figure_of(array: LabelledArray) -> Block:
    """The figure that a notebook shows for `array`."""
    if array.values.size == 0:
        return Prose(f"{array.title or 'LabelledArray'}: empty, shape {array.shape}")
    if not array.dims:
        return Prose(f"{array.title} **{number(float(array.values))}** {array.unit}")
    if len(array.dims) == 1:
        return Bars(array, at_most=MOST_BARS)
    if len(array.dims) == 2 or (len(array.dims) == 3 and array.shape[0] <= MOST_PANELS):
        return Heatmap(array)
    rows = [[*map(str, labels.values()), value] for labels, value in array.top(20)]
    return Table(
        [*array.dims, array.unit or "value"],
        rows,
        caption=f"{array.title}: the strongest of {array.values.size}",
    )
