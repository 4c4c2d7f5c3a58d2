"""Paired ratios: two ways of doing the same thing, timed in turns, so that a busy machine slows both.

Owns: the order of turns, the median of paired ratios, its bootstrap interval, and the ratio of the baseline to
itself (A/A) in the same run, which shows what the machine's noise alone looks like.
Invariant: a limit is failed only if the interval's lower end exceeds it.
"""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from jaxtyping import Float

FEWEST_PAIRS = 15
"""Fewer pairs are marked as a rehearsal."""

N_RESAMPLES = 10_000
_ORDERS = tuple(itertools.permutations(range(3)))

Timed = Callable[[], object]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Seconds of paired turns.

    Args:
        ours: What is measured.
        baseline: What it is held against.
        again: The baseline once more, for the A/A ratio.
        others_cpu: Cores that other processes used meanwhile.
    """

    ours: Float[np.ndarray, " pair"]
    baseline: Float[np.ndarray, " pair"]
    again: Float[np.ndarray, " pair"]
    others_cpu: float = 0.0

    @property
    def ratios(self) -> Float[np.ndarray, " pair"]:
        """Ours over the baseline, pair by pair."""
        return self.ours / self.baseline

    @property
    def aa_ratios(self) -> Float[np.ndarray, " pair"]:
        """The baseline over itself, pair by pair."""
        return self.again / self.baseline


def time_pairs(ours: Timed, baseline: Timed, *, n_pairs: int, n_warmups: int = 2) -> Pairs:
    """Time `ours`, `baseline` and `baseline` again in turns, in every order equally often.

    Cost: (n_pairs + n_warmups) x (ours + 2 x baseline).
    """
    turns = (ours, baseline, baseline)
    for _ in range(n_warmups):
        ours()
        baseline()
    seconds = np.zeros((3, n_pairs))
    load = _Load()
    for pair in range(n_pairs):
        for turn in _ORDERS[pair % len(_ORDERS)]:
            start = perf_counter()
            turns[turn]()
            seconds[turn, pair] = perf_counter() - start
    return Pairs(seconds[0], seconds[1], seconds[2], load.others())


def median_interval(
    values: Float[np.ndarray, " pair"], *, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """The median, and the ends of its percentile bootstrap interval."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(values), size=(N_RESAMPLES, len(values)))
    medians = np.median(values[drawn], axis=1)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return float(np.median(values)), float(low), float(high)


def is_within(low: float, limit: float) -> bool:
    """Whether an interval with this lower end leaves a limit unbroken."""
    return low <= limit


class _Load:
    """Cores used by other processes between its making and `others()`; 0 where the system does not tell."""

    def __init__(self) -> None:
        self._start = self._now()

    def others(self) -> float:
        wall, own, busy = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return round(max(0.0, busy - own) / wall, 2) if wall > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        stat = Path("/proc/stat")
        if not stat.is_file():
            return perf_counter(), own, own
        ticks = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]
        busy = sum(ticks) - ticks[3] - ticks[4]  # all but idle and waiting for disks
        return perf_counter(), own, busy / os.sysconf("SC_CLK_TCK")
