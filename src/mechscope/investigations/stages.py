"""Stages: what is being done, how much of all is done, and how long each stage took."""

from collections.abc import Callable
from time import perf_counter

Progress = Callable[[str, float], None]
"""Told what is being done, and how much of all is done (0 to 1)."""


class Stages:
    """Tells progress and keeps the time of each stage.

    Args:
        progress: Whom to tell.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._name, self._span, self._since = "", (0.0, 0.0), 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, of those that ended, in their order."""
        return dict(self._seconds)

    def begin(self, name: str, start: float, stop: float) -> None:
        """End the stage under way and begin another, which takes the work from one share of all to another."""
        now = perf_counter()
        if self._name:
            self._seconds[self._name] = round(now - self._since, 2)
        self._name, self._span, self._since = name, (start, stop), now
        if self._progress is not None:
            self._progress(name, start)

    def tell(self, what: str, done: int, total: int) -> None:
        """Progress inside the stage under way, from rows done and rows in all."""
        if self._progress is not None:
            start, stop = self._span
            self._progress(f"{self._name}: {what}", start + (stop - start) * done / max(total, 1))
