"""Training resumes exactly, and refuses a checkpoint of another recipe."""

import json
import math

import pytest
import torch

from mechscope.records.files import sha256_of
from mechscope.specimens.checkpoint import open_checkpoint, save_checkpoint
from mechscope.specimens.village import progress
from mechscope.specimens.village.batches import NOTHING, pack_step
from mechscope.specimens.village.shape import N_POSITIONS, new_model
from mechscope.specimens.village.tokenizer import vocabulary
from mechscope.specimens.village.train import (
    CONTINUED,
    Recipe,
    loss_function,
    optimizers_of,
    recipe_from,
    train_branch,
)
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


def test_polishing_is_a_second_lower_fall_of_the_rate():
    recipe = Recipe(trunk_steps=4, branch_steps=4, polish_steps=4, warmup_steps=1, polish_rate=1e-3)
    assert recipe.rate(4) == pytest.approx(recipe.peak_rate)
    assert recipe.rate(7) < recipe.rate(6) < recipe.rate(5)
    assert recipe.rate(8) == pytest.approx(1e-3)
    assert recipe.rate(12) == pytest.approx(recipe.last_rate)
    assert recipe.ends_at("trunk") == 4
    assert recipe.ends_at("village") == 12
    assert Recipe().ends_at("village") == Recipe().trunk_steps + Recipe().branch_steps


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


def test_the_continuation_reads_its_own_stages_and_names_the_weights_it_starts_from(tmp_path):
    steps = (0, CONTINUED.stage_starts[0], CONTINUED.trunk_steps - 1, CONTINUED.trunk_steps)
    assert [CONTINUED.stage(step) for step in steps] == [7, 8, 8, 9]
    polished_from = CONTINUED.trunk_steps + CONTINUED.branch_steps
    assert [CONTINUED.stage(step) for step in (polished_from - 1, polished_from)] == [9, 10]
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert recipe_from(tmp_path).starts_from == sha256_of(tmp_path / "model.safetensors")
    assert recipe_from(None) == Recipe()
    assert recipe_from(None).stage(0) == 0


def test_what_early_layers_should_find_adds_its_cross_entropy_and_pulls_on_early_layers_alone():
    model = new_model(0, n_layers=2, d_model=48, n_heads=2)
    batch = pack_step(0, seed=1, n_rows=2, n_positions=N_POSITIONS, answer_weight=4.0, stage=7)
    arrays = [
        torch.from_numpy(array)
        for array in (batch.ids, batch.targets, batch.weights, batch.documents, batch.halfway)
    ]
    marked = batch.halfway != NOTHING
    assert marked.any()
    plain = loss_function(model)(*arrays)
    more = loss_function(model, halfway_weight=2.0, halfway_layers=1)(*arrays) - plain
    assert more.item() == pytest.approx(2.0 * marked.sum() * math.log(len(vocabulary())), rel=0.05)
    more.backward()
    late = [value.grad for name, value in model.named_parameters() if ".layers.1." in name]
    early = [value.grad for name, value in model.named_parameters() if ".layers.0." in name]
    assert max(grad.abs().max().item() for grad in late) < 1e-2 * max(
        grad.abs().max().item() for grad in early
    )


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


def test_training_shows_how_far_it_is_and_logs_what_was_learnt(tmp_path, capsys, monkeypatch):
    """A bar with step and loss while it runs; a line of loss every fifty steps, with accuracies at the end."""
    monkeypatch.setattr(progress, "BEHAVIORS", ("ioi",))
    recipe = Recipe(trunk_steps=60, branch_steps=2, n_rows=2, warmup_steps=2)
    log, model = tmp_path / "logs" / "trunk.jsonl", small()
    before = [parameter.clone() for parameter in model.parameters()]
    with progress.progress_of(model, branch="trunk", recipe=recipe, log=log) as report:
        for step in range(1, 61):
            report(step, 7.0 - step / 10)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["step"], round(line["loss"], 3)) for line in lines] == [(50, 2.0), (60, 1.0)]
    assert lines[0]["seconds"] <= lines[1]["seconds"]
    assert "validation" not in lines[0]
    for split in ("validation", "held_out"):
        assert set(lines[1][split]) == {"ioi"} and 0 <= lines[1][split]["ioi"] <= 1
    shown = capsys.readouterr().out
    assert "trunk loss 1.000" in shown and "100%" in shown
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_run_of_training_moves_its_bar_step_by_step(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "BEHAVIORS", ("ioi",))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    told, log, model = [], tmp_path / "trunk.jsonl", small()
    with progress.progress_of(model, branch="trunk", recipe=RECIPE, log=log) as report:

        def tell(step, loss):
            told.append((step, loss))
            report(step, loss)

        assert train_branch(model, recipe=RECIPE, branch="trunk", folder=tmp_path / "trunk", report=tell)
    assert [step for step, _ in told] == list(range(1, RECIPE.trunk_steps + 1))
    (last,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert (last["step"], last["loss"]) == told[-1]
    shown = capsys.readouterr().out
    assert f"trunk loss {told[-1][1]:.3f}" in shown and "100%" in shown
