"""Edge pruning: gates on all edges at once, trained to keep the model's output with few edges left.

    loss = KL(model || circuit) + l1 (t - s) + l2 (t - s)^2,  l1 and l2 by gradient ascent

s is the expected share of removed edges and t its target, raised from 0 during a warm-up. At the end the n edges with
the most open gates are kept.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit, connected_edges
from mechscope.circuits.conventions import CircuitRuns, Conventions, kl_to_model
from mechscope.circuits.methods.gates import Gates
from mechscope.circuits.methods.top_n import refuse_no_edges
from mechscope.circuits.registry import discovery
from mechscope.models.model import Model


@dataclass(frozen=True, kw_only=True)
class EdgePruning:
    """Settings of edge pruning.

    Args:
        n_edges: How many edges are kept.
        n_steps: Of training; the target is reached after five sixths of them.
        learning_rate: Of the gates.
        pressure_rate: Of the two multipliers.
        start: Probability at which each gate starts open.
        n_draws: Draws of the gates a step.
        n_pairs: Pairs a step, drawn anew for each; all if None.
        seed: Of noise and pairs.
        conventions: What removed edges carry.
    """

    n_edges: int
    n_steps: int = 400
    learning_rate: float = 0.1
    pressure_rate: float = 0.3
    start: float = 0.8
    n_draws: int = 1
    n_pairs: int | None = None
    seed: int = 0
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        refuse_no_edges(self.n_edges)


@discovery("edge-pruning", EdgePruning)
def find_by_edge_pruning(model: Model, split: Split, settings: EdgePruning) -> Circuit:
    """Gates on all edges, trained together to keep the output with few edges."""
    split = drawn(split, settings.n_pairs, settings.seed)
    circuits = CircuitRuns(model, split, conventions=settings.conventions, metric=kl_to_model(model, split))
    runs = circuits.runs
    n = runs.wiring.n_edges
    gates = Gates.new(n, start=settings.start, seed=settings.seed, like=runs.blocks[0].run.embed)
    pressure = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.Adam([gates.logits], lr=settings.learning_rate)
    ascent = torch.optim.Adam([pressure], lr=settings.pressure_rate, maximize=True)
    goal, losses = 1 - settings.n_edges / n, []
    with torch.enable_grad(), runs.open():
        for step in range(settings.n_steps):
            target = goal * min(1.0, 1.2 * (step + 1) / settings.n_steps)
            divergence = circuits.measure_weighted(gates.sample(settings.n_draws)).mean()
            missing = target - (1 - gates.open_probability().mean()).double()
            loss = divergence.double() + pressure[0] * missing + pressure[1] * missing**2
            for optimizer in (descent, ascent):
                optimizer.zero_grad()
            loss.backward()
            descent.step()
            ascent.step()
            losses.append(float(divergence.detach()))
    score = gates.score().double().cpu().numpy()
    kept = np.zeros(n, dtype=bool)
    kept[np.argsort(-score, kind="stable")[: settings.n_edges]] = True
    stated = {name: value for name, value in vars(settings).items() if name != "conventions"}
    return Circuit(
        wiring=runs.wiring,
        kept=connected_edges(runs.wiring, kept),
        scores=score,
        settings={"method": "edge-pruning", **stated, **settings.conventions.to_json(), "split": split.name},
        numbers={"divergence": losses[:: max(1, len(losses) // 50)]},
        model=model.fingerprint,
        data_sha256=split.data_hash,
    )


def drawn(split: Split, n_pairs: int | None, seed: int) -> Split:
    """Some pairs of a split, or all."""
    if n_pairs is None or n_pairs >= len(split):
        return split
    rows = np.random.default_rng(seed).choice(len(split), n_pairs, replace=False)
    return split.select(sorted(rows.tolist()))
