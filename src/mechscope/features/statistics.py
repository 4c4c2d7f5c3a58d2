"""Statistics: what every latent did, kept while the text goes by: how often, how much, in which sizes.

The histogram has fixed bins, four to the octave of an activation's size, so that it needs no second look and grows
with nothing but the number of latents. Sums are in double precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int, Integer

BINS_PER_OCTAVE = 4
LOWEST_OCTAVE, HIGHEST_OCTAVE = -16, 16
N_BINS = (HIGHEST_OCTAVE - LOWEST_OCTAVE) * BINS_PER_OCTAVE + 2
"""The first bin holds what is smaller than the rest, the last what is larger."""


def bin_edges() -> Float[np.ndarray, " edge"]:
    """Lower edge of every bin, and the last one's upper edge: 0, 2^-16, ..., 2^16, infinity."""
    n = (HIGHEST_OCTAVE - LOWEST_OCTAVE) * BINS_PER_OCTAVE
    inside = 2.0 ** (LOWEST_OCTAVE + np.arange(n + 1) / BINS_PER_OCTAVE)
    return np.concatenate([[0.0], inside, [np.inf]])


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of all latents, over every token that counts.

    Args:
        n_tokens: Tokens, [1].
        fires: How often each latent was not zero, [latent].
        total: Sum of its activations.
        squares: Sum of their squares.
        largest: Largest activation; 0 if it never fired.
        smallest: Smallest one that is not zero; below 0 only where a gate keeps negative values.
        histogram: How often each size fell in each bin, [latent, bin].
    """

    n_tokens: Int[np.ndarray, " one"]
    fires: Int[np.ndarray, " latent"]
    total: Float[np.ndarray, " latent"]
    squares: Float[np.ndarray, " latent"]
    largest: Float[np.ndarray, " latent"]
    smallest: Float[np.ndarray, " latent"]
    histogram: Int[np.ndarray, "latent bin"]

    @classmethod
    def nothing(cls, n_latents: int) -> "Statistics":
        """Before the first token."""
        zeros = np.zeros(n_latents)
        counts = np.zeros(n_latents, np.int64)
        return cls(
            np.zeros(1, np.int64), counts, zeros, zeros, zeros, zeros, np.zeros((n_latents, N_BINS), np.int64)
        )

    @property
    def density(self) -> Float[np.ndarray, " latent"]:
        """Fraction of tokens at which each latent fires."""
        return self.fires / max(1, int(self.n_tokens[0]))

    @property
    def mean(self) -> Float[np.ndarray, " latent"]:
        """Mean activation where it fires; 0 where it never does."""
        return self.total / np.maximum(self.fires, 1)

    def with_entries(
        self, values: Float[np.ndarray, " entry"], starts: Int[np.ndarray, " latent_and_one"], n_tokens: int
    ) -> "Statistics":
        """With more activations, sorted by latent.

        Args:
            values: All activations.
            starts: Where each latent's begin.
            n_tokens: Tokens that they are of.
        """
        wide, counts = values.astype(np.float64), np.diff(starts)
        latents = np.repeat(np.arange(len(counts)), counts)
        n = len(counts)
        bins = _bins_of(wide)
        histogram = np.bincount(latents * N_BINS + bins, minlength=n * N_BINS).reshape(n, N_BINS)
        fired = counts > 0
        return Statistics(
            self.n_tokens + n_tokens,
            self.fires + counts,
            self.total + np.bincount(latents, weights=wide, minlength=n),
            self.squares + np.bincount(latents, weights=wide * wide, minlength=n),
            _combined(np.maximum, self.largest, self.fires, wide, starts, fired),
            _combined(np.minimum, self.smallest, self.fires, wide, starts, fired),
            self.histogram + histogram,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as they are saved: the histogram, mostly zeros, in the fewest bytes that hold it."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return found | {"histogram": narrowed(self.histogram)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Statistics":
        """What `arrays` gave."""
        return cls(**{**arrays, "histogram": arrays["histogram"].astype(np.int64)})


def narrowed(counts: Integer[np.ndarray, "*axes"]) -> Integer[np.ndarray, "*axes"]:
    """Counts in the smallest of uint16, int32 and int64 that holds them."""
    most = int(counts.max(initial=0))
    return counts.astype(np.uint16 if most < 2**16 else np.int32 if most < 2**31 else np.int64)


def _bins_of(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        step = np.floor((np.log2(np.abs(values)) - LOWEST_OCTAVE) * BINS_PER_OCTAVE)
    return np.clip(np.nan_to_num(step, neginf=-1, posinf=N_BINS), -1, N_BINS - 2).astype(np.int64) + 1


def _combined(
    extreme: np.ufunc,
    known: np.ndarray,
    fires: np.ndarray,
    values: np.ndarray,
    starts: np.ndarray,
    fired: np.ndarray,
) -> np.ndarray:
    """The old extreme and the new values' one, where there are any."""
    found = known.copy()
    if fired.any():
        new = extreme.reduceat(values, starts[:-1][fired])
        old = np.where(fires[fired] > 0, known[fired], new)
        found[fired] = extreme(old, new)
    return found
