"""Reading: from the residual stream at the positions read to metrics, unembedding only the columns read."""

from collections import defaultdict
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
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        for groups in _measured_together(pieces):
            joined = [_joined([pieces[i] for i in which]) for which in groups]
            for which, piece, logits in zip(groups, joined, _logits(head, joined), strict=True):
                values = piece.metric.measure(logits).double().cpu()
                found |= zip(which, values.split([len(pieces[i].prompts) for i in which]), strict=True)
    return [found[i] for i in range(len(pieces))]


def _measured_together(pieces: Sequence[Piece]) -> tuple[list[list[int]], list[list[int]]]:
    """Pieces that read some columns, those of one metric object as one, and pieces that read all, each by itself."""
    by_metric: dict[int, list[int]] = defaultdict(list)
    for index, piece in enumerate(pieces):
        by_metric[id(piece.metric)].append(index)
    reads_all = {key: pieces[which[0]].metric.reading().columns is None for key, which in by_metric.items()}
    some = [which for key, which in by_metric.items() if not reads_all[key]]
    every = [[index] for key, which in by_metric.items() if reads_all[key] for index in which]
    return some, every


def _joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one metric object as one piece, the metric's rows once for each."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    n_rows = len(first.prompts)
    metric = first.metric.select(list(range(n_rows)) * len(pieces))
    prompts = torch.cat([piece.prompts for piece in pieces])
    return Piece(first.place, prompts, metric, torch.cat([piece.residual for piece in pieces]))


def _logits(head: Callable[..., Tensor], pieces: Sequence[Piece]) -> list[Tensor]:
    """Logits of each piece at its columns; either all pieces read every column, or none does."""
    if not pieces:
        return []
    residual = torch.cat([piece.residual for piece in pieces])
    sizes = [len(piece.prompts) for piece in pieces]
    wanted = [column for piece in pieces if (column := piece.metric.reading().columns) is not None]
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
