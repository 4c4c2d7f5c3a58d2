"""Training resumes exactly, and refuses a checkpoint of another recipe."""

import pytest
import torch

from mechscope.specimens.village.checkpoint import open_checkpoint, save_checkpoint
from mechscope.specimens.village.shape import new_model
from mechscope.specimens.village.train import Recipe, optimizers_of, train_branch
from mechscope.vocabulary.errors import BadFile

RECIPE = Recipe(trunk_steps=6, branch_steps=2, n_rows=2, warmup_steps=2)


def small(seed=0):
    return new_model(seed, n_layers=1, d_model=48, n_heads=2)


def silent(step, loss):
    pass


def test_the_rate_warms_up_holds_and_falls():
    recipe = Recipe()
    assert recipe.rate(0) < recipe.rate(recipe.warmup_steps) == recipe.peak_rate
    assert recipe.rate(recipe.trunk_steps) == pytest.approx(recipe.peak_rate)
    assert recipe.rate(recipe.trunk_steps + recipe.branch_steps) == pytest.approx(recipe.last_rate)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    model = small()
    optimizers = optimizers_of(model, recipe=RECIPE)
    model(torch.arange(8)[None]).logits.sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    save_checkpoint(tmp_path, model=model, optimizers=optimizers, recipe=RECIPE, step=3)
    other = small(seed=1)
    others = optimizers_of(other, recipe=RECIPE)
    assert open_checkpoint(tmp_path, model=other, optimizers=others, recipe=RECIPE) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for mine, theirs in zip(optimizers, others, strict=True):
        for number, state in mine.state_dict()["state"].items():
            for key, value in state.items():
                assert torch.equal(
                    torch.as_tensor(value), torch.as_tensor(theirs.state_dict()["state"][number][key])
                )


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    model = small()
    save_checkpoint(tmp_path, model=model, optimizers=(), recipe=RECIPE, step=3)
    with pytest.raises(BadFile, match="another training run"):
        open_checkpoint(tmp_path, model=model, optimizers=(), recipe=Recipe())
    assert open_checkpoint(tmp_path / "empty", model=model, optimizers=(), recipe=RECIPE) is None


@pytest.mark.slow
def test_an_interrupted_run_gives_the_weights_of_one_that_was_not(tmp_path):
    whole, first, second = small(), small(), small(seed=9)
    assert train_branch(whole, recipe=RECIPE, branch="trunk", folder=tmp_path / "whole", report=silent)
    assert not train_branch(
        first, recipe=RECIPE, branch="trunk", folder=tmp_path / "cut", report=silent, stop_at=3
    )
    assert train_branch(second, recipe=RECIPE, branch="trunk", folder=tmp_path / "cut", report=silent)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole.parameters(), first.parameters(), strict=True))
