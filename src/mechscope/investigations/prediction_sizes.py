"""Prediction sizes: how much a claim should predict, from validation prompts.

Sizes are set below what validation shows, so that held-out prompts can contradict them and a true mechanism
passes. A prediction that validation does not bear out is not made, and the report says so.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from mechscope.circuits.circuit import Circuit
from mechscope.claims.bench import EngineBench
from mechscope.claims.evidence import Evidence, HeldOut
from mechscope.claims.mechanisms import Components
from mechscope.claims.predictions import Prediction, lowers, needs, recovers, spares
from mechscope.data.intervals import Resamples, mean_bootstrap, ratio_bootstrap
from mechscope.models.model import Model

CAUTION = 0.8
"""A size is this fraction of the lower end of validation's 95% interval."""

SMALLEST = {"lowers": 0.05, "recovers": 0.05, "needs": 0.01}
"""Fractions of the gap below which an effect is not worth a prediction."""

SAID = {
    "lowers": "that ablating it lowers the metric",
    "recovers": "that it recovers the behaviour alone",
    "needs": "that each of its parts is needed",
}

SPARED = 0.25
"""Another behaviour counts as spared within this fraction of its own gap."""


@dataclass(frozen=True)
class Sized:
    """Predictions for a claim, and what was not predicted and why.

    Args:
        predictions: To be tested on held-out prompts.
        left_out: In words, for the report.
    """

    predictions: tuple[Prediction, ...]
    left_out: tuple[str, ...]


def size_predictions(
    model: Model,
    behavior: Any,
    *,
    mechanism: Components | Circuit,
    others: tuple[Any, ...] = (),
    seed: int = 0,
) -> Sized:
    """Choose x, y and z on validation prompts.

    Args:
        model: An open model.
        behavior: What the mechanism is claimed to carry.
        mechanism: From the search: heads and MLPs, which are ablated by their mean, or edges, which are removed by
            the corrupt value.
        others: Behaviours that it might spare; the one least changed on validation is predicted.
        seed: Of the resamples.
    """
    bench = EngineBench(model, {other.name: other for other in others}, split="validation")
    split = bench.open_split(behavior, fresh_seed=None)
    predictions: list[Prediction] = []
    left_out: list[str] = []
    how = "corrupt" if isinstance(mechanism, Circuit) else "mean"
    for probe in (lowers(1.0, unit="gap", how=how), recovers(1.0), needs(1.0)):
        low = _lower_end(bench, mechanism, probe, behavior, split, seed)
        size = math.floor(100 * CAUTION * low) / 100
        if size >= SMALLEST[probe.kind]:
            predictions.append(replace(probe, bound=min(size, 1.0)))
        else:
            left_out.append(f"{SAID[probe.kind]}: validation shows as little as {low:.0%} of the gap")
    spared = _spared(bench, mechanism, others, seed)
    if isinstance(spared, str):
        left_out.append(spared)
    else:
        predictions.append(spared)
    return Sized(tuple(predictions), tuple(left_out))


def _lower_end(
    bench: EngineBench,
    mechanism: Components | Circuit,
    probe: Prediction,
    behavior: Any,
    split: HeldOut,
    seed: int,
) -> float:
    after = bench.measure([mechanism], probe, behavior, split)[0]
    evidence = Evidence(probe, after, split)
    resamples = Resamples(split.units, seed=seed, n_resamples=2000)
    return ratio_bootstrap(resamples, evidence.effect, evidence.denominator).interval(0.95).low


def _spared(
    bench: EngineBench, mechanism: Components | Circuit, others: tuple[Any, ...], seed: int
) -> Prediction | str:
    best: tuple[float, Prediction] | None = None
    for other in others:
        split = bench.open_split(other, fresh_seed=None)
        gap = float(split.gap.mean())
        if gap <= 0:
            continue
        bound = float(f"{SPARED * gap:.2g}")
        probe = spares(other, bound)
        change = Evidence(probe, bench.measure([mechanism], probe, other, split)[0], split)
        resamples = Resamples(split.units, seed=seed, n_resamples=2000)
        inner = mean_bootstrap(resamples, change.effect).interval(0.90)
        reach = max(abs(inner.low), abs(inner.high)) / bound
        if reach < CAUTION and (best is None or reach < best[0]):
            best = (reach, probe)
    if best is not None:
        return best[1]
    if not others:
        return "that it spares another behaviour: there is no other behaviour to hold it against"
    names = ", ".join(other.name for other in others)
    return f"that it spares another behaviour: on validation it changes every one that was tried ({names})"
