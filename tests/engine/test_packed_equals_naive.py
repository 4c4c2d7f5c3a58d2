"""The packed executor equals one whole forward per experiment, on every family, over random experiments."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arithmetic_forward import in_double
from engine.random_experiments import LENGTHS, prompts, random_experiments
from mechscope.engine.agreement import Agreement, compare_with_whole_forwards
from mechscope.engine.execute import LocalExecutor, run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import run_naively
from mechscope.engine.packed import Replay
from mechscope.engine.plan import make_plan
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import (
    KL,
    LogitDifference,
    LogProbability,
    answer_sets,
)
from mechscope.interventions.replace import patch
from mechscope.models.experts import choose_experts, weigh_experts
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import MechscopeError
from tiny_models import TINY, tiny

FAMILIES = list(TINY)
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")
QUICK = ("gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "gpt_oss", "mixtral", "bloom", "native")
"""One family a mechanism; `make test-all` takes them all."""

QUICK_IN_SINGLE = ("gpt2", "llama", "gemma2", "gpt_neo", "bloom", *MIXTURES)


@pytest.fixture(autouse=True)
def _even_few_tokens_skip_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechscope.engine.packed.FEWEST_QUIET_TOKENS", 1)


_OPEN: dict[tuple[str, torch.dtype], Model] = {}


def opened(family: str, dtype: torch.dtype) -> Model:
    """One open tiny model a family and dtype."""
    key = (family, dtype)
    if key not in _OPEN:
        _OPEN[key] = wrap(tiny(family, dtype), check=False)
    return _OPEN[key]


def answers(model: Model) -> LogitDifference:
    return LogitDifference(answers=answer_sets([1, 2, 3, 4]), wrong=answer_sets([5, 6, 7, 8]))


def patches_at_every_site(model: Model) -> list[Experiment]:
    """A donor patch at each writable site, at all positions, at the end, and at one inside."""
    clean, corrupt = prompts(model, 0), prompts(model, 1)
    sites = [site for site in model.binding.formed if site.row.is_writable]
    run = model.run(corrupt, capture=sites)
    metrics = (answers(model), LogProbability(answers=answer_sets([1, 2, 3, 4])))
    return [
        Experiment(
            inputs=clean,
            writes=(patch(site, run, positions=where),),
            metric=metrics[n % 2],
            name=f"{site} {where}",
        )
        for n, site in enumerate(sites)
        for where in (None, -1, [4])
    ]


def compared(model: Model, experiments: list[Experiment]) -> Agreement:
    """The two executors side by side; some families drop to single precision unless told otherwise."""
    with in_double() if model.dtype == torch.float64 else nullcontext():
        return compare_with_whole_forwards(model, experiments)


def worst_difference(model: Model, experiments: list[Experiment]) -> tuple[float, str]:
    """Largest difference between the executors over the range of what was measured, and its experiment."""
    found = compared(model, experiments)
    assert not found.flips, str(found)
    return found.difference, experiments[found.worst].name


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_patches_at_every_site_equal_whole_forwards(family: str) -> None:
    model = opened(family, torch.float64)
    difference, name = worst_difference(model, patches_at_every_site(model))
    assert difference < 1e-10, name


@pytest.mark.parametrize(
    "family",
    [name if name in QUICK_IN_SINGLE else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_single_precision_agrees_to_its_own_rounding(family: str) -> None:
    model = opened(family, torch.float32)
    experiments = patches_at_every_site(model)
    found = compared(model, experiments)
    assert found.is_explained, str(found)
    assert found.n_compared > 0.9 * len(experiments), str(found)
    assert found.difference < 1e-5, experiments[found.worst].name


def test_a_replay_that_forgets_one_layer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: the comparison above can fail."""
    from mechscope.engine import packed

    model = opened("llama", torch.float64)
    experiments = patches_at_every_site(model)
    layer = packed.Replay._layer
    monkeypatch.setattr(
        packed.Replay, "_layer", lambda self, index: None if index == 1 else layer(self, index)
    )
    assert worst_difference(model, experiments)[0] > 1e-6


ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest difference over the range of what was measured."""


def check_random_experiments(family: str, data: st.DataObject, dtype: torch.dtype = torch.float64) -> None:
    model = opened(family, dtype)
    experiments = random_experiments(data, model)
    try:
        found = compared(model, experiments)
    except MechscopeError as refusal:  # a mean over choices, say: refused by both
        with pytest.raises(type(refusal)), in_double() if dtype == torch.float64 else nullcontext():
            run_naively(model, experiments)
        return
    assert found.is_explained, str(found)
    assert found.difference < ROUNDING[dtype], experiments[found.worst]


@pytest.mark.filterwarnings("ignore:Scaling all of")
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_experiments_equal_whole_forwards(family: str, data: st.DataObject) -> None:
    check_random_experiments(family, data)


@pytest.mark.filterwarnings("ignore:Scaling all of")
@pytest.mark.parametrize(
    "family",
    [name if name in QUICK_IN_SINGLE else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_experiments_in_single_precision_agree_to_its_rounding(
    family: str, data: st.DataObject
) -> None:
    check_random_experiments(family, data, torch.float32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Scaling all of")
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_random_experiments_equal_whole_forwards(family: str, data: st.DataObject) -> None:
    check_random_experiments(family, data)


def tied_mixture() -> Model:
    """A Mixtral whose first two experts are preferred alike, to the last digits of single precision."""
    hf = tiny("mixtral", torch.float64)
    for layer in hf.model.layers:  # type: ignore
        with torch.no_grad():
            layer.mlp.gate.weight[1] = layer.mlp.gate.weight[0] * (1 + 1e-9)
    return wrap(hf, check=False)


def tip(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """Let the router prefer expert 1 by this much more in packed calls, as rounding over another batch could."""
    call = Replay._call

    def tipped(self: Replay, layer: int, *args: Any) -> torch.Tensor:
        spec = self.binding.anatomy.experts
        if spec is None or layer not in self.binding.experts:
            return call(self, layer, *args)

        def hook(
            _module: object, _args: object, output: tuple[torch.Tensor, ...]
        ) -> tuple[torch.Tensor, ...]:
            logits = output[0] + by * (torch.arange(spec.n_experts) == 1)
            choice = choose_experts(logits, spec)
            return logits, weigh_experts(logits, choice, spec), choice

        handle = self.binding.layers[layer].get_submodule(spec.router).register_forward_hook(hook)
        try:
            return call(self, layer, *args)
        finally:
            handle.remove()

    monkeypatch.setattr(Replay, "_call", tipped)


def test_experts_that_flip_at_a_near_tie_are_reported_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tied_mixture()
    experiments = patches_at_every_site(model)[::5]
    tip(monkeypatch, 1e-6)
    found = compare_with_whole_forwards(model, experiments)
    assert found.flips and found.is_explained, str(found)
    assert 0 < found.n_compared < len(experiments)
    assert found.difference < 1e-5, str(found)
    assert "at a near tie" in str(found)
    flip = found.flips[0]
    assert set(flip.packed) ^ set(flip.whole) == {0, 1}, "the two that are tied"


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_flip_without_a_tie_are_a_fault(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(family, torch.float64)
    tip(monkeypatch, 0.5)
    found = compare_with_whole_forwards(model, patches_at_every_site(model)[::5])
    assert found.flips and not found.is_explained, str(found)
    flip = max(found.flips, key=lambda flip: flip.margin)
    assert flip.packed != flip.whole and flip.margin > 1e-3 and not flip.is_near_tie


def test_a_small_memory_budget_changes_the_cut_and_not_the_results() -> None:
    model = opened("llama", torch.float64)
    experiments = patches_at_every_site(model)
    large, small = make_plan(model, experiments), make_plan(model, experiments, memory=100_000)
    assert len(small.groups[0].blocks) > len(large.groups[0].blocks)
    assert small.cost.peak_bytes < large.cost.peak_bytes
    together = LocalExecutor().execute(model, large).table()
    apart = LocalExecutor().execute(model, small).table()
    assert (together - apart).abs().max() < 1e-12


def test_a_patch_that_changes_nothing_is_not_run() -> None:
    model = opened("gpt2", torch.float64)
    clean = prompts(model, 0)
    run = model.run(clean, capture=["resid_pre.*"])
    same = [
        Experiment(inputs=clean, writes=(patch(f"resid_pre.{n}", run),), metric=answers(model))
        for n in range(3)
    ]
    executor = LocalExecutor()
    values = run_experiments(model, same, executor=executor)
    assert executor.tally.n_token_layers == 0
    assert torch.equal(values[0], values[2])


def test_positions_that_a_pair_shares_are_not_recomputed() -> None:
    model = opened("gpt2", torch.float64)
    clean, corrupt = prompts(model, 0), prompts(model, 1)
    donor = model.run(corrupt, capture=["resid_pre.0"])
    executor = LocalExecutor()
    run_experiments(
        model,
        [Experiment(inputs=clean, writes=(patch("resid_pre.0", donor),), metric=answers(model))],
        executor=executor,
    )
    changed = sum(n - 3 for n in LENGTHS)  # the first three tokens are shared
    last_layer = changed + len(LENGTHS)  # keys and values of all that changed, then one query a row
    assert executor.tally.n_token_layers == changed * (model.n_layers - 1) + last_layer


def test_a_head_patch_joins_after_its_layers_attention() -> None:
    model = opened("gpt2", torch.float64)
    clean, corrupt = prompts(model, 0), prompts(model, 1)
    donor = model.run(corrupt, capture=["z.1"])
    executor = LocalExecutor()
    write = patch("z.1", donor, heads=[0], positions=-1)
    run_experiments(
        model, [Experiment(inputs=clean, writes=(write,), metric=answers(model))], executor=executor
    )
    assert executor.tally.n_token_layers == len(LENGTHS) * (
        model.n_layers - 1
    )  # the last token only, layers 1 and 2


def test_a_head_patch_computes_no_queries_keys_and_values_in_its_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = opened("gpt2", torch.float64)
    experiments = [e for e in patches_at_every_site(model) if e.name.startswith("z.1")]
    wanted = run_naively(model, experiments).table()
    projected: list[int] = []
    module = model.binding.layers[1].attn.c_attn
    real = type(module).forward

    def counted(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        projected.append(self is module)
        return real(self, x)

    monkeypatch.setattr(type(module), "forward", counted)
    got = run_experiments(model, experiments)
    assert experiments and sum(projected) == 1, "the base run's only"
    assert torch.allclose(got.table(), wanted, atol=1e-10)


def test_skipping_projections_that_are_needed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("gpt2", torch.float64)
    experiments = patches_at_every_site(model)
    monkeypatch.setattr(Replay, "_quiet", lambda self, layer, keys: torch.ones(len(keys), dtype=torch.bool))
    assert worst_difference(model, experiments)[0] > 1e-6


def test_kl_to_the_untouched_run_is_zero_without_an_intervention() -> None:
    model = opened("llama", torch.float64)
    clean = prompts(model, 0)
    logits = model.logits(clean)[:, -1]
    values = run_experiments(model, [Experiment(inputs=clean, metric=KL(reference=Value(logits)))])
    assert values[0].abs().max() < 1e-12


def test_the_plan_says_what_it_saves() -> None:
    model = opened("llama", torch.float64)
    text = make_plan(model, patches_at_every_site(model)).explain()
    assert "one forward per experiment" in text and "peak memory" in text
