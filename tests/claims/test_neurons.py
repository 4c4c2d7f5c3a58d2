"""Neurons as a mechanism: what is written at which units, by a loop over hooks; and their controls."""

import numpy as np
import pytest
import torch

import mechscope as ms
from mechscope.claims.bench import EngineBench
from mechscope.claims.control_families import best_family, covariance_at, universe_of
from mechscope.claims.controls import ANY_LAYER, SAME_LAYERS, SUBSPACES
from mechscope.claims.neurons import Neurons
from mechscope.claims.predictions import lowers, needs, recovers
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from tiny_models import tiny

MINE = Neurons(((0, 3), (2, 1), (2, 5)))


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(tiny("gpt2", torch.float64), check=False)


@pytest.fixture(scope="module")
def behavior(model: Model):
    rng = np.random.default_rng(0)
    clean = rng.integers(1, 30, size=(30, 6))
    corrupt = clean.copy()
    corrupt[:, 2] = (corrupt[:, 2] + 7) % 29 + 1
    return ms.behaviors.from_tokens(
        clean.tolist(),
        corrupt.tolist(),
        answers=rng.integers(1, 15, 30).tolist(),
        wrong=rng.integers(15, 29, 30).tolist(),
    )


def by_hand(model: Model, split, write) -> np.ndarray:
    """The metric with `write(layer, value)` applied to each layer's neurons of the stock model."""
    hf = model.hf
    handles = [
        block.mlp.c_proj.register_forward_pre_hook(lambda _m, args, layer=layer: (write(layer, args[0]),))
        for layer, block in enumerate(hf.transformer.h)  # type: ignore[union-attr]
    ]
    try:
        with torch.no_grad():
            logits = hf(split.clean.ids).logits[:, -1]  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    rows = range(len(split.clean))
    return np.array([float(logits[i, split.answers[i][0]] - logits[i, split.wrong[i][0]]) for i in rows])


