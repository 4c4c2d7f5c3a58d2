"""Edge attribution finds what is there, nothing where nothing is, and refuses what has no answer."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attribution.precision import double
from family_cases import opened
from mechscope.attribution.edge_scores import EdgeScores
from mechscope.attribution.edges import METHODS, attribute_edges
from mechscope.attribution.linearization import relp
from mechscope.attribution.nodes import attribute
from mechscope.attribution.settings import EdgeSettings
from mechscope.engine.edge_runs.ablations import Resampled
from mechscope.engine.edge_runs.run import EdgeRuns
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import KL, Accuracy, LogitDifference
from mechscope.models.opening import wrap
from mechscope.specimens.induction import truth
from mechscope.vocabulary.errors import (
    BadPairs,
    InterventionMismatch,
    NoGradient,
    PositionOutOfRange,
    UnknownEdge,
)
from patching.drawn_pairs import DrawnPairs, induction_pairs, random_pairs, specimen


def names_of(edges: Sequence[truth.Edge]) -> set[str]:
    def name(node: str) -> str:
        return f"a{node}" if node[0].isdigit() else node

    return {f"{name(e.source)}->{name(e.target)}" + (f".{e.reads}" if e.reads else "") for e in edges}


@pytest.mark.parametrize("template", ["key", "query", "value"])
@pytest.mark.parametrize("method", METHODS)
def test_the_true_edges_of_the_specimen_come_first(template: str, method: str) -> None:
    true = names_of(truth.EDGES_UNDER_RESAMPLING[template])
    found = attribute_edges(specimen(), induction_pairs(specimen(), template, n=8), method=method)
    assert {str(edge) for edge, _ in found.top(len(true))} == true
    assert all(score < 0 for _, score in found.top(len(true)))  # corrupt values take the answer away
    assert float(found.importance[found.index("a1.11->logits")]) > 10


def test_integrated_steps_say_how_much_an_edge_carries_where_a_gradient_alone_is_saturated() -> None:
    pairs = induction_pairs(specimen(), "key", n=8)
    saturated = attribute_edges(specimen(), pairs, method="eap").score("a0.5->a1.11.k")
    integrated = attribute_edges(specimen(), pairs, method="eap-ig").score("a0.5->a1.11.k")
    assert abs(saturated) < 2 < 20 < abs(integrated)


def test_random_answers_and_shuffled_weights_have_no_such_edges() -> None:
    pairs = induction_pairs(specimen(), "key", n=8)
    real = attribute_edges(specimen(), pairs, method="eap-ig")
    n, draw = len(pairs.clean), torch.Generator().manual_seed(1)
    ids = torch.randint(2, specimen().d_vocab, (2, n, 1), generator=draw).tolist()
    labels = LogitDifference(answers=tuple(map(tuple, ids[0])), wrong=tuple(map(tuple, ids[1])))
    by_label = attribute_edges(specimen(), replace(pairs, metric=labels), method="eap-ig")
    assert float(by_label.scores.abs().max()) < 0.2 * float(real.scores.abs().max())
    twin = wrap(_shuffled(specimen().hf), specimen().tokenizer, check=False)
    by_twin = attribute_edges(twin, pairs, method="eap-ig")
    true = names_of(truth.EDGES_UNDER_RESAMPLING["key"])
    assert not true & {str(edge) for edge, _ in by_twin.top(10)}


def _shuffled(hf: torch.nn.Module) -> torch.nn.Module:
    twin, draw = deepcopy(hf), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if "proj" in name:
                weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=draw)].view_as(weight))
    return twin


@pytest.mark.parametrize(
    "name",
    ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "gemma2", "native_parallel"))],
)
def test_scores_are_the_gradient_of_edge_weights(name: str) -> None:
    pairs = random_pairs(opened(name), lengths=(7, 5), differ_at=(1, 3))
    with double(name):
        found = attribute_edges(opened(name), pairs, direction="noising")
        runs = EdgeRuns(
            opened(name), pairs.clean, metric=pairs.metric, ablation=Resampled(prompts=pairs.corrupt)
        )
        weights = torch.ones(1, runs.wiring.n_edges, dtype=torch.float64, requires_grad=True)
        with runs.open():
            runs.measure_weighted(weights).mean().backward()
    assert weights.grad is not None
    torch.testing.assert_close(found.scores, -weights.grad[0], rtol=0, atol=1e-9)


def test_a_linear_path_is_predicted_exactly_and_a_softmax_is_not() -> None:
    name = "native_attention_only"  # no norms: what reaches the logits is a sum
    pairs = random_pairs(opened(name), lengths=(7, 7), differ_at=(1, 3))
    with double(name):
        found = attribute_edges(opened(name), pairs, direction="noising")
        runs = EdgeRuns(
            opened(name), pairs.clean, metric=pairs.metric, ablation=Resampled(prompts=pairs.corrupt)
        )
        wanted = [
            "embed->logits",
            "a2.1->logits",
            "a0.3->logits",
            "embed->a2.0.v",
            "a1.2->a2.3.v",
            "a1.0->a2.1.k",
        ]
        circuits = np.ones((1 + len(wanted), runs.wiring.n_edges), dtype=bool)
        for row, edge in enumerate(wanted):
            circuits[row + 1, found.index(edge)] = False
        measured = runs.measure(circuits).mean(1)
    effects = (measured[1:] - measured[0]).tolist()
    predicted = [found.score(edge) for edge in wanted]
    assert predicted[:5] == pytest.approx(effects[:5], abs=1e-9)
    assert abs(predicted[5] - effects[5]) > 1e-6


def test_places_add_up_to_all_positions_and_can_be_named() -> None:
    pairs = random_pairs(opened("gpt2"), lengths=(7, 7), differ_at=(1, 3))
    whole = attribute_edges(opened("gpt2"), pairs)
    each = attribute_edges(opened("gpt2"), pairs, positions="each")
    named = attribute_edges(opened("gpt2"), pairs, positions={"first": [0, 1, 2, 3], "rest": [4, 5, 6]})
    assert each.by_place is not None and named.by_place is not None
    assert each.places == tuple(range(7)) and named.places == ("first", "rest")
    torch.testing.assert_close(each.by_place.sum(0), whole.scores, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(each.by_place[:4].sum(0), named.by_place[0], rtol=1e-8, atol=1e-8)
    assert not bool(each.by_place[0].any())  # the twins agree up to position 1


@pytest.mark.parametrize("positions", [[0, 40], -20, 5, []])
def test_positions_that_prompts_do_not_have_are_refused(positions: Any) -> None:
    pairs = random_pairs(opened("gpt2"), lengths=(7, 5), differ_at=(1, 3))
    with pytest.raises(PositionOutOfRange, match=r"no (such )?position"):
        attribute_edges(opened("gpt2"), pairs, positions={"there": positions})
    with pytest.raises(PositionOutOfRange, match=r"no (such )?position"):
        attribute(opened("gpt2"), pairs, site="z", positions=positions)


@pytest.mark.slow
def test_padding_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = random_pairs(opened("gemma2"), lengths=(8, 5, 6), differ_at=(1, 3))
    whole = attribute_edges(opened("gemma2"), pairs, method="eap-ig", settings=EdgeSettings(steps=3))
    assert whole.pairs is not None
    monkeypatch.setattr("mechscope.attribution.passes.BYTES_OF_GRAPH", 1)
    monkeypatch.setattr("mechscope.attribution.contraction.columns_at_once", lambda *_, **__: 2)
    cut = attribute_edges(opened("gemma2"), pairs, method="eap-ig", settings=EdgeSettings(steps=3))
    torch.testing.assert_close(cut.pairs, whole.pairs, rtol=1e-5, atol=1e-6)


def test_held_patterns_leave_queries_and_keys_without_gradient() -> None:
    pairs = induction_pairs(specimen(), "value", n=4)
    found = attribute_edges(specimen(), pairs, settings=EdgeSettings(linearization=relp()))
    silent = {
        edge.input for edge, is_silent in zip(found.edges, found.has_no_gradient, strict=True) if is_silent
    }
    assert silent == {"q", "k"}
    assert found.n_without_gradient == sum(edge.input in "qk" and edge.input != "" for edge in found.edges)
    assert attribute_edges(specimen(), pairs).n_without_gradient == 0


def test_pairs_can_be_resampled_without_running_again() -> None:
    pairs = induction_pairs(specimen(), "key", n=4)
    found = attribute_edges(specimen(), pairs)
    once = attribute_edges(specimen(), DrawnPairs(*_first(pairs, 2)))
    weights = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(found.resampled(weights)[0], found.scores)
    torch.testing.assert_close(found.resampled(weights)[1], once.scores, rtol=1e-4, atol=1e-4)


def _first(pairs: DrawnPairs, n: int) -> tuple[Any, Any, Any]:
    rows = list(range(n))
    return pairs.clean.select(rows), pairs.corrupt.select(rows), pairs.metric.select(rows)


def test_scores_are_saved_with_their_convention(tmp_path: Path) -> None:
    pairs = induction_pairs(specimen(), "key", n=4)
    found = attribute_edges(specimen(), pairs, method="eap-ig", positions="from-end")
    found.save(tmp_path / "edges.json")
    again = EdgeScores.load(tmp_path / "edges.json")
    assert torch.equal(again.scores, found.scores) and again.edges == found.edges
    assert again.top(3) == found.top(3) and again.places == found.places
    assert again.settings["rule"] == "midpoint" and again.settings["linearization"]["patterns"] == "free"
    assert again.model == specimen().fingerprint
    assert "a1.11->logits" in repr(again)
    assert again.labelled(["a1.11->logits"]).shape == (len(found.places), 1)
    assert again.plot() is not None


def test_a_divergence_in_its_own_reference_run_is_refused() -> None:
    pairs = induction_pairs(specimen(), "key", n=4)
    clean = specimen().logits(pairs.clean)[:, -1]
    divergence = replace(pairs, metric=KL(reference=Value(clean)))
    for method in ("eap", "eap-ig-activations"):
        settings = EdgeSettings(steps=1, rule="right")
        with pytest.raises(NoGradient, match="zero where it is taken"):
            attribute_edges(specimen(), divergence, method=method, direction="noising", settings=settings)
    found = attribute_edges(specimen(), divergence, direction="denoising")
    assert str(found.top(1)[0][0]) == "a1.11->logits"


def test_what_cannot_be_answered_is_refused() -> None:
    pairs = induction_pairs(specimen(), "key", n=2)
    counting = Accuracy(answers=pairs.metric.answers)  # type: ignore[union-attr]
    with pytest.raises(NoGradient, match="no gradient"):
        attribute_edges(specimen(), replace(pairs, metric=counting))
    with pytest.raises(BadPairs, match="another model"):
        attribute_edges(opened("gpt2"), pairs)
    with pytest.raises(InterventionMismatch, match="method of edge attribution"):
        attribute_edges(specimen(), pairs, method="acdc")
    with pytest.raises(InterventionMismatch, match="steps and a rule"):
        attribute_edges(specimen(), pairs, method="eap-ig", settings=EdgeSettings(steps=0))
    found = attribute_edges(specimen(), pairs)
    with pytest.raises(UnknownEdge, match="no edge of this model"):
        found.score("a1.3->a0.2.q")
    with pytest.raises(UnknownEdge, match="not the name of an edge"):
        found.score("head 3")


def test_scores_of_a_model_in_half_precision_are_in_single() -> None:
    half, whole = (
        attribute_edges(opened("gpt2", dtype), random_pairs(opened("gpt2")), method="eap-ig")
        for dtype in (torch.bfloat16, torch.float64)
    )
    assert half.scores.dtype == torch.float32
    assert float((half.scores - whole.scores).abs().max()) < 0.05 * float(whole.scores.abs().max())
