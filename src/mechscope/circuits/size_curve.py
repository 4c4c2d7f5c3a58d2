"""Faithfulness over circuit size, and the areas under it: CPR and CMD.

    CPR = area under f(k),  CMD = area under |1 - f(k)|,  by trapezoids over k from .001 to 1

Half of the linear area is the last half of the edges, where every method is alike, so the area over log k is given
beside it, and CPR clipped to 0..1, since circuits that beat the model push it without bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.evaluation import evaluate_circuits
from mechscope.circuits.measures import Measures
from mechscope.figures.labelled import LabelledArray
from mechscope.models.model import Model
from mechscope.vocabulary.errors import NotEnoughEvidence

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The grid of the MIB benchmark."""


def area(fractions: Sequence[float], values: Sequence[float], *, log: bool = False) -> float:
    """Area by trapezoids over the grid as given; over log10 of it, and divided by its length, with `log`.

    >>> round(area(FRACTIONS, [0.0] * 9 + [1.0]), 3)
    0.25
    >>> round(area(FRACTIONS, [1.0] * 9 + [0.0]), 3)
    0.749
    """
    k, f = np.asarray(fractions, dtype=float), np.asarray(values, dtype=float)
    if log:
        k = np.log10(k)
        return float(np.trapezoid(f, k) / (k[-1] - k[0]))
    return float(np.trapezoid(f, k))


@dataclass(frozen=True, kw_only=True)
class SizeCurve:
    """Faithfulness of the n strongest edges, for several n.

    Args:
        fractions: Share of the model's edges asked for.
        n_edges: Edges left after pruning to connected.
        faithfulness: Ratio of means at each.
        by: "signed" (for CPR) or "magnitude" (for CMD).
        settings: Conventions, JSON.
    """

    fractions: tuple[float, ...]
    n_edges: tuple[int, ...]
    faithfulness: tuple[float, ...]
    by: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def cpr(self) -> float:
        """Area under faithfulness."""
        return area(self.fractions, self.faithfulness)

    @property
    def cmd(self) -> float:
        """Area under the distance of faithfulness from 1."""
        return area(self.fractions, [abs(1 - f) for f in self.faithfulness])

    @property
    def cpr_log(self) -> float:
        """Mean faithfulness over log size."""
        return area(self.fractions, self.faithfulness, log=True)

    @property
    def cmd_log(self) -> float:
        """Mean distance from 1 over log size."""
        return area(self.fractions, [abs(1 - f) for f in self.faithfulness], log=True)

    @property
    def cpr_clipped(self) -> float:
        """CPR of faithfulness within 0 to 1."""
        return area(self.fractions, [min(1.0, max(0.0, f)) for f in self.faithfulness])

    def labelled(self) -> LabelledArray:
        """The curve as a labelled array."""
        return LabelledArray(
            np.array(self.faithfulness),
            ("share of edges",),
            coords={"share of edges": [f"{k:g}" for k in self.fractions]},
            unit="faithfulness",
            title=f"Faithfulness by size ({self.by})",
            conventions=self.settings,
        )

    def plot(self) -> Any:
        """A Plotly figure."""
        return self.labelled().plot()


def size_curve(
    model: Model,
    circuit: Circuit,
    *,
    split: Split,
    by: str = "signed",
    fractions: Sequence[float] = FRACTIONS,
    conventions: Conventions | None = None,
) -> SizeCurve:
    """Faithfulness of the strongest edges by a circuit's scores, from few to all.

    Args:
        model: The model that it was found in.
        circuit: With scores of every edge; which of them it keeps plays no part.
        split: Prompt pairs.
        by: "signed": the largest scores first; "magnitude": the largest absolute ones.
        fractions: Shares of the model's edges.
        conventions: What removed edges carry.

    Returns:
        A curve whose circuits are pruned to connected; one left without an edge has faithfulness 0.

    Raises:
        NotEnoughEvidence: the circuit has no scores.
    """
    n_edges = [max(1, round(fraction * circuit.wiring.n_edges)) for fraction in fractions]
    circuits = [strongest_edges(circuit, n, by=by) for n in n_edges]
    full = [found for found in circuits if len(found)]
    evaluations = (
        evaluate_circuits(model, full, split, conventions=conventions, measures=Measures(parts=()))
        if full
        else []
    )
    values = iter(evaluations)
    return SizeCurve(
        fractions=tuple(fractions),
        n_edges=tuple(len(found) for found in circuits),
        faithfulness=tuple(next(values).faithfulness if len(found) else 0.0 for found in circuits),
        by=by,
        settings={**(conventions or Conventions()).to_json(), "split": split.name},
    )


def strongest_edges(circuit: Circuit, n_edges: int, *, by: str = "magnitude") -> Circuit:
    """The model's strongest edges by a circuit's scores, pruned to connected; what it keeps itself plays no part.

    Args:
        circuit: With scores of every edge.
        n_edges: How many; pruning may leave fewer.
        by: As in `size_curve`.

    Raises:
        NotEnoughEvidence: the circuit has no scores.
    """
    if circuit.scores is None:
        raise NotEnoughEvidence(
            "Other sizes need a score of every edge.",
            got=circuit.name,
            because="it takes ever more edges in the order of their scores",
            instead="a circuit that ms.discover found",
        )
    strength = np.abs(circuit.scores) if by == "magnitude" else circuit.scores
    kept = np.zeros_like(circuit.kept)
    kept[np.argsort(-strength, kind="stable")[:n_edges]] = True
    return replace(circuit, kept=kept).connected()
