"""Lines: what one benchmark says, as one line of JSON."""

import json
import resource
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.pairing import FEWEST_PAIRS, Pairs, is_within, median_interval


@dataclass(frozen=True, kw_only=True)
class Line:
    """One result.

    Args:
        name: Of the benchmark.
        seconds: Median of ours.
        limit_seconds: The limit on the ratio times the median of what it is held against.
        ratio: Median of paired ratios, ours over the baseline.
        ratio_low: Lower end of its 95% bootstrap interval; the limit is failed only above it.
        ratio_high: Upper end.
        limit_ratio: What the ratio may be.
        aa_ratio: The baseline over itself in the same run; None where the baseline is a constant.
        passed: Whether the limit stands.
        peak_mb: Most memory that the process held, everything imported included.
        n_pairs: Pairs timed.
        details: Figures of this benchmark alone.
    """

    name: str
    seconds: float
    limit_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    limit_ratio: float
    aa_ratio: float | None
    passed: bool
    peak_mb: float
    n_pairs: int
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line; floats to six significant digits."""
        return json.dumps(_rounded(asdict(self)))


def line_of(name: str, pairs: Pairs, *, limit_ratio: float, **details: Any) -> Line:
    """The line that paired turns give."""
    ratio, low, high = median_interval(pairs.ratios)
    again, again_low, again_high = median_interval(pairs.aa_ratios, seed=1)
    baseline, _, _ = median_interval(pairs.baseline)
    seconds, _, _ = median_interval(pairs.ours)
    if len(pairs.ours) < FEWEST_PAIRS:
        details["rehearsal"] = f"{len(pairs.ours)} pairs of at least {FEWEST_PAIRS}"
    if is_within(low, limit_ratio) and high > limit_ratio:
        details["undecided"] = "the limit lies inside the interval: not failed, and not shown to hold"
    return Line(
        name=name,
        seconds=seconds,
        limit_seconds=limit_ratio * baseline,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        limit_ratio=limit_ratio,
        aa_ratio=again,
        passed=is_within(low, limit_ratio),
        peak_mb=peak_mb(),
        n_pairs=len(pairs.ours),
        details={
            "baseline_seconds": baseline,
            "aa_interval": [again_low, again_high],
            "others_cpu": pairs.others_cpu,
            **details,
        },
    )


def peak_mb() -> float:
    """Most resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
