"""The view: self-contained, whole, and deaf to hostile text."""

import html
import json
import re
from dataclasses import replace

import pytest

from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.view import drawable, graph_page

HOSTILE = "</div><script>alert(1)</script>\"' onload=x &lt; \u202e\x00"


@pytest.fixture(scope="module")
def graph() -> AttributionGraph:
    return attribution_graph(exact_model("llama"), dictionaries("llama"), prompt(), targets=[3, 4])


def data_of(page: str) -> dict:
    return json.loads(html.unescape(re.search(r'data-graph="([^"]*)"', page).group(1)))  # type: ignore[union-attr]


def test_a_page_holds_every_node_and_asks_nothing_of_a_network(graph: AttributionGraph) -> None:
    page = graph_page(graph)
    data = data_of(page)
    assert data["name"] == [graph.nodes.name(i) for i in range(len(graph))]
    assert len(data["source"]) == len(data["effect"]) == graph.adjacency.n_edges
    assert page == graph_page(graph)
    without_names = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", without_names)
    assert "default-src 'none'" in html.unescape(page) and page.count("<script") == 1


def test_hostile_text_never_becomes_markup(graph: AttributionGraph) -> None:
    nodes = replace(graph.nodes, tokens=(HOSTILE,) * 7, logits=(HOSTILE, HOSTILE))
    targets = tuple(replace(target, label=HOSTILE) for target in graph.targets)
    hostile = replace(graph, nodes=nodes, targets=targets).with_supernodes({HOSTILE: [0, 1]})
    page = graph_page(hostile, labels={graph.nodes.name(0): HOSTILE})
    assert page.count("<script") == 1 and "alert(1)</script>" not in page
    assert "\u202e" not in page and "\x00" not in page
    data = data_of(page)
    assert "alert(1)" in data["groups"][0]["label"] and "alert(1)" in data["label"][0]


def test_the_script_writes_text_nodes_only() -> None:
    from mechscope.graphs.view import asset

    script = asset("graph.js")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|fetch\(", script
    )


def test_a_graph_too_large_to_draw_is_pruned_first(graph: AttributionGraph) -> None:
    assert drawable(graph) is graph
    small = drawable(graph, 40)
    assert len(small) <= 40 and len(small.nodes.of("logit")) == 2
