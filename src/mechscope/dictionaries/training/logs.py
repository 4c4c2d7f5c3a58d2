"""Logs: one line of JSON a report, and reports as a tracker takes them.

A tracker is a reporter: `report=to_tensorboard("runs/a")`; for Weights & Biases and trackio
`report=lambda now: wandb.log(flat_figures(now), step=now.step)`.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

from mechscope.dictionaries.training.trainer import Report, Reporter
from mechscope.records.files import append_line, save_text
from mechscope.vocabulary.errors import OptionalPackageMissing


class LogFile:
    """Appends reports to a file of JSON lines.

    Args:
        path: The file; it is made when the first report comes. Of a run that was interrupted, what it logged after
            its last checkpoint is left out then: those steps are done again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._has_begun = False

    def write(self, now: Report) -> None:
        """Add one report.

        Raises:
            DiskFull: no room; the reports before still stand.
        """
        if not self._has_begun:
            self._leave_out_from(now.step)
        append_line(self.path, json.dumps(asdict(now)))

    def _leave_out_from(self, step: int) -> None:
        self._has_begun = True
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) < step]
            if kept != lines:
                save_text(self.path, "".join(f"{line}\n" for line in kept))


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


def to_tensorboard(folder: str | Path) -> Reporter:
    """A reporter that writes TensorBoard's event files; what stands there from its first step on is shown no more.

    Args:
        folder: Of the event files.

    Raises:
        OptionalPackageMissing: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionalPackageMissing(
            "TensorBoard is not installed.",
            got=str(error),
            instead="pip install mechscope[tensorboard], or log.jsonl",
        ) from error
    writers: list[SummaryWriter] = []

    def report(now: Report) -> None:
        if not writers:
            writers.append(SummaryWriter(str(folder), purge_step=now.step))
        for name, value in flat_figures(now).items():
            writers[0].add_scalar(name, value, now.step)
        writers[0].flush()

    return report
