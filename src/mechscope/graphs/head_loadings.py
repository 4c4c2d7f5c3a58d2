"""Head loadings: how much of an edge passes through each attention head.

At each layer between its ends an edge splits into what stays in the residual stream and what each head carries from
one position to another. The parts of one layer add up to the edge; those of different layers overlap, since a path
may pass several heads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mechscope.figures.labelled import LabelledArray
from mechscope.graphs.flow import Flow, Rows
from mechscope.graphs.graph import AttributionGraph, Which
from mechscope.graphs.intervene import open_again
from mechscope.graphs.local import Local
from mechscope.graphs.nodes import Node, indices_of
from mechscope.graphs.places import Places
from mechscope.graphs.push import push
from mechscope.graphs.stations import ATTN_IN, ATTN_RAW, PER_LAYER
from mechscope.graphs.sweep import Sweep
from mechscope.models.model import Model
from mechscope.vocabulary.errors import InterventionMismatch


def head_loadings(
    model: Model, graph: AttributionGraph, *, transcoders: Any, edges: Sequence[tuple[Which, Which]]
) -> LabelledArray:
    """Split edges by the heads that carry them.

    Args:
        model: The model of the graph.
        graph: Whose edges.
        transcoders: The dictionaries that it was made with.
        edges: (source, target) pairs.

    Returns:
        Axes edge, layer, head, in the targets' units. At a layer between the edge's ends, the heads and the residual
        stream beside them add up to the edge.

    Raises:
        InterventionMismatch: a graph of another model or dictionaries; an edge from a logit or to an error or token.

    Cost: one forward pass, one row for each target and one pass up the frozen model for each source.
    """
    pairs = [
        (graph.nodes[s], graph.nodes[t]) for s, t in (indices_of(graph.nodes, list(edge)) for edge in edges)
    ]
    wrong = [f"{s.name} -> {t.name}" for s, t in pairs if s.kind == "logit" or t.kind in ("error", "token")]
    if wrong or not pairs:
        raise InterventionMismatch(
            "These are no edges of a graph." if wrong else "There are no edges to split.",
            got=", ".join(wrong) or "none",
            because="sources are latents, errors and tokens; targets are latents and logits",
            instead="(source, target) pairs, as graph.inputs(target) lists them",
        )
    with torch.no_grad():
        local = open_again(model, transcoders, graph)
        places = Places(model, graph, local)
        down = [_gradients(local, places, target) for _, target in pairs]
        up = [_values(local, places, source) for source, _ in pairs]
        loads = torch.stack([_loads(local, g, x) for g, x in zip(down, up, strict=True)])
    return LabelledArray(
        loads.cpu().numpy(),
        ("edge", "layer", "head"),
        coords={
            "edge": [f"{s.name} -> {t.name}" for s, t in pairs],
            "layer": range(model.n_layers),
            "head": range(model.n_heads),
        },
        unit="of the target",
        title="what heads carry of an edge",
    )


def _gradients(local: Local, places: Places, target: Node) -> dict[int, Tensor]:
    """A target's gradient at every station that it passes, [pos, d_model]."""
    seen: dict[int, Tensor] = {}
    start, position, vector, before_cut = places.reading(target)

    def watch(station: int, flow: Flow, rows: Rows) -> None:
        dense = vector.new_zeros(local.frozen.n_positions, flow.values.shape[-1])
        for place, gradient, _ in flow.per_position(rows):
            dense[place] = gradient[0]
        seen[station] = dense

    own = torch.tensor([position], device=vector.device)
    rows = Rows.of_targets(own, local.frozen.n_positions, is_causal=local.frozen.is_causal)
    sweep = Sweep(local.frozen, local.cuts, rows=rows, visit=lambda *_: None, watch=watch)
    sweep.run(start, vector[None], before_cut=before_cut)
    return seen


def _values(local: Local, places: Places, source: Node) -> dict[int, Tensor]:
    """What a source alone brings to every station, [pos, d_model]."""
    injected = {}
    for station, vector in places.writing(source).items():
        injected[station] = vector.new_zeros(local.frozen.n_positions, len(vector))
        injected[station][source.position] = vector
    return push(local.frozen, local.cuts, injected)


def _loads(local: Local, down: dict[int, Tensor], up: dict[int, Tensor]) -> Tensor:
    """[layer, head]."""
    out = []
    for index, layer in enumerate(local.frozen.layers):
        gradient, read = down.get(PER_LAYER * index + ATTN_RAW), up[PER_LAYER * index + ATTN_IN]
        if gradient is None:
            out.append(read.new_zeros(len(layer.W_O)))
            continue
        values = torch.einsum("sd,kde->ske", read, layer.W_V)
        values = values.repeat_interleave(len(layer.W_O) // len(layer.W_V), dim=1)
        carried = torch.einsum("hqs,she->qhe", layer.pattern, values)
        out.append(torch.einsum("qhe,hed,qd->h", carried, layer.W_O, gradient))
    return torch.stack(out)
