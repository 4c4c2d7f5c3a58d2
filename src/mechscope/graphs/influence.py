"""Influence: how much of the targets each node accounts for, along all paths, and what may be left out.

Rows of absolute direct effects are normalised to one; a node's influence is the sum over paths from the targets,
weighted by their probabilities. A graph has no cycles, so one pass over its blocks, last targets first, is exact.
What a row dropped stays in its sum, so that influence is never overstated. One block at a time is dense.
Definitions: docs/methods/attribution_graphs.md.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechscope.graphs.adjacency import Adjacency
from mechscope.graphs.nodes import KINDS, Nodes
from mechscope.graphs.row_blocks import Block, RowBlock, input_sizes, packed
from mechscope.vocabulary.errors import InterventionMismatch

SMALLEST_SUM = 1e-10
"""Row sums below it are taken for it, so that a target without sources divides by no zero."""


@dataclass(frozen=True)
class Scores:
    """How much of a graph its latents explain, 0 to 1.

    Args:
        replacement: Share of the influence that reaches tokens rather than errors.
        completeness: Share of inputs that are not errors, weighted by the nodes' influence.
    """

    replacement: float
    completeness: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruned:
    """What is left of a graph.

    Args:
        kept: Nodes kept, rising.
        adjacency: Of these nodes, renumbered; zero where an edge was left out.
    """

    kept: Int[np.ndarray, " n"]
    adjacency: Adjacency


def node_influence(adjacency: Adjacency, weights: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """Influence of every node on the targets.

    Args:
        adjacency: Blocks in topological order.
        weights: Of the targets; zero for all other nodes.

    Cost: one pass over the entries.
    """
    influence = np.zeros(adjacency.n_nodes)
    for block in adjacency.blocks:
        shares, arriving = _shares(block), (influence + weights)[block.targets]
        influence[block.sources] += arriving @ shares
    return influence


def score_graph(adjacency: Adjacency, nodes: Nodes, weights: Float[np.ndarray, " node"]) -> Scores:
    """Replacement and completeness scores of a whole graph."""
    influence = node_influence(adjacency, weights)
    is_error = nodes.kinds == KINDS.index("error")
    tokens = influence[nodes.kinds == KINDS.index("token")].sum()
    errors = influence[is_error].sum()
    without_errors = np.ones(len(nodes))
    for block in adjacency.blocks:
        without_errors[block.targets] -= _shares(block)[:, is_error[block.sources]].sum(1)
    output = influence + weights
    return Scores(
        replacement=float(tokens / max(tokens + errors, SMALLEST_SUM)),
        completeness=float((without_errors * output).sum() / max(output.sum(), SMALLEST_SUM)),
    )


def prune(
    adjacency: Adjacency,
    nodes: Nodes,
    *,
    weights: Float[np.ndarray, " node"],
    node_share: float = 0.8,
    edge_share: float = 0.98,
) -> Pruned:
    """Keep the fewest nodes, then the fewest edges, that hold these shares of the influence.

    Tokens and targets always stay. Latents and errors that lead nowhere, and latents that nothing reaches, go.

    Raises:
        InterventionMismatch: shares that are not between 0 and 1.

    Cost: three passes over the entries, and their scores in double precision.
    """
    if not (0 <= node_share <= 1 and 0 <= edge_share <= 1):
        raise InterventionMismatch(
            "Pruning keeps shares of the influence.",
            got=f"node_share={node_share}, edge_share={edge_share}",
            because="a share is between 0 and 1",
            instead="graph.prune(0.8, 0.98)",
        )
    influence = node_influence(adjacency, weights)
    is_end = np.isin(nodes.kinds, [KINDS.index("token"), KINDS.index("logit")])
    first = np.flatnonzero((influence >= _threshold(influence, node_share)) | is_end)
    within, is_end = adjacency.take(first), is_end[first]
    is_latent = nodes.kinds[first] == KINDS.index("latent")
    reached = node_influence(within, weights[first]) + weights[first]
    least = _threshold(
        np.concatenate([_scores(block, reached)[1] for block in within.blocks] or [np.zeros(0)]), edge_share
    )
    edges = []
    for block in within.blocks:
        places, scores = _scores(block, reached)
        edges.append(places[scores >= least])
    kept = np.ones(len(first), bool)
    while True:
        has_out, has_in = np.zeros(len(first), bool), np.zeros(len(first), bool)
        for block, places in zip(within.blocks, edges, strict=True):
            targets, sources = _ends(block, places)
            has_out[sources] = True
            has_in[targets] = True
        after = kept & (has_out | is_end) & (has_in | ~is_latent)
        if np.array_equal(after, kept):
            break
        kept = after
        for i, block in enumerate(within.blocks):
            targets, sources = _ends(block, edges[i])
            edges[i] = edges[i][kept[targets] & kept[sources]]
    blocks = [_only(block, places) for block, places in zip(within.blocks, edges, strict=True)]
    left = np.flatnonzero(kept)
    return Pruned(kept=first[left], adjacency=Adjacency(len(first), blocks).take(left))


def cumulative_share(influence: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """For each node, the share of all influence that it and everything more influential hold."""
    order = np.argsort(-influence, kind="stable")
    shares = np.cumsum(influence[order]) / max(influence.sum(), SMALLEST_SUM)
    out = np.empty_like(shares)
    out[order] = shares
    return out


def _shares(block: Block) -> Float[np.ndarray, "row column"]:
    values = block.values
    return np.abs(values) / np.maximum(input_sizes(block, values), SMALLEST_SUM)[:, None]


def _scores(
    block: Block, reached: Float[np.ndarray, " node"]
) -> tuple[Int[np.ndarray, " edge"], Float[np.ndarray, " edge"]]:
    """Places and scores of a block's edges that have one."""
    scores = (_shares(block) * reached[block.targets][:, None]).reshape(-1)
    places = np.flatnonzero(scores > 0)
    return places, scores[places]


def _ends(
    block: Block, places: Int[np.ndarray, " edge"]
) -> tuple[Int[np.ndarray, " edge"], Int[np.ndarray, " edge"]]:
    """Targets and sources of some of a block's entries."""
    rows, columns = np.divmod(places, max(len(block.sources), 1))
    return block.targets[rows], block.sources[columns]


def _only(block: Block, places: Int[np.ndarray, " edge"]) -> Block:
    """The block with some of its entries."""
    values = block.values
    kept = np.zeros_like(values)
    kept.reshape(-1)[places] = values.reshape(-1)[places]
    return packed(RowBlock(block.targets, block.sources, kept, block.dropped))


def _threshold(scores: Float[np.ndarray, " n"], share: float) -> float:
    """The smallest score that is needed for the largest ones to hold a share of the sum."""
    if not scores.size:
        return 0.0
    falling = -np.sort(-scores)
    cumulative = np.cumsum(falling, dtype=np.float64) / max(float(scores.sum()), SMALLEST_SUM)
    return float(falling[min(int(np.searchsorted(cumulative, share)), len(falling) - 1)])
