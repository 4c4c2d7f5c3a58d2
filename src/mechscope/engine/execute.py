"""Execute: run a plan on this machine. Results equal one whole forward per experiment."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mechscope.engine.base import Base, record_base
from mechscope.engine.changes import Change, Differences, written_sites
from mechscope.engine.experiment import Experiment, Results
from mechscope.engine.late_start import measure_late
from mechscope.engine.packed import Replay, Row, Tally
from mechscope.engine.packed_attention import PackedTokens
from mechscope.engine.plan import DEFAULT_MEMORY, Group, Layout, lay_out
from mechscope.engine.reading import Piece, measure_pieces, reads_of
from mechscope.interventions.metrics import Metric
from mechscope.models.frame import Frame
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.models.writing import writers_for

Choices = tuple[int, Tensor, Tensor, Tensor, Tensor]
"""Layer; experiment, row and column of each token, [token]; its experts, [token, choice]."""

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


@runtime_checkable
class Executor(Protocol):
    """Something that runs a plan or its layout: this machine, or later a cluster."""

    def execute(self, model: Model, plan: Layout, *, progress: Progress | None = None) -> Results: ...


def run_experiments(
    model: Model,
    experiments: Sequence[Experiment],
    *,
    memory: int = DEFAULT_MEMORY,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Results:
    """Plan experiments and run them.

    Args:
        model: An open model.
        experiments: Those that share an `inputs` object share a base run.
        memory: Budget in bytes.
        executor: Where the plan runs; this machine by default.
        progress: Told rows done and rows in all.

    Returns:
        Metrics in the order given.

    Cost: `make_plan(...).explain()` foretells it.
    """
    layout = lay_out(model, experiments, memory=memory)
    return (executor or LocalExecutor()).execute(model, layout, progress=progress)


class LocalExecutor:
    """Runs a plan on this machine.

    Args:
        keeps_choices: Keep which experts a mixture's replayed tokens get.

    Attributes:
        tally: Packed work done by the last plan.
        choices: Layer, and for each token its experiment's place, row, column and experts [token, choice]; empty
            unless kept.
    """

    def __init__(self, *, keeps_choices: bool = False) -> None:
        self.tally = Tally()
        self.choices: list[Choices] = []
        self._keeps_choices = keeps_choices

    def execute(self, model: Model, plan: Layout, *, progress: Progress | None = None) -> Results:
        """Metrics of the plan's experiments, in the order in which they were given."""
        self.tally, self.choices = Tally(), []
        values = [torch.zeros(len(e.inputs), dtype=torch.float64) for e in plan.experiments]
        done = 0
        for index, rows, found in measure_late(model, plan.experiments, plan.late):
            values[index][rows] = found
            done += len(rows)
            _tell(progress, done, plan.n_rows)
        for group in plan.groups:
            for start, stop in group.blocks:
                with model.ready():
                    for n_done in self._block(model, group, torch.arange(start, stop), values):
                        done += n_done
                        _tell(progress, done, plan.n_rows)
        return Results(tuple(values))

    def _block(self, model: Model, group: Group, rows: Tensor, values: list[Tensor]) -> Iterator[int]:
        frame = Frame.of(group.experiments[0].inputs).part(rows)
        writers = writers_for(group.entry, frame)
        base = record_base(model.binding, frame, written_sites(group.prepared), writers=writers)
        head = head_of(model.binding)
        for place, found in enumerate(_unchanged(group, base, rows, head)):
            values[group.indices[place]][rows] = found
        n_done = 0
        for chunk in _chunks(group, base):
            hears = self._keeper(group, chunk, rows) if self._keeps_choices else None
            replay = Replay(model.binding, base, [row for _, row in chunk], self.tally, hears)
            residual = replay.run()
            pieces = _pieces(group, chunk, residual, rows)
            for piece, found in zip(pieces, measure_pieces(head, pieces), strict=True):
                values[group.indices[piece.place]][rows[piece.prompts]] = found
            n_done += len(chunk)
            yield len(chunk)
        yield len(group.experiments) * len(rows) - n_done

    def _keeper(
        self, group: Group, chunk: "Chunk", rows: Tensor
    ) -> Callable[[int, PackedTokens, Tensor], None]:
        places = torch.tensor([group.indices[place] for place, _ in chunk])

        def keep(layer: int, tokens: PackedTokens, choice: Tensor) -> None:
            which = places[tokens.rows]
            self.choices.append((layer, which, rows[tokens.prompts], tokens.columns, choice.cpu()))

        return keep


