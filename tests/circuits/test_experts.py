"""Circuits of experts: equal to layer-by-layer arithmetic, a planted expert is found, and dense models are refused."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.precision import double
from circuits.cases import padded_pairs, pairs
from family_cases import opened
from mechscope.attribution.experts import attribute_experts
from mechscope.attribution.nodes import attribute
from mechscope.attribution.settings import NodeSettings
from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.parts.evaluation import PartEvaluation, PartMeasures
from mechscope.circuits.parts.experts import ExpertCircuit, choose_experts, evaluate_experts
from mechscope.engine.naive import measure_logits
from mechscope.interventions.replace import patch
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import (
    InterventionMismatch,
    NotEnoughEvidence,
    PointUnavailable,
    UnknownEdge,
)

ALONE = PartMeasures(n_random=0)
ROUTED = ("expert_choice", "expert_weight", "expert_out")
SOME = {0: (1, 3), 2: (0, 2, 4)}


def shares(cache, layer: int, n_experts: int) -> Tensor:
    """What each expert adds, [batch, pos, expert, d_model]."""
    choice, outputs = cache[f"expert_choice.{layer}"], cache[f"expert_out.{layer}"]
    found = torch.zeros(*choice.shape[:2], n_experts, outputs.shape[-1], dtype=outputs.dtype)
    for row in range(len(choice)):
        for column in range(choice.shape[1]):
            for place, expert in enumerate(choice[row, column].tolist()):
                found[row, column, expert] += outputs[row, column, place]
    return found


def by_hand(model: Model, split: Split, circuit: ExpertCircuit, ablation: str) -> Tensor:
    """Layer after layer: run with what was put so far, add up what experts add, put the sum."""
    put: list = []
    clean, twin = (
        model.run(batch, capture=[f"{point}.*" for point in ROUTED]).cache
        for batch in (split.clean, split.corrupt)
    )
    real = split.clean.mask.bool()
    for layer, kept in circuit.experts.items():
        n = len(circuit.kept[f"expert_out.{layer}"])
        if circuit.routing == "frozen":
            put += [patch(f"{point}.{layer}", clean[f"{point}.{layer}"]) for point in ROUTED[:2]]
        here = shares(
            model.run(split.clean, interventions=put, capture=[f"{point}.{layer}" for point in ROUTED]).cache,
            layer,
            n,
        )
        there = torch.zeros_like(here)
        if ablation == "resample":
            there = shares(twin, layer, n)
        if ablation == "mean":
            there = shares(clean, layer, n)[real].mean(0).expand_as(here)
        total = sum(here[:, :, e] if e in kept else there[:, :, e] for e in range(n))
        put.append(patch(f"mlp_out.{layer}", total))
    return measure_logits(split.metric, split.clean, model.logits(split.clean, interventions=put))


@pytest.mark.parametrize(
    ("name", "routing", "ablation"),
    [
        *[
            ("mixtral", how, what)
            for how in ("recomputed", "frozen")
            for what in ("resample", "zero", "mean")
        ],
        ("qwen3_moe", "recomputed", "resample"),
        ("qwen3_moe", "frozen", "mean"),
        ("gpt_oss", "frozen", "resample"),
        ("gpt_oss", "recomputed", "zero"),
    ],
)
def test_kept_experts_are_what_layer_by_layer_arithmetic_gives(name: str, routing, ablation):
    model, split = opened(name), padded_pairs()
    conventions = Conventions(ablation=ablation)
    with double(name):
        circuit = ExpertCircuit.of(model, experts=SOME, routing=routing)
        found = circuit.evaluate(model, split, conventions=conventions, measures=ALONE)
        wanted = by_hand(model, split, circuit, ablation).numpy()
        rest = by_hand(model, split, ~circuit, ablation).numpy()
        full = measure_logits(split.metric, split.clean, model.logits(split.clean)).numpy()
        other = ExpertCircuit.of(model, experts={0: (0, 3)}, routing=routing)
        wrong = by_hand(model, split, other, ablation).numpy()
    assert np.abs(found.values - wanted).max() < 1e-10
    assert np.abs(found.rest_values - rest).max() < 1e-10
    assert np.abs(found.model_values - full).max() < 1e-10
    assert np.abs(wrong - wanted).max() > 1e-4


@pytest.mark.parametrize("routing", ["recomputed", "frozen"])
def test_with_no_expert_every_mixture_adds_what_it_adds_in_the_twin(routing):
    model, split = opened("mixtral"), padded_pairs()
    with double("mixtral"):
        circuit = ExpertCircuit.of(model, experts={0: (1,)}, routing=routing)
        found = circuit.evaluate(model, split, measures=ALONE)
        twin = model.run(split.corrupt, capture=["mlp_out.*"])
        logits = model.logits(split.clean, interventions=[patch("mlp_out.*", twin)])
        wanted = measure_logits(split.metric, split.clean, logits).numpy()
    assert np.abs(found.none_values - wanted).max() < 1e-10


def test_frozen_and_recomputed_routing_are_not_the_same():
    model, split = opened("qwen3_moe"), padded_pairs()
    values = [
        ExpertCircuit.of(model, experts=SOME, routing=routing).evaluate(model, split, measures=ALONE).values
        for routing in ("recomputed", "frozen")
    ]
    assert np.abs(values[0] - values[1]).max() > 1e-3


@cache
def planted(*, is_silent: bool = False) -> Model:
    """A random mixture in which every expert but one adds nothing."""
    hf = copy.deepcopy(opened("mixtral").hf)
    with torch.no_grad():
        for index, layer in enumerate(hf.model.layers):
            for expert in range(5):
                keeps = (index, expert) == (1, 2) and not is_silent
                layer.mlp.experts.down_proj[expert] *= 8.0 * keeps
    return wrap(hf, name="planted", check=False)


@pytest.mark.parametrize("method", ["attribution", "ig", "ablation"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_planted_expert_is_chosen_and_carries_all(method: str, direction):
    model, split = planted(), pairs()
    conventions = Conventions(direction=direction)
    found = choose_experts(
        model, split, n_experts=4, routing="recomputed", method=method, conventions=conventions
    )
    assert [str(node) for node in found.nodes] == ["m1:2"]
    measured = found.evaluate(model, split, conventions=conventions)
    assert measured.faithfulness == pytest.approx(1, abs=1e-6) and measured.completeness < 1e-6
    assert measured.p is not None and measured.p < 0.5 and measured.settings["routing"] == "recomputed"


@pytest.mark.parametrize("method", ["attribution", "ablation"])
def test_where_experts_add_nothing_none_is_chosen_and_nothing_is_claimed(method: str):
    model, split = planted(is_silent=True), pairs()
    found = choose_experts(model, split, n_experts=4, routing="recomputed", method=method)
    assert len(found) == 0
    with pytest.raises(NotEnoughEvidence, match="empty"):
        found.evaluate(model, split)
    with pytest.raises(NotEnoughEvidence, match="cannot be told apart"):
        ExpertCircuit.of(model, experts={1: (2,)}, routing="frozen").evaluate(model, split)


@pytest.mark.parametrize(
    ("name", "method"),
    [("mixtral", "attribution"), ("mixtral", "ig"), ("qwen3_moe", "ig"), ("gpt_oss", "attribution")],
)
def test_effects_of_experts_add_up_to_their_layers(name: str, method: str):
    model, split, settings = opened(name), padded_pairs(), NodeSettings(steps=2)
    with double(name):
        found = attribute_experts(model, split, method=method, settings=settings)
        frozen = attribute_experts(model, split, method=method, settings=settings, routing="frozen")
        for site, effects in found.effects.items():
            at = site.replace("expert_out", "mlp_out")
            whole = attribute(
                model, split, site=at, method=method, direction="noising", positions="all", settings=settings
            )
            assert effects.sum() == pytest.approx(float(whole.scores.values.sum()), abs=1e-9)
    assert np.abs(found.effects["expert_out.0"] - frozen.effects["expert_out.0"]).max() > 1e-6


def test_ablated_experts_have_the_effects_of_circuits_without_them():
    model, split = opened("mixtral"), padded_pairs()
    found = choose_experts(model, split, n_experts=3, routing="frozen", method="ablation")
    assert found.scores is not None and found.routing == "frozen"
    node, score = found.top(1)[0]
    rest = {layer: tuple(range(5)) for layer in range(3)}
    rest[node.layer] = tuple(e for e in range(5) if e != node.unit)
    less = ExpertCircuit.of(model, experts=rest, routing="frozen").evaluate(model, split, measures=ALONE)
    assert score == pytest.approx((less.values - less.model_values).mean(), abs=1e-9)


def test_circuits_of_experts_and_their_evaluations_survive_saving(tmp_path):
    model, split = opened("mixtral"), pairs()
    found = choose_experts(model, split, n_experts=4, routing="frozen")
    found.save(tmp_path / "experts.json")
    again = ExpertCircuit.load(tmp_path / "experts.json")
    assert again == found and again.routing == "frozen" and again.top(2) == found.top(2)
    one = again.evaluate(model, split, measures=PartMeasures(n_random=2))
    one.save(tmp_path / "evaluation.json")
    two = PartEvaluation.load(tmp_path / "evaluation.json")
    assert two.to_json() == one.to_json() and two.circuit == found and two.errors_alone is None
    assert "routing frozen" in one.table()._repr_html_() and "m" in found.plot()._repr_html_()


def test_dense_models_layers_and_experts_that_do_not_exist_are_refused():
    split = pairs()
    for call in (
        lambda model: choose_experts(model, split, n_experts=2, routing="frozen"),
        lambda model: ExpertCircuit.of(model, experts={0: (1,)}, routing="frozen"),
        lambda model: attribute_experts(model, split),
        lambda model: ExpertCircuit.of(opened("mixtral"), experts=SOME, routing="frozen").evaluate(
            model, split
        ),
    ):
        with pytest.raises(PointUnavailable, match=r"(?s)has no experts.*got: *llama.*because:.*instead:"):
            call(opened("llama"))
    with pytest.raises(UnknownEdge, match=r"(?s)layer 1 has no experts, m0:9.*6 experts each"):
        ExpertCircuit.of(opened("qwen3_moe"), experts={1: (0,), 0: (9,)}, routing="frozen")
    circuit = ExpertCircuit.of(opened("mixtral"), experts=SOME, routing="frozen")
    with pytest.raises(UnknownEdge, match="another shape"):
        circuit.evaluate(opened("qwen3_moe"), split)
    other = ExpertCircuit.of(opened("mixtral"), experts=SOME, routing="recomputed")
    with pytest.raises(InterventionMismatch, match=r"(?s)different things of routing.*frozen, recomputed"):
        evaluate_experts(opened("mixtral"), [circuit, other], split=split)
    with pytest.raises(InterventionMismatch, match=r"no way to choose experts"):
        choose_experts(opened("mixtral"), split, n_experts=2, routing="frozen", method="guess")
