"""Experiment: prompts, interventions and a metric; what the engine runs and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.interventions.metrics import Metric
from mechscope.models.inputs import TokenBatch
from mechscope.models.preparing import listed
from mechscope.vocabulary.errors import PairLengthMismatch
from mechscope.vocabulary.protocols import Write


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One question to the model: these prompts, under these interventions, measured so.

    Experiments that share `inputs` (the same object) share one base run.

    Args:
        inputs: Prompts.
        writes: Interventions, in order; none measures the model as it is.
        metric: What is read.
        name: For messages.

    Raises:
        PairLengthMismatch: the metric has answers for another number of rows.
        InterventionMismatch: a single intervention instead of several.
    """

    inputs: TokenBatch
    writes: tuple[Write, ...] = ()
    metric: Metric
    name: str = ""

    def __post_init__(self) -> None:
        listed(self.writes)
        n_rows = self.metric.n_rows
        if n_rows is not None and n_rows != len(self.inputs):
            raise PairLengthMismatch(
                f'Experiment "{self.name}" has another number of prompts than its metric has answers.',
                got=f"{len(self.inputs)} prompts, {n_rows} answers",
                because="a metric reads one answer a row",
                instead="metric.select(rows)",
            )


@dataclass(frozen=True)
class Results:
    """Metrics of experiments, in the order in which they were given.

    Args:
        values: For each experiment, one number a row, [rows], float64 on the CPU.
    """

    values: tuple[Float[Tensor, " rows"], ...]

    def __getitem__(self, index: int) -> Float[Tensor, " rows"]:
        return self.values[index]

    def __len__(self) -> int:
        return len(self.values)

    def table(self) -> Float[Tensor, "experiments rows"]:
        """All values as one table; experiments must have the same number of rows."""
        return torch.stack(list(self.values))


def groups_of(experiments: Sequence[Experiment]) -> dict[int, list[int]]:
    """Indices of experiments by the identity of their prompts."""
    groups: dict[int, list[int]] = {}
    for index, experiment in enumerate(experiments):
        groups.setdefault(id(experiment.inputs), []).append(index)
    return groups
