"""Plan: experiments grouped by prompts, cut into blocks and chunks under a memory budget, with its cost foretold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from mechscope.engine.changes import AFTER_LAYERS, BEFORE_LAYERS, Prepared, is_at_the_entry, written_sites
from mechscope.engine.cost import (
    ChunkSize,
    base_bytes_per_row,
    chunk_size,
    flops_per_token,
    forward_bytes_per_row,
    head_flops,
    late_bytes_per_row,
    logit_bytes_per_row,
    token_layers,
)
from mechscope.engine.experiment import Experiment, groups_of
from mechscope.engine.late_start import Late
from mechscope.engine.naive import refuse_unreadable
from mechscope.engine.reading import readings_of
from mechscope.interventions.resolve import resolve
from mechscope.models.frame import Frame
from mechscope.models.model import Model
from mechscope.models.preparing import Facts, prepare_writes

DEFAULT_MEMORY = 2 * 2**30
FEWEST_SHARING = 3
"""So many experiments with the same writes at the first layer's input pay for a base run under those writes."""

_TOKENS_PER_CALL = {"cpu": 4096, "cuda": 65536}


@dataclass(frozen=True)
class Cost:
    """Work in floating-point operations, and memory.

    Args:
        naive_flops: One whole forward with the whole vocabulary for each experiment.
        flops: This plan: base runs, replayed tokens, columns read. An upper bound: changes that turn out to
            change nothing are dropped when the plan runs.
        peak_bytes: Activations at once: the largest base run and chunk, or the largest block of an experiment that
            is run one by one.
        n_rows: Prompts times experiments.
        n_late: Experiments that are run one by one, from the layer of their first change.
    """

    naive_flops: float
    flops: float
    peak_bytes: int
    n_rows: int
    n_late: int


@dataclass
class Group:
    """Experiments over the same prompts, and under the same writes at the first layer's input.

    Args:
        entry: Those writes, ready, with sites: the base run is under them.
        indices: Their places in the list given.
        experiments: Themselves.
        prepared: Their other writes, ready, with sites.
        blocks: Rows of the prompts that share a base run, as (start, stop).
        chunk: How much is packed at once.
    """

    entry: Prepared = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    prepared: list[Prepared] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    chunk: ChunkSize | None = None


@dataclass
class Layout:
    """What will be run and how it is cut; `engine.execute` runs it.

    Args:
        groups: Packed work.
        late: Experiments that are run one by one, each from the layer of its first change, block by block of prompts.
        experiments: All, in the order given, ablations resolved.
    """

    groups: list[Group]
    late: list[Late]
    experiments: list[Experiment]

    @property
    def n_rows(self) -> int:
        """Prompts times experiments."""
        return sum(len(experiment.inputs) for experiment in self.experiments)


@dataclass
class Plan(Layout):
    """A layout, and what it costs.

    Args:
        cost: Foretold.
    """

    cost: Cost

    def explain(self) -> str:
        """The plan in words: rows, floating-point operations, what is saved, memory."""
        cost = self.cost
        saved = cost.naive_flops / max(cost.flops, 1.0)
        blocks = sum(len(group.blocks) for group in self.groups)
        lines = [
            f"{len(self.experiments)} experiments, {cost.n_rows} rows",
            f"packed: {len(self.experiments) - cost.n_late} experiments in {len(self.groups)} groups, "
            f"{blocks} base runs",
            f"one by one, from the layer of their first change: {cost.n_late}{self._late_blocks()}",
            f"work: {cost.flops / 1e9:.3g} GFLOP at most; one forward per experiment: {cost.naive_flops / 1e9:.3g} "
            f"GFLOP ({saved:.1f}x)",
            f"peak memory: {cost.peak_bytes / 2**20:.0f} MiB",
        ]
        return "\n".join(lines)

    def _late_blocks(self) -> str:
        sets = {id(self.experiments[late.index].inputs): late for late in self.late}.values()
        n_blocks = sum(ceil(len(self.experiments[late.index].inputs) / late.n_at_once) for late in sets)
        largest = max((late.n_at_once for late in sets), default=0)
        return f", prompts in {n_blocks} blocks of at most {largest}" if sets else ""


