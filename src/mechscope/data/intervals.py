"""Intervals by resampling units: a mean, a ratio of means, and any statistic of per-prompt sums.

Owns the cluster bootstrap. Everything is paired: one `Resamples` holds the weights, and every number
of a prediction (effect, gap, all of its controls) is computed under the same resamples. Intervals are
BCa with the jackknife over units, at a level expanded for few units; where BCa is undefined the
percentile interval of the same resamples is used and `method` says so.
Refuses a ratio whose denominator's interval includes zero.
Invariant: the same units, seed and number of resamples give the same weights, whatever is computed first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betaincinv, ndtr, ndtri, stdtr, stdtrit

from mechscope.data.units import ABSENT, Units, as_units
from mechscope.vocabulary.errors import NotEnoughEvidence, ShapeError

N_RESAMPLES = 10_000
CHUNK_RESAMPLES = 1_000
"""Rows of weights held as floats at once; bounds memory, changes no result."""

BEYOND_ALL = 1e6
"""Normal quantile of a bound that no resample reaches; large enough for the correction's limit."""

Statistic = Callable[[Float[np.ndarray, "draw column"]], Float[np.ndarray, " draw"]]
Statistics = Callable[[Float[np.ndarray, "draw column"]], Float[np.ndarray, "draw number"]]


@dataclass(frozen=True)
class Interval:
    """Two ends, their level (a fraction), and how made.

    How: "bca", "percentile", "constant", "clopper-pearson" or "none".
    """

    low: float
    high: float
    level: float
    method: str

    @property
    def width(self) -> float:
        """Upper end minus lower end."""
        return self.high - self.low


def clopper_pearson(hits: int, n: int, *, level: float = 0.95) -> Interval:
    """The exact interval of a share of n independent trials."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return Interval(low, high, level, "clopper-pearson")


def share_interval(
    holds: Bool[np.ndarray, " unit"], *, seed: int, n_resamples: int = 1_000, level: float = 0.95
) -> Interval:
    """The bootstrap's interval of a share of units; the exact one where all are alike or there is one only."""
    hits, n = int(holds.sum()), len(holds)
    if hits in (0, n) or n < 2:
        return clopper_pearson(hits, n, level=level) if n else Interval(-np.inf, np.inf, level, "none")
    resamples = Resamples(np.arange(n), seed=seed, n_resamples=n_resamples)
    return mean_bootstrap(resamples, holds.astype(np.float64)).interval(level)


class Resamples:
    """Weights of `n_resamples` resamples of the units, on the cells (prompts with equal labels).

    Args:
        units: One label per prompt, or `Units` from `units_of`.
        seed: Of the resamples alone; the same for every statistic of a claim.
        n_resamples: 10,000 by the rule.

    Cost: 2 bytes per resample and cell.
    """

    def __init__(
        self, units: Units | Int[np.ndarray, " prompt"], *, seed: int, n_resamples: int = N_RESAMPLES
    ) -> None:
        self.units = as_units(units)
        self.n_resamples = n_resamples
        cells, self._cell_of = np.unique(self.units.levels, axis=1, return_inverse=True)
        self._cell_of = self._cell_of.ravel()
        self._cells = cells
        self._weights = self._draw(np.random.default_rng(np.random.SeedSequence(seed)))

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        weights = np.ones((self.n_resamples, self._cells.shape[1]), dtype=np.uint16)
        for pool in sorted(set(self.units.pools)):
            rows = [index for index, owner in enumerate(self.units.pools) if owner == pool]
            counts = _counts(rng, int(self._cells[rows].max()) + 1, self.n_resamples)
            for row in rows:
                present = self._cells[row] != ABSENT
                weights[:, present] *= counts[:, self._cells[row][present]]
        return weights

    def cell_sums(self, table: Float[np.ndarray, "prompt column"]) -> Float[np.ndarray, "cell column"]:
        """The table summed over the prompts of each cell, in float64."""
        if table.shape[0] != self.units.n_prompts:
            raise ShapeError(
                "a table needs one row per prompt",
                got=f"{table.shape[0]} rows, {self.units.n_prompts} prompts",
                because="every row is weighted by its prompt's unit",
            )
        order = np.argsort(self._cell_of, kind="stable")
        starts = np.searchsorted(self._cell_of[order], np.arange(self._cells.shape[1]))
        return np.add.reduceat(table[order].astype(np.float64), starts, axis=0)

    def draws(
        self, sums: Float[np.ndarray, "cell column"], statistic: Statistic
    ) -> Float[np.ndarray, "resample *number"]:
        """`statistic` of the weighted column sums, for every resample."""
        parts = [
            statistic(self._weights[start : start + CHUNK_RESAMPLES].astype(np.float64) @ sums)
            for start in range(0, self.n_resamples, CHUNK_RESAMPLES)
        ]
        return np.concatenate(parts)

    def without_each(
        self, sums: Float[np.ndarray, "cell column"], statistic: Statistic
    ) -> list[Float[np.ndarray, "level *number"]]:
        """The jackknife, pool by pool: `statistic` without the prompts of each level."""
        total, kept = sums.sum(axis=0), []
        for pool in sorted(set(self.units.pools)):
            rows = [index for index, owner in enumerate(self.units.pools) if owner == pool]
            levels = np.unique(self._cells[rows][self._cells[rows] != ABSENT])
            if len(rows) == 1 and len(levels) == self._cells.shape[1]:  # a cell each: no square of units
                kept.append(statistic(total - sums[np.argsort(self._cells[rows[0]])]))
                continue
            member = np.zeros((levels.max() + 1, self._cells.shape[1]))
            for row in rows:
                present = np.flatnonzero(self._cells[row] != ABSENT)
                member[self._cells[row][present], present] = 1.0
            kept.append(statistic(total - member[levels] @ sums))
        return kept


