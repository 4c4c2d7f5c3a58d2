"""Firing: how often each latent fires, counted by groups of prompts: densities and shares of latents, with intervals.

What varies is the text, so prompts are resampled (in at most 512 groups of neighbours, which bounds memory). Densities
have BCa intervals of the bootstrap. Shares of latents (dead, dense) have Student intervals of the jackknife: a
resampled text holds each prompt's latents or loses them and never brings new ones, so that its dead share lies above
the text's own in every resample, and the bootstrap's interval leaves the truth out (`tests/data/test_firing.py`).
Invariant: counts do not depend on how the text was batched.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from scipy.special import stdtrit

from mechscope.data.intervals import Interval, Resamples, bootstraps, clopper_pearson

MOST_GROUPS, FEWEST_GROUPS = 512, 32
MOST_CELLS = 2**25
"""Of the table of groups and latents; groups are merged down to 32 to keep to it."""

LATENTS_AT_ONCE = 256

Which = Callable[[Float[np.ndarray, "*draw latent"]], Bool[np.ndarray, "*draw latent"]]
"""From densities to which latents are counted."""


@dataclass
class Firing:
    """Running counts.

    Args:
        tokens: Tokens that count, by group of prompts.
        counts: At how many of them each latent fires, [group, latent].
        n_units: Prompts in all.
    """

    tokens: Int[np.ndarray, " group"]
    counts: Int[np.ndarray, "group latent"]
    n_units: int

    @classmethod
    def empty(cls, *, n_units: int, n_latents: int, most_groups: int = MOST_GROUPS) -> "Firing":
        """Nothing counted yet."""
        n_groups = min(n_units, most_groups, max(FEWEST_GROUPS, MOST_CELLS // max(1, n_latents)))
        return cls(np.zeros(n_groups, np.int64), np.zeros((n_groups, n_latents), np.int32), n_units)

    def add(
        self,
        units: Integer[np.ndarray, " token"],
        *,
        tokens: Integer[np.ndarray, " entry"],
        latents: Integer[np.ndarray, " entry"],
    ) -> None:
        """Count tokens.

        Args:
            units: Prompt of each token.
            tokens: Which of these tokens each activation is at.
            latents: And of which latent it is.
        """
        n_groups, n_latents = self.counts.shape
        groups = units.astype(np.int64) * n_groups // max(1, self.n_units)
        self.tokens += np.bincount(groups, minlength=n_groups)
        cells, found = np.unique(groups[tokens] * n_latents + latents.astype(np.int64), return_counts=True)
        self.counts.ravel()[cells] += found.astype(np.int32)

    @property
    def fires(self) -> Int[np.ndarray, " latent"]:
        """Tokens at which each latent fires."""
        return self.counts.sum(0, dtype=np.int64)

    @property
    def n_tokens(self) -> int:
        return int(self.tokens.sum())

    @property
    def density(self) -> Float[np.ndarray, " latent"]:
        """Share of tokens at which each latent fires."""
        return self.fires / max(1, self.n_tokens)

    def share(self, which: Which, *, level: float = 0.95) -> tuple[float, Interval]:
        """Share of the latents for whose density `which` holds, with its interval over prompts.

        The jackknife's interval errs towards too wide. Where no prompt changes the share it is the exact one
        of as many latents.
        """
        value = float(which(self.density).mean())
        n = len(self.tokens)
        if n < 2:
            return value, Interval(-np.inf, np.inf, level, "none")
        fires, tokens = self.fires, self.n_tokens
        without = np.array(
            [
                which((fires - self.counts[group]) / max(1, tokens - int(self.tokens[group]))).mean()
                for group in range(n)
            ]
        )
        error = float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
        if error == 0:
            return value, clopper_pearson(round(value * len(fires)), len(fires), level=level)
        half = float(stdtrit(n - 1, 0.5 + level / 2)) * error
        return value, Interval(max(0.0, value - half), min(1.0, value + half), level, "jackknife")

    def density_intervals(
        self, *, seed: int, n_resamples: int, level: float = 0.95
    ) -> tuple[Float[np.ndarray, " latent"], Float[np.ndarray, " latent"]]:
        """Lower and upper ends of every latent's density, over prompts.

        Of a latent that never fired the upper end is the exact one of the share of groups of prompts in which it
        could have: its density is no larger.
        """
        n, n_latents = len(self.tokens), self.counts.shape[1]
        low, high = np.zeros(n_latents), np.ones(n_latents)
        if n < 2:
            return low, high
        resamples = Resamples(np.arange(n), seed=seed, n_resamples=n_resamples)
        fired = np.flatnonzero(self.counts.any(0))
        for start in range(0, len(fired), LATENTS_AT_ONCE):
            some = fired[start : start + LATENTS_AT_ONCE]
            table = np.concatenate([self.tokens[:, None], self.counts[:, some]], axis=1).astype(np.float64)
            found = bootstraps(resamples, table, rates_of_sums)
            ends = [one.interval(level) for one in found]
            low[some], high[some] = [one.low for one in ends], [one.high for one in ends]
        high[~self.counts.any(0)] = clopper_pearson(0, n, level=level).high
        return low, np.minimum(high, 1.0)


def rates_of_sums(sums: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, "draw latent"]:
    """From columns (tokens, firings of each latent)."""
    return sums[..., 1:] / sums[..., :1]


def is_dead(density: Float[np.ndarray, "*draw latent"]) -> Bool[np.ndarray, "*draw latent"]:
    """Never fires."""
    return density == 0


def is_denser_than(least: float) -> Which:
    """Fires at more than a share of the tokens."""
    return lambda density: density > least
