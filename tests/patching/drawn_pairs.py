"""Pairs of prompts for tests: random ones for tiny models, and the induction specimen's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from mechscope.interventions.metrics import LogitDifference, Metric, answer_sets
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.models.opening import load
from mechscope.specimens.induction import draw_pairs


@dataclass(frozen=True)
class DrawnPairs:
    """The smallest thing that patching takes."""

    clean: TokenBatch
    corrupt: TokenBatch
    metric: Metric


@cache
def specimen() -> Model:
    """The hand-written induction model, opened once."""
    return load("induction")


def random_pairs(
    model: Model,
    *,
    lengths: Sequence[int] = (7, 7, 7),
    differ_at: Sequence[int] | None = (2,),
    seed: int = 0,
) -> DrawnPairs:
    """Random prompts and answers; the twins differ at some positions, or everywhere if None."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(0, model.d_vocab, (n,), generator=generator).tolist()

    clean = [draw(n) for n in lengths]
    corrupt = [draw(n) for n in lengths]
    if differ_at is not None:
        for row, twin in zip(clean, corrupt, strict=True):
            new = [(row[p] + 1 + twin[p] % (model.d_vocab - 1)) % model.d_vocab for p in differ_at]
            twin[:] = row
            for position, token in zip(differ_at, new, strict=True):
                twin[position] = token
    answers = [torch.randperm(model.d_vocab, generator=generator)[:2].tolist() for _ in lengths]
    metric = LogitDifference(
        answers=answer_sets([a for a, _ in answers]), wrong=answer_sets([w for _, w in answers])
    )
    return DrawnPairs(batch_of(clean, pad_id=0), batch_of(corrupt, pad_id=0), metric)


def induction_pairs(model: Model, template: str, *, n: int = 24, seed: int = 0) -> DrawnPairs:
    """Pairs of the hand-written specimen that differ in one role."""
    drawn = draw_pairs(split="train", n=n, seed=seed, templates=(template,))
    metric = LogitDifference(
        answers=answer_sets([model.token(pair.answer) for pair in drawn]),
        wrong=answer_sets([model.token(pair.wrong) for pair in drawn]),
    )
    clean = model.tokens([pair.clean for pair in drawn])
    return DrawnPairs(clean, model.tokens([pair.corrupt for pair in drawn]), metric)
