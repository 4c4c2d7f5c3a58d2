"""Influence: how much of the targets each node accounts for, along all paths, and what may be left out.

Rows of absolute direct effects are normalised to one; a node's influence is the sum over paths from the targets,
weighted by their probabilities. A graph has no cycles, so one pass over its blocks, last targets first, is exact.
Definitions: docs/methods/attribution_graphs.md.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechscope.graphs.adjacency import Adjacency, RowBlock
from mechscope.graphs.nodes import KINDS, Nodes

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
    """
    influence = node_influence(adjacency, weights)
    is_end = np.isin(nodes.kinds, [KINDS.index("token"), KINDS.index("logit")])
    first = np.flatnonzero((influence >= _threshold(influence, node_share)) | is_end)
    within, is_end = adjacency.take(first), is_end[first]
    is_latent = nodes.kinds[first] == KINDS.index("latent")
    reached = node_influence(within, weights[first]) + weights[first]
    scores = [_shares(block) * reached[block.targets][:, None] for block in within.blocks]
    least = _threshold(np.concatenate([score[score > 0] for score in scores] or [np.zeros(0)]), edge_share)
    edges = [(score >= least) & (score > 0) for score in scores]
    kept = np.ones(len(first), bool)
    while True:
        has_out, has_in = np.zeros(len(first), bool), np.zeros(len(first), bool)
        for block, mask in zip(within.blocks, edges, strict=True):
            has_out[block.sources] |= mask.any(0)
            has_in[block.targets] |= mask.any(1)
        after = kept & (has_out | is_end) & (has_in | ~is_latent)
        if np.array_equal(after, kept):
            break
        kept = after
        for block, mask in zip(within.blocks, edges, strict=True):
            mask &= kept[block.targets][:, None] & kept[block.sources][None]
    blocks = [
        RowBlock(block.targets, block.sources, np.where(mask, block.values, 0))
        for block, mask in zip(within.blocks, edges, strict=True)
    ]
    left = np.flatnonzero(kept)
    return Pruned(kept=first[left], adjacency=Adjacency(len(first), blocks).take(left))


def cumulative_share(influence: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """For each node, the share of all influence that it and everything more influential hold."""
    order = np.argsort(-influence, kind="stable")
    shares = np.cumsum(influence[order]) / max(influence.sum(), SMALLEST_SUM)
    out = np.empty_like(shares)
    out[order] = shares
    return out


def _shares(block: RowBlock) -> Float[np.ndarray, "row column"]:
    sizes = np.abs(block.values)
    return sizes / np.maximum(sizes.sum(1, keepdims=True), SMALLEST_SUM)


def _threshold(scores: Float[np.ndarray, " n"], share: float) -> float:
    """The smallest score that is needed for the largest ones to hold a share of the sum."""
    if not scores.size:
        return 0.0
    falling = -np.sort(-scores)
    cumulative = np.cumsum(falling, dtype=np.float64) / max(float(scores.sum()), SMALLEST_SUM)
    return float(falling[min(int(np.searchsorted(cumulative, share)), len(falling) - 1)])
