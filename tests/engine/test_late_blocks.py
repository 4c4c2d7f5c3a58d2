"""Experiments that run one by one, in blocks of prompts, measure the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from arithmetic_forward import in_double
from engine.random_experiments import SHARED, random_experiments
from mechscope.engine.execute import LocalExecutor, run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import run_naively
from mechscope.engine.plan import Layout, lay_out, make_plan
from mechscope.interventions.ablation import ablate
from mechscope.interventions.clamp import clamp
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import (
    KL,
    LogitDifference,
    LogProbability,
    Metric,
    UserMetric,
    answer_sets,
)
from mechscope.interventions.replace import edit, freeze, patch
from mechscope.interventions.steering import add, cap, project_out, scale
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import MechscopeError
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Matching
from nudge import Nudge
from small_models import LinearCodec
from tiny_models import tiny

LENGTHS = (9, 4, 6, 9, 5)
"""Blocks of one and of two prompts have padding in every row."""

EXACT = 1e-10
_OPEN: dict[str, Model] = {}


def opened(family: str) -> Model:
    """One tiny model a family, in double precision."""
    if family not in _OPEN:
        _OPEN[family] = wrap(tiny(family, torch.float64), check=False)
    return _OPEN[family]


def prompts(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> TokenBatch:
    """Prompts that share their first three tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 37, (n - 3,), generator=generator).tolist() for n in lengths]
    return batch_of([SHARED + row for row in rows], pad_id=0)


def metrics(model: Model) -> list[Metric]:
    """Metrics that read few columns, all columns, other rows' references and several positions."""
    right, wrong = answer_sets([1, 2, 3, 4, 5]), answer_sets([[5, 9], [6], [7], [8], [9]])
    reference = torch.randn(5, model.sizes["d_vocab"], generator=torch.Generator().manual_seed(5))
    return [
        LogitDifference(answers=right, wrong=wrong),
        LogProbability(answers=right, position=3),
        KL(reference=Value(reference)),
        UserMetric(function=lambda logits: logits.sin().sum((1, 2)), positions=(-1, 2)),
    ]


def every_kind(model: Model, at: str, inside: str) -> list[tuple[Any, ...]]:
    """One of each kind of intervention and of selection at a vector-valued site; `inside` is read before it."""
    corrupt = prompts(1, lengths=(9, 6, 6, 9, 5))  # other padding than the prompts': matched by position
    even = prompts(2, lengths=(9, 9, 9))
    run, whole = model.run(corrupt, capture=[at, inside]), torch.randn(5, 9, 32, dtype=torch.float64)
    direction = torch.linspace(-1, 1, 32, dtype=torch.float64)
    latent = clamp(LinearCodec(Site.parse(at)), feature=1, to=2.0)
    carried = clamp(LinearCodec(Site.parse(inside), Site.parse(at)), feature=2, to=1.5)
    kinds: list[Any] = [
        *(patch(at, run, positions=where) for where in (None, -1, [1, -2], slice(2, -1), Matching(tuple(SHARED[:2])))),
        patch(at, run, positions=[[0], [1, 2], [5], [], [3, -1]], units=[0, 3]),
        patch(at, run).only(rows=[1, 4]),
        patch(at, run, subspace=direction),
        *(patch(at, donor) for donor in (whole, whole[:, 0], whole[0, 0], whole[:1])),
        *(freeze(at, to=to) for to in ("own", run)),
        freeze(at, rows=[0, 3]),
        *(ablate(at, how, reference=even) for how in ("zero", "mean", "resample")),
        ablate(at, "mean", reference=even, by_position=True, positions=[0, 2]),
        ablate(at, "resample", reference=even, positions=[[0], [1], [2], [3], [4]]),
        *(add(at, direction, absolute=[0.7, -0.2, 0.0, 1.5, 0.4], mode=m) for m in ("add", "norm_preserving")),
        add(at, direction, dose=[0.1, 0.2, 0.3, 0.4, 0.5], mode="rotate", positions=-1),
        project_out(at, direction, positions=slice(-3, None)),
        cap(at, direction, at_most=0.1),
        scale(at, 0.3, positions=[0, -1]),
        edit(at, lambda value: value.cos(), positions=2),
        Nudge(at),
        latent,
        carried,
    ]  # fmt: skip
    return [(scale(inside, 1.1), write) for write in kinds]


def experiments_of(model: Model, writes: list[tuple[Any, ...]]) -> list[Experiment]:
    batch, reads = prompts(), metrics(model)
    return [
        Experiment(inputs=batch, writes=each, metric=reads[n % len(reads)], name=f"{n} {each[-1]}")
        for n, each in enumerate(writes)
    ]


def in_blocks(layout: Layout, n: int) -> Layout:
    """The same work, its late experiments cut into blocks of so many prompts."""
    return replace(layout, late=[replace(item, n_at_once=n) for item in layout.late])


def worst(model: Model, experiments: list[Experiment], n: int) -> tuple[float, str]:
    """Largest difference between blocks of `n` prompts and whole forwards, and the experiment that has it."""
    with in_double():
        layout = lay_out(model, experiments)
        assert len(layout.late) == len(experiments), "all of them run one by one"
        found = LocalExecutor().execute(model, in_blocks(layout, n)).table()
        unsplit = LocalExecutor().execute(model, in_blocks(layout, 99)).table()
        whole = run_naively(model, experiments).table()
    differences = torch.maximum((found - whole).abs(), (found - unsplit).abs()).amax(1)
    index = int(differences.argmax())
    return float(differences[index]), experiments[index].name


