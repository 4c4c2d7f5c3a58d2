"""Estimates: a number with its interval, by resampling prompts; and the spread of a number over seeds.

Tokens of one prompt are not independent, so prompts are what is resampled. Every number of an evaluation comes from
per-prompt sums under the same resamples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from mechscope.data.intervals import Interval, Resamples, bootstrap
from mechscope.vocabulary.errors import NotEnoughEvidence

N_RESAMPLES = 1_000
LEVEL = 0.95
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval.

    Args:
        value: On all prompts.
        low: Lower end; -inf where there are too few prompts to tell.
        high: Upper end.
        method: How the interval was made: "bca", "percentile", "constant", "jackknife",
            "clopper-pearson", "student" or "none".
    """

    value: float
    low: float
    high: float
    method: str = "none"

    def __repr__(self) -> str:
        if not math.isfinite(self.low) or not math.isfinite(self.high):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    @classmethod
    def of(cls, value: float, interval: Interval) -> "Estimate":
        """A value with an interval that was found elsewhere."""
        return cls(value, interval.low, interval.high, interval.method)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `Estimate(**saved)` reads it."""
        return asdict(self)


class Estimator:
    """Estimates from per-prompt sums, all under the same resamples.

    Args:
        n_units: Prompts.
        seed: Of the resamples.
        n_resamples: More give steadier ends.
    """

    def __init__(self, n_units: int, *, seed: int = 0, n_resamples: int = N_RESAMPLES) -> None:
        self._resamples = Resamples(np.arange(n_units), seed=seed, n_resamples=n_resamples)

    def of(self, table: Float[np.ndarray, "unit column"], statistic: Statistic) -> Estimate:
        """A statistic of column sums. Where most resamples leave it undefined, the value stands alone."""
        value = float(_quietly(statistic, table.sum(0, keepdims=True))[0])
        if not math.isfinite(value):
            return Estimate(value, -math.inf, math.inf)
        try:
            found = bootstrap(self._resamples, table, lambda sums: _quietly(statistic, sums))
        except NotEnoughEvidence:
            return Estimate(value, -math.inf, math.inf)
        return Estimate.of(value, found.interval(LEVEL))

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Estimate:
        """Sum of one column over the sum of another: a mean where the second counts."""
        return self.of(np.stack([above, below], axis=1), lambda sums: sums[:, 0] / sums[:, 1])


def _quietly(statistic: Statistic, sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return statistic(sums)


def spread_of(values: Sequence[float]) -> Estimate:
    """Mean over seeds with Student's 95% interval of the mean.

    Raises:
        NotEnoughEvidence: fewer than two seeds.
    """
    if len(values) < 2:
        raise NotEnoughEvidence(
            "One seed has no spread.",
            got=f"{len(values)} seeds",
            because="the difference between trainings can't be seen in one",
            instead="the same training under at least three seeds",
        )
    array = np.asarray(values, dtype=np.float64)
    half = float(student.ppf(0.5 + LEVEL / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    mean = float(array.mean())
    return Estimate(mean, mean - half, mean + half, "student")


@dataclass(frozen=True)
class Spread:
    """One figure over seeds: its mean with interval, standard deviation, and the values."""

    mean: Estimate
    deviation: float
    values: tuple[float, ...]


def over_seeds(figures: Sequence[Mapping[str, Estimate]]) -> dict[str, Spread]:
    """Spread of every figure that all seeds have.

    Args:
        figures: For each seed, its figures: `[one.figures for one in evaluations]`.

    Raises:
        NotEnoughEvidence: fewer than two seeds.
    """
    shared = [name for name in figures[0] if all(name in one for one in figures)] if figures else []
    found: dict[str, Spread] = {}
    for name in shared:
        values = tuple(one[name].value for one in figures)
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        found[name] = Spread(spread_of(values), deviation, values)
    if not found:
        spread_of([0.0] * len(figures))
    return found
