"""AttributionGraph: the result of `attribution_graph`. Frozen, saved as a record, never holds the model.

Nodes in the order latents, errors, tokens, logits; rows of the matrix are targets. A row's sum, plus its bias, plus
what latents that were left out bring (`remainders`), is what the target reads (`totals`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechscope.figures.shown import number
from mechscope.graphs.adjacency import Adjacency
from mechscope.graphs.influence import Scores, cumulative_share, node_influence, prune, score_graph
from mechscope.graphs.nodes import Node, Nodes, indices_of
from mechscope.graphs.supernodes import Supernode
from mechscope.graphs.targets import Target
from mechscope.models.model import Model
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.vocabulary.errors import InterventionMismatch

Which = int | str | Node


@dataclass(frozen=True, eq=False, kw_only=True)
class AttributionGraph:
    """Direct effects between latents, errors, tokens and logits of one prompt.

    Args:
        nodes: What stands in it.
        adjacency: Direct effects, rows the targets.
        weights: Of the targets, [node].
        totals: What each latent and logit reads, [node]; zero for the others.
        biases: Share of biases in it, [node].
        remainders: Share of active latents that are no nodes, and of effects that were dropped, [node].
        n_active: Latents that fired.
        targets: What is explained.
        settings: What the verb was told, as JSON.
        model: Which weights.
        data_sha256: Hash of the prompt's ids.
        supernodes: Groups of nodes.
    """

    nodes: Nodes
    adjacency: Adjacency
    weights: Float[np.ndarray, " node"]
    totals: Float[np.ndarray, " node"]
    biases: Float[np.ndarray, " node"]
    remainders: Float[np.ndarray, " node"]
    n_active: int
    targets: tuple[Target, ...]
    settings: Mapping[str, Any]
    model: ModelFingerprint | None = None
    data_sha256: str | None = None
    supernodes: tuple[Supernode, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def influence(self) -> Float[np.ndarray, " node"]:
        """Influence of every node on the targets, along all paths."""
        return node_influence(self.adjacency, self.weights)

    @cached_property
    def cumulative(self) -> Float[np.ndarray, " node"]:
        """Share of all influence held by nodes up to each one's rank; small is important."""
        recorded = self.settings.get("cumulative")
        return cumulative_share(self.influence) if recorded is None else np.asarray(recorded)

    @cached_property
    def scores(self) -> Scores:
        """Replacement and completeness scores of this graph as it stands."""
        return score_graph(self.adjacency, self.nodes, self.weights)

    @cached_property
    def dropped(self) -> Float[np.ndarray, " node"]:
        """Share of each node's inputs, by size, whose effects were not kept (`Budget.row_share`).

        In a pruned graph it is a share of fewer inputs: those that pruning left, and what was not kept before.
        """
        return self.adjacency.dropped()

    def prune(self, node_share: float = 0.8, edge_share: float = 0.98) -> "AttributionGraph":
        """The graph of the fewest nodes and edges that hold these shares of the influence.

        Args:
            node_share: Of the nodes' influence, 0 to 1. Tokens and logits always stay.
            edge_share: Of the remaining edges' scores.

        Raises:
            InterventionMismatch: shares that are not between 0 and 1.
        """
        found = prune(
            self.adjacency, self.nodes, weights=self.weights, node_share=node_share, edge_share=edge_share
        )
        kept = found.kept
        place = {int(old): new for new, old in enumerate(kept)}
        groups = tuple(group.renumbered(place) for group in self.supernodes)
        return replace(
            self,
            nodes=self.nodes.take(kept),
            adjacency=found.adjacency,
            weights=self.weights[kept],
            totals=self.totals[kept],
            biases=self.biases[kept],
            remainders=self.remainders[kept],
            settings={
                **self.settings,
                "pruned": {"node_share": node_share, "edge_share": edge_share},
                "cumulative": self.cumulative[kept].tolist(),
            },
            supernodes=tuple(group for group in groups if group.members),
        )

    def inputs(self, node: Which, k: int = 10) -> list[tuple[Node, float]]:
        """The k strongest direct effects on a node."""
        sources, values = self.adjacency.row(self._one(node))
        return self._strongest(sources, values, k)

    def outputs(self, node: Which, k: int = 10) -> list[tuple[Node, float]]:
        """The k strongest direct effects of a node."""
        targets, values = self.adjacency.column(self._one(node))
        return self._strongest(targets, values, k)

    def effect(self, source: Which, target: Which) -> float:
        """Direct effect of one node on another, in the target's unit."""
        return self.adjacency.weight(self._one(target), self._one(source))

    def latents(self, *, layer: int | None = None, position: int | None = None) -> list[Node]:
        """Latents, most influential first."""
        found = self.nodes.of("latent")
        if layer is not None:
            found = found[self.nodes.layers[found] == layer]
        if position is not None:
            found = found[self.nodes.positions[found] == position % len(self.nodes.tokens)]
        ordered = found[np.argsort(-self.influence[found], kind="stable")]
        return [self.nodes[int(index)] for index in ordered]

    def with_supernodes(
        self, groups: Mapping[str, Sequence[Which]] | Sequence[Supernode]
    ) -> "AttributionGraph":
        """The same graph with groups of nodes: {"capitals": [node, ...]}."""
        if isinstance(groups, Mapping):
            named = [
                Supernode(label, tuple(indices_of(self.nodes, members))) for label, members in groups.items()
            ]
        else:
            named = list(groups)
        taken = [index for group in named for index in group.members]
        twice = sorted({self.nodes.name(index) for index in taken if taken.count(index) > 1})
        if twice:
            raise InterventionMismatch(
                "A node belongs to one supernode.",
                got=", ".join(twice[:5]),
                because="effects between supernodes would be counted twice",
                instead="groups that share no node",
            )
        return replace(self, supernodes=tuple(named))

    def to_html(self, title: str = "", **options: Any) -> str:
        """A self-contained page with this graph to explore; see `graphs.view`."""
        from mechscope.graphs.view import graph_page

        return graph_page(self, title=title, **options)

    def plot(self) -> Any:
        """Plotly figure: nodes by position and layer, size by influence."""
        from mechscope.graphs.view import plotly_figure

        return plotly_figure(self)

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, arrays beside it."""
        from mechscope.graphs.saving import save_graph

        save_graph(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "AttributionGraph":
        """Read what `save` wrote.

        Raises:
            BadFile: no attribution graph.
        """
        from mechscope.graphs.saving import open_graph

        return open_graph(path)

    def refuse_other_model(self, model: Model) -> None:
        """Refuse a model that this graph is not about.

        Raises:
            InterventionMismatch: the fingerprints differ.
        """
        differences = [] if self.model is None else self.model.differences(model.fingerprint)
        differences = [name for name in differences if name not in ("name", "revision")]
        if differences:
            raise InterventionMismatch(
                f"This graph is not of {model.identity.name}.",
                got=f"a graph of {self.model.name if self.model else 'no model'}",
                because=f"the fingerprints differ in {', '.join(differences)}",
                instead="the model that the graph was made of, or a graph of this one",
            )

    def _one(self, node: Which) -> int:
        return indices_of(self.nodes, node)[0]

    def _strongest(self, indices: np.ndarray, values: np.ndarray, k: int) -> list[tuple[Node, float]]:
        order = np.argsort(-np.abs(values), kind="stable")[:k]
        return [(self.nodes[int(indices[i])], float(values[i])) for i in order if values[i] != 0]

    def __repr__(self) -> str:
        counts = {kind: len(self.nodes.of(kind)) for kind in ("latent", "error", "token", "logit")}
        said = ", ".join(f"{n} {kind}{'s' if n != 1 else ''}" for kind, n in counts.items())
        scores = (
            f"replacement {number(self.scores.replacement)}, completeness {number(self.scores.completeness)}"
        )
        explained = ", ".join(target.label for target in self.targets)
        lost = f", up to {self.dropped.max():.1%} of a row dropped" if self.dropped.any() else ""
        return f"<AttributionGraph of {explained}: {said}, {self.adjacency.n_edges} edges, {scores}{lost}>"

    def _repr_html_(self) -> str:
        from mechscope.graphs.view import GraphView

        return GraphView(self)._repr_html_()
