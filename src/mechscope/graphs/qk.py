"""QK attribution: which pairs of sources make one position attend to another, exactly, for all pairs at once.

With patterns upstream and every denominator held, a query is a sum over sources of what each brings to it, and so is
a key; their score is then a sum over pairs. Two times d_head rows give every source's share of the query and of one
key, and one product gives all pairs: no second derivatives, no choice of candidates beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.graphs.frozen import rms_factor
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.intervene import open_again
from mechscope.graphs.local import Local
from mechscope.graphs.places import Places
from mechscope.graphs.stations import ATTN_IN, PER_LAYER
from mechscope.interventions.replace import edit
from mechscope.models.model import Model
from mechscope.vocabulary.errors import PointUnavailable, PositionOutOfRange
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True, eq=False, kw_only=True)
class QKAttribution:
    """One head's scores from one query to some keys, as sums over pairs of sources.

    Args:
        layer: Of the head.
        head: Query head.
        query: Position that attends.
        keys: Positions attended to, [key].
        labels: Names of sources: the graph's nodes, then "bias" and, where latents were left out, "others".
        pairs: Share of each pair in the score, [key, query source, key source].
        scores: The scores before a soft-cap, [key]; sums over all pairs.
    """

    layer: int
    head: int
    query: int
    keys: tuple[int, ...]
    labels: tuple[str, ...]
    pairs: Float[np.ndarray, "key source source"]
    scores: Float[np.ndarray, " key"]

    @property
    def query_share(self) -> Float[np.ndarray, "key source"]:
        """What each source brings through the query, whatever stands at the key."""
        return self.pairs.sum(2)

    @property
    def key_share(self) -> Float[np.ndarray, "key source"]:
        """What each source brings through the key, whatever stands at the query."""
        return self.pairs.sum(1)

    def top(self, key: int, k: int = 10) -> list[tuple[str, str, float]]:
        """The k strongest pairs for a key's position: (query source, key source, share of the score)."""
        if key not in self.keys:
            raise PositionOutOfRange(
                "That key was not asked for.", got=key, instead=", ".join(map(str, self.keys))
            )
        table = self.pairs[self.keys.index(key)]
        best = np.argsort(-np.abs(table), axis=None, kind="stable")[:k]
        return [
            (self.labels[i], self.labels[j], float(table[i, j]))
            for i, j in zip(*np.unravel_index(best, table.shape), strict=True)
        ]


def attribute_qk(
    model: Model,
    graph: AttributionGraph,
    *,
    transcoders: Any,
    layer: int,
    head: int,
    query: int = -1,
    keys: Sequence[int] | None = None,
) -> QKAttribution:
    """Explain a head's attention scores by pairs of the graph's sources.

    Args:
        model: The model of the graph.
        graph: Whose latents, errors and tokens are the sources.
        transcoders: The dictionaries that it was made with.
        layer: Of the head.
        head: Query head.
        query: Position that attends, negative from the end.
        keys: Positions attended to; None is all that the query may see.

    Raises:
        PositionOutOfRange: no such layer, head or position.
        InterventionMismatch: a graph of another model or of other dictionaries.
        PointUnavailable: queries pass a norm that can't be held.

    Cost: d_head rows for the query and d_head for each key, and one product of [source, d_head] for each key; runs of
        one layer to find the rotation.
    """
    n = len(graph.nodes.tokens)
    query = query % n if -n <= query < n else query
    chosen = list(range(query + 1)) if keys is None else [key % n if -n <= key < n else key for key in keys]
    _refuse_outside(model, layer, head, [query, *chosen], n)
    with torch.no_grad():
        local = open_again(model, transcoders, graph)
        kv_head = head * model.n_kv_heads // model.n_heads
        rotation = _after_projection(model, local, layer)
        queries = _shares(model, local, layer, "q", head, [query], rotation)[0]
        many_keys = _shares(model, local, layer, "k", kv_head, chosen, rotation)
        scaling = _scaling(model, local, layer)
        sources = [graph.nodes[i] for i in range(len(graph)) if graph.nodes[i].kind != "logit"]
        columns = Places(model, graph, local).columns(sources)
        labels = [node.name for node in sources] + ["bias"]
        grouped = [_grouped(shares, columns) for shares in (queries, *many_keys)]
        has_others = len(columns) < local.n_sources
        if not has_others:
            grouped = [share[:-1] for share in grouped]
        tables = torch.stack([grouped[0] @ share.T for share in grouped[1:]]) * scaling
    return QKAttribution(
        layer=layer,
        head=head,
        query=query,
        keys=tuple(chosen),
        labels=(*labels, *(["others"] if has_others else [])),
        pairs=tables.cpu().numpy(),
        scores=tables.sum((1, 2)).cpu().numpy(),
    )


