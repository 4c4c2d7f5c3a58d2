"""Hypothesis: which edges matter, and what of the input each of them carries.

The interpretation graph is the graph of these edges. An edge's *feature* is a function of the setting: prompts on
which it is equal are the same to the reader, by hypothesis. Edges that are not named carry nothing that matters.
Refuses edges that the model does not have, features of edges that are not in it, and edges that lead nowhere.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mechscope.circuits.abstraction.causal_model import CausalModel, Setting
from mechscope.circuits.abstraction.examples import Examples
from mechscope.vocabulary.edges import Edge, Input, Node, Wiring
from mechscope.vocabulary.errors import BadProgram, ShapeError, UnknownEdge

Feature = Callable[[Setting], Hashable] | str | tuple[str, ...] | None
"""A function of the setting, or names of inputs and variables of the causal model; () is nothing, None everything."""


@dataclass(frozen=True)
class EachPosition:
    """A feature with a value at each position: each position of a source is then resampled for itself.

    Args:
        of: From a setting to one value for each real token of its prompt, the first token included.
    """

    of: Callable[[Setting], Sequence[Hashable]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Hypothesis:
    """A hypothesis of how an output comes about.

    Args:
        name: What results call it.
        edges: Those that matter.
        features: By edge ("m0->a1.0.q"), or by node ("m0") for all edges out of it; an edge's own comes first. An edge
            without one carries the whole input, which is never resampled.
        high: Whose variables features may name.
    """

    name: str
    edges: tuple[Edge, ...]
    features: Mapping[str, Feature | EachPosition] = field(default_factory=dict)
    high: CausalModel | None = None

    @classmethod
    def of(
        cls,
        name: str,
        *,
        features: Mapping[str, Feature | EachPosition],
        edges: Sequence[str | Edge] | None = None,
        high: CausalModel | None = None,
    ) -> "Hypothesis":
        """A hypothesis from names.

        Args:
            name: What results call it.
            features: By edge or by node.
            edges: None is the edges that `features` names.
            high: Whose variables features may name.

        Raises:
            UnknownEdge: a feature that belongs to no edge of the hypothesis.
        """
        named = [key for key in features if "->" in key] if edges is None else edges
        found = cls(
            name=name, edges=tuple(Edge.parse(edge) for edge in named), features=dict(features), high=high
        )
        found._refuse_strangers()
        return found

    @cached_property
    def by_reader(self) -> Mapping[tuple[Node, Input], tuple[Edge, ...]]:
        """Edges by what reads them."""
        found: dict[tuple[Node, Input], tuple[Edge, ...]] = {}
        for edge in self.edges:
            key = (edge.target, edge.input)
            found[key] = (*found.get(key, ()), edge)
        return found

    def feature_of(self, edge: Edge) -> Feature | EachPosition:
        """What an edge carries, by hypothesis."""
        return self.features.get(str(edge), self.features.get(str(edge.source)))

    def classes(self, edge: Edge, examples: Examples) -> np.ndarray:
        """Equal numbers for examples that are the same along an edge: [example], or [example, position].

        Raises:
            BadProgram: a name that is neither an input nor a variable.
            ShapeError: a feature with a value for each position that has another number of them.
        """
        feature = self.feature_of(edge)
        if feature is None:
            return np.arange(len(examples))
        if isinstance(feature, EachPosition):
            return self._by_position(feature, edge, examples)
        if isinstance(feature, str | tuple):
            values = [self._named(feature, setting) for setting in examples.settings]
        else:
            values = [feature(setting) for setting in examples.settings]
        return _numbered(values)

    def refuse_unless_it_fits(self, wiring: Wiring) -> None:
        """Refuse edges that a model does not have, and a graph without a way to the logits.

        Raises:
            UnknownEdge: names the first.
        """
        for edge in self.edges:
            wiring.refuse_unless_it_has(edge)
            if edge.source != edge.source.whole or edge.target != edge.target.whole:
                raise UnknownEdge(
                    f'"{edge}" is a part of an edge.',
                    got=str(edge),
                    because="whole nodes are resampled, at all units and positions",
                    instead="the edge between whole nodes; EachPosition resamples positions apart",
                )
        read = {inputs for node in self._reached(wiring) for inputs in wiring.inputs_of(node)}
        dangling = [str(edge) for edge in self.edges if (edge.target, edge.input) not in read]
        if dangling:
            raise UnknownEdge(
                f'"{self.name}" has edges that lead nowhere.',
                got=", ".join(dangling[:5]),
                because="over the edges of the hypothesis nothing gets from there to the logits",
                instead="add the edges between there and the logits, or leave these out",
            )

    def to_json(self) -> dict[str, Any]:
        """For records; of a function only that there was one."""
        return {
            "name": self.name,
            "edges": {str(edge): _told(self.feature_of(edge)) for edge in self.edges},
            "causal_model": None if self.high is None else self.high.to_json(),
        }

    def _reached(self, wiring: Wiring) -> set[Node]:
        """Nodes from which the logits can be reached over the edges."""
        found = {Node(kind="logits")}
        while True:
            read = {inputs for node in found for inputs in wiring.inputs_of(node)}
            more = {edge.source for edge in self.edges if (edge.target, edge.input) in read} - found
            if not more:
                return found
            found |= more

    def _named(self, names: str | tuple[str, ...], setting: Setting) -> Hashable:
        wanted = (names,) if isinstance(names, str) else names
        values = dict(setting) if self.high is None else self.high.evaluate(setting)
        missing = [name for name in wanted if name not in values]
        if missing:
            raise BadProgram(
                f'"{self.name}" names what no setting and no variable has.',
                got=", ".join(missing),
                instead=", ".join(values),
            )
        return tuple(values[name] for name in wanted)

    def _by_position(self, feature: EachPosition, edge: Edge, examples: Examples) -> np.ndarray:
        n = examples.prompts.shape[1]
        rows = [tuple(feature.of(setting)) for setting in examples.settings]
        wrong = next((row for row in rows if len(row) != n), None)
        if wrong is not None:
            raise ShapeError(
                f"The feature of {edge} needs a value for each token.",
                got=f"{len(wrong)} values",
                because=f"prompts have {n} tokens, the first one included",
            )
        return np.stack([_numbered([row[at] for row in rows]) for at in range(n)], axis=1)

    def _refuse_strangers(self) -> None:
        known = {str(edge) for edge in self.edges} | {str(edge.source) for edge in self.edges}
        strangers = [key for key in self.features if key not in known]
        if strangers:
            raise UnknownEdge(
                f'"{self.name}" has features of edges that it does not have.',
                got=", ".join(strangers),
                because="a feature says what an edge of the hypothesis carries",
                instead=", ".join(str(edge) for edge in self.edges) or "edges=[...]",
            )


def _numbered(values: Sequence[Hashable]) -> np.ndarray:
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(value, len(index)) for value in values], dtype=np.int64)


def _told(feature: Feature | EachPosition) -> Any:
    if feature is None:
        return "the whole input"
    if isinstance(feature, EachPosition):
        return "a function at each position"
    return (
        list(feature) if isinstance(feature, tuple) else feature if isinstance(feature, str) else "a function"
    )
