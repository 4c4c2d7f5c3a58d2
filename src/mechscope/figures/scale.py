"""Scales: from a value to a colour, from a value to a place, and the ticks between.

Owns: when a colour scale is diverging, where it ends, and how a cell's colour is written.
Invariant: zero is the page's own colour; the two ends are equally far from it.

A colour is a sign and a strength (0 to 1); the style sheet holds the hues, so that one drawing serves
light, dark and print.
"""

import math
from dataclasses import dataclass

import numpy as np

from mechscope.figures.shown import Number

LEVELS = 32


@dataclass(frozen=True)
class ColourScale:
    """Strength 1 at `limit` on either side of zero; one-sided where no value is negative."""

    limit: Number
    diverging: bool

    @classmethod
    def of(cls, values: np.ndarray, limit: Number | None = None) -> "ColourScale":
        """The scale that just holds all finite `values`, or that ends at `limit`."""
        finite = np.asarray(values, dtype=float)
        finite = finite[np.isfinite(finite)]
        largest = float(np.abs(finite).max()) if finite.size else 0.0
        return cls(limit or largest or 1.0, bool(finite.size and finite.min() < 0))

    def level(self, value: Number) -> int:
        """-32 to 32: the colour step of a finite or infinite value."""
        if math.isinf(value):
            return LEVELS if value > 0 else -LEVELS
        return round(max(-1.0, min(1.0, value / self.limit)) * LEVELS)


def ticks(low: Number, high: Number, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], some `about` of them."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low] if math.isfinite(low) else []
    raw = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """A linear map from [low, high] to pixels [start, end]."""

    low: Number
    high: Number
    start: Number
    end: Number

    @classmethod
    def around(cls, values: np.ndarray, *, start: Number, end: Number, margin: Number = 0.04) -> "Axis":
        """An axis that holds all finite `values` and zero, with a margin."""
        finite = np.append(np.asarray(values, dtype=float).ravel(), 0.0)
        finite = finite[np.isfinite(finite)]
        low, high = float(finite.min()), float(finite.max())
        if low == high:
            low, high = low - 1.0, high + 1.0
        return cls(low - margin * (high - low), high + margin * (high - low), start, end)

    def __call__(self, value: Number) -> float:
        inside = max(self.low, min(self.high, value))
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        return ticks(self.low, self.high, about)
