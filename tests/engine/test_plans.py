"""What a plan shares, skips and foretells: shared writes at the entry, late starts, columns, budget, executors."""

import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from arithmetic_forward import in_double
from mechscope.engine.cost import flops_per_token, token_layers
from mechscope.engine.execute import Executor, LocalExecutor, run_experiments
from mechscope.engine.experiment import Experiment, Results
from mechscope.engine.naive import run_naively
from mechscope.engine.plan import Plan, lay_out, make_plan
from mechscope.interventions.ablation import ablate
from mechscope.interventions.intervention import Intervention
from mechscope.interventions.metrics import Accuracy, LogitDifference, LogProbability, answer_sets
from mechscope.interventions.replace import edit, freeze, patch
from mechscope.interventions.steering import add, scale
from mechscope.models import resources
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.models.running import find_out_what_layers_return
from mechscope.vocabulary.where import Where
from nudge import Nudge
from tiny_models import tiny

LENGTHS = (9, 9, 6, 9)
EXACT = 1e-10
_OPEN: dict[str, Model] = {}


def opened(family: str) -> Model:
    """One tiny model a family, in double precision."""
    if family not in _OPEN:
        _OPEN[family] = wrap(tiny(family, torch.float64), check=False)
    return _OPEN[family]


def prompts(model: Model, seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    return batch_of(
        [torch.randint(0, model.d_vocab, (n,), generator=generator).tolist() for n in LENGTHS], pad_id=0
    )


def answers() -> LogitDifference:
    return LogitDifference(answers=answer_sets([1, 2, 3, 4]), wrong=answer_sets([5, 6, 7, 8]))


def experiments_of(model: Model, writes: list[tuple[object, ...]]) -> list[Experiment]:
    batch, metric = prompts(model), answers()
    return [
        Experiment(inputs=batch, writes=each, metric=metric, name=f"{n}") for n, each in enumerate(writes)
    ]  # type: ignore


def difference(model: Model, experiments: list[Experiment], got: Results | None = None) -> float:
    """Largest difference from whole forwards over the range of what was measured."""
    with in_double():
        wanted = run_naively(model, experiments).table()
        found = (got or run_experiments(model, experiments)).table()
    return float((found - wanted).abs().max() / (wanted.max() - wanted.min()))


def cells(model: Model, entry: tuple[object, ...]) -> list[tuple[object, ...]]:
    """Restorations of attention and stream at every layer, each after the same writes at the entry."""
    run = model.run(prompts(model), capture=["resid_pre.*", "resid_post.*", "attn_out.*", "attn_in.*"])
    places = ("resid_post.0", "attn_out.1", "resid_pre.0", "resid_pre.2", "attn_in.2")
    return [entry, *((*entry, patch(at, run, positions=where)) for at in places for where in ([3], -1))]


ENTRIES = [
    (family, at)
    for family, points in {
        "gpt2": ("embed", "pos_embed", "resid_pre.0"),
        "native_attention_only": ("embed", "pos_embed"),
        "native_bidirectional": ("embed", "resid_pre.0"),
        "gemma2": ("embed",),
        "bloom": ("embed", "resid_pre.0"),
    }.items()
    for at in points
]


@pytest.mark.parametrize(("family", "at"), ENTRIES)
def test_experiments_with_writes_at_the_entry_equal_whole_forwards(family: str, at: str) -> None:
    model, whole = opened(family), Nudge(at)
    two_rows, one_token = Nudge(at, Where(rows=(0, 2))), Nudge(at, Where.of(2))
    direction = torch.ones(32, dtype=torch.float64)
    writes = [*cells(model, (whole,)), *cells(model, (whole, add(at, direction, absolute=0.3)))]
    writes += [(two_rows,), (two_rows, Nudge("attn_out.1")), (freeze("attn_out.*"), two_rows)]
    writes += [(one_token,), (Nudge("attn_out.0"), one_token)]
    assert difference(model, experiments_of(model, writes)) < EXACT


def test_a_base_run_without_the_shared_writes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("gpt2")
    monkeypatch.setattr("mechscope.engine.execute.writers_for", lambda *_: {})
    assert difference(model, experiments_of(model, cells(model, (Nudge("embed"),)))) > 1e-3


def test_what_shared_writes_change_below_a_cell_is_computed_once() -> None:
    model, noise = opened("gpt2"), Nudge("resid_pre.0")
    run = model.run(prompts(model), capture=["z.*"])
    experiments = experiments_of(
        model, [(noise, patch("z.2", run, heads=[h], positions=-1)) for h in range(4)]
    )
    executor = LocalExecutor()
    run_experiments(model, experiments, executor=executor)
    assert executor.tally.n_token_layers == 4 * len(LENGTHS), "the last token in the last layer, four heads"
    alone = LocalExecutor()
    run_experiments(model, experiments[:1], executor=alone)
    assert alone.tally.n_token_layers > 2 * sum(LENGTHS), "one experiment does not pay for a base run"


def test_an_ablation_at_the_entry_that_experiments_share_has_one_base_run() -> None:
    model, batch = opened("gpt2"), prompts(opened("gpt2"))
    shared = ablate("embed", "mean", reference=batch)
    experiments = experiments_of(model, [(shared, scale(f"z.{n}", 0.5)) for n in range(3)])
    groups = lay_out(model, experiments).groups
    assert [len(group.entry) for group in groups] == [1], "three experiments, one base run"
    assert difference(model, experiments) < EXACT


def test_experiments_frozen_to_their_own_values_share_the_run_that_has_them() -> None:
    model = opened("gpt2")
    writes = [(freeze("attn_out.*"), scale("mlp_out.0", factor)) for factor in (0.5, 2.0, 3.0)]
    experiments = experiments_of(model, writes)
    assert layers_called(model, experiments, lay_out) == [1, 1, 0], "the run ends at the last attention"
    assert difference(model, experiments) < EXACT


def layers_called(
    model: Model,
    experiments: list[Experiment],
    act: Callable[[Model, list[Experiment]], object] = run_experiments,
) -> list[int]:
    """How often each layer's MLP is computed while the experiments run, or are laid out."""
    find_out_what_layers_return(model.binding)
    counts = [0] * model.n_layers
    handles = []
    for index, layer in enumerate(model.binding.layers):

        def count(*_: object, index: int = index) -> None:
            counts[index] += 1

        # What stands in for a skipped layer is called through the same module, so its MLP is listened to.
        handles.append(layer.get_submodule("mlp").register_forward_hook(count))
    try:
        act(model, experiments)
    finally:
        for handle in handles:
            handle.remove()
    return counts


@pytest.mark.parametrize("family", ["bloom", "falcon_7b"])
def test_a_family_without_the_interface_runs_from_the_layer_of_the_first_change(family: str) -> None:
    model = opened(family)
    run = model.run(prompts(model, 1), capture=["mlp_out.*", "resid_pre.*"])
    writes = [(patch(f"mlp_out.{n}", run),) for n in (1, 2)] + [(patch("resid_pre.2", run, positions=-1),)]
    experiments = experiments_of(model, writes)
    assert layers_called(model, experiments) == [1, 2, 3]
    assert difference(model, experiments) < EXACT
    assert "one by one, from the layer of their first change: 3" in make_plan(model, experiments).explain()


def test_writes_behind_the_last_layer_run_the_last_layer_alone() -> None:
    model = opened("llama")
    run = model.run(prompts(model, 1), capture=["ln_final", "logits", "mlp_out.1"])
    writes = [(patch("ln_final", run),), (patch("logits", run, positions=-1),), (scale("logits", 0.5),)]
    writes.append((patch("mlp_out.1", run), patch("ln_final", run, positions=-1)))
    experiments = experiments_of(model, writes)
    # One run up to the last layer serves all; the last experiment begins a layer earlier.
    assert layers_called(model, experiments) == [1, 2, 4]
    assert difference(model, experiments) < EXACT


@pytest.mark.parametrize("metric", [LogitDifference, Accuracy])
def test_only_the_columns_that_a_metric_reads_are_unembedded(
    metric: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, n_columns = opened("llama"), []
    linear = torch.nn.functional.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        n_columns.append(len(weight))
        return linear(x, weight, bias)

    batch, heads = prompts(model), []
    run = model.run(prompts(model, 1), capture=["z.*"])
    reads = metric(answers=answer_sets([1, 2, 3, 4]), wrong=answer_sets([5, 6, 7, 8]))
    experiments = [
        Experiment(inputs=batch, writes=(patch(f"z.{n}", run),), metric=reads, name=f"{n}") for n in range(3)
    ]
    monkeypatch.setattr(resources.F, "linear", counted)
    handle = model.binding.head.register_forward_hook(lambda *_: heads.append(1))
    try:
        with in_double():
            got = run_experiments(model, experiments)
        heads_of_a_plan, unembedded = list(heads), [n for n in n_columns if n in (8, model.d_vocab)]
    finally:
        handle.remove()
    assert heads_of_a_plan == [] and unembedded == [8, 8], "the base run's, then the chunk's: eight answers"
    assert difference(model, experiments, got) < EXACT


def test_a_plan_foretells_the_work_that_is_done() -> None:
    model = opened("gpt2")
    batch, metric = prompts(model), answers()
    changed = [edit(f"z.{n}", lambda value: value + 1.0, positions=-1) for n in range(3)]
    experiments = [Experiment(inputs=batch, writes=(write,), metric=metric) for write in changed]
    plan = make_plan(model, experiments)
    layer, vocabulary = flops_per_token(model)
    executor = LocalExecutor()
    executor.execute(model, plan)
    assert executor.tally.n_token_layers == len(LENGTHS) * (3 + 2 + 1)
    head = 3 * len(LENGTHS) * 2 * model.d_model * 2
    keys_of_the_last_layer = 3 * (len(LENGTHS) // 4) * layer
    base = batch.ids.numel() * layer * 3
    foretold = base + layer * executor.tally.n_token_layers + head + keys_of_the_last_layer
    assert plan.cost.flops == pytest.approx(foretold)
    assert plan.cost.naive_flops == 3 * batch.ids.numel() * (3 * layer + vocabulary)
    assert layer == 2.0 * (32 * 96 + 32 * 32 + 2 * 32 * 128) and vocabulary == 2.0 * 32 * 37
    text = plan.explain()
    assert "3 experiments, 12 rows" in text and "1 base runs" in text
    assert f"{plan.cost.naive_flops / plan.cost.flops:.1f}x" in text


@pytest.mark.parametrize(("family", "n_dirty"), [("native", 3 * 4), ("native_bidirectional", sum(LENGTHS))])
def test_what_sees_a_change_is_foretold(family: str, n_dirty: int) -> None:
    model = opened(family)
    write = edit("resid_pre.1", lambda value: value + 1.0, positions=-3)
    experiments = experiments_of(model, [(write,)])
    plan, executor = make_plan(model, experiments), LocalExecutor()
    executor.execute(model, plan)
    n_reads = len(LENGTHS)
    assert model.n_layers == 3 and executor.tally.n_token_layers == 2 * n_dirty + n_reads
    reading = experiments[0].metric.reading()
    foretold = token_layers(model, experiments[0], plan.groups[0].prepared[0], reading)
    assert foretold == n_dirty + n_reads + n_dirty // 4, (
        "keys and values of the last layer are a quarter of it"
    )


class InPieces:
    """An executor as a cluster would be: every group and every late experiment is sent away on its own."""

    def __init__(self) -> None:
        self.n_sent = 0

    def execute(self, model: Model, plan: Plan, *, progress: object = None) -> Results:
        values = [torch.zeros(len(e.inputs), dtype=torch.float64) for e in plan.experiments]
        parts = [replace(plan, groups=[group], late=[]) for group in plan.groups]
        parts += [replace(plan, groups=[], late=[late]) for late in plan.late]
        for part in parts:
            part = pickle.loads(pickle.dumps(part))
            self.n_sent += 1
            found = LocalExecutor().execute(model, part)
            mine = [i for group in part.groups for i in group.indices] + [late.index for late in part.late]
            for index in mine:
                values[index] = found[index]
        return Results(tuple(values))


def test_another_executor_runs_the_same_plan_in_pieces() -> None:
    model = opened("llama")
    writes: list[tuple[Intervention, ...]] = [(scale(f"z.{n}", 0.5),) for n in range(3)]
    writes += [(scale("logits", 0.5),), (scale("embed", 0.5),)]
    experiments = experiments_of(model, [tuple(each) for each in writes])
    experiments += [replace(e, inputs=prompts(model, 4)) for e in experiments[:2]]
    executor = InPieces()
    assert isinstance(executor, Executor)
    got = run_experiments(model, experiments, executor=executor)
    assert executor.n_sent >= 4
    assert torch.allclose(got.table(), run_experiments(model, experiments).table(), atol=1e-12)


def test_a_metric_at_an_earlier_position_sees_no_later_change() -> None:
    model = opened("llama")
    early = LogProbability(answers=answer_sets([1, 2, 3, 4]), position=2)
    batch = prompts(model)
    writes = [edit("resid_pre.1", lambda value: value + 1.0, positions=where) for where in (1, 2, 3, -1)]
    experiments = [
        Experiment(inputs=batch, writes=(w,), metric=early, name=f"{n}") for n, w in enumerate(writes)
    ]
    executor = LocalExecutor()
    with in_double():
        got = run_experiments(model, experiments, executor=executor)
    assert difference(model, experiments, got) < EXACT
    assert torch.equal(got[2], got[3]), "positions behind the one that is read"
    assert not torch.allclose(got[0], got[2])
