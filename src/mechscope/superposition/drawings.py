"""Figures that only this floor has: a phase diagram with its analytic borders, points against sticky values, and
features as arrows in the plane. Colours come from the shared style sheet, so they serve light, dark and print."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechscope.figures.block import Block, framed
from mechscope.figures.drawing import WIDTH, drawing_of
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.scale import Axis
from mechscope.figures.shown import number
from mechscope.superposition.phase import PHASES, PhaseDiagram

CELL = 15
FILLS = ("var(--ground)", "var(--s2)", "var(--s1)")  # by phase


@dataclass(frozen=True)
class PhaseFigure(Block):
    """Cells in the colour of what was trained; a line where the analysis changes from one phase to another."""

    diagram: PhaseDiagram
    caption: str = ""

    def markup(self) -> Markup:
        diagram, settings = self.diagram, self.diagram.settings
        left, top, side = 76, 12, CELL * settings.n_cells
        cells = [
            element(
                "rect",
                x=left + column * CELL,
                y=top + row * CELL,
                width=CELL + 0.3,
                height=CELL + 0.3,
                style=f"fill:{FILLS[int(phase)]};fill-opacity:0.75",
                data_tip=f"{PHASES[int(phase)]}; density {number(float(settings.densities[row]))}, "
                f"importance {number(float(settings.importances[column]))}",
            )
            for (row, column), phase in np.ndenumerate(diagram.trained)
        ]
        border = element(
            "path",
            d=_border(diagram.analytic, left, top),
            style="stroke:var(--ink);stroke-width:2.2;fill:none",
        )
        drawing = drawing_of(
            joined(
                *cells, border, *_phase_axes(diagram, left, top, side), *_phase_key(left + side + 28, top)
            ),
            width=left + side + 250,
            height=top + side + 52,
            described=f"Phase diagram of n={settings.n_features}, m={settings.n_hidden}",
        )
        title = f"The extra feature, n={settings.n_features}, m={settings.n_hidden}"
        agreement = f"{diagram.agreement:.0%} of cells agree with the analysis"
        return framed(
            drawing, title=title, caption=self.caption, conventions={"analysis": agreement, "b": "trained"}
        )


def _border(phases: np.ndarray, left: float, top: float) -> str:
    """The edges between cells of different analytic phase, as one path."""
    steps: list[str] = []
    for row, column in np.argwhere(phases[:, 1:] != phases[:, :-1]).tolist():
        steps.append(f"M{left + (column + 1) * CELL} {top + row * CELL}v{CELL}")
    for row, column in np.argwhere(phases[1:] != phases[:-1]).tolist():
        steps.append(f"M{left + column * CELL} {top + (row + 1) * CELL}h{CELL}")
    return "".join(steps)


def _phase_axes(diagram: PhaseDiagram, left: int, top: int, side: int) -> list[Markup]:
    settings = diagram.settings
    rows, columns = settings.densities.log10().tolist(), settings.importances.log10().tolist()
    y = Axis(rows[0], rows[-1], top + CELL / 2, top + side - CELL / 2)
    x = Axis(columns[0], columns[-1], left + CELL / 2, left + side - CELL / 2)
    marks: list[Markup] = []
    for power in range(math.ceil(rows[-1] - 1e-6), 1):
        place = y.start + (power - rows[0]) / (rows[-1] - rows[0]) * (y.end - y.start)
        marks.append(_text(left - 8, place + 3.5, number(10.0**power), "ms-tick", "end"))
    for power in range(math.ceil(columns[0] - 1e-6), math.floor(columns[-1] + 1e-6) + 1):
        marks.append(_text(x(power), top + side + 18, number(10.0**power), "ms-tick"))
    middle = top + side / 2
    return [
        *marks,
        _text(
            left + side / 2, top + side + 40, "importance of the extra feature, over the others'", "ms-axis"
        ),
        element(
            "text",
            "density: probability that a feature is on",
            class_="ms-axis",
            text_anchor="middle",
            transform=f"translate(16 {middle:.0f}) rotate(-90)",
        ),
    ]


def _phase_key(x: int, top: int) -> list[Markup]:
    rows: list[Markup] = []
    for index, name in enumerate(PHASES):
        y = top + 8 + index * 26
        style = f"fill:{FILLS[index]};fill-opacity:0.75;stroke:var(--line)"
        rows.append(element("rect", x=x, y=y, width=18, height=18, style=style))
        rows.append(_text(x + 26, y + 13, name, "ms-tick", "start"))
    y = top + 8 + len(PHASES) * 26 + 8
    rows.append(element("path", d=f"M{x} {y}h18", style="stroke:var(--ink);stroke-width:2.2"))
    rows.append(_text(x + 26, y + 4, "border by the analysis", "ms-tick", "start"))
    return rows


@dataclass(frozen=True)
class StickyFigure(Block):
    """Feature dimensionality against sparsity: a dot a feature, a line a sticky value.

    Args:
        densities: Along the page, dense to sparse.
        dimensionality: Of each model's features; NaN for what is not to be shown.
        sticky: (value, name) of each line.
        caption: What to see in it.
    """

    densities: Sequence[float]
    dimensionality: Float[np.ndarray, "instance feature"]
    sticky: Sequence[tuple[float, str]]
    caption: str = ""

    def markup(self) -> Markup:
        places = np.log10(1 / np.asarray(self.densities, dtype=float))
        x = Axis(float(places.min()), float(places.max()), 80, WIDTH - 170)
        y = Axis(0.0, 1.08, 330, 10)
        lines = [
            joined(
                element("line", class_="ms-rule", x1=64, x2=WIDTH - 154, y1=y(value), y2=y(value)),
                _text(WIDTH - 146, height, name, "ms-tick", "start"),
            )
            for (value, name), height in zip(self.sticky, _apart([y(v) for v, _ in self.sticky]), strict=True)
        ]
        ticks = [
            _text(58, y(value) + 3.5, number(value), "ms-tick", "end") for value in (0, 0.25, 0.5, 0.75, 1)
        ]
        rng = np.random.default_rng(0)  # dots of one model side by side, so that equal ones are seen as many
        dots = [
            element(
                "circle",
                cx=x(place) + float(shift) * 18,
                cy=y(float(value)),
                r=2,
                style="fill:var(--s1);fill-opacity:0.55",
            )
            for place, row in zip(places.tolist(), self.dimensionality, strict=True)
            for value, shift in zip(row, rng.uniform(-0.5, 0.5, len(row)), strict=True)
            if math.isfinite(value)
        ]
        names = [
            _text(x(place), 352, number(1 / float(p)), "ms-tick")
            for place, p in zip(places.tolist(), self.densities, strict=True)
        ]
        drawing = drawing_of(
            joined(*lines, *ticks, *dots, *names, _text(380, 376, "1 / density", "ms-axis")),
            width=WIDTH,
            height=384,
            described="Feature dimensionality against sparsity",
        )
        return framed(drawing, title="Feature dimensionality", caption=self.caption)


@dataclass(frozen=True)
class ArrowFigure(Block):
    """Features as arrows: one panel a shape; of three dimensions the first two, turned to be seen.

    Args:
        panels: (name, feature vectors) of each.
        caption: What to see in it.
    """

    panels: Sequence[tuple[str, Float[np.ndarray, "_feature _hidden"]]]
    caption: str = ""

    def markup(self) -> Markup:
        size = 160
        drawn: list[Markup] = []
        for index, (name, vectors) in enumerate(self.panels):
            middle_x, middle_y = (index % 5 + 0.5) * size, (index // 5) * (size + 24) + size / 2
            reach = 62 / max(float(np.linalg.norm(vectors, axis=1).max()), 1e-9)
            for row in projected(vectors) * reach:
                end_x, end_y = middle_x + float(row[0]), middle_y - float(row[1])
                style = "stroke:var(--s1);stroke-width:2"
                drawn.append(element("line", x1=middle_x, y1=middle_y, x2=end_x, y2=end_y, style=style))
                drawn.append(element("circle", cx=end_x, cy=end_y, r=4, style="fill:var(--s1)"))
            drawn.append(_text(middle_x, middle_y + size / 2 + 10, name, "ms-tick"))
        n_rows = -(-len(self.panels) // 5)
        drawing = drawing_of(
            joined(*drawn), width=5 * size, height=n_rows * (size + 24) + 6, described="Shapes of features"
        )
        return framed(drawing, title="Shapes that features form", caption=self.caption)


def _apart(heights: list[float], least: float = 13.0) -> list[float]:
    """Heights of labels for lines at these heights (descending values), pushed down where they would overlap."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height + 3.5, placed[-1] + least if placed else height))
    return placed


def projected(vectors: Float[np.ndarray, "feature hidden"]) -> Float[np.ndarray, "feature 2"]:
    """Vectors of one to three dimensions on the page; three are seen from a little above and aside."""
    if vectors.shape[1] < 3:
        return np.pad(vectors, ((0, 0), (0, 2 - vectors.shape[1])))
    axes = np.linalg.svd(vectors, full_matrices=False)[2]
    a, b = math.radians(28), math.radians(24)
    right = np.array([math.cos(a), -math.sin(a), 0])
    up = np.array([math.sin(a) * math.sin(b), math.cos(a) * math.sin(b), math.cos(b)])
    view = np.stack([right, up], axis=1)
    return vectors @ axes.T[:, :3] @ view


def _text(x: float, y: float, text: str, class_: str, anchor: str = "middle") -> Markup:
    return element("text", text, class_=class_, x=x, y=y, text_anchor=anchor)
