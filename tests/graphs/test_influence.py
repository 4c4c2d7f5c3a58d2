"""Influence, pruning and scores: equal to the published definitions computed densely, and right on graphs by hand."""

import numpy as np
import pytest

from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.graphs.adjacency import Adjacency, RowBlock
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.influence import cumulative_share, node_influence, prune, score_graph
from mechscope.graphs.nodes import KINDS, Nodes
from mechscope.vocabulary.errors import InterventionMismatch


@pytest.fixture(scope="module", params=["gpt2", "gemma2"])
def graph(request: pytest.FixtureRequest) -> AttributionGraph:
    family = request.param
    return attribution_graph(exact_model(family), dictionaries(family), prompt(), targets=[3, (4, 5), 7])


def shares(dense: np.ndarray) -> np.ndarray:
    sizes = np.abs(dense)
    return sizes / np.maximum(sizes.sum(1, keepdims=True), 1e-10)


def influence_by_powers(dense: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sum over k of w A^k, term by term."""
    matrix, term, total = shares(dense), weights, np.zeros(len(weights))
    for _ in range(len(weights)):
        term = term @ matrix
        total = total + term
        if not term.any():
            return total
    raise AssertionError("the graph has a cycle")


def threshold(scores: np.ndarray, share: float) -> float:
    falling = np.sort(scores)[::-1]
    cumulative = np.cumsum(falling) / scores.sum()
    return falling[min(np.searchsorted(cumulative, share), len(falling) - 1)]


def prune_densely(
    graph: AttributionGraph, node_share: float, edge_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Masks of nodes and edges by the published procedure, on the dense matrix."""
    dense, weights, kinds = graph.adjacency.to_dense(), graph.weights, graph.nodes.kinds
    is_end, is_latent = kinds >= KINDS.index("token"), kinds == KINDS.index("latent")
    influence = influence_by_powers(dense, weights)
    nodes = (influence >= threshold(influence, node_share)) | is_end
    inside = np.where(nodes[:, None] & nodes[None], dense, 0)
    scores = shares(inside) * (influence_by_powers(inside, weights) + weights)[:, None]
    edges = (scores >= threshold(scores.ravel(), edge_share)) & (scores > 0)
    while True:
        kept = nodes & (edges.any(0) | is_end) & (edges.any(1) | ~is_latent)
        edges &= kept[:, None] & kept[None]
        if (kept == nodes).all():
            return nodes, edges
        nodes = kept


def test_one_pass_equals_the_sum_over_powers(graph: AttributionGraph) -> None:
    by_powers = influence_by_powers(graph.adjacency.to_dense(), graph.weights)
    assert by_powers.max() > 0
    gap = np.abs(node_influence(graph.adjacency, graph.weights) - by_powers).max()
    assert gap < 1e-12 * by_powers.max()


def test_a_pass_in_the_wrong_order_would_be_noticed(graph: AttributionGraph) -> None:
    wrong = Adjacency(len(graph), list(reversed(graph.adjacency.blocks)))
    by_powers = influence_by_powers(graph.adjacency.to_dense(), graph.weights)
    assert np.abs(node_influence(wrong, graph.weights) - by_powers).max() > 0.05 * by_powers.max()


@pytest.mark.parametrize(("node_share", "edge_share"), [(0.8, 0.98), (0.6, 0.8), (0.95, 0.5)])
def test_pruning_equals_the_published_procedure(
    graph: AttributionGraph, node_share: float, edge_share: float
) -> None:
    nodes, edges = prune_densely(graph, node_share, edge_share)
    small = graph.prune(node_share, edge_share)
    assert [small.nodes.name(i) for i in range(len(small))] == [
        graph.nodes.name(int(i)) for i in np.flatnonzero(nodes)
    ]
    wanted = np.where(edges, graph.adjacency.to_dense(), 0)[np.ix_(nodes, nodes)]
    assert np.array_equal(small.adjacency.to_dense(), wanted)
    assert 0 < small.adjacency.n_edges < graph.adjacency.n_edges
    assert np.allclose(small.cumulative, graph.cumulative[nodes])


def test_scores_are_those_of_the_definition(graph: AttributionGraph) -> None:
    matrix, weights = shares(graph.adjacency.to_dense()), graph.weights
    influence = influence_by_powers(graph.adjacency.to_dense(), weights)
    errors, tokens = graph.nodes.of("error"), graph.nodes.of("token")
    found = score_graph(graph.adjacency, graph.nodes, weights)
    replacement = influence[tokens].sum() / (influence[tokens].sum() + influence[errors].sum())
    output = influence + weights
    completeness = ((1 - matrix[:, errors].sum(1)) * output).sum() / output.sum()
    assert abs(found.replacement - replacement) < 1e-12
    assert abs(found.completeness - completeness) < 1e-12


def by_hand() -> tuple[Adjacency, Nodes]:
    """logit <- latent b (3), error (-1); latent b <- latent a (2), token (2); latent a <- token (1)."""
    kinds = np.array([0, 0, 1, 2, 3])
    nodes = Nodes(
        kinds=kinds,
        layers=np.array([0, 1, 1, -1, 2]),
        positions=np.zeros(5, int),
        numbers=np.array([4, 5, -1, 9, 0]),
        activations=np.array([1.0, 1.0, np.nan, np.nan, np.nan]),
        sites=np.array([0, 1, 2, -1, -1]),
        site_names=("mlp_in.0", "mlp_in.1", "mlp_out.1"),
        tokens=("a",),
        token_ids=(9,),
        logits=("b",),
    )
    rows = [(4, {1: 3.0, 2: -1.0}), (1, {0: 2.0, 3: 2.0}), (0, {3: 1.0})]
    blocks = [
        RowBlock(np.array([t]), np.array(sorted(row)), np.array([[row[s] for s in sorted(row)]]))
        for t, row in rows
    ]
    return Adjacency(5, blocks), nodes


def test_a_graph_of_five_nodes_has_the_numbers_worked_out_by_hand() -> None:
    adjacency, nodes = by_hand()
    weights = np.array([0, 0, 0, 0, 1.0])
    influence = node_influence(adjacency, weights)
    assert influence.tolist() == [0.375, 0.75, 0.25, 0.75, 0.0]
    found = score_graph(adjacency, nodes, weights)
    assert found.replacement == 0.75
    assert abs(found.completeness - (0.75 * 1 + 0.375 + 0.75 + 0.25 + 0.75) / 3.125) < 1e-12
    assert np.allclose(cumulative_share(influence), np.array([1.875, 0.75, 2.125, 1.5, 2.125]) / 2.125)
    # 0.7 of the influence need b, the token and a; the error goes.
    left = prune(adjacency, nodes, weights=weights, node_share=0.8, edge_share=1.0)
    assert left.kept.tolist() == [0, 1, 3, 4]


def test_what_nothing_reads_goes_with_the_edge_that_it_hung_on() -> None:
    adjacency, nodes = by_hand()
    weights = np.array([0, 0, 0, 0, 1.0])
    left = prune(adjacency, nodes, weights=weights, node_share=1.0, edge_share=0.6)
    # Edges by score: b->logit .75; then .375 three times and the error's .25: 0.6 of 2.125 needs two of the former.
    assert left.adjacency.n_edges in (3, 4) and 2 not in left.kept


@pytest.mark.parametrize("shares", [(1.5, 0.9), (-0.1, 0.9), (0.8, float("nan"))])
def test_shares_that_are_none_are_refused(graph: AttributionGraph, shares: tuple[float, float]) -> None:
    with pytest.raises(InterventionMismatch, match="keeps shares"):
        graph.prune(*shares)
