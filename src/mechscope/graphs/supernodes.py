"""Supernodes: nodes that are read as one, made by hand or proposed.

The effect of one group on another is the sum of its members' direct effects on the other's, as a share of all inputs
of the other: for groups of one, an input's signed share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from mechscope.figures.labelled import LabelledArray
from mechscope.graphs.row_blocks import input_sizes

if TYPE_CHECKING:
    import mechscope.graphs.graph

LIKENESS = 0.6
"""Mean likeness at which nodes are still proposed as one group, 0 to 1."""


@dataclass(frozen=True)
class Supernode:
    """Nodes under one label.

    Args:
        label: What a person calls it.
        members: Indices of nodes.
    """

    label: str
    members: tuple[int, ...]

    def renumbered(self, place: Mapping[int, int]) -> "Supernode":
        """The same group in a graph of some of the nodes."""
        return Supernode(self.label, tuple(place[index] for index in self.members if index in place))


def propose_supernodes(
    graph: "mechscope.graphs.graph.AttributionGraph",
    *,
    likeness: float = LIKENESS,
    at_most: int = 600,
    across_positions: bool = False,
) -> list[Supernode]:
    """Group latents that play the same part: alike in what they read and in what they act on.

    Two latents are as alike as the cosine between their outputs, or between their inputs where only these can be
    compared, both as signed direct effects; the mean over outputs and inputs counts. Groups are joined by average
    linkage until their mean likeness falls below `likeness`.

    Args:
        graph: Best pruned.
        likeness: 0 to 1; higher gives smaller groups.
        at_most: Only so many of the most influential latents are compared.
        across_positions: Latents at different positions may share a group.

    Returns:
        Groups of two or more, most influential first, labelled by their strongest member.

    Cost: the square of the number of latents compared.
    """
    latents = np.sort([node.index for node in graph.latents()[:at_most]]).astype(np.int64)
    if len(latents) < 2:
        return []
    alike = _alike(graph, latents)
    if not across_positions:
        positions = graph.nodes.positions[latents]
        alike = np.where(positions[:, None] == positions[None], alike, 0.0)
    np.fill_diagonal(alike, 1.0)
    tree = linkage(squareform(np.clip(1 - alike, 0, None), checks=False), method="average")
    labels = fcluster(tree, 1 - likeness, criterion="distance")
    groups = [latents[labels == label] for label in np.unique(labels)]
    groups = [group for group in groups if len(group) > 1]
    groups.sort(key=lambda group: -float(graph.influence[group].sum()))
    found = []
    for group in groups:
        strongest = int(group[np.argmax(graph.influence[group])])
        found.append(Supernode(f"like {graph.nodes.name(strongest)}", tuple(int(i) for i in group)))
    return found


def effects_between(graph: "mechscope.graphs.graph.AttributionGraph") -> LabelledArray:
    """Effects between supernodes, and nodes that belong to none: [target, source], shares of the target's inputs.

    Cost: the square of the number of groups and single nodes.
    """
    grouped = {index for group in graph.supernodes for index in group.members}
    labels = [group.label for group in graph.supernodes]
    labels += [graph.nodes.name(index) for index in range(len(graph)) if index not in grouped]
    place = np.empty(len(graph), dtype=np.int64)
    singles = [index for index in range(len(graph)) if index not in grouped]
    place[singles] = len(graph.supernodes) + np.arange(len(singles))
    for number, group in enumerate(graph.supernodes):
        place[list(group.members)] = number
    signed, sizes = np.zeros((len(labels), len(labels))), np.zeros(len(labels))
    for block in graph.adjacency.blocks:
        values = block.values
        np.add.at(signed, (place[block.targets][:, None], place[block.sources][None]), values)
        np.add.at(sizes, place[block.targets], input_sizes(block, values))
    return LabelledArray(
        signed / np.maximum(sizes, 1e-10)[:, None],
        ("target", "source"),
        coords={"target": labels, "source": labels},
        unit="share of inputs",
        title="effects between supernodes",
    )


def _alike(
    graph: "mechscope.graphs.graph.AttributionGraph", latents: np.ndarray
) -> Float[np.ndarray, "latent latent"]:
    outputs = np.zeros((len(latents), len(graph)))
    inputs = np.zeros((len(latents), len(graph)))
    place = np.full(len(graph), -1, dtype=np.int64)
    place[latents] = np.arange(len(latents))
    for block in graph.adjacency.blocks:
        columns, rows = place[block.sources] >= 0, place[block.targets] >= 0
        values = block.values
        shares = values / np.maximum(input_sizes(block, values), 1e-10)[:, None]
        outputs[np.ix_(place[block.sources[columns]], block.targets)] = shares[:, columns].T
        inputs[np.ix_(place[block.targets[rows]], block.sources)] = shares[rows]
    both = [_cosines(outputs), _cosines(inputs)]
    known = [~np.isnan(cosines) for cosines in both]
    total = sum(np.where(ok, cosines, 0) for ok, cosines in zip(known, both, strict=True))
    count = sum(ok.astype(float) for ok in known)
    return np.clip(total / np.maximum(count, 1), 0, 1)


def _cosines(profiles: Float[np.ndarray, "latent node"]) -> Float[np.ndarray, "latent latent"]:
    """Cosines between rows; NaN where one of them is nought."""
    norms = np.linalg.norm(profiles, axis=1)
    unit = profiles / np.where(norms == 0, np.nan, norms)[:, None]
    return unit @ unit.T
