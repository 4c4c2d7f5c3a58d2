"""Evaluation: faithfulness from its definition, shared work, directions, ablations, and nothing where nothing is."""

from dataclasses import replace

import numpy as np
import pytest

from circuits.cases import TRUE_EDGES, induction, pairs
from family_cases import opened
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import CircuitRuns, Conventions, kl_to_model
from mechscope.circuits.evaluation import CircuitEvaluation, evaluate_circuits
from mechscope.circuits.faithfulness import Faithfulness
from mechscope.circuits.measures import Measures
from mechscope.circuits.optimal import learn_constants
from mechscope.circuits.size_curve import FRACTIONS
from mechscope.engine.edge_runs.run import EdgeRuns
from mechscope.patching.path import path_patch
from mechscope.patching.path_settings import direct_edge
from mechscope.vocabulary.errors import InterventionMismatch, NotEnoughEvidence

FEW = Measures(n_subsets=3, n_resamples=200)


def true_circuit() -> Circuit:
    return Circuit.of(induction()[0], TRUE_EDGES)


def test_the_true_edges_are_faithful_complete_and_minimal():
    model, behavior = induction()
    found = true_circuit().evaluate(model, behavior.held_out, measures=FEW)
    assert found.faithfulness == pytest.approx(1, abs=0.02)
    assert found.interval.low > 0.95 and abs(found.mean_of_ratios - 1) < 0.05
    assert found.completeness < 0.05 and found.minimality == 1.0 and found.unneeded_edges == ()
    assert found.quantiles[0.05] > 0.9
    assert min(found.node_needs.values()) > 0.5


def test_edges_that_do_nothing_are_found_to_be_unneeded_and_missing_ones_to_be_missed():
    model, behavior = induction()
    padded = true_circuit() | Circuit.of(model, ["a0.6->a1.3.v", "embed->a0.6.v", "a1.3->logits"])
    found = padded.evaluate(model, behavior.validation, measures=FEW)
    assert set(found.unneeded_edges) == {"a0.6->a1.3.v", "embed->a0.6.v", "a1.3->logits"}
    assert found.minimality == 0.5
    half = true_circuit() - Circuit.of(model, ["embed->a0.5.v"])
    assert abs(half.evaluate(model, behavior.validation, measures=FEW).faithfulness) < 0.05


def test_circuits_evaluated_together_are_as_if_alone():
    model, split = opened("gemma2"), pairs(n=4)
    generator = np.random.default_rng(0)
    wiring = Circuit.whole(model).wiring
    circuits = [Circuit(wiring=wiring, kept=generator.random(wiring.n_edges) < p) for p in (0.9, 0.97)]
    together = evaluate_circuits(model, circuits, split, measures=Measures(parts=()))
    for circuit, one in zip(circuits, together, strict=True):
        alone = circuit.evaluate(model, split, measures=Measures(parts=()))
        assert np.allclose(one.values, alone.values, atol=1e-10)
        assert np.allclose(one.model_values, alone.model_values, atol=1e-10)
    assert together[0].completeness is None and together[0].minimality is None


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_ten_nested_sizes_evaluated_together_are_as_if_alone(name):
    model, split = opened(name), pairs(n=4)
    wiring = Circuit.whole(model).wiring
    order = np.random.default_rng(1).permutation(wiring.n_edges)
    circuits = [
        Circuit(wiring=wiring, kept=np.isin(np.arange(len(order)), order[: max(1, round(k * len(order)))]))
        for k in FRACTIONS
    ]
    measures = Measures(parts=())
    for one, circuit in zip(
        evaluate_circuits(model, circuits, split, measures=measures), circuits, strict=True
    ):
        alone = circuit.evaluate(model, split, measures=measures)
        assert np.abs(one.values - alone.values).max() < 1e-10
        assert one.faithfulness == pytest.approx(alone.faithfulness, abs=1e-10)


def test_faithfulness_is_its_definition():
    model, behavior = induction()
    split = behavior.validation
    found = true_circuit().evaluate(model, split, measures=Measures(parts=()))
    runs = CircuitRuns(model, split, conventions=Conventions())
    m = runs.measure(np.stack([true_circuit().kept, runs.runs.every, runs.runs.none]))
    assert found.faithfulness == pytest.approx((m[0] - m[2]).mean() / (m[1] - m[2]).mean(), abs=1e-9)
    assert np.allclose(found.per_pair, (m[0] - m[2]) / (m[1] - m[2]))