def test_ablating_and_isolating_neurons_is_what_hooks_by_hand_do(model: Model, behavior) -> None:
    bench = EngineBench(model)
    split = bench.open_split(behavior, fresh_seed=None)
    prompts = behavior.held_out
    run = model.run(prompts.corrupt, capture=["mlp_post.*"])

    def without(layer: int, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[..., [unit for at, unit in MINE.units if at == layer]] = 0
        return value

    def alone(layer: int, value: torch.Tensor) -> torch.Tensor:
        new = run[f"mlp_post.{layer}"].clone()
        mine = [unit for at, unit in MINE.units if at == layer]
        new[..., mine] = value[..., mine]
        return new

    for prediction, write in ((lowers(1.0, how="zero"), without), (recovers(0.5), alone)):
        found = bench.measure([MINE], prediction, behavior, split)[0]
        assert np.abs(found - by_hand(model, prompts, write)).max() < 1e-10
        assert np.abs(found - split.clean).max() > 1e-4
    assert np.isfinite(bench.measure([MINE], needs(0.1), behavior, split)).all()


def test_other_neurons_are_drawn_from_the_same_layers_and_none_is_the_mechanisms(
    model: Model, behavior
) -> None:
    bench = EngineBench(model)
    assert best_family(model, MINE) == SAME_LAYERS
    for family in (SAME_LAYERS, ANY_LAYER):
        drawn = bench.draw_controls(MINE, behavior, family=family, n_draws=199, seed=0)
        assert len(set(drawn.mechanisms)) == 199 <= drawn.n_members
        assert not any(set(rival.units) & set(MINE.units) for rival in drawn.mechanisms)
        assert all(len(rival.units) == 3 for rival in drawn.mechanisms)
        layers = {tuple(layer for layer, _ in rival.units) for rival in drawn.mechanisms}
        assert (layers == {(0, 2, 2)}) is (family == SAME_LAYERS)
    assert [len(members) for members in universe_of(model, MINE).values()] == [
        model.weights["W_out", layer].shape[0] for layer in range(model.n_layers)
    ]


def test_random_subspaces_of_neurons_match_them_layer_by_layer_and_are_run_as_written_by_hand(
    model: Model, behavior
) -> None:
    bench = EngineBench(model)
    drawn = bench.draw_controls(MINE, behavior, family=SUBSPACES, n_draws=40, seed=0)
    again = bench.draw_controls(MINE, behavior, family=SUBSPACES, n_draws=3, seed=0)
    assert drawn.n_members == float("inf") and drawn.mechanisms[:3] == again.mechanisms
    reference = behavior.train.clean
    for layer, units in MINE.by_layer.items():
        site = f"mlp_post.{layer}"
        spread = covariance_at(model, site, reference)
        mine = np.trace(spread[np.ix_(units, units)])
        for one in drawn.mechanisms:
            rows = dict(one.bases)[site].tensor.numpy()
            assert rows.shape == (len(units), len(spread)) and np.allclose(rows @ rows.T, np.eye(len(units)))
            assert np.trace(rows @ spread @ rows.T) == pytest.approx(mine, rel=1e-6)
    rival = drawn.mechanisms[0]
    bases = {int(site.split(".")[1]): value.tensor for site, value in rival.bases}
    split, prompts = bench.open_split(behavior, fresh_seed=None), behavior.held_out
    run = model.run(prompts.corrupt, capture=["mlp_post.*"])

    def without(layer: int, value: torch.Tensor) -> torch.Tensor:
        rows = bases.get(layer)
        return value if rows is None else value - value @ rows.T @ rows

    def alone(layer: int, value: torch.Tensor) -> torch.Tensor:
        corrupt, rows = run[f"mlp_post.{layer}"], bases.get(layer)
        return corrupt if rows is None else corrupt + (value - corrupt) @ rows.T @ rows

    for prediction, write in ((lowers(1.0, how="zero"), without), (recovers(0.5), alone)):
        found = bench.measure([rival], prediction, behavior, split)[0]
        assert np.abs(found - by_hand(model, prompts, write)).max() < 1e-10
        assert np.abs(found - split.clean).max() > 1e-6


def test_where_too_few_other_neurons_are_left_random_subspaces_gate(model: Model) -> None:
    width = len(universe_of(model, MINE)[0])
    nearly_all = Neurons(tuple((layer, unit) for layer in range(model.n_layers) for unit in range(1, width)))
    assert best_family(model, nearly_all) == SUBSPACES
    all_of_one = Neurons(tuple((layer, unit) for layer in range(model.n_layers) for unit in range(width)))
    assert best_family(model, all_of_one) == SAME_LAYERS


@pytest.fixture(scope="module")
def planted():
    """A model in which neuron 6 of the last layer writes the answer, and prompts in which it is more or less on."""
    hf = tiny("gpt2", torch.float64)
    with torch.no_grad():
        words = hf.transformer.wte.weight
        hf.transformer.h[2].mlp.c_proj.weight[6] = 10 * torch.nn.functional.normalize(
            words[1] - words[2], dim=0
        )
    model = wrap(hf, check=False)
    prompts = torch.from_numpy(np.random.default_rng(0).integers(3, 36, size=(720, 5)))
    on = model.run(prompts, capture=["mlp_post.2"])["mlp_post.2"][:, -1, 6]
    order = on.argsort().tolist()
    low, high = prompts[order[:240]], prompts[order[-240:]]
    behavior = ms.behaviors.from_tokens(high, low, answers=[1] * 240, wrong=[2] * 240, name="planted")
    return model, behavior


@pytest.mark.parametrize(("unit", "outcome"), [(6, "supported"), (8, "refuted")])
def test_a_planted_neuron_stands_out_among_random_subspaces_and_its_neighbour_does_not(
    planted, unit: int, outcome: str
) -> None:
    model, behavior = planted
    claim = ms.Claim(
        "Neuron 6 writes the answer",
        behavior=behavior,
        mechanism=Neurons(((2, unit),)),
        predictions=[lowers(0.5, unit="gap", how="corrupt")],
        controls=SUBSPACES,
    )
    verdict = claim.test(model)
    (result,) = verdict.predictions
    assert verdict.outcome == outcome, str(verdict)
    assert result.controls.family == SUBSPACES and result.controls.n_drawn == 199
    assert (result.controls.rank == "1st of 200") is (unit == 6)


def test_neurons_are_named_and_compared_by_their_set() -> None:
    assert Neurons(((2, 5), (0, 3), (2, 1), (0, 3))) == MINE
    assert MINE.name == "neurons 0.3, 2.1, 2.5"
    assert Neurons(tuple((1, unit) for unit in range(9))).name.endswith("and 3 more")
    assert [part.units for part in Neurons(((1, 1), (1, 2))).without_each()] == [((1, 2),), ((1, 1),)]
