"""A forest plot as a Plotly figure: effects with intervals, what was predicted, and controls."""

from collections.abc import Sequence
from itertools import groupby
from math import isfinite
from typing import TYPE_CHECKING, Any

from mechscope.figures.plotly_figures import dressed, graph_objects, safe

if TYPE_CHECKING:
    from mechscope.figures.forest import ForestRow

COLOURS = {"holds": "#00785a", "fails": "#b34706"}
UNDECIDED, REGION, CONTROL = "#7a6a00", "#e4f1ec", "#9aa3ad"


def draw_forest(rows: Sequence["ForestRow"], title: str) -> Any:
    """A `plotly.graph_objects.Figure`, rows of one unit on one axis, the first row on top.

    Raises:
        OptionalPackageMissing: Plotly is not installed.
    """
    go = graph_objects()
    from plotly.subplots import make_subplots

    panels = [(unit, list(group)) for unit, group in groupby(rows, key=lambda row: row.unit)]
    figure = make_subplots(
        len(panels),
        1,
        row_heights=[len(group) for _, group in panels],
        vertical_spacing=0.36 / len(panels),  # of the figure: room for an axis and its name
    )
    for place, (unit, group) in enumerate(panels, start=1):
        furthest = 1.05 * max(_reach(row) for row in group)
        for height, row in enumerate(group):
            for trace in _traces(go, row, height):
                figure.add_trace(trace, place, 1)
            if (held := _held_in(row, furthest)) is not None:
                figure.add_shape(
                    type="rect", x0=held[0], x1=held[1], y0=height - 0.45, y1=height + 0.45, layer="below",
                    fillcolor=REGION, line_width=0, row=place, col=1,
                )  # fmt: skip
        figure.update_yaxes(
            tickvals=list(range(len(group))),
            ticktext=[_label(row) for row in group],
            range=[len(group) - 0.5, -0.5],
            row=place,
            col=1,
        )
        figure.update_xaxes(title=safe(unit), zeroline=True, row=place, col=1)
    figure.update_layout(showlegend=False, height=120 + 80 * len(rows) + 60 * len(panels))
    return dressed(figure, safe(title))


def _label(row: "ForestRow") -> str:
    beside = " · ".join(part for part in (row.outcome, row.note) if part)
    return f"{safe(row.label)}<br><sup>{safe(beside)}</sup>"


def _reach(row: "ForestRow") -> float:
    """The largest number that is drawn of a row."""
    bounds = [bound for bound in (row.at_least, row.within) if bound is not None]
    return max(float(one) for one in (row.effect, row.high, 0.0, *bounds, *row.controls) if isfinite(one))


def _traces(go: Any, row: "ForestRow", height: int) -> list[Any]:
    """Controls under the effect with its interval."""
    effect, low, high = float(row.effect), float(row.low), float(row.high)
    whisker = {"type": "data", "symmetric": False, "array": [high - effect], "arrayminus": [effect - low]}
    marked = {"color": COLOURS.get(row.outcome, UNDECIDED), "size": 11}
    controls = [float(one) for one in row.controls]
    return [
        go.Scatter(
            x=controls, y=[height + 0.3] * len(controls), mode="markers", name="controls",
            marker={"symbol": "line-ns-open", "color": CONTROL, "size": 9},
        ),
        go.Scatter(x=[effect], y=[height], mode="markers", name="effect", marker=marked, error_x=whisker),
    ]  # fmt: skip


def _held_in(row: "ForestRow", furthest: float) -> tuple[float, float] | None:
    """Where the effect is to lie."""
    if row.within is not None:
        return -float(row.within), float(row.within)
    return None if row.at_least is None else (float(row.at_least), furthest)