def _counts(rng: np.random.Generator, n_levels: int, n_resamples: int) -> np.ndarray:
    """How often each level is drawn: multinomial counts [resample, level]."""
    counts = np.empty((n_resamples, n_levels), dtype=np.uint16)
    step = max(1, 1_000_000 // n_levels)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn = rng.integers(0, n_levels, size=(rows, n_levels))
        drawn += np.arange(rows)[:, None] * n_levels
        counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * n_levels).reshape(
            rows, n_levels
        )
    return counts


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """A statistic, its resampled distribution, and what turns the two into intervals and tail probabilities.

    Args:
        value: The statistic on all prompts.
        draws: Its value in each resample, sorted; empty where there is one unit only.
        bias: BCa's z0. NaN where undefined.
        acceleration: BCa's a, from the jackknife over units.
        n_units: Sets the small-sample expansion of the level.
    """

    value: float
    draws: Float[np.ndarray, " resample"]
    bias: float
    acceleration: float
    n_units: int

    def interval(self, level: float = 0.95) -> Interval:
        """The two-sided interval: BCa, else percentile, else the point itself where nothing varies."""
        if not len(self.draws):
            return Interval(-np.inf, np.inf, level, "none")
        if self.draws[0] == self.draws[-1]:
            return Interval(self.value, self.value, level, "constant")
        tail = (1 - level) / 2
        z = self._expand(np.array([tail, 1 - tail]))
        method, fractions = "bca", self._bca_fractions(z)
        if fractions is None:
            method, fractions = "percentile", ndtr(z)
        ends = np.interp(fractions, (np.arange(len(self.draws)) + 0.5) / len(self.draws), self.draws)
        return Interval(float(ends[0]), float(ends[1]), level, method)

    def p_at_least(self, bound: float) -> float:
        """One-sided p of "the truth is at least `bound`": small where the interval lies below it.

        The inverse of `interval`: p <= a exactly when the upper end at level 1 - 2a lies below `bound`,
        up to the resolution of the resamples (1/10,000).
        """
        return self._tail(bound, below=True)

    def p_at_most(self, bound: float) -> float:
        """One-sided p of "the truth is at most `bound`": small where the interval lies above it."""
        return self._tail(bound, below=False)

    def _tail(self, bound: float, *, below: bool) -> float:
        n = len(self.draws)
        if not n:
            return 1.0
        if self.draws[0] == self.draws[-1]:
            rejected = self.value < bound if below else self.value > bound
            return 1.0 / (n + 1) if rejected else 1.0
        side = "left" if below else "right"  # ties never count towards a rejection
        fraction = np.searchsorted(self.draws, bound, side=side) / n
        z = np.clip(ndtri(fraction), -BEYOND_ALL, BEYOND_ALL)
        if self._bca_fractions(self._expand(np.array([0.025, 0.975]))) is not None:
            # far out the correction has a pole; beyond it p would jump from 0 to 1
            scale = max(0.05, 1 + self.acceleration * (z - self.bias))
            z = (z - self.bias) / scale - self.bias
        p = stdtr(self.n_units - 1, (-z if below else z) / self._expansion())
        return float(max(p, 1.0 / (n + 1)))

    def _expansion(self) -> float:
        return float(np.sqrt(self.n_units / (self.n_units - 1)))

    def _expand(self, tails: Float[np.ndarray, " end"]) -> Float[np.ndarray, " end"]:
        """Student quantiles, and n - 1 in place of n: without both, 20 units cover 93% instead of 95%."""
        return stdtrit(self.n_units - 1, tails) * self._expansion()

    def _bca_fractions(self, z: Float[np.ndarray, " end"]) -> Float[np.ndarray, " end"] | None:
        if not np.isfinite(self.bias):
            return None  # the value lies outside all of its resamples
        scale = 1 - self.acceleration * (self.bias + z)
        if (scale <= 0.1).any():
            return None  # the correction runs through its pole
        return ndtr(self.bias + (self.bias + z) / scale)


