"""Intervals of a grid's means and ratios: percentile bootstrap over pairs, the same resamples for every cell.

These are pointwise and treat pairs as independent: good enough to read a grid by, not to confirm a claim, which
resamples units and corrects for the search.
"""

import numpy as np
from jaxtyping import Float

N_RESAMPLES = 2_000
SEED = 0
_CELLS_AT_ONCE = 1_000

Ends = tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]


def interval_of_means(table: Float[np.ndarray, "cell pair"]) -> Ends:
    """95% intervals of each row's mean."""
    return _ends(table, np.ones(table.shape[1]), is_ratio=False)


def interval_of_ratios(table: Float[np.ndarray, "cell pair"], below: Float[np.ndarray, " pair"]) -> Ends:
    """95% intervals of each row's mean over the mean of `below`, resampled together."""
    return _ends(table, below, is_ratio=True)


def _ends(table: np.ndarray, below: np.ndarray, *, is_ratio: bool) -> Ends:
    n_pairs = table.shape[1]
    rng = np.random.default_rng(SEED)
    weights = rng.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), size=N_RESAMPLES) / n_pairs
    divisor = (weights @ below)[:, None] if is_ratio else 1.0
    with np.errstate(divide="ignore", invalid="ignore"):  # a rare resample may have a gap of exactly 0
        found = [
            np.percentile(weights @ part.T / divisor, [2.5, 97.5], axis=0)
            for part in np.array_split(table, max(1, len(table) // _CELLS_AT_ONCE))
        ]
    low, high = np.concatenate(found, axis=1)
    return low, high
