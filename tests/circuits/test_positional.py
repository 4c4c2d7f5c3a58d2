"""Positional circuits: the right edges at the right positions carry the behaviour, and elsewhere they do not."""

import numpy as np
import pytest

from attribution.precision import double
from circuits.cases import induction, pairs
from family_cases import opened
from mechscope.circuits.circuit import Circuit, connected_edges
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.evaluation import CircuitEvaluation, evaluate_circuits
from mechscope.circuits.measures import Measures
from mechscope.circuits.positional import ELSEWHERE, PositionalCircuit, connected_in_spans, spans_of
from mechscope.circuits.positional_discovery import discover_positional
from mechscope.models.wiring import wiring_of
from mechscope.vocabulary.errors import ShapeError, UnknownEdge

ALONE = Measures(parts=())


def everywhere(circuit: Circuit, spans: tuple[int | str, ...], positions: object) -> PositionalCircuit:
    kept = np.repeat(circuit.kept[None], len(spans), axis=0)
    return PositionalCircuit(wiring=circuit.wiring, spans=spans, positions=positions, kept=kept)


def random_circuit(name: str, seed: int = 0) -> Circuit:
    wiring = wiring_of(opened(name))
    return Circuit(wiring=wiring, kept=np.random.default_rng(seed).random(wiring.n_edges) < 0.8)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_a_circuit_kept_in_every_span_is_the_circuit_itself(name):
    model, split = opened(name), pairs()
    circuit = random_circuit(name)
    with double(name):
        plain = circuit.evaluate(model, split, measures=ALONE)
        for positions in ("each", "from-end", {"start": [0, 1], "end": -1}):
            spans = {"each": range(6), "from-end": range(-6, 0)}.get(str(positions), positions)
            found = everywhere(circuit, (*spans, ELSEWHERE), positions).evaluate(model, split, measures=ALONE)
            assert np.abs(found.values - plain.values).max() < 1e-10
            assert np.abs(found.model_values - plain.model_values).max() < 1e-10


def test_edges_at_positions_where_prompts_do_not_differ_yet_are_not_needed():
    # The twins differ from position 1 on: what happens at position 0 is the same in both runs.
    model, split = opened("gpt2"), pairs()
    circuit = everywhere(random_circuit("gpt2"), (*range(6), ELSEWHERE), "each")
    kept = circuit.kept.copy()
    kept[0] = False
    kept[-1] = False  # no token is elsewhere
    less = PositionalCircuit(wiring=circuit.wiring, spans=circuit.spans, positions="each", kept=kept)
    kept = kept.copy()
    kept[3] = False
    fewer = PositionalCircuit(wiring=circuit.wiring, spans=circuit.spans, positions="each", kept=kept)
    with double("gpt2"):
        whole, same, other = evaluate_circuits(model, [circuit, less, fewer], split, measures=ALONE)
    assert np.abs(whole.values - same.values).max() < 1e-10
    assert np.abs(whole.values - other.values).max() > 1e-4


def true_positions() -> tuple[PositionalCircuit, object]:
    model, behavior = induction()
    split = behavior.train.select(range(24))
    n = int(split.clean.n_real.min())
    assert n == int(split.clean.n_real.max())
    return discover_positional(model, split, positions="each", n_edges=100, method="eap-ig"), split


def test_the_induction_edges_are_found_where_the_mechanism_has_them_and_carry_it_there_alone(tmp_path):
    model, behavior = induction()
    found = true_positions()[0]
    named = {str(edge.edge) for edge in found.edges}
    assert {"embed->a0.5.v", "a0.5->a1.11.k", "a1.11->logits"} <= named
    last = max(span for span in found.spans if span != ELSEWHERE)
    assert {edge.span for edge in found.edges if str(edge.edge) == "a1.11->logits"} == {last}
    held_out = behavior.held_out.select(range(24))
    evaluation = found.evaluate(model, held_out, measures=ALONE)
    assert evaluation.faithfulness > 0.8
    # The same edges one position further on carry nothing.
    kept = np.roll(found.kept[:-1], -1, axis=0)
    moved = PositionalCircuit(
        wiring=found.wiring,
        spans=found.spans,
        positions=found.positions,
        kept=np.concatenate([kept, found.kept[-1:]]),
    )
    assert abs(moved.evaluate(model, held_out, measures=ALONE).faithfulness) < 0.1
    evaluation.save(tmp_path / "evaluation.json")
    again = CircuitEvaluation.load(tmp_path / "evaluation.json")
    assert again.circuit == found and again.to_json() == evaluation.to_json()
    found.save(tmp_path / "circuit.json")
    assert PositionalCircuit.load(tmp_path / "circuit.json") == found
    assert found.plot().data and "@" in repr(found)


