"""What `.plot()` gives: a Plotly figure, for notebooks and for people who restyle.

Owns: how figures look, and Plotly's import, which waits for the first figure. `plotly_forest.py` draws claims.
Invariant: the same colours, the same symmetrical scale and the same visible tokens as in a report.
"""

from typing import Any

import numpy as np

from mechscope.figures.labelled import LabelledArray
from mechscope.figures.scale import ColourScale
from mechscope.figures.shown import shown
from mechscope.vocabulary.errors import OptionalPackageMissing, ShapeError

PLUS, ZERO, MINUS = "#0a4c9a", "#f3f5f7", "#b34706"
SERIES = ("#0072b2", "#d55e00", "#00785a", "#a3487c", "#7a6a00", "#3c8fc4", "#444444", "#8a5a2b")
DASHES = ("solid", "dash", "dot", "dashdot", "solid", "dash", "dot", "dashdot")
MOST_PANELS = 16


def draw(array: LabelledArray, kind: str = "auto") -> Any:
    """A `plotly.graph_objects.Figure` of `array`; "auto" is bars, a heatmap or small multiples by its axes.

    Raises:
        ShapeError: that kind of figure does not fit that many axes.
        OptionalPackageMissing: Plotly is not installed.
    """
    go = graph_objects()
    n_axes = len(array.dims)
    chosen = {1: "bars", 2: "heatmap", 3: "heatmap"}.get(n_axes, "none") if kind == "auto" else kind
    fits = {"bars": (1,), "lines": (1, 2), "heatmap": (2, 3)}.get(chosen, ())
    if n_axes not in fits or (n_axes == 3 and array.shape[0] > MOST_PANELS):
        raise ShapeError(
            f"An array of {n_axes} axes can't be drawn as {chosen if chosen != 'none' else 'a figure'}.",
            got=f"axes {list(array.dims)} of shape {array.shape}",
            instead="array.sel(...) to choose a part with one to three axes",
        )
    figure = {"bars": _bars, "lines": _lines, "heatmap": _heatmap}[chosen](go, array)
    return dressed(figure, _title(array))


def graph_objects() -> Any:
    """The module `plotly.graph_objects`.

    Raises:
        OptionalPackageMissing: Plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise OptionalPackageMissing(
            "plot() needs Plotly.",
            got="no module plotly",
            instead="pip install plotly; or show the array itself",
        ) from error
    return go


def dressed(figure: Any, title: str) -> Any:
    """A figure in the fonts and colours that all have."""
    figure.update_layout(
        template="simple_white", title=title, font={"family": "system-ui, sans-serif", "size": 13}
    )
    return figure


def _heatmap(go: Any, array: LabelledArray) -> Any:
    from plotly.subplots import make_subplots

    scale = ColourScale.of(array.values)
    if len(array.dims) == 2:
        figure = go.Figure(_cells(go, array, scale))
        figure.update_yaxes(autorange="reversed", title=array.dims[0])
        figure.update_xaxes(title=array.dims[1])
        return figure
    first = array.dims[0]
    titles = [f"{first} {safe(name)}" for name in array.labels(first)]
    n_columns = min(4, len(titles))
    figure = make_subplots(-(-len(titles) // n_columns), n_columns, subplot_titles=titles)
    for i, label in enumerate(array.coords[first]):
        part = array.sel(**{first: label})
        figure.add_trace(_cells(go, part, scale), i // n_columns + 1, i % n_columns + 1)
    figure.update_yaxes(autorange="reversed")
    return figure


def _cells(go: Any, array: LabelledArray, scale: ColourScale) -> Any:
    rows, columns = (_names(array, dim) for dim in array.dims)
    place = f"{array.dims[0]} %{{y}}<br>{array.dims[1]} %{{x}}"
    hover = f"{place}<br><b>%{{z:.4g}}</b> {safe(array.unit)}<extra></extra>"
    stops = [[0.0, MINUS], [0.5, ZERO], [1.0, PLUS]] if scale.diverging else [[0.0, ZERO], [1.0, PLUS]]
    return go.Heatmap(
        z=np.asarray(array.values, dtype=float),
        x=columns,
        y=rows,
        zmin=-scale.limit if scale.diverging else 0.0,
        zmax=scale.limit,
        colorscale=stops,
        colorbar={"title": safe(array.unit)},
        hovertemplate=hover,
    )


def _bars(go: Any, array: LabelledArray) -> Any:
    values = np.asarray(array.values, dtype=float)
    colours = [PLUS if value >= 0 else MINUS for value in values.tolist()]
    whiskers = None
    if array.low is not None and array.high is not None:
        whiskers = {
            "type": "data",
            "symmetric": False,
            "array": array.high - values,
            "arrayminus": values - array.low,
        }
    figure = go.Figure(
        go.Bar(
            x=values, y=_names(array, array.dims[0]), orientation="h", marker_color=colours, error_x=whiskers
        )
    )
    figure.update_yaxes(autorange="reversed", title=array.dims[0])
    figure.update_xaxes(title=safe(array.unit))
    return figure


def _lines(go: Any, array: LabelledArray) -> Any:
    figure = go.Figure()
    names = array.labels(array.dims[0]) if len(array.dims) == 2 else ("",)
    x = _names(array, array.dims[-1])
    for i, row in enumerate(np.atleast_2d(np.asarray(array.values, dtype=float))):
        line = {"color": SERIES[i % len(SERIES)], "dash": DASHES[i % len(DASHES)]}
        figure.add_trace(go.Scatter(x=x, y=row, mode="lines+markers", name=safe(names[i]), line=line))
    figure.update_layout(showlegend=len(names) > 1)
    figure.update_xaxes(title=array.dims[-1])
    figure.update_yaxes(title=safe(array.unit))
    return figure


def _names(array: LabelledArray, dim: str) -> list[str]:
    """Tick names that Plotly keeps apart: repeated tokens get their coordinate in front."""
    texts = array.texts.get(dim)
    if not texts:
        return [safe(str(label)) for label in array.coords[dim]]
    return [f"{label} {safe(text)}" for label, text in zip(array.coords[dim], texts, strict=True)]


def _title(array: LabelledArray) -> str:
    said = ", ".join(f"{name} {value}" for name, value in array.conventions.items())
    return safe(array.title) + (f"<br><sup>{safe(said)}</sup>" if said else "") if array.title or said else ""


def safe(text: str) -> str:
    """Plotly reads a few HTML tags in its labels; a token must not be one."""
    visible = shown(text) if text else ""
    return visible.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