Chunk = list[tuple[int, Row]]
"""Rows of a chunk, each with the place of its experiment in the group."""


def _chunks(group: Group, base: Base) -> Iterator[Chunk]:
    """Rows that change something, cut so that a chunk holds no more than is planned."""
    assert group.chunk is not None
    chunk: Chunk = []
    n_tokens = n_slots = n_reads = 0
    reads_by_metric = {id(e.metric): reads_of(e, base.frame) for e in _of_each_metric(group.experiments)}
    ends_by_metric = {metric: reads.max(1).values + 1 for metric, reads in reads_by_metric.items()}
    differences = Differences(base, group.prepared)
    for place in _by_first_layer(group):
        changes = differences.changes_of(group.prepared[place])
        metric = id(group.experiments[place].metric)
        reads = reads_by_metric[metric]
        for prompt, size in enumerate(_tokens_per_row(changes, ends_by_metric[metric])):
            if not size:
                continue
            fits = group.chunk.holds(n_tokens + size, len(chunk) + 1, max(n_slots, size))
            if chunk and not (fits and reads.shape[1] == n_reads):
                yield chunk
                chunk, n_tokens, n_slots = [], 0, 0
            chunk.append((place, Row(changes, prompt, tuple(reads[prompt].tolist()))))
            n_tokens, n_slots = n_tokens + size, max(n_slots, size)
            n_reads = reads.shape[1]
    if chunk:
        yield chunk


def _of_each_metric(experiments: Sequence[Experiment]) -> list[Experiment]:
    """One experiment of each metric object: those of a sweep share theirs, and readings are built from lists."""
    return list({id(experiment.metric): experiment for experiment in experiments}.values())


def _by_first_layer(group: Group) -> list[int]:
    """Experiments ordered by their first layer, so that the rows of a chunk join together."""

    def first(place: int) -> int:
        return min((site.layer or 0 for _, sites in group.prepared[place] for site in sites), default=0)

    return sorted(range(len(group.experiments)), key=first)


def _tokens_per_row(changes: Sequence[Change], ends: Tensor) -> list[int]:
    """Most tokens that each prompt of an experiment puts through one layer; 0 where nothing changes.

    Args:
        changes: The experiment's.
        ends: The column behind the last one read, [prompt].
    """
    if not changes:
        return [0] * len(ends)
    changed = changes[0].changed
    for change in changes[1:]:
        changed = changed | change.changed
    highest, first = changed.byte().max(1)
    return ((ends - first).clamp(min=1) * highest).tolist()


def _pieces(group: Group, chunk: Chunk, residual: Tensor, rows: Tensor) -> list[Piece]:
    """The chunk's rows gathered by experiment, with the part of the metric that they are for."""
    pieces: list[Piece] = []
    selected: dict[tuple[int, tuple[int, ...]], Metric] = {}
    start = 0
    for index, (place, _) in enumerate(chunk):
        if index + 1 < len(chunk) and chunk[index + 1][0] == place:
            continue
        prompts = torch.tensor([row.prompt for _, row in chunk[start : index + 1]])
        metric, chosen = group.experiments[place].metric, tuple(rows[prompts].tolist())
        key = (id(metric), chosen)
        if key not in selected:
            selected[key] = metric.select(chosen)
        pieces.append(Piece(place, prompts, selected[key], residual[start : index + 1]))
        start = index + 1
    return pieces


def _unchanged(group: Group, base: Base, rows: Tensor, head: Callable[..., Tensor]) -> list[Tensor]:
    """Every experiment's metric of the base run, [n] each; rows that change are overwritten later."""
    found: dict[int, Tensor] = {}
    prompts = torch.arange(len(rows))
    final = base.residuals[-1]
    for place, experiment in enumerate(group.experiments):
        key = id(experiment.metric)
        if key not in found:
            reads = reads_of(experiment, base.frame).to(final.device)
            residual = final[prompts[:, None].to(final.device), reads]
            piece = Piece(place, prompts, experiment.metric.select(rows.tolist()), residual)
            found[key] = measure_pieces(head, [piece])[0]
    return [found[id(experiment.metric)] for experiment in group.experiments]


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
