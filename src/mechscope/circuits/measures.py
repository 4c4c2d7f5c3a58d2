"""Measures beside faithfulness: which circuits completeness and minimality need to be run, and how they are read."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mechscope.circuits.circuit import Circuit, edges_out_of
from mechscope.circuits.positional import PositionalCircuit
from mechscope.vocabulary.edges import Node
from mechscope.vocabulary.errors import ShapeError

PARTS = ("completeness", "minimality")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Which measures are taken beside faithfulness.

    Args:
        parts: "completeness", "minimality", both or neither.
        n_subsets: Random sets of nodes that completeness and minimality take away.
        n_greedy: Completeness also looks for the worst set, node by node, up to so many; 0 for no search.
        seed: Of the random sets.
        n_resamples: Of the intervals.
    """

    parts: tuple[str, ...] = PARTS
    n_subsets: int = 8
    n_greedy: int = 0
    seed: int = 0
    n_resamples: int = 2000

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(PARTS)
        if unknown:
            raise ShapeError(
                "There is no such measure.", got=", ".join(sorted(unknown)), instead=", ".join(PARTS)
            )


class Plan:
    """The circuits that one circuit's measures need, and how they are read."""

    def __init__(self, circuit: Circuit | PositionalCircuit, measures: Measures) -> None:
        self.circuit, self.measures = circuit, measures
        self.masks: list[np.ndarray] = [circuit.kept]
        self.subsets = _subsets(circuit, measures) if measures.parts else {}
        self.whole = np.ones_like(circuit.kept)
        self.places: dict[tuple[str, str], int] = {}
        for name, nodes in self.subsets.items():
            gone = edges_out_of(circuit.wiring, nodes)
            self._add(("circuit", name), circuit.kept & ~gone)
            if "completeness" in measures.parts:
                self._add(("model", name), self.whole & ~gone)
        if "minimality" in measures.parts:
            for index in np.flatnonzero(circuit.kept):
                mask = circuit.kept.copy()
                mask.flat[index] = False
                self._add(("edge", str(index)), mask)
            for node in writers_of(circuit):
                gone = edges_out_of(circuit.wiring, [node])
                self._add(("node", str(node)), circuit.kept & ~gone)
                for name, nodes in self.subsets.items():
                    if node not in nodes:
                        rest = circuit.kept & ~gone & ~edges_out_of(circuit.wiring, nodes)
                        self._add((f"node less {name}", str(node)), rest)

    def _add(self, key: tuple[str, str], mask: np.ndarray) -> None:
        self.places[key] = len(self.masks)
        self.masks.append(mask)

    def read(self, means: np.ndarray, model: float, none: float) -> dict[str, Any]:
        """The evaluation's fields from each circuit's mean metric."""
        gap, found = model - none, {}
        if "completeness" in self.measures.parts:
            found["incompleteness"] = {
                name: float(abs(means[self.places["circuit", name]] - means[self.places["model", name]]))
                / abs(gap)
                for name in self.subsets
            }
        if "minimality" in self.measures.parts:
            edges = [self.places["edge", str(index)] for index in np.flatnonzero(self.circuit.kept)]
            found["edge_needs"] = np.abs(means[edges] - means[0]) / abs(gap)
            needs: dict[str, float] = {}
            for (kind, name), place in self.places.items():
                if not kind.startswith("node"):
                    continue
                before = 0 if kind == "node" else self.places["circuit", kind.removeprefix("node less ")]
                change = abs(means[place] - means[before]) / abs(gap)
                needs[name] = max(needs.get(name, 0.0), float(change))
            found["node_needs"] = needs
        return found


def writers_of(circuit: Circuit | PositionalCircuit) -> list[Node]:
    """The circuit's nodes that write, without the embedding."""
    touched = set(circuit.nodes)
    return [node for node in circuit.wiring.writers if node.kind != "embed" and node in touched]


def _subsets(circuit: Circuit | PositionalCircuit, measures: Measures) -> dict[str, list[Node]]:
    """Sets of the circuit's nodes: each layer's, and random ones of half of them."""
    nodes = writers_of(circuit)
    found: dict[str, list[Node]] = {}
    if len(nodes) < 2:
        return found
    for layer in sorted({node.layer or 0 for node in nodes}):
        found[f"layer {layer}"] = [node for node in nodes if node.layer == layer]
    rng = np.random.default_rng(measures.seed)
    for index in range(measures.n_subsets):
        chosen = rng.random(len(nodes)) < 0.5
        picked = [node for node, is_in in zip(nodes, chosen, strict=True) if is_in]
        if picked:
            found[f"random {index}"] = picked
    return found