def test_denoising_gives_the_circuit_the_clean_values_in_the_corrupt_run():
    model, behavior = induction()
    denoising = Conventions(direction="denoising")
    found = true_circuit().evaluate(model, behavior.validation, conventions=denoising, measures=FEW)
    assert found.faithfulness == pytest.approx(1, abs=0.05)
    rest = (~true_circuit()).evaluate(
        model, behavior.validation, conventions=denoising, measures=Measures(parts=())
    )
    assert abs(rest.faithfulness) < 0.05


@pytest.mark.parametrize("ablation", ["mean", "zero", "optimal"])
def test_denoising_over_constants_restores_the_circuit_and_begins_where_noising_does(ablation):
    model, behavior = induction()
    full, split = full_circuit(model), behavior.validation
    if ablation == "optimal":
        noising = learn_constants(model, behavior.train, circuit=full, n_steps=3)
    else:
        noising = Conventions(ablation=ablation)
    denoising = replace(noising, direction="denoising")
    only = Measures(parts=())
    circuits = [full, ~full, true_circuit()]
    found = evaluate_circuits(model, circuits, split, conventions=denoising, measures=only)
    other = evaluate_circuits(model, circuits, split, conventions=noising, measures=only)
    assert np.allclose(found[0].none_values, other[0].none_values, atol=1e-5)
    assert np.allclose(found[0].model_values, other[0].model_values, atol=1e-5)
    assert found[0].faithfulness == pytest.approx(1, abs=0.2) and abs(found[1].faithfulness) < 0.2
    # Keys and values that carry the clean run's are not sought by other queries: restoring needs fewer edges.
    assert found[2].faithfulness > other[2].faithfulness + 0.3


def test_a_path_with_its_learned_constant_hurts_least_and_still_breaks_the_behaviour():
    """What m0 of a random model says on its way to the logits, by what it carries instead."""
    model, split = opened("gpt2"), pairs(n=6)
    divergence = replace(split, metric=kl_to_model(model, split))
    circuit = ~Circuit.of(model, ["m0->logits"])
    learned = learn_constants(model, split, circuit=circuit, n_steps=60)
    costs = {
        how: path_patch(
            model,
            divergence,
            senders=["m0"],
            receivers=["logits"],
            convention=direct_edge(ablation=how, **more),
        ).values.values[0, 0]
        for how, more in (("optimal", {"constants": learned.constants}), ("mean", {}), ("zero", {}))
    }
    assert 0 < costs["optimal"] < 0.98 * min(costs["mean"], costs["zero"]), costs


def test_a_circuit_that_is_not_there_is_restored_to_nothing():
    model, behavior = induction()
    rng, whole = np.random.default_rng(2), Circuit.whole(model)
    true = full_circuit(model)
    drawn = [replace(true, kept=(rng.permutation(true.kept)) & ~true.kept & whole.kept) for _ in range(5)]
    for ablation in ("mean", "zero"):
        conventions = Conventions(ablation=ablation, direction="denoising")
        found = evaluate_circuits(
            model, drawn, behavior.validation, conventions=conventions, measures=Measures(parts=())
        )
        assert all(one.faithfulness < 0.5 for one in found)


def full_circuit(model):
    more = ["embed->a0.5.q", "embed->a0.5.k", "embed->a1.11.q", "embed->a1.11.v"]
    return true_circuit() | Circuit.of(model, more)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_constants_need_the_position_edges_too(ablation):
    model, behavior = induction()
    full = full_circuit(model)
    settings = {"conventions": Conventions(ablation=ablation), "measures": Measures(parts=())}
    assert full.evaluate(model, behavior.validation, **settings).faithfulness > 0.8
    assert true_circuit().evaluate(model, behavior.validation, **settings).faithfulness < 0.5


def test_a_greedy_set_is_the_worst_node_and_then_the_worst_beside_it():
    model, split = opened("gpt2"), pairs(n=4)
    wiring = Circuit.whole(model).wiring
    circuit = Circuit(wiring=wiring, kept=np.random.default_rng(3).random(wiring.n_edges) < 0.9)
    found = circuit.evaluate(model, split, measures=Measures(n_greedy=2, n_subsets=0)).incompleteness
    runs, whole = CircuitRuns(model, split, conventions=Conventions()), Circuit.whole(model)
    gap = np.subtract(*runs.measure(np.stack([runs.runs.every, runs.runs.none])).mean(1))

    def apart(nodes):
        masks = np.stack([one.without(nodes).kept for one in (circuit, whole)])
        return abs(np.subtract(*runs.measure(masks).mean(1)) / gap)

    nodes = [str(node) for node in circuit.nodes if node.kind not in ("embed", "logits")]
    first = max(nodes, key=lambda node: apart([node]))
    second = max((node for node in nodes if node != first), key=lambda node: apart([first, node]))
    greedy = {name: value for name, value in found.items() if name.startswith("greedy")}
    assert greedy == pytest.approx(
        {f"greedy {first}": apart([first]), f"greedy {first}, {second}": apart([first, second])}, abs=1e-9
    )


