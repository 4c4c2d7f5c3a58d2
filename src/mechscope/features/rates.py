"""Rates: how often latents of an index fire, with intervals over rows of its text. Imports no torch.

The statistics of an index say how often over the whole text; here rows (in at most 128 groups of neighbours) are
counted apart, from the activations of one latent or from what fired at each token.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from mechscope.data.firing import Firing, is_dead, is_denser_than
from mechscope.data.intervals import Interval

if TYPE_CHECKING:
    from mechscope.features.index import FeatureIndex
    from mechscope.features.parts import Entries

MOST_GROUPS, N_RESAMPLES = 128, 1_000


def density_interval(index: "FeatureIndex", entries: "Entries") -> tuple[float, float]:
    """Ends of the 95% interval of one latent's density, from its own activations."""
    tokens = index.row_tokens
    firing = Firing.empty(n_units=len(tokens), n_latents=1, most_groups=MOST_GROUPS)
    groups = groups_of_rows(len(tokens), len(firing.tokens))
    firing.tokens += _summed(tokens, groups, len(firing.tokens))
    found = groups[index.tokens.rows_at(entries.token)] if len(entries) else np.zeros(0, np.int64)
    firing.counts[:, 0] = np.bincount(found, minlength=len(firing.tokens))
    low, high = firing.density_intervals(seed=0, n_resamples=N_RESAMPLES)
    return float(low[0]), float(high[0])


def shares_of_latents(index: "FeatureIndex", *, dense: float) -> dict[str, tuple[float, Interval]]:
    """Shares of latents that are "dead" and "dense" (fire at more than a share of tokens), with intervals.

    Cost: one pass over what fired at each token.
    """
    tokens = index.row_tokens
    firing = Firing.empty(n_units=len(tokens), n_latents=index.n_latents, most_groups=MOST_GROUPS)
    n_groups, first = len(firing.tokens), 0
    groups = groups_of_rows(len(tokens), n_groups)
    firing.tokens += _summed(tokens, groups, n_groups)
    for number in range(len(index.tokens.files)):
        arrays = index.tokens.arrays(number)
        n_rows = len(arrays["row_starts"]) - 1
        of_token = np.repeat(groups[first : first + n_rows], np.diff(arrays["row_starts"]))
        of_entry = np.repeat(of_token, np.diff(arrays["code_starts"].astype(np.int64)))
        cells = of_entry * index.n_latents + arrays["latents"].astype(np.int64)
        counted = np.bincount(cells, minlength=firing.counts.size)
        firing.counts += counted.reshape(firing.counts.shape).astype(np.int32)
        first += n_rows
    return {"dead": firing.share(is_dead), "dense": firing.share(is_denser_than(dense))}


def tokens_of_rows(index: "FeatureIndex") -> Int[np.ndarray, " row"]:
    """Tokens that count in each row of the text."""
    found: list[np.ndarray] = []
    for number in range(len(index.tokens.files)):
        arrays = index.tokens.arrays(number)
        ends = np.concatenate([[0], np.cumsum(arrays["counts"])])
        starts = arrays["row_starts"].astype(np.int64)
        found.append(ends[starts[1:]] - ends[starts[:-1]])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def groups_of_rows(n_rows: int, n_groups: int) -> Int[np.ndarray, " row"]:
    """Group of each row: neighbours together, as `Firing` counts prompts."""
    return np.arange(n_rows) * n_groups // max(1, n_rows)


def _summed(values: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    return np.bincount(groups, weights=values, minlength=n_groups).astype(np.int64)
