"""Circuits of units: planted units are found, carry what the MLPs do, and others carry nothing."""

import copy
from functools import cache

import numpy as np
import pytest
import torch

from attribution.precision import double
from circuits.cases import pairs
from family_cases import opened
from mechscope.circuits.circuit import Circuit, edges_out_of
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.measures import Measures
from mechscope.circuits.units import UnitCircuit, choose_units
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.edges import Node
from mechscope.vocabulary.errors import InterventionMismatch, NotEnoughEvidence, UnknownEdge

PLANTED = {0: (5,), 1: (2, 9)}


@cache
def planted() -> Model:
    """A random model in which all units but three write nothing."""
    hf = copy.deepcopy(opened("gpt2").hf)
    with torch.no_grad():
        for index, layer in enumerate(hf.transformer.h):
            silent = torch.ones(len(layer.mlp.c_proj.weight), dtype=torch.bool)
            silent[list(PLANTED.get(index, ()))] = False
            layer.mlp.c_proj.weight[silent] = 0
            layer.mlp.c_proj.weight[~silent] *= 20
    return wrap(hf, name="planted", check=False)


def d_mlp(model: Model) -> int:
    return int(model.weights["W_out", 0].shape[0])


def test_the_units_that_write_are_the_ones_chosen_and_they_carry_all():
    model, split = planted(), pairs()
    with double("gpt2"):
        whole = Circuit.whole(model)
        found = choose_units(model, split, circuit=whole, n_units=3)
        assert {layer: kept for layer, kept in found.units.items() if kept} == PLANTED
        assert found.evaluate(model, split).faithfulness == pytest.approx(1, abs=1e-9)
        others = UnitCircuit(circuit=whole, d_mlp=d_mlp(model), units={0: (1, 3), 1: (4,)})
        assert abs(others.evaluate(model, split).faithfulness - 1) > 1e-3
    assert found.nodes.count(Node.parse("m1:9")) == 1 and Node.parse("m1") not in found.nodes


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj"])
def test_all_units_are_the_circuit_and_none_is_the_circuit_without_its_mlps_edges(name):
    model, split = opened(name), pairs()
    wiring = Circuit.whole(model).wiring
    kept = np.random.default_rng(0).random(wiring.n_edges) < 0.9
    circuit = Circuit(wiring=wiring, kept=kept)
    mlps = [Node(kind="mlp", layer=layer) for layer in range(wiring.n_layers)]
    without = Circuit(wiring=wiring, kept=kept & ~edges_out_of(wiring, mlps))
    with double(name):
        alone = Measures(parts=())
        full, empty = (one.evaluate(model, split, measures=alone).values for one in (circuit, without))
        every = UnitCircuit(circuit=circuit, d_mlp=d_mlp(model), units={})
        none = UnitCircuit(
            circuit=circuit, d_mlp=d_mlp(model), units=dict.fromkeys(range(wiring.n_layers), ())
        )
        assert np.abs(every.evaluate(model, split).values - full).max() < 1e-10
        assert np.abs(none.evaluate(model, split).values - empty).max() < 1e-10
    assert np.abs(full - empty).max() > 1e-4


def test_a_circuit_of_units_survives_saving(tmp_path):
    found = UnitCircuit(circuit=Circuit.whole(planted()), d_mlp=d_mlp(planted()), units=PLANTED)
    found.save(tmp_path / "units.json")
    again = UnitCircuit.load(tmp_path / "units.json")
    assert again.to_json() == found.to_json() and again.n_units == 3


def test_units_that_do_not_exist_and_conventions_that_do_not_fit_are_refused():
    whole = Circuit.whole(planted())
    with pytest.raises(UnknownEdge, match="does not have"):
        UnitCircuit(circuit=whole, d_mlp=8, units={0: (8,)})
    with pytest.raises(UnknownEdge, match="another width"):
        UnitCircuit(circuit=whole, d_mlp=8, units={0: (1,)}).evaluate(planted(), pairs())
    found = UnitCircuit(circuit=whole, d_mlp=d_mlp(planted()), units=PLANTED)
    for conventions in (Conventions(direction="denoising"), Conventions(ablation="mean")):
        with pytest.raises(InterventionMismatch):
            found.evaluate(planted(), pairs(), conventions=conventions)
    with pytest.raises(NotEnoughEvidence, match="no MLP"):
        choose_units(planted(), pairs(), circuit=Circuit.of(planted(), ["embed->logits"]), n_units=2)
