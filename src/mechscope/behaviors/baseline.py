"""Baseline: does the model do it at all? Measured before anything is explained.

Owns: accuracy and metric on clean and corrupt prompts with intervals over units, and the judgement that follows:
present, absent, reversed, at ceiling, at floor. Refuses nothing that is weak: it says so.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import FEW_UNITS, Split
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.interventions.metrics import METRICS, Accuracy
from mechscope.models.model import Model
from mechscope.records.record import Record
from mechscope.records.seeds import generator_for

PRESENT, ABSENT, REVERSED = "present", "absent", "reversed"
AT_CEILING, AT_FLOOR = "at ceiling", "at floor"
BOUNDS = {"accuracy": (0.0, 1.0), "probability_difference": (-1.0, 1.0)}
SATURATED = 0.02
"""A bounded metric is at its bound within this share of its range; claims judge by the same share."""
N_RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95% interval over units."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Baseline(Record):
    """What a model does on a split without any intervention; see `measure`."""

    kind: ClassVar[str] = "behavior-baseline"

    def estimate(self, name: str) -> Estimate:
        """One of the numbers.

        Args:
            name: "clean", "corrupt", "gap" (in the metric's unit); "top_clean", "top_corrupt" (fraction whose most
                probable token is the answer); "preferred_clean", "preferred_corrupt" (fraction in which the answer
                beats every foil); on the corrupt prompt the *clean* answer is meant.
        """
        return Estimate(**self.numbers["estimates"][name])

    @property
    def gap(self) -> Estimate:
        """Metric on clean less on corrupt prompts: what there is to explain."""
        return self.estimate("gap")

    @property
    def accuracy(self) -> Estimate:
        """Fraction of clean prompts whose most probable next token is an answer."""
        return self.estimate("top_clean")

    @property
    def state(self) -> str:
        """Present, absent (the gap's interval includes 0), reversed, at ceiling or at floor."""
        return str(self.numbers["state"])

    @property
    def is_present(self) -> bool:
        """True if the gap's interval lies above 0 and the metric has room to move."""
        return self.state == PRESENT

    def __str__(self) -> str:
        shown, unit = self.settings, self.numbers["unit"]
        lines = [
            f"{shown['behavior']} on {shown['split']}: {self.state} "
            f"({self.numbers['n']} pairs, {self.numbers['n_units']} units)",
            f"  {shown['metric']:<24} clean {self.estimate('clean')}  corrupt {self.estimate('corrupt')}"
            f"  gap {self.gap} {unit}",
            f"  answer is the top token  clean {self.estimate('top_clean')}  corrupt {self.estimate('top_corrupt')}",
        ]
        if "preferred_clean" in self.numbers["estimates"]:
            lines.append(
                f"  answer beats the foil    clean {self.estimate('preferred_clean')}"
                f"  corrupt {self.estimate('preferred_corrupt')}"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.numbers["notes"])])


def measure(model: Model, on: Behavior | Split, *, seed: int = 0) -> Baseline:
    """Measure a behaviour as it is: the gap that a mechanism would have to explain.

    Args:
        model: An open model.
        on: A split; of a behaviour, its train split, so that looking does not open the held-out one.
        seed: Of the resamples.

    Returns:
        A saveable record. Intervals are 95% percentile intervals over units (prompts that share an entity count
        once); where every prompt gives the same rate, the exact binomial one over units.

    Cost: two forward passes over the split.
    Caveat: "present" says that the metric differs between clean and corrupt, not that the model answers right:
        read the accuracy beside it.
    """
    split = on.train if isinstance(on, Behavior) else on
    metrics = {"": split.metric, "top_": Accuracy(answers=split.answers)}
    if split.wrong and all(split.wrong):
        metrics["preferred_"] = Accuracy(answers=split.answers, wrong=split.wrong)
    experiments = [
        Experiment(inputs=inputs, metric=metric)
        for inputs in (split.clean, split.corrupt)
        for metric in metrics.values()
    ]
    table = run_experiments(model, experiments).table().numpy()
    values = {
        prefix + side: row
        for (side, prefix), row in zip(
            ((side, prefix) for side in ("clean", "corrupt") for prefix in metrics), table, strict=True
        )
    }
    values["gap"] = values["clean"] - values["corrupt"]
    estimates = {key: _estimate(row, split.units, key=key, seed=seed) for key, row in values.items()}
    return Baseline(
        settings={
            "behavior": split.behavior,
            "split": split.name,
            "metric": split.metric.kind,
            "bos": split.clean.bos,
            "recipe": on.recipe() if isinstance(on, Behavior) else None,
        },
        seed=seed,
        model=model.fingerprint,
        data_sha256=split.data_hash,
        numbers=_numbers(split, estimates),
    )


def measure_correct(model: Model, split: Split) -> Float[np.ndarray, " pair"]:
    """1 where the clean prompt is answered rightly: the answer beats every foil, or all tokens if there is none."""
    wrong = split.wrong if split.wrong and all(split.wrong) else ()
    metric = METRICS["accuracy"](answers=split.answers, wrong=wrong)
    return run_experiments(model, [Experiment(inputs=split.clean, metric=metric)]).values[0].numpy()


def _estimate(
    values: Float[np.ndarray, " prompt"], units: Int[np.ndarray, " prompt"], *, key: str, seed: int
) -> dict[str, float]:
    labels, row_units = np.unique(units, return_inverse=True)
    sums, counts = (np.bincount(row_units, weights=weights) for weights in (values, np.ones_like(values)))
    draws = generator_for(seed, "baseline", key).integers(len(labels), size=(N_RESAMPLES, len(labels)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    is_rate = key.startswith(("top_", "preferred_"))
    if is_rate and low == high and low in (0.0, 1.0):
        # A bootstrap of equal values has no width; the exact interval of a rate of none or all has.
        reach = float(((1 - LEVEL) / 2) ** (1 / len(labels)))
        low, high = (reach, 1.0) if low == 1.0 else (0.0, 1 - reach)
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _numbers(split: Split, estimates: dict[str, dict[str, float]]) -> dict[str, Any]:
    notes = [f"{split.n_units} units: the intervals are rough"] if split.n_units < FEW_UNITS else []
    state = _state(split.metric.kind, estimates)
    return {
        "n": len(split),
        "n_units": split.n_units,
        "unit": split.metric.unit,
        "state": state,
        "estimates": estimates,
        "notes": notes,
    }


def _state(kind: str, estimates: dict[str, dict[str, float]]) -> str:
    gap, clean = estimates["gap"], estimates["clean"]["value"]
    if gap["high"] < 0:
        return REVERSED
    if gap["low"] <= 0:
        return ABSENT
    if kind in BOUNDS:
        low, high = BOUNDS[kind]
        if clean - low <= SATURATED * (high - low):
            return AT_FLOOR
        if high - clean <= SATURATED * (high - low):
            return AT_CEILING
    return PRESENT