def make_plan(model: Model, experiments: Sequence[Experiment], *, memory: int = DEFAULT_MEMORY) -> Plan:
    """Cut experiments into packed work and foretell what it costs; arguments and cost are those of `lay_out`."""
    layout = lay_out(model, experiments, memory=memory)
    return Plan(layout.groups, layout.late, layout.experiments, foretell(model, layout))


def lay_out(model: Model, experiments: Sequence[Experiment], *, memory: int = DEFAULT_MEMORY) -> Layout:
    """Cut experiments into packed work.

    Args:
        model: An open model.
        experiments: Ablations may be unresolved; their reference sets are run here, once each.
        memory: Budget in bytes for the activations of base runs, chunks and blocks. One prompt's are the least.

    Cost: one forward pass per distinct reference set; nothing else is run.
    """
    for experiment in {(id(e.inputs), id(e.metric)): e for e in experiments}.values():
        refuse_unreadable(model, experiment.inputs, experiment.metric)
    experiments = _resolved(model, experiments)
    groups: list[Group] = []
    late: list[Late] = []
    for indices in groups_of(experiments).values():
        inputs = experiments[indices[0]].inputs
        frame, facts = Frame.of(inputs), Facts(model, inputs)
        prepared = {
            index: prepare_writes(model, experiments[index].writes, frame, facts=facts) for index in indices
        }
        alone = {index: prepared[index] for index in indices if _must_run_alone(model, prepared[index])}
        late += _late_of(model, experiments, alone, memory)
        packed = [index for index in indices if index not in alone]
        for group in _grouped_by_entry(experiments, packed, prepared):
            _cut(group, model, memory)
            groups.append(group)
    return Layout(groups, late, experiments)


def _grouped_by_entry(
    experiments: Sequence[Experiment], indices: Sequence[int], prepared: Mapping[int, Prepared]
) -> list[Group]:
    """Groups of experiments over one set of prompts: a base run for each set of entry writes that pays for one."""
    by_entry: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        given = zip(experiments[index].writes, prepared[index], strict=True)
        key = tuple(id(write) for write, (_, sites) in given if is_at_the_entry(sites))
        by_entry.setdefault(key, []).append(index)
    plain = Group()
    groups = [plain]
    for members in by_entry.values():
        entry = [item for item in prepared[members[0]] if is_at_the_entry(item[1])]
        needs_base = any(site.point in BEFORE_LAYERS for _, sites in entry for site in sites)
        is_shared = bool(entry) and (needs_base or len(members) >= FEWEST_SHARING)
        group = Group(entry=entry) if is_shared else plain
        if is_shared:
            groups.append(group)
        for index in members:
            group.indices.append(index)
            group.experiments.append(experiments[index])
            group.prepared.append(
                [item for item in prepared[index] if not (is_shared and is_at_the_entry(item[1]))]
            )
    return [group for group in groups if group.indices]


def _resolved(model: Model, experiments: Sequence[Experiment]) -> list[Experiment]:
    writes = [write for experiment in experiments for write in experiment.writes]
    ready = iter(resolve(model, writes))
    return [replace(e, writes=tuple(next(ready) for _ in e.writes)) for e in experiments]


def _must_run_alone(model: Model, prepared: Prepared) -> bool:
    if not model.binding.anatomy.attention.has_interface:
        return True
    return any(site.point in AFTER_LAYERS for _, sites in prepared for site in sites)


