"""The oracle: rows of an attribution graph by autograd through the transformers model, one backward pass a target.

Independent of the package's operator: the model itself runs with gradients under edits that hold patterns, norms and
what is cut; what stands at a cut is a leaf, and a row is that leaf's gradient times what each source writes.
"""

import torch
from torch import Tensor

from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.held import Holding
from mechscope.graphs.local import Local, open_local
from mechscope.graphs.replacement import replacements_of
from mechscope.graphs.stations import site_of
from mechscope.graphs.targets import final_site, target_vectors
from mechscope.models.model import Model


def rows_by_autograd(model: Model, dictionaries: object, graph: AttributionGraph) -> Tensor:
    """The dense matrix [target, source] of a graph in which nothing was pruned or left out."""
    local = open_local(
        model,
        replacements_of(model, dictionaries),
        batch=model.tokens(graph.settings["tokens"]),
        mlps=graph.settings["mlps"],
        left_out=tuple(graph.settings["left_out"]),
    )
    leaves, reads, targets = _run(model, local)
    out = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    for active in local.actives:
        own = active.part.reads in active.part.writes
        value = (targets if own else reads)[active.part.reads]
        vectors, _ = active.part.encoder_rows(active.latents)
        for i, position in enumerate(active.positions.tolist()):
            _fill(out[active.first + i], (value[position] * vectors[i]).sum(), leaves, local)
    vectors, _ = target_vectors(model, graph.targets, torch.float64)
    for i, vector in enumerate(vectors):
        _fill(out[local.n_sources + i], (reads[-1][-1] * vector).sum(), leaves, local)
    return out


def _run(model: Model, local: Local) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """Leaves by cut station (and 0), values that are read, and values that arrive where a cut overwrites them."""
    holding = Holding(model, local)
    holding.patterns()
    leaves: dict[int, Tensor] = {}
    arriving: dict[int, Tensor] = {}
    seen: dict[int, Tensor] = {}
    n_layers = local.frozen.n_layers
    stations = {active.part.reads for active in local.actives}

    def cut(value: Tensor, station: int) -> Tensor:
        arriving[station] = value
        leaf = local.frozen.value(site_of(station, n_layers)) if station else local.tokens
        leaves[station] = leaf.detach().clone().requires_grad_()
        total = leaves[station]
        for read, matrix in local.cuts.skips.get(station, ()):
            moved = seen[read] @ matrix
            total = total + moved - moved.detach()
        return total

    for station in (0, *local.errors):
        holding.put(station, lambda value, s=station: cut(value, s))

    def note(value: Tensor, station: int) -> Tensor:
        seen[station] = value
        return value

    for station in stations:
        holding.put(station, lambda value, s=station: note(value, s))
    holding.denominators()
    holding.gates()
    final = final_site(model)
    run = model.run(local.frozen.tokens, interventions=holding.writes, capture=[final], grad=True)
    return leaves, seen | {-1: run.cache[final][0]}, arriving


def _fill(row: Tensor, read: Tensor, leaves: dict[int, Tensor], local: Local) -> None:
    stations = list(leaves)
    found = torch.autograd.grad(read, [leaves[s] for s in stations], retain_graph=True, allow_unused=True)
    for station, gradient in zip(stations, found, strict=True):
        if gradient is None:
            continue
        if station == 0:
            row[local.token_column : local.token_column + len(gradient)] = (gradient * local.tokens).sum(-1)
            continue
        column = local.error_columns[station]
        row[column : column + len(gradient)] = (gradient * local.errors[station]).sum(-1)
        for active in local.actives:
            if station in active.part.writes:
                effects = (gradient[active.positions] * active.written[station]).sum(-1)
                row[active.first : active.first + len(effects)] += effects
