"""The naive executor: one whole forward pass per experiment. The oracle that the packed executor equals."""

from collections.abc import Sequence

import torch

from mechscope.engine.experiment import Experiment, Results
from mechscope.interventions.metrics import Metric
from mechscope.interventions.resolve import resolve
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch, refuse_unknown_ids
from mechscope.models.model import Model
from mechscope.vocabulary.errors import PositionOutOfRange


def run_naively(model: Model, experiments: Sequence[Experiment]) -> Results:
    """Metrics by one forward pass an experiment, nothing shared.

    Cost: a whole forward with the whole vocabulary for each experiment. Serves as oracle.
    """
    return Results(tuple(measure_naively(model, experiment) for experiment in experiments))


def measure_naively(model: Model, experiment: Experiment) -> torch.Tensor:
    """One experiment's metric, [rows]."""
    refuse_unreadable(model, experiment.inputs, experiment.metric)
    run = model.run(experiment.inputs, interventions=resolve(model, experiment.writes))
    assert run.logits is not None
    return measure_logits(experiment.metric, experiment.inputs, run.logits).double().cpu()


def refuse_unreadable(model: Model, inputs: TokenBatch, metric: Metric) -> None:
    """Refuse a metric that reads what these prompts or this model have not, before anything runs.

    Raises:
        PositionOutOfRange: a position outside some prompt, or an id outside the vocabulary.
    """
    refuse_unknown_ids(metric.token_ids, model.d_vocab)
    read_columns(Frame.of(inputs), metric.reading().positions)


def measure_logits(metric: Metric, inputs: TokenBatch, logits: torch.Tensor) -> torch.Tensor:
    """A metric of whole logits, [rows]: what it reads is picked out of them first."""
    reading = metric.reading()
    columns = read_columns(Frame.of(inputs), reading.positions).to(logits.device)
    rows = torch.arange(len(columns), device=logits.device)[:, None]
    logits = logits[rows, columns]
    if reading.columns is not None:
        wanted = reading.columns.to(logits.device)[:, None].expand(-1, logits.shape[1], -1)
        logits = logits.gather(-1, wanted)
    return metric.measure(logits)


def read_columns(frame: Frame, positions: tuple[int, ...]) -> torch.Tensor:
    """Columns of positions in each row, [batch, n]; negative positions count from the prompt's end.

    Raises:
        PositionOutOfRange: a prompt has no such position: padding would be read in its place.
    """
    shortest = int(frame.n_prompt.min())
    outside = [position for position in positions if not -shortest <= position < shortest]
    if outside:
        raise PositionOutOfRange(
            "A metric reads a position that some prompt has not.",
            got=", ".join(map(str, outside)),
            because=f"the shortest prompt has {shortest} tokens",
            instead="-1, the last token of each",
        )
    wanted = torch.tensor(positions, dtype=torch.long)[None, :]
    from_end = frame.n_prompt[:, None] + wanted
    return torch.where(wanted < 0, from_end, wanted.expand_as(from_end)) + frame.n_pad[:, None]
