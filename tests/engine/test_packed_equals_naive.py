"""The packed executor equals one whole forward per experiment, on every family, over random experiments."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechscope.engine.execute import LocalExecutor, run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import run_naively
from mechscope.engine.packed import Replay
from mechscope.engine.plan import make_plan
from mechscope.interventions.ablation import ablate
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import KL, LogitDifference, LogProbability, answer_sets
from mechscope.interventions.replace import patch
from mechscope.interventions.steering import add, project_out, scale
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from tiny_models import TINY, tiny

LENGTHS = (9, 9, 6, 9)
RUN_WHOLE = ("gpt_neo", "gptj", "bloom", "falcon", "bert")
"""Families without the attention interface: the engine runs them whole."""


@pytest.fixture(autouse=True)
def _even_few_tokens_skip_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechscope.engine.packed.FEWEST_QUIET_TOKENS", 1)


PACKED = [name for name in TINY if name not in RUN_WHOLE]
_OPEN: dict[tuple[str, torch.dtype], Model] = {}


def opened(family: str, dtype: torch.dtype) -> Model:
    """One open tiny model a family and dtype."""
    key = (family, dtype)
    if key not in _OPEN:
        _OPEN[key] = wrap(tiny(family, dtype), check=False)
    return _OPEN[key]


def prompts(model: Model, seed: int) -> TokenBatch:
    """Four prompts, one shorter; those of two seeds share their first three tokens."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(0, model.d_vocab, (3,), generator=torch.Generator().manual_seed(99)).tolist()
    rows = [torch.randint(0, model.d_vocab, (n,), generator=generator).tolist() for n in LENGTHS]
    return batch_of([shared + row[3:] for row in rows], pad_id=0)


def answers(model: Model) -> LogitDifference:
    return LogitDifference(answers=answer_sets([1, 2, 3, 4]), wrong=answer_sets([5, 6, 7, 8]))


def patches_at_every_site(model: Model) -> list[Experiment]:
    """A donor patch at each writable site, at all positions, at the end, and at one inside."""
    clean, corrupt = prompts(model, 0), prompts(model, 1)
    sites = [site for site in model.binding.formed if site.row.is_writable and site.point != "expert_choice"]
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


def worst_difference(model: Model, experiments: list[Experiment]) -> tuple[float, str]:
    """Largest difference between the executors over the range of what was measured, and its experiment."""
    packed, naive = run_experiments(model, experiments).table(), run_naively(model, experiments).table()
    span = float(naive.max() - naive.min()) or 1.0
    worst = (packed - naive).abs().amax(1) / span
    index = int(worst.argmax())
    return float(worst[index]), experiments[index].name


@pytest.mark.parametrize("family", PACKED)
def test_patches_at_every_site_equal_whole_forwards(family: str) -> None:
    model = opened(family, torch.float64)
    difference, name = worst_difference(model, patches_at_every_site(model))
    assert difference < 1e-10, name


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_single_precision_agrees_to_its_own_rounding(family: str) -> None:
    model = opened(family, torch.float32)
    difference, name = worst_difference(model, patches_at_every_site(model))
    assert difference < 1e-5, name


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


def random_write(draw: st.DrawFn, model: Model, donors: TokenBatch):
    """Any intervention at any site of the layers."""
    floating = [
        s
        for s in model.binding.formed
        if s.row.is_writable and s.layer is not None and s.point != "expert_choice"
    ]
    site = draw(st.sampled_from(floating))
    positions = draw(st.sampled_from([None, -1, 0, 3, [1, -2], slice(2, 5)]))
    n_heads = {"head": model.n_heads, "kv_head": model.n_kv_heads}
    axis = next((a for a in site.row.axes if a in n_heads), None)
    heads = draw(st.sampled_from([None, [0], [n_heads[axis] - 1]])) if axis else None
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    width = model.sizes.get(site.row.axes[-1])
    kind = draw(st.sampled_from(["patch", "scale", "zero", "mean", "add", "project"]))
    if kind == "scale":
        return scale(site, 0.3, positions=positions, heads=heads)
    if kind == "zero":
        return ablate(site, "zero", positions=positions, heads=heads)
    if kind == "mean" and not site.row.is_attention_map and site.point != "sink":
        return ablate(site, "mean", reference=donors, positions=positions, heads=heads)
    if kind in ("add", "project") and width is not None and not site.row.is_attention_map:
        direction = torch.randn(width, generator=generator, dtype=torch.float64)
        if kind == "add":
            return add(site, direction, absolute=0.7, positions=positions, heads=heads)
        return project_out(site, direction, positions=positions, heads=heads)
    return patch(site, model.run(donors, capture=[site]), positions=positions, heads=heads)


@pytest.mark.parametrize("family", PACKED)
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_experiments_equal_whole_forwards(family: str, data: st.DataObject) -> None:
    model = opened(family, torch.float64)
    clean, corrupt = prompts(model, 0), prompts(model, 1)

    def draw(strategy):
        return data.draw(strategy)

    experiments = [
        Experiment(
            inputs=clean,
            writes=tuple(random_write(draw, model, corrupt) for _ in range(data.draw(st.integers(1, 3)))),
            metric=answers(model),
            name=f"{n}",
        )
        for n in range(4)
    ]
    difference, name = worst_difference(model, experiments)
    assert difference < 1e-10, experiments[int(name)].writes


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
