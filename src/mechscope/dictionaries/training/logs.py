"""Logs: one line of JSON a report, and TensorBoard's event files if asked for.

Weights & Biases and trackio need nothing of ours: `report=lambda now: wandb.log(flat_figures(now), step=now.step)`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from mechscope.dictionaries.training.trainer import Report
from mechscope.records.files import append_line, save_text
from mechscope.vocabulary.errors import OptionalPackageMissing


class LogFile:
    """Appends reports to a file of JSON lines.

    Args:
        path: The file; it is made when the first report comes. Of a run that was interrupted, what it logged after
            its last checkpoint is left out then: those steps are done again.
        tensorboard: Folder for event files, or None.

    Raises:
        OptionalPackageMissing: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, tensorboard: str | Path | None = None) -> None:
        self.path = path
        self._open_events = None if tensorboard is None else _event_writer(tensorboard)
        self._events: Any = None
        self._has_begun = False

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, now: Report) -> None:
        """Add one report.

        Raises:
            DiskFull: no room; the reports before still stand.
        """
        if not self._has_begun:
            self._begin(now.step)
        append_line(self.path, json.dumps(asdict(now)))
        if self._events is not None:
            for name, value in flat_figures(now).items():
                self._events.add_scalar(name, value, now.step)

    def _begin(self, step: int) -> None:
        """Keep what was logged before a step, and open the event files from there on."""
        self._has_begun = True
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) < step]
            if kept != lines:
                save_text(self.path, "".join(f"{line}\n" for line in kept))
        if self._open_events is not None:
            self._events = self._open_events(step)


def _step_of(line: str) -> float:
    """The step of a line; of a torn one infinity."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def flat_figures(now: Report) -> dict[str, float]:
    """A report as one flat dictionary of numbers, as trackers take them."""
    flat = {"tokens": float(now.n_tokens), "tokens_per_second": now.tokens_per_second}
    for one in now.figures:
        flat |= {f"{one.name}/{key}": value for key, value in asdict(one).items() if key != "name"}
    return flat


def _event_writer(folder: str | Path) -> Callable[[int], Any]:
    """Opens event files in a folder; what stands there from a step on is shown no more."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionalPackageMissing(
            "TensorBoard is not installed.", got=str(error), instead="pip install tensorboard, or log.jsonl"
        ) from error
    return lambda step: SummaryWriter(str(folder), purge_step=step)
