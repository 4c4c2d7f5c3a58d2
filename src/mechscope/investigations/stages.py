"""Stages: what is being done, how much of all is done, and how long each stage took."""

from collections.abc import Callable
from time import perf_counter

Progress = Callable[[str, float], None]
"""Told what is being done, and how much of all is done (0 to 1)."""


PART = 0.3
"""Of what is left of a stage, for each part of it that is told."""


class Stages:
    """Tells progress and keeps the time of each stage.

    Args:
        progress: Whom to tell.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._name, self._span, self._since = "", (0.0, 0.0), 0.0
        self._what, self._share, self._part = "", 0.0, PART

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, of those that ended, in their order."""
        return dict(self._seconds)

    def begin(self, name: str, start: float, stop: float, *, part: float = PART) -> None:
        """End the stage under way and begin another, which takes the work from one share of all to another.

        Args:
            name: What is done in it.
            start: Share of all that is done when it begins.
            stop: Share of all that is done when it ends.
            part: Of what is left of it, for each part that is told; 1 for a stage of one part.
        """
        now = perf_counter()
        if self._name:
            self._seconds[self._name] = round(now - self._since, 2)
        self._name, self._span, self._since = name, (start, stop), now
        self._what, self._share, self._part = "", start, part
        if self._progress is not None:
            self._progress(name, start)

    def tell(self, what: str, done: int, total: int) -> None:
        """Progress inside the stage under way, from rows done and rows in all.

        Nobody knows how many parts a stage has, so each takes some of what is left of it: the share never falls.
        """
        if what != self._what:
            self._what, self._span = what, (self._share, self._span[1])
        start, stop = self._span
        self._share = max(self._share, start + self._part * (stop - start) * done / max(total, 1))
        if self._progress is not None:
            self._progress(f"{self._name}: {what}", self._share)
