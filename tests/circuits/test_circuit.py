"""A circuit as a value: names, set operations, connection, saving, drawing, refusals."""

import numpy as np
import pytest

from circuits.cases import TRUE_EDGES, induction
from family_cases import opened
from mechscope.circuits.circuit import Circuit
from mechscope.models.wiring import wiring_of
from mechscope.vocabulary.errors import BadFile, NotEnoughEvidence, UnknownEdge

EDGES = ("embed->a0.1.q", "a0.1->m0", "m0->logits", "a0.2->a1.0.q")


def circuit(edges: tuple[str, ...] = EDGES, **more) -> Circuit:
    return Circuit.of(opened("gpt2"), edges, **more)


def test_edges_and_nodes_come_in_the_order_of_the_wiring():
    found = circuit(EDGES[::-1])
    assert {str(edge) for edge in found.edges} == set(EDGES) and len(found) == 4
    assert [str(node) for node in found.nodes] == ["embed", "a0.1", "a0.2", "m0", "a1.0", "logits"]
    assert found.heads == ((0, 1), (0, 2)) and found.mlps == (0,)
    assert "m0->logits" in found and "m1->logits" not in found
    assert found == circuit() and hash(found) == hash(circuit())


def test_set_operations_are_those_of_sets():
    one, other = circuit(EDGES[:3]), circuit(EDGES[2:])
    assert len(one | other) == 4 and [str(e) for e in (one & other).edges] == ["m0->logits"]
    assert len(one - other) == 2 and len(~one) == one.wiring.n_edges - 3
    assert one.jaccard(other) == 0.25 and one.jaccard(one) == 1.0
    assert len(one.without(["a0.1"])) == 2


def test_only_paths_from_embedding_to_logits_are_connected():
    assert {str(edge) for edge in circuit().connected().edges} == set(EDGES[:3])
    assert len(circuit(EDGES[1:]).connected()) == 0  # nothing reaches a0.1
    whole = Circuit.whole(opened("llama"))
    assert whole.connected() == whole


def test_connection_agrees_with_a_search_of_the_graph():
    import networkx

    wiring = wiring_of(opened("llama"))
    for seed in range(3):
        kept = np.random.default_rng(seed).random(wiring.n_edges) < 0.06
        found = Circuit(wiring=wiring, kept=kept)
        graph = networkx.DiGraph()
        for edge in found.edges:
            reader = f"{edge.target}.{edge.input}"
            graph.add_edge(str(edge.source), reader)
        for node in wiring.nodes:
            for target, which in wiring.inputs_of(node):
                graph.add_edge(f"{target}.{which}", str(node))
        graph.add_nodes_from(["embed", "logits"])
        ahead = networkx.descendants(graph, "embed") | {"embed"}
        behind = networkx.ancestors(graph, "logits") | {"logits"}
        wanted = {
            str(edge)
            for edge in found.edges
            if str(edge.source) in ahead and f"{edge.target}.{edge.input}" in behind
        }
        assert {str(edge) for edge in found.connected().edges} == wanted


def test_a_circuit_survives_saving(tmp_path):
    scores = np.random.default_rng(0).normal(size=wiring_of(opened("gpt2")).n_edges)
    saved = circuit(scores=scores, settings={"method": "mine"}, numbers={"n": 1})
    saved.save(tmp_path / "circuit.json")
    loaded = Circuit.load(tmp_path / "circuit.json")
    assert loaded == saved and np.array_equal(loaded.scores, scores)
    assert loaded.settings == saved.settings and loaded.numbers == saved.numbers
    with pytest.raises(BadFile):
        Circuit.from_json({"edges": []})


def test_networkx_shows_parallel_edges_apart():
    graph = circuit(("embed->a0.1.q", "embed->a0.1.k")).to_networkx()
    assert graph.number_of_edges("embed", "a0.1") == 2
    assert {data["input"] for *_, data in graph.edges(data=True)} == {"q", "k"}


def test_a_drawing_shows_every_node_and_edge_and_escapes_nothing_dangerous():
    markup = str(circuit().figure().markup())
    assert markup.count("ms-edge ") == 4 and markup.count('class="ms-node ') == 6
    large = Circuit.whole(opened("gpt2")).figure(at_most=30)
    assert len(large.edges) == 30 and "not drawn" in large.caption


def test_edges_that_do_not_exist_are_refused_with_the_reason():
    with pytest.raises(UnknownEdge, match="no edge of this model") as caught:
        circuit(("a1.0->a0.0.q",))
    assert "not computed before" in str(caught.value)
    with pytest.raises(UnknownEdge, match="part of an edge"):
        circuit(("m0:3->logits",))
    with pytest.raises(UnknownEdge, match="name of an edge"):
        circuit(("m0-logits",))


def test_circuits_of_another_model_and_empty_ones_are_not_run():
    model, behavior = induction()
    with pytest.raises(UnknownEdge, match="another shape"):
        circuit().evaluate(model, behavior.train)
    other = Circuit.of(model, TRUE_EDGES, model=opened("gpt2").fingerprint)
    with pytest.raises(UnknownEdge, match="another model"):
        other.evaluate(model, behavior.train)
    with pytest.raises(NotEnoughEvidence, match="empty"):
        Circuit.of(model, []).evaluate(model, behavior.train)
    with pytest.raises(UnknownEdge, match="different shapes"):
        circuit() | other
