"""A labelled array as plain text: what `repr` shows in a terminal.

Invariant: at most 12 rows and 10 columns; what is left out is said.
"""

import numpy as np

from mechscope.figures.labelled import LabelledArray
from mechscope.figures.shown import Number, number, shown, width_of

MOST_ROWS, MOST_COLUMNS, MOST_LETTERS = 12, 10, 14


def text_table(array: LabelledArray) -> str:
    """`array` as a small table; beyond two axes its strongest cells."""
    lines = [describe(array)]
    if len(array.dims) in (1, 2) and array.values.size:
        lines += _grid(array)
    elif array.dims:
        lines += [_cell(coordinates, value) for coordinates, value in array.top(MOST_ROWS)]
    if array.conventions:
        lines.append(
            "conventions: " + ", ".join(f"{key}={value}" for key, value in array.conventions.items())
        )
    return "\n".join(lines)


def describe(array: LabelledArray) -> str:
    """One line: the title, the axes and the unit."""
    axes = " x ".join(f"{dim} {length}" for dim, length in zip(array.dims, array.shape, strict=True))
    parts = [
        array.title or "LabelledArray",
        f"[{axes}]" if axes else "",
        f"in {array.unit}" if array.unit else "",
    ]
    if not array.dims:
        parts.append(number(float(array.values)))
    return " ".join(part for part in parts if part)


def _grid(array: LabelledArray) -> list[str]:
    two = len(array.dims) == 2
    values = np.asarray(array.values) if two else np.asarray(array.values)[:, None]
    rows = _names(array, 0)
    columns = _names(array, 1) if two else [array.unit or "value"]
    n_rows, n_columns = min(len(rows), MOST_ROWS), min(len(columns), MOST_COLUMNS)
    table = [["/".join(array.dims), *columns[:n_columns]]]
    table += [[rows[i], *(number(float(values[i, j])) for j in range(n_columns))] for i in range(n_rows)]
    widths = [max(map(width_of, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            _pad(cell, width, left=j == 0) for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    left_out = [
        f"{total - kept} more {what}"
        for total, kept, what in ((len(rows), n_rows, "rows"), (len(columns), n_columns, "columns"))
        if total > kept
    ]
    return lines + ([f"({', '.join(left_out)})"] if left_out else [])


def _names(array: LabelledArray, axis: int) -> list[str]:
    dim = array.dims[axis]
    names = [shown(str(label), MOST_LETTERS) for label in array.coords[dim]]
    texts = array.texts.get(dim, ())
    return (
        [f"{name} {shown(text, MOST_LETTERS)}" for name, text in zip(names, texts, strict=True)]
        if texts
        else names
    )


def _cell(coordinates: dict[str, str | int | float], value: Number) -> str:
    where = ", ".join(f"{dim} {label}" for dim, label in coordinates.items())
    return f"  {number(value):>9}  {where}"


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - width_of(text))
    return text + space if left else space + text
