"""Random circuits: as many edges as a circuit has, on paths from the embedding to the logits.

A set of edges drawn one by one is almost never connected and carries nothing, which would make any circuit look
good. These grow by random walks back from the logits, so that each is a circuit that could have been found.
"""

import numpy as np

from mechscope.circuits.circuit import Circuit, all_edges, connected_edges, edge_index
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.edges import Edge, Node, Wiring
from mechscope.vocabulary.errors import NotEnoughEvidence

_MOST_WALKS = 100_000


def random_circuits(
    circuit: Circuit, n: int, *, seed: int = 0, n_edges: int | None = None, avoiding: bool = False
) -> list[Circuit]:
    """Connected circuits of a circuit's size, drawn independently.

    Args:
        circuit: Gives the wiring and the size.
        n: How many.
        seed: Root of the tree of seeds; circuit i does not depend on n.
        n_edges: Another size.
        avoiding: Draw only from edges that the circuit has not.

    Returns:
        Circuits of at least the size asked for and at most one walk more.

    Raises:
        NotEnoughEvidence: the edges allowed hold no connected circuit of this size.
    """
    size = len(circuit) if n_edges is None else n_edges
    allowed = ~circuit.kept if avoiding else np.ones_like(circuit.kept)
    allowed = connected_edges(circuit.wiring, allowed)
    if allowed.sum() < size:
        raise NotEnoughEvidence(
            f"There is no connected circuit of {size} edges to draw.",
            got=f"{int(allowed.sum())} edges on paths from the embedding to the logits",
            because="a random circuit is as large as the one that it stands against",
            instead="a smaller circuit, or avoiding=False",
        )
    walker = _Walker(circuit.wiring, allowed)
    return [
        Circuit(
            wiring=circuit.wiring,
            kept=walker.grow(size, generator_for(seed, "random circuits", size, int(avoiding), i)),
            settings={"method": "random walks", "seed": seed, "index": i, "avoiding": avoiding},
            model=circuit.model,
        )
        for i in range(n)
    ]


class _Walker:
    """Random walks from the logits to the embedding over allowed edges."""

    def __init__(self, wiring: Wiring, allowed: np.ndarray) -> None:
        self.wiring, self.allowed = wiring, allowed
        self._index = edge_index(wiring)
        self._into: dict[tuple[Node, str], list[Edge]] = {}
        for edge, is_allowed in zip(all_edges(wiring), allowed, strict=True):
            if is_allowed:
                self._into.setdefault((edge.target, edge.input), []).append(edge)

    def grow(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Walks until so many edges are kept."""
        kept = np.zeros(self.wiring.n_edges, dtype=bool)
        for _ in range(_MOST_WALKS):
            for edge in self._walk(rng):
                kept[self._index[edge]] = True
            if kept.sum() >= size:
                return kept
        raise NotEnoughEvidence(
            f"Random walks did not reach {size} edges.",
            got=f"{int(kept.sum())} after {_MOST_WALKS} walks",
            instead="smaller circuits",
        )

    def _walk(self, rng: np.random.Generator) -> list[Edge]:
        at, path = Node(kind="logits"), []
        while at.kind != "embed":
            inputs = self.wiring.inputs_of(at) if at.kind != "logits" else ((at, ""),)
            open_inputs = [one for one in inputs if self._into.get(one)]
            edges = self._into[open_inputs[int(rng.integers(len(open_inputs)))]]
            edge = edges[int(rng.integers(len(edges)))]
            path.append(edge)
            at = edge.source
        return path
