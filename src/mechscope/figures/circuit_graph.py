"""CircuitGraph: a circuit as a layered drawing: the embedding below, the logits on top, one row a sublayer.

Pointing at a node lights up its edges, a click pins it, and a slider hides weak edges; without the script the
drawing stands by itself. Rows are ordered so that few edges cross. Invariant: names are shown as text only.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mechscope.figures.block import Block, framed
from mechscope.figures.drawing import LETTER, WIDTH, drawing_of
from mechscope.figures.markup import Markup, element, joined, rounded
from mechscope.figures.shown import Number, number, shown
from mechscope.vocabulary.errors import ShapeError

MOST_A_ROW = 14
BOX, ROW, MARGIN, SWEEPS = 22, 62, 18, 12
_PORTS = {"q": -0.28, "k": 0.0, "v": 0.28}


@dataclass(frozen=True, kw_only=True)
class GraphEdge:
    """One edge.

    Args:
        source: Name of a node.
        target: Name of a node.
        input: "q", "k" or "v" of a head, or "".
        score: Its width; the sign is its colour.
    """

    source: str
    target: str
    input: str = ""
    score: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class CircuitGraph(Block):
    """Nodes in rows by level, edges upwards.

    Args:
        edges: What is drawn.
        levels: Height of each node; nodes of one level stand in one row.
        title: Above the caption.
        caption: What is to be said.
        marked: Nodes that are drawn filled; the caption says why.
    """

    edges: Sequence[GraphEdge]
    levels: Mapping[str, Number]
    title: str = "Circuit"
    caption: str = ""
    marked: Collection[str] = ()

    def __post_init__(self) -> None:
        unknown = {name for edge in self.edges for name in (edge.source, edge.target)} - set(self.levels)
        if unknown:
            raise ShapeError(
                "Edges end in nodes that stand nowhere.",
                got=", ".join(sorted(unknown)[:5]),
                instead="a level for every node",
            )

    def markup(self) -> Markup:
        places, height = self._places()
        most = max((abs(edge.score) for edge in self.edges), default=0.0)
        order = sorted(range(len(self.edges)), key=lambda i: abs(self.edges[i].score))
        lines = [self._edge(self.edges[i], places, most) for i in order]
        boxes = [self._node(name, place) for name, place in places.items()]
        drawing = drawing_of(
            element("g", *lines, *boxes), width=WIDTH, height=height, described=shown(self.title)
        )
        slider = self._slider() if most > 0 and len(self.edges) > 1 else None
        view = element("div", slider, drawing, class_="ms-circuit")
        return framed(joined(view), title=self.title, caption=self.caption)

    def _slider(self) -> Markup:
        sizes = sorted((abs(edge.score) for edge in self.edges), reverse=True)
        control = element(
            "input", type="range", min=1, max=len(sizes), value=len(sizes), data_sizes=json.dumps(sizes)
        )
        told = element("output", f"{len(sizes)} edges")
        return element("label", "strongest edges ", control, " ", told, class_="ms-circuit-slider")

    def _places(self) -> tuple[dict[str, tuple[float, float]], float]:
        """Centre of each node in pixels, and the drawing's height."""
        rows = self._ordered_rows()
        height = MARGIN * 2 + BOX + ROW * (len(rows) - 1) if rows else MARGIN * 2
        places: dict[str, tuple[float, float]] = {}
        for index, row in enumerate(rows):
            y = height - MARGIN - BOX / 2 - index * ROW
            step = WIDTH / (len(row) + 1)
            for slot, name in enumerate(row):
                places[name] = (step * (slot + 1), y)
        return places, height

    def _ordered_rows(self) -> list[list[str]]:
        by_level: dict[float, list[str]] = defaultdict(list)
        for name, level in self.levels.items():
            by_level[level].append(name)
        rows: list[list[str]] = []
        for level in sorted(by_level):
            names = by_level[level]
            rows += [names[i : i + MOST_A_ROW] for i in range(0, len(names), MOST_A_ROW)]
        near: dict[str, list[str]] = defaultdict(list)
        for edge in self.edges:
            near[edge.source].append(edge.target)
            near[edge.target].append(edge.source)
        for sweep in range(SWEEPS):
            at = {name: (i + 1) / (len(row) + 1) for row in rows for i, name in enumerate(row)}
            for row in rows if sweep % 2 else rows[::-1]:
                centre = {
                    name: sum(at[other] for other in near[name]) / len(near[name]) if near[name] else at[name]
                    for name in row
                }
                row.sort(key=lambda name: centre[name])
                at |= {name: (i + 1) / (len(row) + 1) for i, name in enumerate(row)}
        return rows

    def _edge(self, edge: GraphEdge, places: Mapping[str, tuple[float, float]], most: Number) -> Markup:
        (x0, y0), (x1, y1) = places[edge.source], places[edge.target]
        x1 += _PORTS.get(edge.input, 0.0) * _width(edge.target)
        y0, y1 = y0 - BOX / 2, y1 + BOX / 2
        bend = max(14.0, (y0 - y1) * 0.45)
        # Long edges bow to the side, so that they do not run through the boxes between.
        side = 0.0 if y0 - y1 < ROW else (22.0 if x1 >= x0 else -22.0)
        path = " ".join(rounded(v) for v in (x0 + side, y0 - bend, x1 + side, y1 + bend, x1, y1))
        share = abs(edge.score) / most if most else 0.5
        into = f"{edge.target}.{edge.input}" if edge.input else edge.target
        tip = f"{edge.source} → {into}" + (f"  {number(edge.score)}" if most else "")
        return element(
            "path",
            class_="ms-edge " + ("ms-edge-minus" if edge.score < 0 else "ms-edge-plus"),
            d=f"M{rounded(x0)} {rounded(y0)}C{path}",
            stroke_width=0.8 + 3.2 * share,
            data_source=edge.source,
            data_target=edge.target,
            data_size=repr(float(abs(edge.score))),
            data_tip=shown(tip),
        )

    def _node(self, name: str, place: tuple[float, float]) -> Markup:
        x, y = place
        width = _width(name)
        ports = {edge.input for edge in self.edges if edge.target == name and edge.input}
        letters = [
            element(
                "text",
                port,
                class_="ms-port",
                x=x + _PORTS[port] * width,
                y=y + BOX / 2 + 8,
                text_anchor="middle",
            )
            for port in sorted(ports)
        ]
        box = element("rect", x=x - width / 2, y=y - BOX / 2, width=width, height=BOX, rx=5)
        label = element("text", shown(name), x=x, y=y + 3.7, text_anchor="middle")
        kind = "end" if name in ("embed", "logits") else "mlp" if name.startswith("m") else "head"
        kind += " ms-node-marked" if name in self.marked else ""
        return element(
            "g", box, label, *letters, class_=f"ms-node ms-node-{kind}", data_node=name, tabindex=0
        )


def _width(name: str) -> float:
    return max(34.0, LETTER * len(name) + 14)
