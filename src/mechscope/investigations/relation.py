"""Relation: how a set of heads and a circuit of the same behaviour fit together.

Two searches answer two questions. Heads are found one by one with MLPs left free; edges say over which paths. A head
of the set that no edge of the circuit touches is a disagreement, and is told as one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mechscope.circuits.circuit import Circuit
from mechscope.claims.mechanisms import Components
from mechscope.vocabulary.edges import Edge, Node

Scored = tuple[Edge, float]


@dataclass(frozen=True)
class PartInCircuit:
    """A head or MLP, and the circuit's edges that end and begin there, strongest first.

    Args:
        node: The head or MLP.
        is_claimed: It is in the set of heads.
        receives: Edges into it; into the key/value head that it shares, where heads share them.
        sends: Edges out of it.
    """

    node: Node
    is_claimed: bool
    receives: tuple[Scored, ...]
    sends: tuple[Scored, ...]

    @property
    def is_in_circuit(self) -> bool:
        """Something of it reaches the logits over edges of the circuit."""
        return bool(self.sends)

    @property
    def weight(self) -> float:
        """Sum of its edges' magnitudes."""
        return sum(abs(score) for _, score in (*self.receives, *self.sends))


@dataclass(frozen=True)
class Relation:
    """A set of heads and MLPs beside a circuit.

    Args:
        claimed: Each part of the set.
        others: The circuit's other heads and MLPs, those with the strongest edges first.
        between: Edges from one part of the set to another.
    """

    claimed: tuple[PartInCircuit, ...]
    others: tuple[PartInCircuit, ...]
    between: tuple[Scored, ...]

    @property
    def shared(self) -> tuple[PartInCircuit, ...]:
        """Parts of the set that are in the circuit."""
        return tuple(part for part in self.claimed if part.is_in_circuit)


def relate(mechanism: Components, circuit: Circuit) -> Relation:
    """Put a set of heads and MLPs beside a circuit."""
    named = [Node(kind="head", layer=layer, head=head) for layer, head in mechanism.heads]
    named += [Node(kind="mlp", layer=layer) for layer in mechanism.mlps]
    edges = circuit.top()
    claimed = [_part(node, circuit, edges, is_claimed=True) for node in named]
    writers = [node for node in circuit.nodes if node.kind in ("head", "mlp") and node not in named]
    others = [_part(node, circuit, edges, is_claimed=False) for node in writers]
    between = [
        (edge, score) for edge, score in edges if edge.source in named and _ends_in(edge, named, circuit)
    ]
    return Relation(
        tuple(claimed),
        tuple(sorted((part for part in others if part.is_in_circuit), key=lambda part: -part.weight)),
        tuple(between),
    )


def _part(node: Node, circuit: Circuit, edges: Iterable[Scored], *, is_claimed: bool) -> PartInCircuit:
    inputs = set(circuit.wiring.inputs_of(node))
    edges = list(edges)
    receives = tuple((edge, score) for edge, score in edges if (edge.target, edge.input) in inputs)
    sends = tuple((edge, score) for edge, score in edges if edge.source == node)
    return PartInCircuit(node, is_claimed, receives, sends)


def _ends_in(edge: Edge, nodes: Iterable[Node], circuit: Circuit) -> bool:
    return any((edge.target, edge.input) in circuit.wiring.inputs_of(node) for node in nodes)
