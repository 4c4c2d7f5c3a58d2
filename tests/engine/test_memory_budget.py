"""A plan's activations fit into its memory, counted while it runs; without the cut they would not."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from engine.live_bytes import LiveBytes
from mechscope.engine.execute import LocalExecutor
from mechscope.engine.experiment import Experiment, Results
from mechscope.engine.plan import Layout, Plan, make_plan
from mechscope.interventions.metrics import Accuracy, answer_sets
from mechscope.interventions.replace import edit
from mechscope.models.inputs import batch_of
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from tiny_models import tiny

MEMORY = 300_000


@pytest.fixture(autouse=True)
def _nothing_is_collected() -> Iterator[None]:
    """What is freed is freed by being let go of; a cycle of references would hold a chunk's tensors."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def planned(family: str, all_writes: Sequence[tuple[object, ...]], memory: int) -> tuple[Model, Plan]:
    """Twenty-four prompts of several lengths, under each of some writes."""
    model = wrap(tiny(family, torch.float64), check=False)
    generator = torch.Generator().manual_seed(0)
    lengths = (9, 12, 12, 8) * 6
    batch = batch_of(
        [torch.randint(0, model.d_vocab, (n,), generator=generator).tolist() for n in lengths], pad_id=0
    )
    metric = Accuracy(answers=answer_sets([1] * len(batch)))
    experiments = [Experiment(inputs=batch, writes=writes, metric=metric) for writes in all_writes]  # type: ignore
    return model, make_plan(model, experiments, memory=memory)


def peak_of(model: Model, plan: Layout) -> tuple[int, Results]:
    with LiveBytes() as live:
        found = LocalExecutor().execute(model, plan)
    return live.peak, found


LATE = [
    ("bloom", "resid_pre.1", None),
    ("gpt_neo", "resid_pre.1", "ln_final"),
    ("gptj", "pattern.1", "ln_final"),
    ("llama", "pattern.1", "ln_final"),
    ("gemma2", "resid_pre.1", "logits"),
]


@pytest.mark.parametrize(("family", "at", "end"), LATE)
def test_blocks_of_late_experiments_keep_to_the_memory(family: str, at: str, end: str | None) -> None:
    last = () if end is None else (edit(end, torch.cos),)
    writes = [(edit(at, torch.cos), *last), (edit("resid_pre.2", torch.cos), *last)]
    model, plan = planned(family, writes, MEMORY)
    assert len(plan.late) == 2 and 1 < plan.late[0].n_at_once < 24
    assert MEMORY / 2 < plan.cost.peak_bytes <= MEMORY
    peak, found = peak_of(model, plan)
    assert peak <= plan.cost.peak_bytes
    uncut = replace(plan, late=[replace(item, n_at_once=24) for item in plan.late])
    whole, unsplit = peak_of(model, uncut)
    assert whole > MEMORY, "the twin: without the cut it would not fit"
    assert torch.allclose(found.table(), unsplit.table(), atol=1e-12)


PACKED = [("gpt2", "resid_pre.0"), ("llama", "pattern.1"), ("gemma2", "v.0")]


@pytest.mark.parametrize(("family", "at"), PACKED)
def test_base_runs_and_chunks_keep_to_the_memory(family: str, at: str) -> None:
    memory = 2 * MEMORY
    model, plan = planned(family, [(edit(at, torch.cos, positions=where),) for where in (0, -1)], memory)
    (group,) = plan.groups
    assert not plan.late and 1 < len(group.blocks) < 24
    assert plan.cost.peak_bytes <= memory
    peak, found = peak_of(model, plan)
    assert peak <= plan.cost.peak_bytes
    assert group.chunk is not None
    uncut = replace(group, blocks=[(0, 24)], chunk=replace(group.chunk, n_bytes=2**40))
    whole, unsplit = peak_of(model, replace(plan, groups=[uncut]))
    assert whole > memory, "the twin: without the cut it would not fit"
    assert torch.allclose(found.table(), unsplit.table(), atol=1e-12)