CASES = [("bloom", "mlp_out.1", "resid_pre.1"), ("falcon_7b", "resid_post.1", "resid_pre.0")]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(("family", "at", "inside"), CASES)
def test_blocks_of_a_family_without_the_interface_measure_the_same(
    family: str, at: str, inside: str, n: int
) -> None:
    model = opened(family)
    difference, name = worst(model, experiments_of(model, every_kind(model, at, inside)), n)
    assert difference < EXACT, name


@pytest.mark.parametrize("at", ["mlp_out.1", "ln_final", "embed"])
def test_blocks_of_writes_behind_the_last_layer_measure_the_same(at: str) -> None:
    model = opened("llama")
    inside = "embed" if at == "embed" else "resid_pre.1"
    kinds = [(*writes, scale("ln_final", 0.9)) for writes in every_kind(model, at, inside) if at != inside]
    kinds += [(patch("logits", model.run(prompts(1), capture=["logits"]), positions=w),) for w in (None, -1)]
    kinds += [(edit(at, torch.cos), Nudge("logits"), Nudge("ln_final"))]
    difference, name = worst(model, experiments_of(model, kinds), 2)
    assert difference < EXACT, name


def test_blocks_of_writes_inside_attention_measure_the_same() -> None:
    model, end = opened("llama"), scale("ln_final", 0.9)
    sites = ["q.1", "k.1", "v.1", "scores.1", "pattern.1", "z.1"]
    run = model.run(prompts(1, lengths=(9, 6, 6, 9, 5)), capture=sites)
    whole = {site: run.cache[site] for site in sites}
    kinds = [
        (patch(site, run, positions=w, heads=[0]), end)
        for site in sites
        for w in (None, [[0], [1], [], [2], [-1]])
    ]
    kinds += [(patch(site, whole[site]).only(rows=[1, 3]), end) for site in sites]
    kinds += [(Nudge(site), freeze(site, rows=[2]), end) for site in sites]
    kinds += [(edit("pattern.1", lambda value: value * 0.5).only(units=[0, 2]), end)]
    difference, name = worst(model, experiments_of(model, kinds), 2)
    assert difference < EXACT, name


FORGETFUL: dict[str, Callable[..., Tensor]] = {
    "in_batch": lambda _frame, rows: rows,
    "_own_rows": lambda frame: torch.arange(frame.n_rows),
}


@pytest.mark.parametrize("method", list(FORGETFUL))
def test_blocks_that_forget_which_rows_they_are_give_other_numbers(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("bloom")
    run = model.run(prompts(1), capture=["mlp_out.1"])
    everywhere, by_row = patch("mlp_out.1", run), patch("mlp_out.1", run, positions=[[0], [1], [2], [3], [4]])
    experiments = experiments_of(model, [(everywhere.only(rows=[3, 4]),), (by_row,)])
    assert worst(model, experiments, 2)[0] < EXACT
    monkeypatch.setattr(Frame, method, FORGETFUL[method])
    assert worst(model, experiments, 2)[0] > 1e-3


@pytest.mark.filterwarnings("ignore:Scaling all of")
@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "gemma2", "gpt_neo", "bloom", "mixtral", "native_bidirectional"]
)
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_experiments_in_blocks_equal_whole_forwards(family: str, data: st.DataObject) -> None:
    model = opened(family)
    experiments, n = random_experiments(data, model), data.draw(st.integers(1, 3))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mechscope.engine.plan._must_run_alone", lambda *_: True)
        try:
            difference, name = worst(model, experiments, n)
        except MechscopeError as refusal:
            with pytest.raises(type(refusal)), in_double():
                run_naively(model, experiments)
            return
    assert difference < EXACT, name


def test_a_plan_tells_the_blocks_of_what_runs_one_by_one() -> None:
    model = opened("bloom")
    experiments = experiments_of(model, [(scale(f"mlp_out.{n}", 0.5),) for n in range(3)])
    others = prompts(4)
    experiments += [replace(experiment, inputs=others) for experiment in experiments[:1]]
    told = make_plan(model, experiments).explain()
    assert "one by one, from the layer of their first change: 4, prompts in 2 blocks of at most 5" in told
    per_row = make_plan(model, experiments).cost.peak_bytes // 5
    small = make_plan(model, experiments, memory=2 * per_row)
    assert "4, prompts in 6 blocks of at most 2" in small.explain()
    assert small.cost.peak_bytes == 2 * per_row
    assert small.cost.flops == make_plan(model, experiments).cost.flops
    least = make_plan(model, experiments, memory=1)
    assert least.late[0].n_at_once == 1 and least.cost.peak_bytes == per_row > 1, "said, not hidden"


def test_progress_counts_the_rows_of_blocks() -> None:
    model, told = opened("bloom"), []
    experiments = experiments_of(model, [(scale("mlp_out.1", 0.5),), (scale("mlp_out.2", 0.5),)])
    run_experiments(model, experiments, memory=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 10) for n in range(1, 11)]


def test_experiments_over_the_same_prompts_share_a_blocks_run() -> None:
    model = opened("bloom")
    experiments = experiments_of(model, [(scale(f"mlp_out.{n}", 0.5),) for n in (1, 2)])
    layout = in_blocks(lay_out(model, experiments), 3)
    calls = [0] * model.n_layers
    handles = [
        layer.get_submodule("mlp").register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, layer in enumerate(model.binding.layers)
    ]
    LocalExecutor().execute(model, layout)
    for handle in handles:
        handle.remove()
    assert calls == [2, 4, 4], (
        "two blocks: both start behind layer 0, and the shared run stops before layer 2"
    )