def test_the_true_circuit_is_complete_under_the_worst_set_too():
    model, behavior = induction()
    measures = Measures(parts=("completeness",), n_subsets=0, n_greedy=2)
    found = true_circuit().evaluate(model, behavior.validation, measures=measures)
    assert any(name.startswith("greedy") for name in found.incompleteness) and found.completeness < 0.05


def test_an_evaluation_survives_saving(tmp_path):
    model, behavior = induction()
    saved = true_circuit().evaluate(model, behavior.validation, measures=FEW)
    saved.save(tmp_path / "evaluation.json")
    loaded = CircuitEvaluation.load(tmp_path / "evaluation.json")
    assert loaded.to_json() == saved.to_json() and loaded.circuit == saved.circuit
    assert "faithfulness" in str(saved.table().markup())


def test_conventions_that_do_not_fit_and_gaps_of_nothing_are_refused():
    with pytest.raises(InterventionMismatch):
        Conventions(ablation="optimal")
    model, behavior = induction()
    same = behavior.train.select([0, 1])
    with pytest.raises(NotEnoughEvidence, match="cannot be told apart"):
        true_circuit().evaluate(model, replace(same, corrupt=same.clean))


def test_learned_constants_lose_less_than_means_and_zeros():
    model, split = opened("gpt2"), pairs()
    whole = Circuit.whole(model)
    half = Circuit(wiring=whole.wiring, kept=np.random.default_rng(0).random(len(whole)) < 0.6)
    kl = kl_to_model(model, split)
    lost = {}
    for name, conventions in {
        "zero": Conventions(ablation="zero"),
        "mean": Conventions(ablation="mean"),
        "optimal": learn_constants(model, split, circuit=half, n_steps=25),
    }.items():
        lost[name] = (
            CircuitRuns(model, split, conventions=conventions, metric=kl).measure(half.kept[None]).mean()
        )
    assert lost["optimal"] < 0.8 * lost["mean"] and lost["optimal"] < lost["zero"]


def test_a_circuit_is_evaluated_under_learned_constants_and_says_which(tmp_path):
    model, split = opened("gpt2"), pairs(n=4)
    whole = Circuit.whole(model)
    half = Circuit(wiring=whole.wiring, kept=np.random.default_rng(0).random(len(whole)) < 0.6)
    learned = learn_constants(model, split, circuit=half, n_steps=10)
    none_too = Measures(parts=())
    found = half.evaluate(model, split, conventions=learned, measures=none_too)
    runs = EdgeRuns(model, split.clean, metric=split.metric, ablation=learned.constants)
    masks = [half.kept, np.ones(len(whole), dtype=bool), np.zeros(len(whole), dtype=bool)]
    by_hand = [runs.measure([mask])[0].numpy() for mask in masks]
    for mine, wanted in zip((found.values, found.model_values, found.none_values), by_hand, strict=True):
        assert np.abs(mine - wanted).max() < 1e-10
    means = half.evaluate(model, split, conventions=Conventions(ablation="mean"), measures=none_too)
    assert np.abs(means.model_values - found.model_values).max() < 1e-10
    assert np.abs(means.values - found.values).max() > 1e-3  # the constants are not the means
    found.save(tmp_path / "evaluation.json")
    loaded = CircuitEvaluation.load(tmp_path / "evaluation.json")
    assert loaded.to_json() == found.to_json() and loaded.faithfulness == found.faithfulness
    assert loaded.settings["ablation"] == "optimal"
    assert loaded.settings["constants"] == learned.constants.to_json()  # the hash of what was learned


def test_an_evaluation_draws_each_pair_beside_the_model() -> None:
    rng = np.random.default_rng(0)
    whole, none = rng.normal(5, 1, 8), rng.normal(0, 1, 8)
    found = Faithfulness(
        values=0.5 * (whole + none), model_values=whole, none_values=none, units=np.arange(8), settings={}
    )
    array = found.labelled()
    assert array.labels("run") == ("model", "circuit", "nothing") and "0.500" in array.title
    order = [int(pair) for pair in array.labels("pair")]
    assert order[0] == whole.argmax() and sorted(order) == list(range(8))
    assert np.array_equal(array.values, np.stack([whole, 0.5 * (whole + none), none])[:, order])
    assert [len(trace.y) for trace in found.plot().data] == [8, 8, 8]
