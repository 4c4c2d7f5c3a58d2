"""Judging: from tables and a draw of prompts to a verdict, by the rule that every claim is judged by.

Sizes are chosen on validation prompts as an investigation chooses them. Where validation bears nothing out, an
investigation makes no claim; here the claim is made all the same, with the least size that can be predicted, so
that no wrong mechanism is spared by its modest effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.claim_calibration.measuring import DOSE, LOWERS, RAISES, Prompts
from mechscope.claims.evidence import Controls, Evidence, HeldOut
from mechscope.claims.judge import judge
from mechscope.claims.predictions import Prediction, lowers, raises, recovers
from mechscope.claims.verdict import Verdict
from mechscope.data.intervals import Resamples, mean_bootstrap, ratio_bootstrap
from mechscope.data.units import units_of
from mechscope.investigations.prediction_sizes import CAUTION
from mechscope.records.canonical import hash_json
from mechscope.vocabulary.errors import NotEnoughEvidence

LEAST_OF_GAP = 0.001
"""The least fraction of the gap that is predicted."""

LEAST_OF_METRIC = 1e-6
"""The least that is predicted in the metric's own unit: any lowering at all."""

SIZING_RESAMPLES = 2_000


@dataclass(frozen=True, eq=False)
class Measured:
    """One prediction of a mechanism, measured on some prompts.

    Args:
        kind: "lowers", "recovers" or "raises".
        after: The metric per prompt.
        controls: The same by each control; None if there are none.
        n_members: Members of the control family.
        unit: "gap" or "metric".
    """

    kind: str
    after: np.ndarray
    controls: np.ndarray | None
    n_members: float
    unit: str = "gap"


def split_of(prompts: Prompts, rows: np.ndarray, *, has_corrupt: bool = True) -> HeldOut:
    """A draw of prompts as a held-out split.

    Args:
        has_corrupt: False leaves the corrupt prompts out, as in a behaviour that has none: then nothing is asked
            of the gap, and the verdict rests on size and controls alone.
    """
    chosen = rows.tolist()
    entities, templates = [prompts.entities[r] for r in chosen], [prompts.templates[r] for r in chosen]
    return HeldOut(
        data_hash=hash_json([prompts.data_hash, chosen]),
        clean=prompts.clean[rows],
        corrupt=prompts.corrupt[rows] if has_corrupt else None,
        units=units_of(entities, templates),
    )


def predicted_size(
    split: HeldOut, kind: str, after: np.ndarray, *, unit: str = "gap", seed: int = 0
) -> float:
    """What an investigation would predict from these validation prompts, and at least the least."""
    least = LEAST_OF_GAP if unit == "gap" else LEAST_OF_METRIC
    evidence = Evidence(prediction_of(kind, 1.0, unit), after, split)
    resamples = Resamples(split.units, seed=seed, n_resamples=SIZING_RESAMPLES)
    try:
        if unit == "gap":
            sampled = ratio_bootstrap(resamples, evidence.effect, evidence.denominator)
        else:
            sampled = mean_bootstrap(resamples, evidence.effect)
    except NotEnoughEvidence:  # no gap on validation: nothing to be a fraction of
        return least
    low = CAUTION * sampled.interval(0.95).low
    if unit == "gap":
        low = min(np.floor(100 * low) / 100, 1.0)
    return float(max(low, least))


def prediction_of(kind: str, size: float, unit: str = "gap") -> Prediction:
    """A prediction of a kind and size."""
    if kind == RAISES:
        return raises(size, dose=DOSE, unit=unit)
    return lowers(size, unit=unit, how="mean") if kind == LOWERS else recovers(size)


def verdict_on(split: HeldOut, measured: Sequence[Measured], sizes: Sequence[float], *, seed: int) -> Verdict:
    """Judge a claim that makes these predictions with these sizes."""
    evidence = [
        Evidence(
            prediction_of(entry.kind, size, entry.unit),
            entry.after,
            split,
            None if entry.controls is None else Controls("tabled", entry.controls, entry.n_members),
        )
        for entry, size in zip(measured, sizes, strict=True)
    ]
    return judge(split, evidence, seed=seed)
