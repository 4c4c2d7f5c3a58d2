"""Plan: experiments grouped by prompts, cut into blocks and chunks under a memory budget, with its cost foretold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from mechscope.engine.changes import (
    AFTER_LAYERS,
    BEFORE_LAYERS,
    FEEDS_KEYS,
    Prepared,
    is_at_the_entry,
)
from mechscope.engine.experiment import Experiment, groups_of
from mechscope.engine.late_start import Late
from mechscope.engine.naive import read_columns
from mechscope.interventions.metrics import Reading
from mechscope.interventions.resolve import resolve
from mechscope.models.frame import Frame
from mechscope.models.model import Model
from mechscope.models.preparing import prepare_writes

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
        peak_bytes: Largest base run plus the largest chunk.
        n_rows: Prompts times experiments.
        n_whole_runs: Experiments that are run one by one, from the layer of their first change.
    """

    naive_flops: float
    flops: float
    peak_bytes: int
    n_rows: int
    n_whole_runs: int


@dataclass
class Group:
    """Experiments over the same prompts, and under the same writes at the first layer's input.

    Args:
        entry: Those writes, ready, with sites: the base run is under them.
        indices: Their places in the list given.
        experiments: Themselves.
        prepared: Their other writes, ready, with sites.
        blocks: Rows of the prompts that share a base run, as (start, stop).
        tokens_per_chunk: Most packed tokens at once.
    """

    entry: Prepared = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    prepared: list[Prepared] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    tokens_per_chunk: int = 4096


