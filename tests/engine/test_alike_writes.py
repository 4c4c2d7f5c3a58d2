"""Alike writes of a sweep are compared and applied in one call, with the results of one by one."""

from typing import Any

import pytest
import torch

from arithmetic_forward import in_double
from engine.random_experiments import prompts
from mechscope.engine import changes, packed
from mechscope.engine.agreement import compare_with_whole_forwards
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.interventions.metrics import LogitDifference, answer_sets
from mechscope.interventions.replace import Patch, edit, patch
from mechscope.interventions.steering import add
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from tiny_models import tiny

METRIC = LogitDifference(answers=answer_sets([1, 2, 3, 4]), wrong=answer_sets([5, 6, 7, 8]))


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(tiny("gpt2", torch.float64), check=False)


def grid_of(model: Model, writes: Any) -> list[Experiment]:
    """One experiment a layer and position."""
    clean = prompts(model, 0)
    return [
        Experiment(inputs=clean, writes=tuple(writes(layer, position)), metric=METRIC)
        for layer in range(model.n_layers)
        for position in (-4, -3, -2, -1)
    ]


def patches(model: Model) -> list[Experiment]:
    run = model.run(prompts(model, 1), capture=["resid_pre.*"])
    return grid_of(model, lambda layer, position: [patch(f"resid_pre.{layer}", run, positions=position)])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every call of a write, while comparing and while replaying."""
    sizes: list[int] = []
    blend = packed.blend

    def counting(write: Any, old: Any, tokens: Any) -> Any:
        sizes.append(len(old))
        return blend(write, old, tokens)

    monkeypatch.setattr(packed, "blend", counting)
    monkeypatch.setattr(changes, "blend", counting)
    return sizes


def test_a_grid_of_patches_takes_one_call_a_layer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    experiments = patches(model)
    sizes = counted(monkeypatch)
    together = run_experiments(model, experiments).table()
    assert (
        len(sizes) <= 3 * model.n_layers
    )  # compared, written, and written to keys of tokens that nobody reads
    monkeypatch.setattr(Patch, "likeness", lambda self: None)
    sizes.clear()
    apart = run_experiments(model, experiments).table()
    assert len(sizes) >= len(experiments)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)


def test_what_a_patch_changes_does_not_depend_on_its_neighbours(model: Model) -> None:
    """A donor with some of the base run's own values: nothing changes there, whatever is compared with it."""
    clean = prompts(model, 0)
    values = model.run(clean, capture=["resid_pre.1"]).cache["resid_pre.1"].clone()
    values[:, -2] += 1.0
    write = [patch("resid_pre.1", values, positions=position) for position in (-3, -2, -1)]
    base = packed_base(model, clean)
    prepared = [[(one, [model.binding.site("resid_pre.1")])] for one in write]
    differences = changes.Differences(base, prepared)
    found = [differences.changes_of(one)[0].changed.any(1).tolist() for one in prepared]
    assert found == [[False] * 4, [True] * 4, [False] * 4]


def packed_base(model: Model, inputs: Any) -> Any:
    from mechscope.engine.base import record_base
    from mechscope.models.frame import Frame

    with model.ready():
        return record_base(model.binding, Frame.of(inputs), [model.binding.site("resid_pre.1")])


def test_other_donors_heads_and_kinds_are_not_alike(model: Model) -> None:
    run, other = (model.run(prompts(model, seed), capture=["z.1"]) for seed in (0, 1))
    writes = [
        patch("z.1", run, heads=[0], positions=-1),
        patch("z.1", run, heads=[1], positions=-1),
        patch("z.1", other, heads=[0], positions=-1),
    ]
    assert len({one.likeness() for one in writes}) == 3
    assert patch("z.1", run, heads=[0], positions=-2).likeness() == writes[0].likeness()
    assert edit("z.1", torch.neg).likeness() is None


def test_declared_order_is_kept_between_alike_writes(model: Model) -> None:
    """A patch, a sum and the patch again at one site: the last one counts."""
    run = model.run(prompts(model, 1), capture=["resid_pre.*"])
    direction = torch.linspace(-1, 1, model.d_model, dtype=torch.float64)
    experiments = grid_of(
        model,
        lambda layer, position: [
            patch(f"resid_pre.{layer}", run, positions=position),
            add(f"resid_pre.{layer}", direction, absolute=2.0, positions=position),
            patch(f"resid_pre.{layer}", run, positions=position),
        ],
    )
    assert run_experiments(model, experiments).table() == pytest.approx(
        run_experiments(model, patches(model)).table().numpy(), abs=1e-10
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("few", [0, 1000])
def test_many_keys_and_few_agree(family: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel and the pattern that is formed, each against whole forwards."""
    monkeypatch.setattr("mechscope.engine.packed_attention.FEW_KEYS", few)
    opened = wrap(tiny(family, torch.float64), check=False)
    with in_double():
        found = compare_with_whole_forwards(opened, patches(opened))
    assert found.difference < 1e-10