def _late_of(
    model: Model, experiments: Sequence[Experiment], prepared: Mapping[int, Prepared], memory: int
) -> list[Late]:
    """Experiments over one set of prompts that run one by one, all cut alike: they share a block's run."""
    late = [Late.of(index, writes, model.n_layers) for index, writes in prepared.items()]
    if not late:
        return []
    n_rows = len(experiments[late[0].index].inputs)
    n_at_once = max(1, min(n_rows, memory // _bytes_per_row(model, experiments, late)))
    return [replace(item, n_at_once=n_at_once) for item in late]


def _bytes_per_row(model: Model, experiments: Sequence[Experiment], late: Sequence[Late]) -> int:
    """Bytes that a prompt needs in the most demanding of some late experiments over the same prompts."""
    mine = [experiments[item.index] for item in late]
    n_starts = len({item.layer for item in late} - {0})
    return max(
        late_bytes_per_row(
            model,
            experiment.inputs.shape[1],
            reading=reading,
            reaches_the_end=item.reaches_the_end,
            n_starts=n_starts,
        )
        for item, experiment, reading in zip(late, mine, readings_of(mine), strict=True)
    )


def _cut(group: Group, model: Model, memory: int) -> None:
    """Give a group its blocks and chunks: half of the memory for what the base run keeps, half for work beside it."""
    n_rows, n_columns = group.experiments[0].inputs.shape
    logits = _logit_bytes(model, group)
    block = max(1, min(n_rows, memory // 2 // max(_kept_and_passing(model, group, logits))))
    group.blocks = [(start, min(start + block, n_rows)) for start in range(0, n_rows, block)]
    group.chunk = chunk_size(
        model,
        n_columns,
        logit_bytes=logits,
        n_tokens=_TOKENS_PER_CALL.get(model.device.type, 4096),
        n_bytes=memory // 2,
    )


def _logit_bytes(model: Model, group: Group) -> int:
    """Bytes of the logits read of a prompt, of the metric that reads most."""
    return max(logit_bytes_per_row(model, reading) for reading in readings_of(group.experiments))


def _kept_and_passing(model: Model, group: Group, logits: int) -> tuple[int, int]:
    """Bytes of a prompt: what its base run keeps, and what it takes on the way through a layer or the unembedding."""
    n_columns = group.experiments[0].inputs.shape[1]
    kept = base_bytes_per_row(model, n_columns, written_sites(group.prepared))
    return kept, max(forward_bytes_per_row(model, n_columns), logits)


def _packed_peak(model: Model, group: Group) -> int:
    """Bytes at once of a group's largest block: what is kept, and the base run or the largest chunk beside it."""
    assert group.chunk is not None
    n_columns = group.experiments[0].inputs.shape[1]
    n_rows = max(stop - start for start, stop in group.blocks)
    kept, passing = _kept_and_passing(model, group, _logit_bytes(model, group))
    n_packed = n_rows * len(group.experiments)
    everything = group.chunk.bytes_of(n_packed * n_columns, n_packed, n_columns)
    one_row = group.chunk.bytes_of(n_columns, 1, n_columns)
    return n_rows * kept + max(n_rows * passing, min(everything, max(one_row, group.chunk.n_bytes)))


def foretell(model: Model, layout: Layout) -> Cost:
    """Cost of a layout from declared selections, before anything is run."""
    layer, vocabulary = flops_per_token(model)
    naive = sum(e.inputs.ids.numel() * (layer * model.n_layers + vocabulary) for e in layout.experiments)
    flops, peak = _late_cost(model, layout.experiments, layout.late)
    for group in layout.groups:
        inputs = group.experiments[0].inputs
        flops += inputs.ids.numel() * layer * model.n_layers
        peak = max(peak, _packed_peak(model, group))
        readings = readings_of(group.experiments)
        for experiment, prepared, reading in zip(group.experiments, group.prepared, readings, strict=True):
            flops += layer * token_layers(model, experiment, prepared, reading)
            flops += head_flops(model, experiment, reading)
    return Cost(naive, flops, peak, layout.n_rows, len(layout.late))


def _late_cost(model: Model, experiments: Sequence[Experiment], late: Sequence[Late]) -> tuple[float, int]:
    """Operations and bytes of experiments that run one by one, each set of prompts once up to the last start."""
    layer, vocabulary = flops_per_token(model)
    flops, peak = 0.0, 0
    for members in groups_of([experiments[item.index] for item in late]).values():
        items = [late[member] for member in members]
        mine = [experiments[item.index] for item in items]
        n_tokens = mine[0].inputs.ids.numel()
        flops += n_tokens * layer * max(item.layer for item in items)
        for item, experiment, reading in zip(items, mine, readings_of(mine), strict=True):
            flops += n_tokens * layer * (model.n_layers - item.layer)
            flops += n_tokens * vocabulary if item.reaches_the_end else head_flops(model, experiment, reading)
        n_at_once = min(item.n_at_once for item in items)
        peak = max(peak, n_at_once * _bytes_per_row(model, experiments, items))
    return flops, peak
