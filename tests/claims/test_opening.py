"""Claims that are frozen together share one opening of their held-out prompts; none can be added after the look."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import mechscope as ms
from mechscope.claims.bench import EngineBench
from mechscope.claims.ledger import Ledger
from mechscope.claims.testing import open_held_out, test_claim, test_opened
from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import measure_naively
from mechscope.vocabulary.errors import HeldOutOpened

HEADS = ms.Components(heads=((0, 5), (1, 11)))


@pytest.fixture(scope="module")
def model() -> ms.Model:
    return ms.load("induction")


@pytest.fixture(scope="module")
def behavior(model: ms.Model):
    return ms.behaviors.load("induction", model, n=24, seed=0)


def claim(behavior, seed: int) -> ms.Claim:
    """Cheap to test: `needs` asks for no controls."""
    return ms.Claim(
        "They carry it", behavior=behavior, mechanism=HEADS, predictions=[ms.needs(0.1)], seed=seed
    )


def test_two_claims_open_once_and_their_verdicts_are_those_of_separate_tests(
    model, behavior, tmp_path: Path
) -> None:
    first, second = (claim(behavior, seed) for seed in (0, 1))
    bench, ledger = EngineBench(model), Ledger(tmp_path)
    opened = open_held_out([first, second], bench, ledger=ledger)
    records = [test_opened(one, bench, opened) for one in (first, second)]
    (line,) = ledger.entries()
    assert (line.claim_id, line.also) == (first.id, (second.id,))
    assert [record.verdict.held_out.openings for record in records] == [1, 1]
    alone = test_claim(second, EngineBench(model))
    assert alone.verdict.predictions[0].effect == records[1].verdict.predictions[0].effect
    assert test_claim(first, EngineBench(model), ledger=ledger).verdict.held_out.openings == 2, (
        "a later look counts"
    )


def test_the_ledger_is_written_before_a_held_out_prompt_is_run(model, behavior, tmp_path: Path) -> None:
    class Watched(EngineBench):
        lines: ClassVar[list[int]] = []

        def open_split(self, behavior, *, fresh_seed):
            self.lines.append(len(Ledger(tmp_path).entries()))
            return super().open_split(behavior, fresh_seed=fresh_seed)

    for _ in range(2):
        open_held_out([claim(behavior, 0)], Watched(model), ledger=Ledger(tmp_path))
    assert Watched.lines == [1, 2], "one reading an opening, each after its line"


def test_mean_ablations_take_their_values_from_train_prompts(model, behavior) -> None:
    """By hand, with the held-out prompts as the reference beside it: they would give another number."""
    split, bench = behavior.held_out, EngineBench(model)

    def after(reference) -> np.ndarray:
        rows = [reference.clean.row(i) for i in range(len(reference))]
        writes = [ms.ablate("z.0", "mean", reference=rows, heads=[5])]
        writes += [ms.ablate("z.1", "mean", reference=rows, heads=[11])]
        return measure_naively(
            model, Experiment(inputs=split.clean, writes=tuple(writes), metric=split.metric)
        ).numpy()

    held_out = bench.open_split(behavior, fresh_seed=None)
    found = bench.measure([HEADS], ms.lowers(0.1), behavior, held_out)[0]
    assert np.allclose(found, after(behavior.train), atol=1e-4)
    assert not np.allclose(found, after(split), atol=1e-3)


def test_a_spared_behaviour_that_was_opened_before_counts_too(model, behavior, tmp_path: Path) -> None:
    other, ledger = ms.behaviors.load("induction", model, n=24, seed=1), Ledger(tmp_path)
    open_held_out([claim(other, 0)], EngineBench(model), ledger=ledger)
    sparing = ms.Claim(
        "It spares the other one",
        behavior=behavior,
        mechanism=HEADS,
        predictions=[ms.needs(0.1), ms.spares(other, 0.5, how="zero")],
    )
    assert test_claim(sparing, EngineBench(model), ledger=ledger).verdict.held_out.openings == 2


def test_a_claim_that_was_not_frozen_by_then_is_refused(model, behavior) -> None:
    bench = EngineBench(model)
    opened = open_held_out([claim(behavior, 0)], bench)
    with pytest.raises(HeldOutOpened, match="not frozen"):
        test_opened(claim(behavior, 1), bench, opened)
