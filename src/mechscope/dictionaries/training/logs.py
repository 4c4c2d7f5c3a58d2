"""Logs: one line of JSON a report, and TensorBoard's event files if asked for.

Weights & Biases and trackio need nothing of ours: `report=lambda now: wandb.log(flat_figures(now), step=now.step)`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from mechscope.dictionaries.training.trainer import Report
from mechscope.vocabulary.errors import OptionalPackageMissing


class LogFile:
    """Appends reports to a file of JSON lines.

    Args:
        path: The file; it is made when the first report comes.
        tensorboard: Folder for event files, or None.

    Raises:
        OptionalPackageMissing: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, tensorboard: str | Path | None = None) -> None:
        self.path = path
        self._events = None if tensorboard is None else _event_writer(tensorboard)

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, now: Report) -> None:
        """Add one report."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(now)) + "\n")
        if self._events is not None:
            for name, value in flat_figures(now).items():
                self._events.add_scalar(name, value, now.step)


def flat_figures(now: Report) -> dict[str, float]:
    """A report as one flat dictionary of numbers, as trackers take them."""
    flat = {"tokens": float(now.n_tokens), "tokens_per_second": now.tokens_per_second}
    for one in now.figures:
        flat |= {f"{one.name}/{key}": value for key, value in asdict(one).items() if key != "name"}
    return flat


def _event_writer(folder: str | Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionalPackageMissing(
            "TensorBoard is not installed.", got=str(error), instead="pip install tensorboard, or log.jsonl"
        ) from error
    return SummaryWriter(str(folder))
