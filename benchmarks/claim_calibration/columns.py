"""Columns: the logits of many words at once under each intervention, so that any answers can be asked afterwards.

A metric that is told which columns to read, and writes what it sees into a table that others share. One number a
row is what the engine expects of a metric; it gets zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.claim_calibration.measuring import HeadSet, Source, behavior_of, opened
from mechscope.interventions.metrics import Metric, Reading
from mechscope.records.canonical import hash_json, to_plain
from mechscope.records.files import save_tensors


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnRecorder(Metric):
    """Writes the logits of some columns into `table[row]`.

    Args:
        columns: Vocabulary columns.
        table: [prompt, column], written in place.
        rows: Prompts that this metric serves.
    """

    columns: tuple[int, ...]
    table: np.ndarray
    rows: tuple[int, ...]

    @property
    def n_rows(self) -> int | None:
        return len(self.rows)

    def reading(self) -> Reading:
        """The same columns for every row."""
        wanted = torch.tensor(self.columns, dtype=torch.long)
        return Reading(positions=(self.position,), columns=wanted.expand(len(self.rows), -1))

    def measure(self, logits: Tensor) -> Tensor:
        """Zeros; the logits go into the table."""
        self.table[list(self.rows)] = logits[:, 0].float().cpu().numpy()
        return torch.zeros(len(self.rows))

    def select(self, rows: Sequence[int]) -> "ColumnRecorder":
        """For some of its rows; the table stays the whole one."""
        return replace(self, rows=tuple(self.rows[row] for row in rows))


@dataclass(frozen=True, kw_only=True)
class ColumnTask:
    """Head sets whose ablation is measured on one split, for all answer words of that split.

    Args:
        source: Model and prompts.
        split: "train", "validation" or "held_out".
        sets: Head sets; an empty set is the untouched model.
        corrupt: On the corrupt prompts.
    """

    source: Source
    split: str
    sets: tuple[HeadSet, ...]
    corrupt: bool = False

    @property
    def key(self) -> str:
        """Names its file."""
        plain = {
            "columns of": self.source.__dict__,
            "split": self.split,
            "sets": self.sets,
            "corrupt": self.corrupt,
        }
        return hash_json(to_plain(plain))[:24]


def answer_columns(split: Any) -> tuple[int, ...]:
    """Every answer and foil of a split, in order."""
    return tuple(sorted({token for row in (*split.answers, *split.wrong) for token in row}))


def measure_columns(argument: tuple[ColumnTask, str]) -> None:
    """Measure a task and save [set, prompt, column] under its key."""
    from mechscope.claims.mechanisms import Components
    from mechscope.claims.prompts import N_REFERENCE
    from mechscope.engine.execute import run_experiments
    from mechscope.engine.experiment import Experiment
    from mechscope.interventions.ablation import reference_rows

    task, folder = argument
    model, behavior = opened(task.source.model), behavior_of(task.source)
    split = behavior.splits[task.split]
    inputs = split.corrupt if task.corrupt else split.clean
    columns = answer_columns(split)
    train = behavior.train.clean
    reference = reference_rows(train.select(range(min(N_REFERENCE, len(train)))))
    logits = np.full((len(task.sets), len(inputs), len(columns)), np.nan, dtype=np.float32)
    experiments = [
        Experiment(
            inputs=inputs,
            writes=tuple(Components(heads).ablation("mean", reference)) if heads else (),
            metric=ColumnRecorder(columns=columns, table=table, rows=tuple(range(len(inputs)))),
        )
        for heads, table in zip(task.sets, logits, strict=True)
    ]
    run_experiments(model, experiments)
    save_tensors(Path(folder) / f"{task.key}.safetensors", {"logits": logits}, metadata={})
