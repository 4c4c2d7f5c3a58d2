"""Joint ablation: nodes removed on top of each other, which brings out backups that single removals hide.

Where a second head steps in for a removed one, removing either alone shows nothing. So nodes are removed on top of
each other: each round removes every remaining node besides those that are gone, in one batch, and of those that hurt
the one nearest the logits is gone from then on (an early one would take all that it feeds with it, backups too). A
node counts by its largest effect in any round: what feeds a removed node may show only before, a backup only after.
"""

from dataclasses import dataclass, field

import numpy as np

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit, edges_out_of
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.faithfulness import refuse_without_gap
from mechscope.circuits.methods.node_probing import edges_among
from mechscope.circuits.registry import discovery
from mechscope.models.model import Model
from mechscope.vocabulary.edges import Node
from mechscope.vocabulary.errors import ShapeError


@dataclass(frozen=True, kw_only=True)
class JointAblation:
    """Settings of the greedy search over nodes.

    Args:
        n_rounds: How many nodes are removed on top of each other at most.
        least: A node counts from this share of m(model) - m(none) on; no more rounds once none reaches it.
        conventions: What removed nodes carry.
    """

    n_rounds: int = 10
    least: float = 0.02
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        if self.n_rounds < 1 or not 0 < self.least < 1:
            raise ShapeError(
                "A search takes at least one round, and a share.",
                got=f"n_rounds={self.n_rounds}, least={self.least}",
                instead="n_rounds=10, least=0.02",
            )


@discovery("joint-ablation", JointAblation)
def find_by_joint_ablation(model: Model, split: Split, settings: JointAblation) -> Circuit:
    """The nodes that hurt when removed, alone or on top of others."""
    runs = CircuitRuns(model, split, conventions=settings.conventions)
    wiring = runs.wiring
    nodes = [node for node in wiring.writers if node.kind != "embed"]
    out_of = {node: edges_out_of(wiring, [node]) for node in nodes}
    largest: dict[Node, float] = {}
    removed: list[Node] = []
    with runs.hold():
        whole, none = runs.measure(np.stack([runs.runs.every, runs.runs.none]))
        refuse_without_gap(whole, none)
        least, before = settings.least * abs(whole.mean() - none.mean()), whole.mean()
        gone = np.zeros(wiring.n_edges, dtype=bool)
        while len(removed) < min(settings.n_rounds, len(nodes)):
            rest = [node for node in nodes if node not in removed]
            values = runs.measure(np.stack([~(gone | out_of[node]) for node in rest])).mean(1)
            effects = before - values
            for node, effect in zip(rest, effects.tolist(), strict=True):
                largest[node] = max(largest.get(node, effect), effect)
            counting = np.flatnonzero(effects >= least)
            if not len(counting):
                break
            best = max(counting.tolist(), key=lambda i: (_depth(rest[i]), float(effects[i])))
            removed.append(rest[best])
            gone, before = gone | out_of[rest[best]], values[best]
    found = {node: effect for node, effect in largest.items() if effect >= least}
    scores = np.zeros(wiring.n_edges)
    for node, effect in found.items():
        scores[out_of[node]] = effect
    return Circuit(
        wiring=wiring,
        kept=edges_among(wiring, list(found)),
        scores=scores,
        settings={
            "method": "joint-ablation",
            "n_rounds": settings.n_rounds,
            "least": settings.least,
            "split": split.name,
            "scores": "largest effect of the edge's source in any round",
            **settings.conventions.to_json(),
        },
        numbers={
            "nodes": {str(node): effect for node, effect in found.items()},
            "removed": [str(node) for node in removed],
        },
        model=model.fingerprint,
        data_sha256=split.data_hash,
    )


def _depth(node: Node) -> tuple[int, bool]:
    """Where a node stands on the way to the logits."""
    return node.layer or 0, node.kind == "mlp"
