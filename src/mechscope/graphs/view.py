"""View: an attribution graph to explore: a block for reports and notebooks, a page of its own, and a Plotly figure.

Positions run along x, layers up y. One points to see what a node is, clicks to pin it, drags the slider to show fewer
nodes, types to search, and groups nodes into supernodes. All data stand in one escaped attribute and reach the page
as text nodes only, so nothing that a model wrote can become markup; nothing is asked of a network.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from mechscope.figures.block import Block
from mechscope.figures.block import asset as figures_asset
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.shown import number, shown
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.nodes import KINDS
from mechscope.graphs.row_blocks import input_sizes

MOST_NODES = 1000
MOST_EDGES = 30_000
_SHARES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class GraphView(Block):
    """An attribution graph as an interactive drawing.

    Args:
        graph: Drawn as it is if it has at most `MOST_NODES` nodes; otherwise pruned until it has.
        title: Above the drawing.
        labels: What latents are taken to mean, by node name.
    """

    graph: AttributionGraph
    title: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def markup(self) -> Markup:
        graph = drawable(self.graph)
        data = json.dumps(view_data(graph, self.labels), separators=(",", ":"), allow_nan=False)
        said = element("p", *_summary(self.graph, graph), class_="ms-quiet msg-summary")
        heading = element("h3", self.title) if self.title else None
        without = element("noscript", element("p", "This drawing needs scripts; the figures above do not."))
        canvas = element("div", class_="msg-root", data_graph=data)
        return element("div", heading, said, canvas, without, class_="msg")

    def _repr_html_(self) -> str:
        style = element("style", Markup(figures_asset("figures.css") + asset("graph.css")))
        script = element("script", Markup(asset("graph.js")))
        return element("div", style, self.markup(), script, class_="ms ms-alone msg-alone")


def graph_page(graph: AttributionGraph, *, title: str = "", labels: Mapping[str, str] | None = None) -> str:
    """One self-contained HTML page with a graph to explore. The same graph gives the same bytes.

    Args:
        graph: Pruned if it is too large to draw.
        title: By default, what is explained.
        labels: What latents are taken to mean, by node name.
    """
    title = title or f"What leads to {_named([target.label for target in graph.targets])}"
    script = asset("graph.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", shown(title)),
        element("style", Markup(figures_asset("figures.css") + asset("graph.css"))),
    )
    prompt = [element("span", shown(token), class_="ms-token") for token in graph.nodes.tokens]
    header = element(
        "header",
        element("h1", shown(title)),
        element("div", *prompt, class_="ms-tokens"),
        class_="msg-header",
    )
    view = GraphView(graph, labels=labels or {}).markup()
    body = element("main", header, view, _record(graph))
    page = element("body", body, element("script", Markup(script)), class_="ms ms-page msg-page")
    return f"<!doctype html>\n{element('html', head, page, lang='en')}\n"


def drawable(graph: AttributionGraph, at_most: int = MOST_NODES) -> AttributionGraph:
    """The graph, pruned until it has at most so many nodes."""
    if len(graph) <= at_most:
        return graph
    smaller = graph
    for share in _SHARES:
        smaller = graph.prune(share)
        if len(smaller) <= at_most:
            return smaller
    return smaller


def view_data(graph: AttributionGraph, labels: Mapping[str, str]) -> dict[str, Any]:
    """What the drawing is made from, as JSON: columns of nodes, columns of edges, groups."""
    nodes = graph.nodes
    every = [nodes[i] for i in range(len(nodes))]
    targets, sources, weights = _edges(graph)
    inputs = np.zeros(len(nodes))
    for block in graph.adjacency.blocks:
        inputs[block.targets] = input_sizes(block, block.values)
    return {
        "kinds": list(KINDS),
        "tokens": [shown(token) for token in nodes.tokens],
        "kind": nodes.kinds.tolist(),
        "layer": nodes.layers.tolist(),
        "position": nodes.positions.tolist(),
        "name": [node.name for node in every],
        "text": [shown(node.text) for node in every],
        "label": [shown(labels.get(node.name, "")) if node.name in labels else "" for node in every],
        "activation": [None if np.isnan(node.activation) else _short(node.activation) for node in every],
        "share": [_short(value) for value in graph.cumulative],
        "influence": [_short(value) for value in graph.influence],
        "weight": [_short(value) for value in graph.weights],
        "inputs": [_short(value) for value in inputs],
        "source": sources.tolist(),
        "target": targets.tolist(),
        "effect": [_short(value) for value in weights],
        "groups": [
            {"label": shown(group.label), "members": list(group.members)} for group in graph.supernodes
        ],
    }


def plotly_figure(graph: AttributionGraph) -> Any:
    """Plotly figure: nodes by position and layer, size by influence, the strongest edges between them."""
    import plotly.graph_objects as go

    graph = drawable(graph, 400)
    nodes = graph.nodes
    x, y = _spread(nodes.positions, nodes.layers)
    targets, sources, weights = _edges(graph, 400)
    strongest = max(float(np.abs(weights).max(initial=0)), 1e-12)
    figure = go.Figure()
    for source, target, weight in zip(sources, targets, weights, strict=True):
        figure.add_scatter(
            x=[x[source], x[target]],
            y=[y[source], y[target]],
            mode="lines",
            line={
                "width": 0.3 + 2.5 * abs(weight) / strongest,
                "color": "#0a4c9a" if weight > 0 else "#b34706",
            },
            opacity=0.35,
            hoverinfo="skip",
            showlegend=False,
        )
    size = 6 + 16 * np.sqrt(graph.influence / max(float(graph.influence.max(initial=0)), 1e-12))
    for kind in KINDS:
        mine = nodes.of(kind)
        figure.add_scatter(
            x=x[mine],
            y=y[mine],
            mode="markers",
            name=kind,
            marker={"size": size[mine]},
            text=[f"{nodes.name(int(i))}: {shown(nodes[int(i)].text)}" for i in mine],
            hoverinfo="text",
        )
    ticks = list(range(len(nodes.tokens)))
    figure.update_xaxes(tickvals=ticks, ticktext=[shown(token) for token in nodes.tokens], title="position")
    figure.update_yaxes(title="layer")
    return figure


@cache
def asset(name: str) -> str:
    """The text of a style sheet or script of this view."""
    return resources.files("mechscope.graphs").joinpath("assets", name).read_text(encoding="utf-8")


def _edges(graph: AttributionGraph, at_most: int = MOST_EDGES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, sources and effects of the edges that hold the largest shares of their targets' inputs."""
    columns: Sequence[list[np.ndarray]] = ([], [], [], [])
    for block in graph.adjacency.blocks:
        dense = block.values
        rows, places = np.nonzero(dense)
        values = dense[rows, places]
        sums = np.maximum(input_sizes(block, dense), 1e-10)
        scores = np.abs(values) / sums[rows] * (graph.influence + graph.weights)[block.targets[rows]]
        for column, part in zip(
            columns, (block.targets[rows], block.sources[places], values, scores), strict=True
        ):
            column.append(part)
    if not columns[0]:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    targets, sources, values, scores = (np.concatenate(column) for column in columns)
    best = np.argsort(-scores, kind="stable")[:at_most]
    return targets[best], sources[best], values[best]


