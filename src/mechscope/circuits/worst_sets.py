"""Worst sets: a greedy search for the nodes whose removal tells a circuit and the model furthest apart."""

import numpy as np

from mechscope.circuits.circuit import Circuit, edges_out_of
from mechscope.circuits.conventions import CircuitRuns
from mechscope.circuits.positional import PositionalCircuit
from mechscope.vocabulary.edges import Node


def worst_sets(
    runs: CircuitRuns, circuit: Circuit | PositionalCircuit, *, nodes: list[Node], n: int, gap: float
) -> dict[str, float]:
    """|F(C less K) - F(model less K)| of sets K that grow by the node that drives both furthest apart.

    Args:
        runs: Prompts under some conventions.
        circuit: C.
        nodes: What sets are made of, usually the circuit's.
        n: Nodes in the largest set at most.
        gap: m(model) - m(none).

    Returns:
        One number for each size of set, by the set's name.

    Cost: two runs for each node that is left, in each of n rounds.
    """
    whole = np.ones_like(circuit.kept)
    chosen: list[Node] = []
    found: dict[str, float] = {}
    while len(chosen) < min(n, len(nodes)):
        rest = [node for node in nodes if node not in chosen]
        gone = [edges_out_of(circuit.wiring, [*chosen, node]) for node in rest]
        masks = [kept & ~out for out in gone for kept in (circuit.kept, whole)]
        means = runs.measure(np.stack(masks)).mean(1).reshape(-1, 2)
        apart = np.abs(means[:, 0] - means[:, 1]) / abs(gap)
        best = int(apart.argmax())
        chosen.append(rest[best])
        found[f"greedy {', '.join(map(str, chosen))}"] = float(apart[best])
    return found
