"""Resampling: which prompt every node of the treeified model runs on, before anything is run.

The model is unrolled into a tree: a node that is read twice stands there twice, each time on prompts of its own.
From the logits down, each edge of the hypothesis gets a prompt on which its feature is what it is on the prompt above;
everything else that a node reads comes from random prompts. Owns the draws, so that a slow runner and a fast one can be
given the same ones.

Conventions: the prompt above is itself among those that may be drawn. A node none of whose inputs the hypothesis names
is not explained: it runs as it is on its prompt.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mechscope.circuits.abstraction.examples import Examples
from mechscope.circuits.scrubbing.hypothesis import Hypothesis
from mechscope.vocabulary.edges import Edge, Input, Node, Wiring
from mechscope.vocabulary.errors import NotEnoughEvidence, UnknownEdge

Sharing = Literal["node", "input", "edge"]
SHARINGS: tuple[Sharing, ...] = ("node", "input", "edge")
MOST_NODES = 2000
"""Nodes of a tree, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What one input of a node sees.

    Args:
        important: Sources that the hypothesis names, each as a branch of its own.
        others: Rows that all other sources' values are from: [run], or [source, run] if each has its own, sources in
            the order of the wiring.
    """

    important: Mapping[Node, "Branch"]
    others: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """One node of the tree.

    Args:
        node: Of the model.
        rows: The example that each run of it is about, [run], or [run, position].
        inputs: What its inputs see; empty for a node that runs as it is.
    """

    node: Node
    rows: np.ndarray
    inputs: Mapping[tuple[Node, Input], Read] = field(default_factory=dict)

    def branches(self) -> Iterator["Branch"]:
        """This one and all below it."""
        yield self
        for read in self.inputs.values():
            for branch in read.important.values():
                yield from branch.branches()


@dataclass(frozen=True, kw_only=True)
class EdgeDraws:
    """What resampling could do along an edge.

    Args:
        n_classes: Different values of the feature over the examples.
        resampled: Share of draws that took another prompt than the one above, 0 to 1.
    """

    n_classes: int
    resampled: float


class Resampling:
    """Draws trees for one hypothesis.

    Args:
        hypothesis: What is resampled.
        wiring: Of the model.
        examples: What is drawn from.
        sharing: Unimportant inputs come from one random prompt a "node", a node's "input" (q, k, v), or an "edge".
        random: Generator.
        shuffled: Give every feature's values to other examples: a hypothesis of the same shape that says nothing true.
    """

    def __init__(
        self,
        hypothesis: Hypothesis,
        wiring: Wiring,
        *,
        examples: Examples,
        sharing: Sharing,
        random: np.random.Generator,
        shuffled: bool = False,
    ) -> None:
        self.hypothesis, self.wiring, self.sharing, self.random = hypothesis, wiring, sharing, random
        self.n = len(examples)
        self._classes = {edge: hypothesis.classes(edge, examples) for edge in hypothesis.edges}
        if shuffled:
            self._classes = {edge: own[random.permutation(self.n)] for edge, own in self._classes.items()}
        self._members = {edge: _members(own) for edge, own in self._classes.items()}
        self._moved: dict[Edge, list[float]] = {edge: [] for edge in hypothesis.edges}
        self._n_nodes = 0

    def tree(self, rows: np.ndarray) -> Branch:
        """A tree whose logits are about some examples, [run].

        Raises:
            UnknownEdge: the tree has too many nodes, or positions are resampled apart above the tree's leaves.
        """
        self._n_nodes = 0
        return self._branch(Node(kind="logits"), rows)

    @property
    def draws(self) -> dict[str, EdgeDraws]:
        """By edge, over all trees so far."""
        return {
            str(edge): EdgeDraws(
                n_classes=int(max(len(members) for members in self._members[edge])),
                resampled=float(np.mean(moved)) if moved else 0.0,
            )
            for edge, moved in self._moved.items()
        }

    def _branch(self, node: Node, rows: np.ndarray) -> Branch:
        self._n_nodes += 1
        if self._n_nodes > MOST_NODES:
            raise UnknownEdge(
                f'"{self.hypothesis.name}" unrolls into too large a tree.',
                got=f"more than {MOST_NODES} nodes",
                because="a node stands in the tree once for every path from it to the logits",
                instead="fewer edges, or nodes that are left unexplained",
            )
        inputs = self.wiring.inputs_of(node)
        named = {key: self.hypothesis.by_reader.get(key, ()) for key in inputs}
        if not any(named.values()) and node.kind != "logits":
            return Branch(node=node, rows=rows)
        if rows.ndim == 2:
            raise UnknownEdge(
                f"Positions of {node} are resampled apart, and the hypothesis explains {node}.",
                got=f'EachPosition for an edge out of "{node}"',
                because="each position would need a tree of its own",
                instead=f"leave the edges into {node} out, or a feature of the whole prompt",
            )
        shared = self._any(len(rows)) if self.sharing == "node" else None
        found: dict[tuple[Node, Input], Read] = {}
        for key in inputs:
            important = {
                edge.source: self._branch(edge.source, self._agreeing(edge, rows)) for edge in named[key]
            }
            found[key] = Read(important=important, others=self._others(key[0], len(rows), shared))
        return Branch(node=node, rows=rows, inputs=found)

    def _others(self, target: Node, n: int, shared: np.ndarray | None) -> np.ndarray:
        if shared is not None:
            return shared
        if self.sharing == "input":
            return self._any(n)
        return np.stack([self._any(n) for _ in range(self.wiring.n_sources(target))])

    def _any(self, n: int) -> np.ndarray:
        return self.random.integers(0, self.n, n)

    def _agreeing(self, edge: Edge, rows: np.ndarray) -> np.ndarray:
        """For each run an example, the same along an edge; one a position where its feature has one."""
        classes, members = self._classes[edge], self._members[edge]
        if classes.ndim == 1:
            drawn = np.array([self.random.choice(members[0][int(classes[row])]) for row in rows])
            self._moved[edge].append(float((drawn != rows).mean()))
            return drawn
        drawn = np.array(
            [
                [
                    self.random.choice(own[int(value)])
                    for own, value in zip(members, classes[row], strict=True)
                ]
                for row in rows
            ]
        )
        self._moved[edge].append(float((drawn != rows[:, None]).mean()))
        return drawn


def unchanged_tree(rows: np.ndarray) -> Branch:
    """The tree that resamples nothing: all that the logits see is from the prompt itself."""
    logits = Node(kind="logits")
    return Branch(node=logits, rows=rows, inputs={(logits, ""): Read(important={}, others=rows)})


def _members(classes: np.ndarray) -> list[dict[int, np.ndarray]]:
    """Examples of each class, a position (or once)."""
    columns = classes[:, None] if classes.ndim == 1 else classes
    return [
        {int(value): np.flatnonzero(column == value) for value in np.unique(column)} for column in columns.T
    ]


def refuse_too_few(examples: Examples) -> None:
    """Refuse examples among which nothing can be resampled.

    Raises:
        NotEnoughEvidence: fewer than two.
    """
    if len(examples) < 2:
        raise NotEnoughEvidence(
            "There is nothing to resample from.", got=f"{len(examples)} examples", instead="a hundred or more"
        )
