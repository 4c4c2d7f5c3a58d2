"""Reading: from the residual stream at the positions read to metrics, unembedding only the columns read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import read_columns
from mechscope.interventions.metrics import Metric, Reading
from mechscope.models.frame import Frame


@dataclass(frozen=True)
class Piece:
    """Rows of one experiment, ready to be measured.

    Args:
        place: The experiment's place in its group.
        prompts: Rows of the block, [n].
        metric: The metric for these rows.
        residual: Residual stream after the last layer at the positions read, [n, read, d_model].
    """

    place: int
    prompts: Tensor
    metric: Metric
    residual: Tensor


def readings_of(experiments: Sequence[Experiment]) -> list[Reading]:
    """What each experiment's metric reads; it is built from lists of answers, so once for each metric object."""
    by_metric = {
        id(metric): metric.reading() for metric in {id(e.metric): e.metric for e in experiments}.values()
    }
    return [by_metric[id(experiment.metric)] for experiment in experiments]


def reads_of(experiment: Experiment, frame: Frame) -> Tensor:
    """Columns that an experiment's metric reads in a block, [batch, read]."""
    return read_columns(frame, experiment.metric.reading().positions)


def measure_pieces(head: Callable[..., Tensor], pieces: Sequence[Piece]) -> list[Tensor]:
    """Metrics of all pieces, [n] each in float64 on the CPU; one product for all that read the same kind.

    Args:
        head: Residual stream, and columns or None, to logits.
        pieces: With equal numbers of positions read.
    """
    found: list[Tensor | None] = [None] * len(pieces)
    # Pieces of one grid share a few metrics, and a reading is built from lists of answers each time.
    by_metric = {id(piece.metric): piece.metric.reading().columns for piece in pieces}
    columns = [by_metric[id(piece.metric)] for piece in pieces]
    with torch.no_grad():
        for reads_all in (False, True):
            mine = [i for i, column in enumerate(columns) if (column is None) == reads_all]
            if mine:
                logits_of = _logits(head, [pieces[i] for i in mine], [columns[i] for i in mine])
                for index, logits in zip(mine, logits_of, strict=True):
                    found[index] = pieces[index].metric.measure(logits).double().cpu()
    return [value for value in found if value is not None]


def _logits(
    head: Callable[..., Tensor], pieces: Sequence[Piece], columns: Sequence[Tensor | None]
) -> list[Tensor]:
    """Logits of each piece at its columns; either all pieces read every column, or none does."""
    residual = torch.cat([piece.residual for piece in pieces])
    sizes = [len(piece.prompts) for piece in pieces]
    wanted = [column for column in columns if column is not None]
    if not wanted:
        return list(head(residual).split(sizes))
    unique, places = torch.unique(torch.cat([column.flatten() for column in wanted]), return_inverse=True)
    logits = head(residual, unique.to(residual.device))
    out: list[Tensor] = []
    start = 0
    for part, column in zip(logits.split(sizes), wanted, strict=True):
        at = places[start : start + column.numel()].reshape(column.shape).to(part.device)
        out.append(part.gather(-1, at[:, None].expand(-1, part.shape[1], -1)))
        start += column.numel()
    return out
