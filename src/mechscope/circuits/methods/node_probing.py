"""Subnetwork probing: gates on nodes, trained to keep the model's output with few nodes left.

    loss = KL(model || subnetwork) + pressure x expected share of open gates

A closed node is removed for all its readers. The circuit is every edge among the nodes left.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit, connected_edges, edges_out_of
from mechscope.circuits.conventions import CircuitRuns, Conventions, kl_to_model
from mechscope.circuits.methods.edge_pruning import drawn
from mechscope.circuits.methods.gates import Gates
from mechscope.circuits.registry import discovery
from mechscope.models.model import Model
from mechscope.vocabulary.edges import Node, Wiring
from mechscope.vocabulary.errors import ShapeError


@dataclass(frozen=True, kw_only=True)
class NodeProbing:
    """Settings of subnetwork probing.

    Args:
        pressure: Weight of the share of open gates against the divergence in nats.
        n_nodes: Keep so many nodes, the most open ones; None keeps those whose gate is more open than closed.
        n_steps: Of training.
        learning_rate: Of the gates.
        start: Probability at which each gate starts open.
        n_pairs: Pairs; all if None.
        seed: Of noise and pairs.
        conventions: What removed nodes carry.
    """

    pressure: float = 1.0
    n_nodes: int | None = None
    n_steps: int = 200
    learning_rate: float = 0.1
    start: float = 0.9
    n_pairs: int | None = None
    seed: int = 0
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        if self.n_nodes is not None and self.n_nodes < 1:
            raise ShapeError(
                "A circuit has at least one node.", got=f"n_nodes={self.n_nodes}", instead="n_nodes=5"
            )


@discovery("node-probing", NodeProbing)
def find_by_node_probing(model: Model, split: Split, settings: NodeProbing) -> Circuit:
    """Gates on nodes, trained together to keep the output with few nodes."""
    split = drawn(split, settings.n_pairs, settings.seed)
    circuits = CircuitRuns(model, split, conventions=settings.conventions, metric=kl_to_model(model, split))
    runs = circuits.runs
    nodes = runs.wiring.writers[1:]
    gates = Gates.new(len(nodes), start=settings.start, seed=settings.seed, like=runs.blocks[0].run.embed)
    counts = [runs.wiring.n_sources(target) for target, _ in runs.wiring.readers]
    source_of = torch.cat([torch.arange(n) for n in counts])
    descent = torch.optim.Adam([gates.logits], lr=settings.learning_rate)
    with torch.enable_grad(), runs.open():
        for _ in range(settings.n_steps):
            drawn_gates = gates.sample(1)
            # The embedding stays: without it there is no prompt.
            weights = torch.cat([torch.ones_like(drawn_gates[:, :1]), drawn_gates], dim=1)[:, source_of]
            loss = circuits.measure_weighted(weights).mean()
            loss = loss + settings.pressure * gates.open_probability().mean()
            descent.zero_grad()
            loss.backward()
            descent.step()
    score = gates.score().double().cpu().numpy()
    order = np.argsort(-score, kind="stable")
    n = int((score > 0.5).sum()) if settings.n_nodes is None else settings.n_nodes
    chosen = [nodes[i] for i in order[:n]]
    stated = {name: value for name, value in vars(settings).items() if name != "conventions"}
    return Circuit(
        wiring=runs.wiring,
        kept=edges_among(runs.wiring, chosen),
        scores=np.concatenate([[1.0], score])[source_of.numpy()],
        settings={"method": "node-probing", **stated, **settings.conventions.to_json(), "split": split.name},
        numbers={"nodes": [str(node) for node in chosen]},
        model=model.fingerprint,
        data_sha256=split.data_hash,
    )


def edges_among(wiring: Wiring, nodes: list[Node]) -> np.ndarray:
    """Every connected edge among some nodes, the embedding and the logits, [edge] truth values."""
    return connected_edges(wiring, edges_out_of(wiring, [Node(kind="embed"), *nodes]))
