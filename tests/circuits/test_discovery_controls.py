"""Discovery controls: the real circuit stands out, and worlds without the mechanism give nothing."""

import numpy as np
import pytest
import torch

from circuits.cases import TRUE_EDGES, induction, pairs
from family_cases import opened
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.discover import discover
from mechscope.circuits.statistics.control_result import DiscoveryControls
from mechscope.circuits.statistics.discovery_controls import (
    CONTROLS,
    ControlSettings,
    control_discovery,
    permuted_answers,
)
from mechscope.circuits.statistics.reset_networks import WeightReset, reset_weights
from mechscope.models.model import Model
from mechscope.vocabulary.errors import InterventionMismatch, NotEnoughEvidence

FEW = {"n_draws": 3, "fractions": (0.001, 0.01, 0.1, 1.0), "n_resamples": 200}


def find(model: Model, split: Split) -> Circuit:
    return discover(model, split, method="eap", n_edges=3)


def splits() -> tuple[Split, Split]:
    behavior = induction()[1]
    return behavior.train.select(range(16)), behavior.held_out.select(range(16))


def weights_of(model: Model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.hf.named_parameters()}


@pytest.mark.parametrize("how", ["redrawn", "permuted"])
def test_a_reset_network_keeps_each_tensors_mean_and_spread_and_the_model_is_left_as_it_was(how):
    model = opened("gpt2")
    before = weights_of(model)
    reset = reset_weights(model, WeightReset(how=how, seed=3))
    after = weights_of(reset)
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())
    name = max(before, key=lambda one: before[one].numel())
    assert not torch.equal(before[name], after[name])
    if how == "permuted":
        assert all(torch.equal(before[n].flatten().sort()[0], after[n].flatten().sort()[0]) for n in before)
    else:
        assert float(after[name].std()) == pytest.approx(float(before[name].std()), rel=0.2)
        assert abs(after[name].mean() - before[name].mean()) < 0.2 * before[name].std()
    again = weights_of(reset_weights(model, WeightReset(how=how, seed=3)))
    other = weights_of(reset_weights(model, WeightReset(how=how, seed=4)))
    assert torch.equal(after[name], again[name]) and not torch.equal(after[name], other[name])
    assert reset.fingerprint.weights_sha256 != model.fingerprint.weights_sha256


def test_tied_weights_stay_tied_and_weights_to_keep_are_kept():
    model = opened("gpt2")
    reset = reset_weights(model, WeightReset(keeps=("*ln_*", "*wpe*")))
    assert torch.equal(reset.hf.get_input_embeddings().weight, reset.hf.get_output_embeddings().weight)
    before, after = weights_of(model), weights_of(reset)
    kept = [name for name in before if ".ln_" in name or "wpe" in name]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    with pytest.raises(InterventionMismatch, match="does not have"):
        reset_weights(model, WeightReset(keeps=("*no_such*",)))


def test_each_prompt_is_asked_for_another_ones_answer():
    split = splits()[0]
    found = permuted_answers(split, seed=1)
    assert torch.equal(found.clean.ids, split.clean.ids) and found.answers != split.answers
    assert sorted(found.answers) == sorted(split.answers)
    rows = list(range(len(split)))
    assert found.metric.answers == found.answers and split.metric.select(rows).answers == split.answers
    with pytest.raises(NotEnoughEvidence, match="changes nothing"):
        permuted_answers(pairs())


def test_the_true_circuit_stands_out_and_nothing_is_found_where_nothing_is(tmp_path):
    model, _ = induction()
    found = control_discovery(model, splits(), find=find, settings=ControlSettings(**FEW))
    assert set(found.real.circuit.edges) == set(TRUE_EDGES)
    assert found.real.carried == pytest.approx(1, abs=0.05) and found.real.has_a_gap
    assert found.real.curve[-1] == pytest.approx(1, abs=1e-6)
    assert found.worlds == CONTROLS
    for world in CONTROLS:
        assert found.most_carried(world) < 0.25, (world, found)
        assert found.p(world) == 1 / 4
        assert max(max(np.abs(one.curve)) for one in found.of(world)) < 0.5
    figure = found.plot()
    assert [trace.name for trace in figure.data][:1] == ["model"] and len(figure.data) == 4
    assert "redrawn weights" in str(found.table().markup())
    found.save(tmp_path / "controls.json")
    again = DiscoveryControls.load(tmp_path / "controls.json")
    assert again.real == found.real or again.real.curve == found.real.curve
    assert [one.to_json() for one in again.controls] == [one.to_json() for one in found.controls]


def test_a_network_that_was_not_reset_is_not_beaten():
    model, _ = induction()
    same = ControlSettings(controls=("redrawn weights",), keeps=("*",), **FEW)
    found = control_discovery(model, splits(), find=find, settings=same)
    assert found.p("redrawn weights") == 1.0 and found.most_carried("redrawn weights") > 0.95


def test_a_control_in_which_a_method_finds_nothing_carries_nothing():
    model, real = induction()[0], find(induction()[0], splits()[0])

    def picky(where: Model, _split: Split) -> Circuit:
        if where is not model:
            raise NotEnoughEvidence("Nothing here.", got="", because="", instead="")
        return real

    settings = ControlSettings(controls=("permuted weights",), **FEW)
    found = control_discovery(model, splits(), find=picky, settings=settings)
    assert found.most_carried("permuted weights") == 0 and found.controls[0].circuit is None
    assert "Nothing here" in found.controls[0].note


def test_controls_that_cannot_be_drawn_are_refused():
    with pytest.raises(InterventionMismatch):
        ControlSettings(controls=("shuffled prompts",))
    with pytest.raises(InterventionMismatch):
        ControlSettings(n_draws=0)
    assert Conventions().constants is None