def _shares(
    model: Model,
    local: Local,
    layer: int,
    which: str,
    head: int,
    positions: Sequence[int],
    rotation: dict[str, Tensor],
) -> list[Tensor]:
    """What each source brings to a query or key, and the bias, [source + 1, d_head], for each position."""
    frozen, weights = local.frozen, model.weights
    name = "W_Q" if which == "q" else "W_K"
    matrix = weights[name, layer][head].detach().to(frozen.dtype)  # [d_model, d_head]
    bias_name = name.replace("W", "b")
    bias = (
        weights[bias_name, layer][head].detach().to(frozen.dtype) if weights.has(bias_name, layer) else None
    )
    factor = _norm_factor(model, local, layer, which)
    start = PER_LAYER * layer + ATTN_IN
    rows, own = [], []
    for position in sorted(positions, reverse=True):
        turn = rotation[which][:, position, head]  # [d_head before, d_head after]
        after = matrix if factor is None else matrix * factor[position, head]
        rows.append((after @ turn).T)
        own += [position] * matrix.shape[1]
    vectors = torch.cat(rows)
    effects = local.rows(start, torch.tensor(own, device=vectors.device), vectors=vectors)
    constants = (local.arriving_constants[start][own] * vectors).sum(-1)
    shares = torch.cat([effects, constants[:, None]], dim=1).unflatten(0, (len(positions), -1))
    by_position = dict(zip(sorted(positions, reverse=True), shares, strict=True))
    found = []
    for position in positions:
        share = by_position[position].T.clone()
        if bias is not None:
            scaled = bias if factor is None else bias * factor[position, head]
            share[-1] += scaled @ rotation[which][:, position, head]
        found.append(share)
    return found


def _norm_factor(model: Model, local: Local, layer: int, which: str) -> Tensor | None:
    """weight / denominator of a norm on queries or keys, [pos, head, d_head]; None where there is none."""
    before, after = f"{which}_proj", f"{which}_pre"
    parts = model.binding.parts_of(layer)
    if after not in parts or before not in parts or parts[before].module == parts[after].module:
        return None
    sites = [Site(before, layer), Site(after, layer)]
    cache = model.run(local.frozen.tokens, capture=sites, stop_after=sites[1]).cache
    raw, out = (cache[site][0].to(local.frozen.dtype) for site in sites)
    return rms_factor(model, layer, part=parts[after], raw=raw, out=out)


def _after_projection(model: Model, local: Local, layer: int) -> dict[str, Tensor]:
    """What happens to queries and keys between projection (or norm) and scores, as matrices, by what it does to units.

    Returns:
        "q" and "k": [d_head before, pos, head, d_head after]. Rotations of every kind are found this way.
    """
    formed, found = set(model.binding.formed), {}
    batch = local.frozen.tokens
    resid = local.frozen.cache[Site("resid_pre", layer)]
    for which in ("q", "k"):
        before = next(
            (s for s in (Site(f"{which}_pre", layer), Site(f"{which}_proj", layer)) if s in formed), None
        )
        after = Site(which, layer)
        if before is None or after not in formed:
            raise PointUnavailable(
                f"Queries and keys of layer {layer} are out of reach.",
                got=model.binding.anatomy.family,
                because="this family forms no projection and score input that could be compared",
                instead="a family that forms q_proj, k_proj, q and k",
            )
        columns = []
        for unit in range(model.d_head):
            write = edit(before, lambda value, u=unit: _unit_like(value, u))
            start = ("resid_pre." + str(layer), resid) if layer else None
            run = model.run(batch, interventions=[write], capture=[after], stop_after=after, start=start)
            columns.append(run.cache[after][0].to(local.frozen.dtype))
        found[which] = torch.stack(columns)
    return found


def _unit_like(value: Tensor, unit: int) -> Tensor:
    out = torch.zeros_like(value)
    out[..., unit] = 1
    return out


def _scaling(model: Model, local: Local, layer: int) -> float:
    """The factor on scores, as the library passes it."""
    sites = [Site("q", layer), Site("k", layer)]
    # The call is kept once attention has run, so the run stops behind it.
    run = model.run(local.frozen.tokens, capture=sites, stop_after=Site("z", layer))
    return run.cache.call(layer).scaling


def _grouped(shares: Tensor, columns: list[int]) -> Tensor:
    """Shares of the graph's sources, the bias, and all others together, [source + 2, d_head]."""
    chosen = shares[torch.tensor(columns, device=shares.device)]
    others = shares[:-1].sum(0) - chosen.sum(0)
    return torch.cat([chosen, shares[-1:], others[None]])


def _refuse_outside(model: Model, layer: int, head: int, positions: Sequence[int], n: int) -> None:
    problems = []
    if not 0 <= layer < model.n_layers:
        problems.append(f"the model has layers 0 to {model.n_layers - 1}")
    if not 0 <= head < model.n_heads:
        problems.append(f"a layer has heads 0 to {model.n_heads - 1}")
    if any(not 0 <= position < n for position in positions):
        problems.append(f"the prompt has positions 0 to {n - 1}")
    if problems:
        raise PositionOutOfRange(
            "There is no such head or position.",
            got=f"layer {layer}, head {head}, positions {list(positions)}",
            because="; ".join(problems),
            instead="heads count query heads from 0",
        )
