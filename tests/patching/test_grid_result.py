"""What a grid's numbers mean, on numbers written by hand."""

import gc
import weakref

import numpy as np
import pytest
import torch

from mechscope.figures.labelled import LabelledArray
from mechscope.models.opening import wrap
from mechscope.patching.grid import patch_grid
from mechscope.patching.grid_result import PatchGrid, per_pair_metric
from mechscope.patching.resampling import interval_of_means, interval_of_ratios
from mechscope.vocabulary.errors import NotEnoughEvidence
from patching.drawn_pairs import random_pairs
from tiny_models import tiny


def grid_of(
    patched: list[float], clean: list[float], corrupt: list[float], direction: str = "denoising"
) -> PatchGrid:
    """A grid of one cell."""
    table = LabelledArray(np.array([patched]), ("layer", "pair"), unit="logits")
    return PatchGrid(
        per_pair=table,
        clean=per_pair_metric(np.array(clean), "logits", "clean"),
        corrupt=per_pair_metric(np.array(corrupt), "logits", "corrupt"),
        settings={"direction": direction, "site": "z"},
    )


def test_recovered_is_a_ratio_of_means_and_not_a_mean_of_ratios() -> None:
    grid = grid_of([1.0, 0.1, 1.0], clean=[2.0, 0.1, 2.0], corrupt=[0.0, 0.0, 0.0])
    assert np.isclose(grid.recovered.values[0], 2.1 / 4.1)
    assert not np.isclose(grid.recovered.values[0], (0.5 + 1.0 + 0.5) / 3)


def test_effects_are_counted_from_the_run_that_was_patched() -> None:
    numbers = {"clean": [3.0, 5.0], "corrupt": [1.0, 1.0]}
    assert grid_of([2.0, 2.0], **numbers).effects.values[0] == 1.0
    assert grid_of([2.0, 2.0], direction="noising", **numbers).effects.values[0] == -2.0


def test_recovered_is_refused_where_the_gap_may_be_nothing() -> None:
    grid = grid_of([1.0, 1.0, 1.0, 1.0], clean=[1.0, -1.0, 2.0, -1.9], corrupt=[0.0] * 4)
    with pytest.raises(NotEnoughEvidence, match="cannot be told apart"):
        _ = grid.recovered
    assert grid.values.values[0] == 1.0
    assert "effect of the patch" in repr(grid)  # what is shown in its place
    assert "effect of the patch" in grid.plot().layout.title.text


def test_a_clear_gap_of_either_sign_is_not_refused() -> None:
    assert grid_of([1.0, 1.2], clean=[2.0, 2.1], corrupt=[0.0, 0.1]).recovered.values[0] > 0
    assert grid_of([1.0, 1.2], clean=[0.0, 0.1], corrupt=[2.0, 2.1]).recovered.values[0] > 0


def test_one_pair_has_no_intervals_and_is_refused_only_without_a_gap() -> None:
    grid = grid_of([1.0], clean=[2.0], corrupt=[0.0])
    assert grid.recovered.values[0] == 0.5 and grid.recovered.low is None
    with pytest.raises(NotEnoughEvidence):
        _ = grid_of([1.0], clean=[2.0], corrupt=[2.0]).recovered


def test_intervals_of_means_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    low, high = interval_of_means(rng.standard_normal((400, 60)))
    covered = ((low < 0) & (high > 0)).mean()
    assert 0.9 < covered < 0.98


def test_intervals_of_ratios_are_paired() -> None:
    below = np.random.default_rng(0).uniform(1, 9, 30)
    low, high = interval_of_ratios(0.5 * below[None], below)
    assert np.allclose([low, high], 0.5)  # resampled apart, these would spread
    low, high = interval_of_ratios(np.random.default_rng(1).uniform(1, 9, (1, 30)), below)
    assert high - low > 0.1


def test_a_grid_does_not_hold_the_model() -> None:
    model = wrap(tiny("gpt2", torch.float64), check=False)
    grid = patch_grid(model, random_pairs(model))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert grid.n_pairs == 3
