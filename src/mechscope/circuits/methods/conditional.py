"""Conditional attribution: gradients taken again with found edges cut, so that backups of what they carry show.

Every edge into one level of readers is a way to the logits. Where the ones found into a level are cut, and nowhere
else, gradients tell what steps in for them; all else is as it was. An edge counts by its largest effect in any round,
so that nothing found in an earlier round is lost. Levels are cut from the logits down, a level again when more was
found into it.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit, all_edges, connected_edges
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.methods.acdc import edge_order
from mechscope.circuits.methods.top_n import chosen_edges, refuse_no_edges
from mechscope.circuits.registry import discovery
from mechscope.models.model import Model
from mechscope.vocabulary.errors import NoGradient, ShapeError


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """Settings of the conditional search over edges.

    Args:
        n_edges: How many edges in all.
        n_rounds: How often gradients are taken at most: once with nothing cut, as ordinary attribution does, and once
            for each cut.
        n_points: Points between none and all of the remaining edges at which gradients are taken.
        least: An edge is cut from this share of m(model) - m(none) on.
        conventions: What removed edges carry.
    """

    n_edges: int
    n_rounds: int = 6
    n_points: int = 4
    least: float = 0.02
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        refuse_no_edges(self.n_edges)
        if self.n_rounds < 1 or self.n_points < 1 or not 0 < self.least < 1:
            raise ShapeError(
                "A search takes at least one round, one point, and a share.",
                got=f"n_rounds={self.n_rounds}, n_points={self.n_points}, least={self.least}",
                instead="n_rounds=6, n_points=4, least=0.02",
            )


@discovery("conditional", Conditional)
def find_conditionally(model: Model, split: Split, settings: Conditional) -> Circuit:
    """The strongest edges by gradients, taken again with the edges found into each level cut."""
    circuits = CircuitRuns(model, split, conventions=settings.conventions)
    runs = circuits.runs
    _, _, level = edge_order(runs.wiring)
    cuts: list[np.ndarray] = []
    with runs.open():
        ends = circuits.measure([runs.every, runs.none]).mean(1)
        least = settings.least * abs(float(ends[0] - ends[1]))
        scores = _gradients(circuits, runs.every, settings.n_points)
        if not scores.any():
            raise NoGradient(
                "The metric has no gradient to any edge.",
                got=split.metric.kind,
                because="it is flat at every point that was tried: a rank or an accuracy, or a saturated one",
                instead='a logit difference, or method="edge-patching", which needs no gradient',
            )
        while len(cuts) < settings.n_rounds - 1:
            strength = np.where(np.abs(scores) >= least, np.abs(scores), 0.0)
            cut = _next_cut(chosen_edges(runs.wiring, strength, settings.n_edges, "top"), level, cuts)
            if cut is None:
                break
            effect = _gradients(circuits, ~cut, settings.n_points)
            scores = np.where(np.abs(effect) > np.abs(scores), effect, scores)
            cuts.append(cut)
    every = all_edges(runs.wiring)
    found = chosen_edges(runs.wiring, np.abs(scores), settings.n_edges, "top")
    stated = {name: value for name, value in vars(settings).items() if name != "conventions"}
    return Circuit(
        wiring=runs.wiring,
        kept=connected_edges(runs.wiring, found),
        scores=scores,
        settings={
            "method": "conditional",
            **stated,
            "split": split.name,
            "scores": "gradient with respect to the edge's weight, the largest of any round",
            **settings.conventions.to_json(),
        },
        numbers={"cuts": [[str(every[i]) for i in np.flatnonzero(cut)] for cut in cuts]},
        model=model.fingerprint,
        data_sha256=split.data_hash,
    )


def _next_cut(found: np.ndarray, level: np.ndarray, done: list[np.ndarray]) -> np.ndarray | None:
    """The next cut: what was found into the level nearest the logits that has new edges; None if there is none."""
    cut_before = np.any(done, axis=0) if done else np.zeros_like(found)
    new = found & ~cut_before
    if not new.any():
        return None
    at = level == level[new].max()
    return (found | cut_before) & at


def _gradients(circuits: CircuitRuns, kept: np.ndarray, n_points: int) -> np.ndarray:
    """Mean gradient of the mean metric to edge weights, between no edge and the kept ones; 0 for the others."""
    start = torch.from_numpy(kept).to(circuits.runs.blocks[0].run.embed)
    total = torch.zeros_like(start)
    for point in range(n_points):
        weights = (start * (point + 1) / n_points)[None].requires_grad_()
        measured = circuits.measure_weighted(weights).mean()
        if measured.requires_grad:
            (gradient,) = torch.autograd.grad(measured, weights, allow_unused=True)
            total += 0.0 if gradient is None else gradient[0]
    return np.where(kept, (total / n_points).double().cpu().numpy(), 0.0)
