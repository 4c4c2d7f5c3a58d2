"""Intervene: nodes scaled in the model itself, and what the graph says of it beside what is measured.

What is held meanwhile is the mode: "constrained", "range", "iterative" or "free", see `modes`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.held import Change, Holding
from mechscope.graphs.local import Local, open_local
from mechscope.graphs.modes import MODES, Mode, hold
from mechscope.graphs.node_intervention import NodeIntervention
from mechscope.graphs.nodes import indices_of
from mechscope.graphs.places import Places
from mechscope.graphs.replacement import Replacement, described, replacements_of
from mechscope.graphs.stations import site_of
from mechscope.graphs.targets import final_site, target_vectors
from mechscope.interventions.intervention import Intervention
from mechscope.interventions.replace import edit
from mechscope.models.model import Model
from mechscope.vocabulary.errors import InterventionMismatch
from mechscope.vocabulary.sites import Site


def intervene(
    model: Model,
    graph: AttributionGraph,
    *,
    transcoders: Any,
    scale: Mapping[Any, float],
    mode: Mode = "constrained",
    layers: tuple[int, int] | None = None,
) -> NodeIntervention:
    """Scale nodes or supernodes in the model, and hold what the graph foretells against what happens.

    Args:
        model: The model of the graph.
        graph: A graph; pruned ones predict from the edges that they kept.
        transcoders: The dictionaries that it was made with.
        scale: Factor by node (index, name or node) or supernode (label): 0 removes, 1 changes nothing.
        mode: "constrained", "range", "iterative" or "free"; see `graphs.modes`.
        layers: First and last layer held, for "range".

    Raises:
        InterventionMismatch: a graph of another model or of other dictionaries; an unknown mode; a logit scaled.
        PositionOutOfRange: no such node.

    Cost: two forward passes.
    """
    _refuse_mode(model, mode, layers)
    with torch.no_grad():
        local = open_again(model, transcoders, graph)
        factors = _factors(graph, scale)
        places = Places(model, graph, local)
        change = _change(graph, local, places, factors)
        holding = hold(model, local, change=change, mode=mode, layers=layers)
        read = [index for kind in ("latent", "logit") for index in graph.nodes.of(kind)]
        measured = _measured(model, graph, holding, places)
    predicted = _predicted(graph, factors, mode=mode, layers=layers)
    return NodeIntervention(
        mode=mode,
        factors={graph.nodes.name(index): factor for index, factor in factors.items()},
        nodes=tuple(int(index) for index in read),
        names=tuple(_label(graph, int(index)) for index in read),
        before=graph.totals[read],
        predicted=predicted[read],
        measured=measured[read] - graph.totals[read],
    )


def open_again(model: Model, transcoders: Any, graph: AttributionGraph) -> Local:
    """The local replacement model that a graph was read from.

    Raises:
        InterventionMismatch: a graph of another model, of other dictionaries, or read from a file that does not say
            what its nodes read.

    Cost: one forward pass, one product with each encoder, and a hash of some rows of the dictionaries.
    """
    graph.refuse_other_model(model)
    parts = replacements_of(model, transcoders)
    _refuse_other_dictionaries(graph, parts)
    _refuse_unknown_totals(graph)
    batch = model.tokens(graph.settings["tokens"])
    return open_local(
        model, parts, batch=batch, mlps=graph.settings["mlps"], left_out=tuple(graph.settings["left_out"])
    )


def _refuse_other_dictionaries(graph: AttributionGraph, parts: Sequence[Replacement]) -> None:
    known, given = graph.settings.get("dictionaries"), described(parts)
    if known != given:
        raise InterventionMismatch(
            "These are not the dictionaries that the graph was made with.",
            got=f"{len(given)} dictionaries, the graph has {len(known or [])}",
            because="their hashes differ, so the graph's latents are other latents",
            instead="the same dictionaries in the same order",
        )


def _refuse_unknown_totals(graph: AttributionGraph) -> None:
    if np.isnan(graph.totals).any():
        raise InterventionMismatch(
            "This graph does not say what its nodes read.",
            got=f"{int(np.isnan(graph.totals).sum())} nodes whose total is not known",
            because="it was read from a front end's file that has no field for that, so a change can't be told",
            instead="the record that graph.save wrote, or a file of this version's save_graph_json",
        )


def _refuse_mode(model: Model, mode: str, layers: tuple[int, int] | None) -> None:
    if mode not in MODES:
        raise InterventionMismatch("There is no such mode.", got=repr(mode), instead=", ".join(MODES))
    is_range = layers is not None and 0 <= layers[0] <= layers[1] < model.n_layers
    if (mode == "range") != (layers is not None) or (mode == "range" and not is_range):
        raise InterventionMismatch(
            'The mode "range" needs the layers that are held, and no other mode takes any.',
            got=f"mode {mode!r}, layers {layers}",
            because=f"the model has layers 0 to {model.n_layers - 1}",
            instead=f'mode="range", layers=(0, {model.n_layers - 1})',
        )


def _factors(graph: AttributionGraph, scale: Mapping[Any, float]) -> dict[int, float]:
    groups = {group.label: group.members for group in graph.supernodes}
    factors: dict[int, float] = {}
    for key, factor in scale.items():
        members = groups[key] if isinstance(key, str) and key in groups else indices_of(graph.nodes, key)
        factors |= dict.fromkeys(members, float(factor))
    logits = [graph.nodes.name(index) for index in factors if index in graph.nodes.of("logit")]
    if logits or not factors:
        raise InterventionMismatch(
            "Targets can't be scaled." if logits else "There is nothing to scale.",
            got=", ".join(logits) or "no nodes",
            because="a logit is what is measured",
            instead="latents, errors, tokens or supernodes",
        )
    return factors


def _change(graph: AttributionGraph, local: Local, places: Places, factors: Mapping[int, float]) -> Change:
    n, device = local.frozen.n_positions, local.tokens.device
    latents = [torch.ones_like(active.values) for active in local.actives]
    errors, tokens = {}, torch.ones(n, dtype=local.frozen.dtype, device=device)
    for index, factor in factors.items():
        node = graph.nodes[index]
        if node.kind == "token":
            tokens[node.position] = factor
        elif node.kind == "error":
            station = places.error_station(node)
            errors.setdefault(station, torch.ones_like(tokens))[node.position] = factor
        else:
            i, j = places.latent(node)
            latents[i][j] = factor
    return Change(latents=latents, errors=errors, tokens=tokens)


def _measured(model: Model, graph: AttributionGraph, holding: Holding, places: Places) -> np.ndarray:
    """What every latent and logit reads in the run under the interventions, [node]."""
    local = holding.local
    n_layers, dtype = local.frozen.n_layers, local.frozen.dtype
    arrived: dict[int, Tensor] = {}
    reads = {active.part.reads: site_of(active.part.reads, n_layers) for active in local.actives}
    for station, site in reads.items():
        if station in local.cuts.written:  # what a dictionary reads there is overwritten there
            holding.writes.insert(0, _noting(site, arrived, station))
    final = final_site(model)
    run = model.run(local.frozen.tokens, interventions=holding.writes, capture=[*reads.values(), final])
    out = np.zeros(len(graph))
    found = places.node_of()
    for i, active in enumerate(local.actives):
        station = active.part.reads
        value = arrived[station] if station in active.part.writes else run.cache[reads[station]][0]
        vectors, biases = active.part.encoder_rows(active.latents)
        totals = (value.to(dtype)[active.positions] * vectors.to(dtype)).sum(-1) + biases
        mine = [(found[i, j], j) for j in range(len(totals)) if (i, j) in found]
        if mine:
            nodes, chosen = zip(*mine, strict=True)
            out[list(nodes)] = totals[list(chosen)].cpu()
    vectors, biases = target_vectors(model, graph.targets, dtype)
    out[graph.nodes.of("logit")] = (vectors @ run.cache[final][0, -1].to(dtype) + biases).cpu()
    return out


def _noting(site: Site, into: dict[int, Tensor], station: int) -> Intervention:
    def note(value: Tensor) -> Tensor:
        into[station] = value
        return value

    return edit(site, note)


def _predicted(
    graph: AttributionGraph, factors: Mapping[int, float], *, mode: Mode, layers: tuple[int, int] | None
) -> np.ndarray:
    """Change of what each node reads: direct effects, or effects along all paths of latents that are free to move."""
    moved = np.zeros(len(graph))  # relative change of each node
    for index, factor in factors.items():
        moved[index] = factor - 1
    change = np.zeros(len(graph))
    is_latent = np.zeros(len(graph), bool)
    is_latent[graph.nodes.of("latent")] = True
    free = is_latent & (mode != "constrained")
    if layers is not None:
        free &= (graph.nodes.layers < layers[0]) | (graph.nodes.layers > layers[1])
    free[list(factors)] = False
    for block in reversed(graph.adjacency.blocks):  # first layers first
        change[block.targets] = block.values @ moved[block.sources]
        loose = block.targets[free[block.targets]]
        moved[loose] = change[loose] / graph.totals[loose]
    return change


def _label(graph: AttributionGraph, index: int) -> str:
    name = graph.nodes.name(index)
    return f"{name}: {graph.nodes[index].text}" if name.startswith("logit") else name