def bootstrap(
    resamples: Resamples, table: Float[np.ndarray, "prompt column"], statistic: Statistic
) -> Bootstrap:
    """Resample a statistic of column sums over units.

    Args:
        resamples: The weights; share one among all statistics that are compared.
        table: Per-prompt columns, e.g. an effect, a gap, one column per control.
        statistic: Maps column sums `[draw, column]` to values `[draw]`.

    Raises:
        NotEnoughEvidence: the table holds NaN or infinite values, or the statistic is undefined in over
            1% of the resamples.

    Cost: n_resamples x n_cells x n_columns multiplications.
    """
    return bootstraps(resamples, table, lambda sums: statistic(sums)[..., None])[0]


def bootstraps(
    resamples: Resamples, table: Float[np.ndarray, "prompt column"], statistic: Statistics
) -> list[Bootstrap]:
    """Resample many statistics of the same column sums at once, as `bootstrap` does one.

    Args:
        resamples: The weights.
        table: Per-prompt columns, e.g. tokens, and at how many of them each latent fires.
        statistic: Maps column sums `[draw, column]` to values `[draw, number]`.

    Raises:
        NotEnoughEvidence: as `bootstrap` does; for any of the numbers.
    """
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise NotEnoughEvidence(
            "an effect is not a number",
            got=f"prompt {row}, column {column}: {table[row, column]}",
            because="no mean over it is one, and dropping the prompt would be selecting",
        )
    sums = resamples.cell_sums(table)
    values = statistic(sums.sum(axis=0, keepdims=True))[0].tolist()
    n_units = resamples.units.n_units
    if n_units < 2:
        return [Bootstrap(value, np.empty(0), np.nan, 0.0, n_units) for value in values]
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = resamples.draws(sums, statistic)
        left_out = resamples.without_each(sums, statistic)
    return [
        _bootstrap_of(value, draws[:, number], [part[:, number] for part in left_out], n_units)
        for number, value in enumerate(values)
    ]


def _bootstrap_of(value: float, draws: np.ndarray, left_out: list[np.ndarray], n_units: int) -> Bootstrap:
    defined = np.sort(draws[np.isfinite(draws)])
    if len(defined) < 0.99 * len(draws):
        raise NotEnoughEvidence(
            "the statistic is undefined in too many resamples",
            got=f"{len(draws) - len(defined)} of {len(draws)}",
            because="a denominator vanishes there",
        )
    span = abs(defined[-1] - defined[0])
    if span <= 1e-12 * max(abs(defined[0]), abs(defined[-1])):  # round-off is no variation
        defined = np.full_like(defined, value)
    below = (np.searchsorted(defined, value, "left") + np.searchsorted(defined, value, "right")) / 2
    return Bootstrap(value, defined, float(ndtri(below / len(defined))), _acceleration(left_out), n_units)


def _acceleration(left_out: list[Float[np.ndarray, " level"]]) -> float:
    influence = np.concatenate(
        [part[np.isfinite(part)].mean() - part[np.isfinite(part)] for part in left_out]
    )
    spread = float((influence**2).sum())
    return float((influence**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0


def mean_bootstrap(resamples: Resamples, effect: Float[np.ndarray, " prompt"]) -> Bootstrap:
    """The mean over prompts, with its distribution under resampled units."""
    return bootstrap(resamples, np.stack([effect, np.ones(len(effect))], axis=1), first_over_second)


def ratio_bootstrap(
    resamples: Resamples, numerator: Float[np.ndarray, " prompt"], denominator: Float[np.ndarray, " prompt"]
) -> Bootstrap:
    """mean(numerator) / mean(denominator), resampled together.

    Raises:
        NotEnoughEvidence: the denominator's 95% interval includes zero, so the ratio could be anything.
    """
    gap = mean_bootstrap(resamples, denominator).interval(0.95)
    if gap.low <= 0 <= gap.high:
        raise NotEnoughEvidence(
            "the ratio's denominator could be zero",
            got=f"95% interval [{gap.low:.4g}, {gap.high:.4g}] over {resamples.units.n_units} units",
            because="a fraction of a gap that may not exist has no bounded interval",
            instead="more prompts, or a behaviour that the model shows",
        )
    return bootstrap(resamples, np.stack([numerator, denominator], axis=1), first_over_second)


def first_over_second(sums: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, " draw"]:
    """Column 0 divided by column 1: a mean where column 1 counts prompts, else a ratio of means."""
    return sums[..., 0] / sums[..., 1]
