"""Neurons as a mechanism: what is written at which units, by a loop over hooks; and their controls."""

import numpy as np
import pytest
import torch

import mechscope as ms
from mechscope.claims.bench import EngineBench
from mechscope.claims.control_families import best_family, universe_of
from mechscope.claims.controls import ANY_LAYER, SAME_LAYERS
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


def test_neurons_are_named_and_compared_by_their_set() -> None:
    assert Neurons(((2, 5), (0, 3), (2, 1), (0, 3))) == MINE
    assert MINE.name == "neurons 0.3, 2.1, 2.5"
    assert Neurons(tuple((1, unit) for unit in range(9))).name.endswith("and 3 more")
    assert [part.units for part in Neurons(((1, 1), (1, 2))).without_each()] == [((1, 2),), ((1, 1),)]