def _spread(positions: np.ndarray, layers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in which nodes of one position and layer stand side by side."""
    x, seen = positions.astype(float).copy(), dict[tuple[int, int], int]()
    counts: dict[tuple[int, int], int] = {}
    places = list(zip(positions.tolist(), layers.tolist(), strict=True))
    for place in places:
        counts[place] = counts.get(place, 0) + 1
    for i, place in enumerate(places):
        seen[place] = seen.get(place, 0) + 1
        x[i] += 0.8 * (seen[place] / (counts[place] + 1) - 0.5)
    return x, layers.astype(float)


def _named(labels: Sequence[str], at_most: int = 3) -> str:
    """Some of the labels, and how many more there are."""
    if len(labels) <= at_most:
        return " and ".join(labels)
    return f"{', '.join(labels[:at_most])} and {len(labels) - at_most} more"


def _summary(whole: AttributionGraph, drawn: AttributionGraph) -> list[str | Markup]:
    counts = {kind: len(drawn.nodes.of(kind)) for kind in KINDS}
    shown_nodes = ", ".join(f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in counts.items())
    scores = whole.scores
    return [
        f"{shown_nodes}; {drawn.adjacency.n_edges} edges; {whole.n_active} latents fired. ",
        f"Replacement score {number(scores.replacement)}, completeness {number(scores.completeness)}",
        " (of the graph as it stands, 0 to 1). ",
        "Patterns and norm denominators are held at this prompt's values.",
    ]


def _record(graph: AttributionGraph) -> Markup:
    pruned = graph.settings.get("pruned")
    facts = {
        "model": f"{graph.model.name} ({graph.model.weights_sha256[:12]}, {graph.model.dtype})"
        if graph.model
        else "",
        "prompt": f"sha256 {graph.data_sha256[:12]}" if graph.data_sha256 else "",
        "MLPs without a dictionary": str(graph.settings.get("mlps", "")),
        "positions left out": str(list(graph.settings.get("left_out", []))),
        "pruned to": f"{pruned['node_share']} of nodes' influence, {pruned['edge_share']} of edges'"
        if pruned
        else "",
    }
    rows = [joined(element("dt", name), element("dd", value)) for name, value in facts.items() if value]
    return element("footer", element("h2", "Record"), element("dl", *rows))


def _short(value: float | np.floating[Any]) -> float:
    return float(f"{float(value):.4g}")
