"""A circuit against one that is known to be true: precision, recall, and AUROC of its scores over edges."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from mechscope.circuits.circuit import Circuit
from mechscope.vocabulary.errors import NotEnoughEvidence


@dataclass(frozen=True, kw_only=True)
class AgainstTruth:
    """How a circuit compares with the truth.

    Args:
        precision: Share of its edges that are true; 1 for a circuit without edges.
        recall: Share of the true edges that it has.
        auroc: Probability that a true edge scores above another by magnitude, ties counting half; None without scores.
        missing: True edges that it has not.
        extra: Edges of it that are not true.
    """

    precision: float
    recall: float
    auroc: float | None
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def compare_with_truth(circuit: Circuit, truth: Circuit) -> AgainstTruth:
    """Compare a circuit with the true one, edge by edge.

    Raises:
        UnknownEdge: they are of models of different shapes.
        NotEnoughEvidence: the truth is empty or everything.
    """
    both = circuit & truth
    n_true = len(truth)
    if n_true in (0, truth.wiring.n_edges):
        raise NotEnoughEvidence(
            "There is nothing to tell apart.",
            got=f"{n_true} of {truth.wiring.n_edges} edges are true",
            instead="a truth with some edges and not others",
        )
    return AgainstTruth(
        precision=len(both) / len(circuit) if len(circuit) else 1.0,
        recall=len(both) / n_true,
        auroc=None if circuit.scores is None else auroc(np.abs(circuit.scores), truth.kept),
        missing=tuple(str(edge) for edge in (truth - circuit).edges),
        extra=tuple(str(edge) for edge in (circuit - truth).edges),
    )


def auroc(scores: np.ndarray, is_true: np.ndarray) -> float:
    """Probability that a true entry scores above another one, ties counting half.

    >>> auroc(np.array([3.0, 2.0, 1.0, 1.0]), np.array([True, False, True, False]))
    0.625
    """
    n_true, n_other = int(is_true.sum()), int((~is_true).sum())
    ranks = rankdata(scores)
    return float((ranks[is_true].sum() - n_true * (n_true + 1) / 2) / (n_true * n_other))