@dataclass
class Layout:
    """What will be run and how it is cut; `engine.execute` runs it.

    Args:
        groups: Packed work.
        late: Experiments that are run one by one, each from the layer of its first change.
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
            f"packed: {len(self.experiments) - cost.n_whole_runs} experiments in {len(self.groups)} groups, "
            f"{blocks} base runs",
            f"one by one, from the layer of their first change: {cost.n_whole_runs}",
            f"work: {cost.flops / 1e9:.3g} GFLOP at most; one forward per experiment: {cost.naive_flops / 1e9:.3g} "
            f"GFLOP ({saved:.1f}x)",
            f"peak memory: {cost.peak_bytes / 2**20:.0f} MiB",
        ]
        return "\n".join(lines)


def make_plan(model: Model, experiments: Sequence[Experiment], *, memory: int = DEFAULT_MEMORY) -> Plan:
    """Cut experiments into packed work and foretell what it costs; arguments and cost are those of `lay_out`."""
    layout = lay_out(model, experiments, memory=memory)
    return Plan(layout.groups, layout.late, layout.experiments, foretell(model, layout))


def lay_out(model: Model, experiments: Sequence[Experiment], *, memory: int = DEFAULT_MEMORY) -> Layout:
    """Cut experiments into packed work.

    Args:
        model: An open model.
        experiments: Ablations may be unresolved; their reference sets are run here, once each.
        memory: Budget in bytes for base runs and chunks.

    Cost: one forward pass per distinct reference set; nothing else is run.
    """
    experiments = _resolved(model, experiments)
    groups: list[Group] = []
    late: list[Late] = []
    for indices in groups_of(experiments).values():
        frame = Frame.of(experiments[indices[0]].inputs)
        prepared = {index: prepare_writes(model, experiments[index].writes, frame) for index in indices}
        alone = [index for index in indices if _must_run_alone(model, prepared[index])]
        late += [Late.of(index, prepared[index], model.n_layers) for index in alone]
        packed = [index for index in indices if index not in set(alone)]
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


def _cut(group: Group, model: Model, memory: int) -> None:
    n_rows, n_columns = group.experiments[0].inputs.shape
    per_token = base_bytes_per_token(model)
    block = max(1, min(n_rows, memory // 2 // (per_token * n_columns)))
    group.blocks = [(start, min(start + block, n_rows)) for start in range(0, n_rows, block)]
    most = _TOKENS_PER_CALL.get(model.device.type, 4096)
    group.tokens_per_chunk = max(n_columns, min(most, memory // 2 // chunk_bytes_per_token(model, n_columns)))


def base_bytes_per_token(model: Model) -> int:
    """Bytes that a base run keeps per token: residual stream, queries, keys and values of every layer."""
    width = model.d_model + model.d_head * (model.n_heads + 2 * model.n_kv_heads)
    return (model.n_layers + 1) * width * model.dtype.itemsize


def chunk_bytes_per_token(model: Model, n_columns: int) -> int:
    """Bytes that a packed token needs at its widest: MLP, keys and values of its row, and its attention weights."""
    wide = 4 * model.d_model + 3 * model.sizes.get("d_mlp", 4 * model.d_model)
    return (wide + model.n_heads * (n_columns + 2 * model.d_head) * 2) * model.dtype.itemsize


def foretell(model: Model, layout: Layout) -> Cost:
    """Cost of a layout from declared selections, before anything is run."""
    layer, vocabulary = flops_per_token(model)
    naive = sum(e.inputs.ids.numel() * (layer * model.n_layers + vocabulary) for e in layout.experiments)
    flops, peak = _late_cost(model, layout.experiments, layout.late)
    for group in layout.groups:
        inputs = group.experiments[0].inputs
        flops += inputs.ids.numel() * layer * model.n_layers
        rows = max(stop - start for start, stop in group.blocks)
        base = rows * inputs.shape[1] * base_bytes_per_token(model)
        peak = max(peak, base + group.tokens_per_chunk * chunk_bytes_per_token(model, inputs.shape[1]))
        readings: dict[int, Reading] = {}
        for experiment, prepared in zip(group.experiments, group.prepared, strict=True):
            key = id(experiment.metric)
            if key not in readings:
                readings[key] = experiment.metric.reading()
            n_tokens = _tokens_foretold(model, experiment, prepared, readings[key])
            flops += layer * n_tokens + _head_flops(model, experiment, readings[key], vocabulary)
    return Cost(naive, flops, peak, layout.n_rows, len(layout.late))


def _late_cost(model: Model, experiments: Sequence[Experiment], late: Sequence[Late]) -> tuple[float, int]:
    """Operations and bytes of experiments that run one by one, each set of prompts once up to the last start."""
    layer, vocabulary = flops_per_token(model)
    flops, peak = 0.0, 0
    before: dict[int, set[int]] = {}
    for item in late:
        experiment = experiments[item.index]
        n_tokens = experiment.inputs.ids.numel()
        flops += n_tokens * layer * (model.n_layers - item.layer)
        flops += (
            n_tokens * vocabulary
            if item.reaches_the_end
            else _head_flops(model, experiment, experiment.metric.reading(), vocabulary)
        )
        starts = before.setdefault(id(experiment.inputs), set())
        flops += n_tokens * layer * max(0, item.layer - max(starts, default=0))
        starts.add(item.layer)
        n_kept = len(starts - {0}) + 1
        peak = max(peak, n_tokens * model.d_model * n_kept * model.dtype.itemsize)
    return flops, peak


def flops_per_token(model: Model) -> tuple[float, float]:
    """Floating-point operations of one token in one layer, and in the unembedding (products only)."""
    n_parameters = sum(p.numel() for p in model.binding.layers[0].parameters() if p.ndim > 1)
    return 2.0 * n_parameters, 2.0 * model.d_model * model.sizes["d_vocab"]


def _head_flops(model: Model, experiment: Experiment, reading: Reading, vocabulary: float) -> float:
    n_reads = len(experiment.inputs) * len(reading.positions)
    if reading.columns is None:
        return n_reads * vocabulary
    return 2.0 * n_reads * model.d_model * reading.columns.shape[1]


def _tokens_foretold(model: Model, experiment: Experiment, prepared: Prepared, reading: Reading) -> int:
    """Token-layers of an experiment if every write changes everything that it selects."""
    frame = Frame.of(experiment.inputs)
    columns = torch.arange(frame.ids.shape[1])
    real = frame.positions(columns) >= 0
    reads = read_columns(frame, reading.positions)
    reachable = real & (columns[None, :] <= reads.max(1).values[:, None])
    dirty = torch.zeros_like(real)
    by_layer = _written_by_layer(prepared, frame, columns, real)
    n_layers, total, n_dirty = model.n_layers, 0, 0
    for layer in range(n_layers):
        # Once nothing more is written, every later position is dirty, and stays so.
        if layer in by_layer or layer - 1 in by_layer:
            late = torch.zeros_like(dirty)
            for point, chosen in by_layer.get(layer, []):
                if point in FEEDS_KEYS:
                    dirty = dirty | chosen
                else:
                    late |= chosen
            dirty = ((dirty.long().cumsum(1) > 0) | late) & reachable
            n_dirty = int(dirty.sum())
        if layer == n_layers - 1:
            reading_here = torch.zeros_like(dirty).scatter(1, reads, True)
            total += int((dirty & reading_here).sum()) + n_dirty // 4
        else:
            total += n_dirty
    return total


def _written_by_layer(
    prepared: Prepared, frame: Frame, columns: torch.Tensor, real: torch.Tensor
) -> dict[int, list[tuple[str, torch.Tensor]]]:
    """Points that writes reach and the tokens that they select, by layer."""
    by_layer: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for write, sites in prepared:
        chosen = frame.selected(write.where, columns)
        for site in sites:
            here = real if chosen is None else chosen & real
            by_layer.setdefault(site.layer or 0, []).append((site.point, here))
    return by_layer
