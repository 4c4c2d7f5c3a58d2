"""Every way to find a circuit finds the mechanism that is there, and backups that single removals hide."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from circuits.cases import TRUE_EDGES, induction, pairs
from family_cases import opened
from mechscope.behaviors.split import Split
from mechscope.circuits.against_truth import auroc, compare_with_truth
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.discover import discover
from mechscope.circuits.measures import Measures
from mechscope.circuits.methods.gates import Gates
from mechscope.circuits.methods.top_n import chosen_edges, patched_importance
from mechscope.circuits.registry import discovery, methods
from mechscope.circuits.size_curve import FRACTIONS, SizeCurve, area, size_curve
from mechscope.interventions.metrics import LogitDifference
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import BadPairs, NoGradient, NotEnoughEvidence, RegistrationError, ShapeError


def train() -> Split:
    return induction()[1].train.select(range(8))


def truth() -> Circuit:
    return Circuit.of(induction()[0], TRUE_EDGES)


EXACT = {
    "edge-patching": {"n_edges": 3},
    "eap": {"n_edges": 3},
    "eap-ig": {"n_edges": 3},
    "eap-ig-activations": {"n_edges": 3},
    "eap-clean-corrupted": {"n_edges": 3},
    "conditional": {"n_edges": 3},
}


@pytest.mark.parametrize("method", list(EXACT))
def test_the_true_edges_are_the_strongest(method):
    found = discover(induction()[0], train(), method=method, **EXACT[method])
    compared = compare_with_truth(found, truth())
    assert compared.precision == compared.recall == compared.auroc == 1.0, compared


def test_the_true_heads_are_found_by_gates_and_by_joint_ablation():
    model = induction()[0]
    probed = discover(model, train(), method="node-probing", n_steps=40, learning_rate=0.3)
    assert set(probed.numbers["nodes"]) == {"a0.5", "a1.11"}
    joint = discover(model, train(), method="joint-ablation", n_rounds=3)
    assert set(joint.numbers["nodes"]) == {"a0.5", "a1.11"}
    assert compare_with_truth(joint, truth()).recall == 1.0


def test_every_method_has_settings_a_summary_and_one_name():
    known = methods()
    assert {*EXACT, "acdc", "edge-pruning", "node-probing", "joint-ablation"} == set(known)
    assert all(method.summary.endswith(".") for method in known.values())
    with pytest.raises(RegistrationError):
        discovery("acdc", known["acdc"].settings)(lambda _model, _split, _settings: truth())


@dataclass(frozen=True, kw_only=True)
class Filled(LogitDifference):
    """A logit difference that is full at 15: one head nearly fills it."""

    def measure(self, logits: torch.Tensor) -> torch.Tensor:
        return super().measure(logits).clamp(max=15.0)


def with_a_backup() -> tuple[Model, Split]:
    """Two induction heads that do the same, and a metric that one alone nearly fills: removing one shows little."""
    model, _ = induction()
    hf = copy.deepcopy(model.hf)
    attention = hf.model.layers[1].attn
    d = attention.head_dim
    own, other = slice(11 * d, 12 * d), slice(4 * d, 5 * d)
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[other] = projection.weight[own]
        attention.o_proj.weight[:, other] = attention.o_proj.weight[:, own]
    split = train()
    metric = Filled(answers=split.answers, wrong=split.wrong)
    return wrap(hf, model.tokenizer, check=False), replace(split, metric=metric)


def test_a_backup_that_single_removals_hide_is_found_jointly():
    model, split = with_a_backup()
    wiring = Circuit.whole(model).wiring
    heads = [i for i, edge in enumerate(wiring.edges()) if str(edge) in ("a1.11->logits", "a1.4->logits")]
    zero = Conventions(ablation="zero")  # the corrupt twin's value would vote for the foil
    alone = patched_importance(model, split, np.array(heads), conventions=zero)
    found = discover(model, split, method="joint-ablation", n_rounds=3, conventions=zero)
    effects = found.numbers["nodes"]
    assert {"a1.11", "a1.4"} <= set(effects)
    assert max(effects["a1.11"], effects["a1.4"]) > 3 * np.abs(alone).max()


@pytest.mark.parametrize("n_rounds", [2, 3, 6])
@pytest.mark.parametrize("n_edges", [6, 30])
def test_what_earlier_rounds_found_is_kept(n_rounds, n_edges):
    found = discover(induction()[0], train(), method="conditional", n_edges=n_edges, n_rounds=n_rounds)
    assert set(TRUE_EDGES) <= set(found.edges)
    assert 0 < len(found.numbers["cuts"]) < n_rounds
    assert found.numbers["cuts"][0][0].endswith("->logits")  # from the logits down


@pytest.mark.parametrize("n_rounds", [2, 3, 6])
def test_edges_of_a_backup_are_found_with_the_first_heads_cut(n_rounds):
    model, split = with_a_backup()
    both = {"a1.11->logits", "a1.4->logits"}
    for ablation, n_edges in (("resample", 6), ("zero", 12)):
        said = {"method": "conditional", "n_rounds": n_rounds, "conventions": Conventions(ablation=ablation)}
        assert both <= set(map(str, discover(model, split, n_edges=n_edges, **said).edges)), ablation
    zero = Conventions(ablation="zero")
    names = [str(edge) for edge in Circuit.whole(model).wiring.edges()]
    few = {"method": "conditional", "n_edges": 6, "conventions": zero}  # room for the first head only
    once = discover(model, split, n_rounds=1, **few)
    again = discover(model, split, n_rounds=n_rounds, **few)
    found = [name for name in both if once.kept[names.index(name)]]
    (hidden,) = both - set(found)
    alone = patched_importance(model, split, np.array([names.index(hidden)]), conventions=zero)
    at = names.index(hidden)
    assert len(found) == 1 and again.scores[at] > max(2 * once.scores[at], 1.5 * abs(alone[0]))


def test_verified_scores_are_those_of_real_patching():
    model = induction()[0]
    found = discover(model, train(), method="eap", n_edges=5, verify=12)
    top = np.argsort(-np.abs(discover(model, train(), method="eap", n_edges=5).scores), kind="stable")[:12]
    assert np.allclose(found.scores[top], patched_importance(model, train(), top), atol=1e-4)
    assert found.numbers["n_verified"] == 12 + found.numbers["n_without_gradient"]


def test_patched_importance_is_one_whole_run_for_each_edge():
    model, split = opened("gemma2"), pairs()
    runs = CircuitRuns(model, split, conventions=Conventions())
    edges = np.arange(0, runs.wiring.n_edges, 17)
    masks = np.ones((len(edges) + 1, runs.wiring.n_edges), dtype=bool)
    masks[np.arange(len(edges)), edges] = False
    values = runs.measure(masks).mean(1)
    assert np.allclose(patched_importance(model, split, edges), values[-1] - values[:-1], atol=1e-9)


def test_greedy_selection_takes_only_what_leads_to_the_logits():
    wiring = truth().wiring
    strength = np.zeros(wiring.n_edges)
    names = [str(edge) for edge in wiring.edges()]
    for name, value in {"embed->a0.0.q": 9.0, "a1.11->logits": 2.0, "a0.5->a1.11.k": 1.0}.items():
        strength[names.index(name)] = value
    greedy = chosen_edges(wiring, strength, 2, "greedy")
    assert {names[i] for i in np.flatnonzero(greedy)} == {"a1.11->logits", "a0.5->a1.11.k"}
    assert names[int(np.flatnonzero(chosen_edges(wiring, strength, 1, "top"))[0])] == "embed->a0.0.q"


def test_gates_are_as_open_as_they_say_and_carry_gradients():
    gates = Gates.new(3, start=0.7, seed=0, like=torch.zeros(1, dtype=torch.float64))
    drawn = gates.sample(20000)
    assert ((drawn > 0).double().mean(0) - gates.open_probability()).abs().max() < 0.02
    assert 0 < float((drawn == 0).double().mean()) < float((drawn == 1).double().mean())
    drawn.mean().backward()
    assert (gates.logits.grad > 0).all()


def test_edge_pruning_keeps_the_true_edges():
    found = discover(induction()[0], train(), method="edge-pruning", n_edges=3, n_steps=240, n_pairs=6)
    compared = compare_with_truth(found, truth())
    assert compared.precision == compared.recall == compared.auroc == 1.0


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param("edge-pruning", {"n_steps": 240, "n_pairs": 6}, marks=pytest.mark.slow),
        ("conditional", {}),
    ],
)
def test_gates_and_gradients_keep_the_restored_edges_under_denoising(method, options):
    conventions = Conventions(direction="denoising")
    model, behavior = induction()
    found = discover(model, train(), method=method, n_edges=3, conventions=conventions, **options)
    carried = [
        one.evaluate(model, behavior.validation, conventions=conventions, measures=Measures(parts=()))
        for one in (found, ~found)
    ]
    assert carried[0].faithfulness > 0.9 and "a1.11->logits" in map(str, found.edges)
    assert carried[1].faithfulness < 0.1


def test_what_is_found_in_a_random_model_is_not_shown_to_hold_on_other_prompts():
    def is_shown_faithful(circuit: Circuit, model: Model, split: Split) -> bool:
        try:
            return (
                circuit.evaluate(model, split, measures=Measures(parts=(), n_resamples=500)).interval.low
                > 0.5
            )
        except NotEnoughEvidence:
            return False

    model, behavior = induction()
    assert is_shown_faithful(truth(), model, behavior.held_out)
    twin = opened("gpt2")
    found = discover(twin, pairs(n=6), method="eap", n_edges=30)
    assert not is_shown_faithful(found, twin, pairs(n=40, seed=9))


def test_areas_are_the_published_ones():
    step = [0.0] * 9 + [1.0]
    curve = SizeCurve(fractions=FRACTIONS, n_edges=(1,) * 10, faithfulness=tuple(step), by="signed")
    assert round(curve.cpr, 3) == 0.25 and round(curve.cmd, 3) == 0.749
    last = np.log10(2) / 3 / 2  # of three decades, half of the segment from 0.5 to 1
    assert curve.cpr_log == pytest.approx(last) and curve.cmd_log == pytest.approx(1 - last)
    ones = replace(curve, faithfulness=(1.0,) * 10)
    assert round(ones.cpr, 3) == 0.999 and ones.cmd == 0 and ones.cpr_log == pytest.approx(1)
    assert replace(curve, faithfulness=(3.0,) * 10).cpr_clipped == pytest.approx(0.999)
    assert area((0.1, 1.0), (0.0, 1.0), log=True) == pytest.approx(0.5)


def test_a_size_curve_rises_with_the_true_edges_first():
    model = induction()[0]
    found = discover(model, train(), method="eap-ig", n_edges=3)
    curve = size_curve(
        model, found, split=induction()[1].validation, by="magnitude", fractions=(0.001, 0.005, 1.0)
    )
    assert curve.n_edges[0] == 0 and curve.faithfulness[0] == 0.0
    assert curve.faithfulness[1] == pytest.approx(1, abs=0.1)
    assert curve.faithfulness[2] == pytest.approx(1, abs=1e-4)
    with pytest.raises(NotEnoughEvidence, match="score of every edge"):
        size_curve(model, truth(), split=induction()[1].validation)


def test_auroc_counts_ties_half_and_truths_of_nothing_are_refused():
    assert auroc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    with pytest.raises(NotEnoughEvidence):
        compare_with_truth(truth(), Circuit.whole(induction()[0]))


def test_circuits_without_edges_are_not_looked_for():
    for method in ("eap", "edge-pruning", "conditional"):
        with pytest.raises(ShapeError, match="at least one edge"):
            discover(induction()[0], train(), method=method, n_edges=0)


SIZES = {"acdc": {"threshold": 0.01}, "joint-ablation": {}, "node-probing": {"n_steps": 1}}


@pytest.mark.parametrize("method", [*EXACT, "edge-pruning", *SIZES])
def test_there_is_nothing_to_find_between_prompts_and_themselves(method):
    split = replace(train(), corrupt=train().clean)
    with pytest.raises(BadPairs, match="between prompts and themselves"):
        discover(induction()[0], split, method=method, **SIZES.get(method, {"n_edges": 3}))


def test_prompts_without_twins_can_still_be_searched_by_zeros():
    split = replace(train(), corrupt=train().clean)
    found = discover(induction()[0], split, method="joint-ablation", conventions=Conventions(ablation="zero"))
    assert "a1.11" in found.numbers["nodes"]


@dataclass(frozen=True, kw_only=True)
class Flat(LogitDifference):
    """A metric that no run moves."""

    def measure(self, logits: torch.Tensor) -> torch.Tensor:
        return super().measure(logits).clamp(min=1e3)


def test_a_joint_search_without_a_gap_is_refused():
    split = replace(train(), metric=Flat(answers=train().answers, wrong=train().wrong))
    with pytest.raises(NotEnoughEvidence, match="cannot be told apart"):
        discover(induction()[0], split, method="joint-ablation")


def test_a_metric_without_a_gradient_is_refused_by_methods_that_need_one():
    split = train().with_metric("accuracy")
    for method in ("conditional", "eap"):
        with pytest.raises(NoGradient):
            discover(induction()[0], split, method=method, n_edges=3)
