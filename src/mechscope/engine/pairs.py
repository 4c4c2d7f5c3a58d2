"""What patching and attribution need of a behaviour: clean prompts, corrupt ones of equal token lengths, and a metric.

A `Behavior`, one of its splits, and anything else with these three attributes will do.
"""

from typing import Any, Protocol, runtime_checkable

import torch

from mechscope.interventions.metrics import Metric, UserMetric
from mechscope.models.inputs import TokenBatch
from mechscope.records.canonical import to_plain
from mechscope.records.fingerprint import hash_tensors
from mechscope.vocabulary.errors import BadPairs, PairLengthMismatch


@runtime_checkable
class Pairs(Protocol):
    """Prompts in pairs, and what is measured on them."""

    @property
    def clean(self) -> TokenBatch:
        """Prompts that call for the answer."""
        ...

    @property
    def corrupt(self) -> TokenBatch:
        """Their twins, row by row of equal token length."""
        ...

    @property
    def metric(self) -> Metric:
        """One number a row."""
        ...


def refuse_unless_pairs(pairs: Pairs) -> None:
    """Refuse what cannot be patched token by token.

    Raises:
        BadPairs: no clean, corrupt and metric, or different numbers of them.
        PairLengthMismatch: a pair's prompts differ in length; the message names the first rows.
    """
    if not isinstance(pairs, Pairs):
        raise BadPairs(
            "Patching needs pairs of prompts and a metric.",
            got=type(pairs).__name__,
            because="it has no clean, corrupt and metric",
            instead="ms.behaviors.load(...), ms.behaviors.from_tokens(...), or one of their splits",
        )
    clean, corrupt, n_answers = pairs.clean, pairs.corrupt, pairs.metric.n_rows
    if len(clean) != len(corrupt) or n_answers not in (None, len(clean)):
        raise BadPairs(
            "Clean prompts, corrupt prompts and answers must be equally many.",
            got=f"{len(clean)} clean, {len(corrupt)} corrupt, {n_answers} answers",
            instead="one corrupt prompt and one answer for each clean prompt",
        )
    differ = (clean.n_real != corrupt.n_real).nonzero()[:, 0].tolist()
    if differ:
        shown = [f"row {row}: {int(clean.n_real[row])} and {int(corrupt.n_real[row])}" for row in differ[:5]]
        raise PairLengthMismatch(
            f"{len(differ)} of {len(clean)} pairs have prompts of different token lengths.",
            got="; ".join(shown),
            because="a patch takes each token's value from the same position of the other prompt",
            instead="pairs whose prompts have equal token lengths",
        )


def hash_of_prompts(*batches: TokenBatch) -> str:
    """SHA-256 of the prompts' real tokens, the same however they are padded."""
    rows = {
        f"{index}.{row}": torch.tensor(batch.row(row))
        for index, batch in enumerate(batches)
        for row in range(len(batch))
    }
    return hash_tensors(rows)


def metric_facts(metric: Metric) -> dict[str, Any]:
    """The metric as JSON; of a user's function only that there was one."""
    if isinstance(metric, UserMetric):
        return {"kind": metric.kind, "saved": False}
    return {name: to_plain(value) for name, value in metric.to_json().items()}