def test_needs_of_placed_edges_are_measured_one_by_one():
    model, _ = induction()
    found, split = true_positions()
    evaluation = found.evaluate(model, split, measures=Measures(parts=("minimality",), n_subsets=1))
    assert evaluation.edge_needs.shape == (len(found),)
    needs = dict(zip(map(str, found.edges), evaluation.edge_needs, strict=True))
    last = max(span for span in found.spans if span != ELSEWHERE)
    assert needs[f"a1.11->logits@{last}"] > 0.8
    without = found.kept.copy()
    place = found.edges.index(found.top(1)[0][0])
    without.flat[np.flatnonzero(found.kept)[place]] = False
    runs = CircuitRuns(model, split, conventions=Conventions(), spans=spans_of(model, split, found))
    values = runs.measure(np.stack([found.kept, without])).mean(1)
    gap = abs(evaluation.gap)
    assert evaluation.edge_needs[place] == pytest.approx(abs(values[0] - values[1]) / gap, abs=1e-5)


def test_only_edges_on_a_path_are_connected():
    wiring = wiring_of(opened("llama"))
    names = ["embed->a0.1.q", "a0.1->kv2.0.v", "a2.1->logits", "m0->m1"]
    circuit = PositionalCircuit.of(wiring, {"a": names[:2], "b": names[2:]}, positions={"a": [0, 1], "b": -1})
    # Values cross from "a" to "b" inside head 2.1; m0 reads nothing and m1 tells nobody.
    assert {str(edge) for edge in circuit.connected().edges} == {f"{n}@a" for n in names[:2]} | {
        f"{names[2]}@b"
    }
    # A query does not cross.
    broken = PositionalCircuit.of(
        wiring,
        {"a": ["embed->a0.1.q"], "b": ["a0.1->m1", "m1->logits"]},
        positions={"a": [0, 1], "b": -1},
    )
    assert len(broken.connected()) == 0
    kept = np.random.default_rng(0).random((1, wiring.n_edges)) < 0.05
    assert (connected_in_spans(wiring, kept)[0] == connected_edges(wiring, kept[0])).all()


def test_spans_that_do_not_fit_are_refused():
    model, split = opened("gpt2"), pairs()
    circuit = everywhere(random_circuit("gpt2"), (*range(9), ELSEWHERE), "each")
    with pytest.raises(ShapeError, match="other positions"):
        circuit.evaluate(model, split)
    twice = everywhere(random_circuit("gpt2"), ("x", "y", ELSEWHERE), {"x": [0, 1], "y": [1, 2]})
    with pytest.raises(ShapeError, match="two spans"):
        twice.evaluate(model, split)
    plain = random_circuit("gpt2")
    with pytest.raises(ShapeError, match="same spans"):
        evaluate_circuits(model, [plain, everywhere(plain, (*range(6), ELSEWHERE), "each")], split)
    with pytest.raises(UnknownEdge, match="these spans"):
        PositionalCircuit(wiring=plain.wiring, spans=("x",), positions={"x": 0}, kept=plain.kept)
    with pytest.raises(ShapeError, match="no positions"):
        PositionalCircuit.of(plain.wiring, {"z": ["embed->m0"]}, positions={"x": 0})
    with pytest.raises(ShapeError, match="positions with names"):
        discover_positional(model, split, positions="all", n_edges=3)
