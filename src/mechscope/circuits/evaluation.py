"""Evaluation: how much of a behaviour a circuit carries, what it leaves out, and what of it is not needed.

    F(C) = (m(C) - m(none)) / (m(model) - m(none))        faithfulness; `none` has no edge left
    completeness: the largest |F(C less K) - F(model less K)| over sets K of the circuit's nodes
    minimality:   for an edge or node, the largest change of m by taking it away, K gone or not

Ratios are given both ways, as a ratio of means and as the mean of ratios. Many circuits share every run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.faithfulness import Faithfulness, refuse_without_gap, saved_fields
from mechscope.circuits.measures import Measures, Plan, writers_of
from mechscope.circuits.positional import PositionalCircuit, saved_circuit, shared_spans
from mechscope.circuits.worst_sets import worst_sets
from mechscope.figures.prose import Cell, Table
from mechscope.models.model import Model
from mechscope.records.record import Record
from mechscope.vocabulary.errors import NotEnoughEvidence


class CircuitEvaluationRecord(Record):
    """A saved `CircuitEvaluation`."""

    kind: ClassVar[str] = "circuit-evaluation"


@dataclass(frozen=True, kw_only=True)
class CircuitEvaluation(Faithfulness):
    """What a circuit does on a split, pair by pair.

    Args:
        circuit: The circuit.
        incompleteness: |F(C less K) - F(model less K)| of each set K; {} if not measured.
        edge_needs: Change of m by taking away each edge, as a share of m(model) - m(none), in the circuit's order.
        node_needs: The same for nodes, the largest over sets K that are gone too.
    """

    circuit: Circuit | PositionalCircuit
    incompleteness: Mapping[str, float] = field(default_factory=dict)
    edge_needs: np.ndarray | None = None
    node_needs: Mapping[str, float] = field(default_factory=dict)

    @property
    def completeness(self) -> float | None:
        """The largest incompleteness found; 0 is complete. None if not measured."""
        return max(self.incompleteness.values()) if self.incompleteness else None

    @property
    def unneeded_edges(self) -> tuple[str, ...]:
        """Edges whose removal moves the metric by less than 1% of the gap."""
        if self.edge_needs is None:
            return ()
        pairs = zip(self.circuit.edges, self.edge_needs, strict=True)
        return tuple(str(edge) for edge, need in pairs if need < 0.01)

    @property
    def minimality(self) -> float | None:
        """Share of edges that are needed: their removal moves the metric by at least 1% of the gap."""
        return None if self.edge_needs is None else float((self.edge_needs >= 0.01).mean())

    def to_json(self) -> dict[str, Any]:
        """Numbers for a machine."""
        return {
            "n_edges": len(self.circuit),
            **self.summary(),
            "completeness": self.completeness,
            "minimality": self.minimality,
            "unneeded_edges": list(self.unneeded_edges),
        }

    def table(self) -> Table:
        """The numbers for a report."""
        edges: list[Cell] = ["edges", f"{len(self.circuit)} of {self.circuit.kept.size}"]
        rows = [edges, *self.rows("no edge")]
        if self.completeness is not None:
            rows.append(["largest incompleteness", f"{self.completeness:.3f}"])
        if self.minimality is not None:
            rows.append(["share of edges that are needed", f"{self.minimality:.3f}"])
        return Table(["measure", "value"], rows, caption=self.said)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        told = f"faithfulness {self.faithfulness:.3f} over {len(self.values)} pairs"
        return f"<CircuitEvaluation {self.circuit.name}: {told}>"

    def save(self, path: str | Path) -> None:
        """Write a record."""
        arrays = self.arrays
        arrays |= {} if self.edge_needs is None else {"edge_needs": self.edge_needs}
        arrays |= {} if self.circuit.scores is None else {"scores": self.circuit.scores}
        CircuitEvaluationRecord(
            settings={**self.settings, "found_by": dict(self.circuit.settings)},
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={
                "circuit": self.circuit.to_json(),
                "incompleteness": dict(self.incompleteness),
                "node_needs": dict(self.node_needs),
                "summary": self.to_json(),
            },
            arrays=arrays,
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "CircuitEvaluation":
        """Read what `save` wrote."""
        record = CircuitEvaluationRecord.load(path)
        circuit = saved_circuit(
            record.numbers["circuit"],
            scores=record.arrays.get("scores"),
            settings=record.settings["found_by"],
        )
        return cls(
            circuit=circuit,
            incompleteness=record.numbers["incompleteness"],
            edge_needs=record.arrays.get("edge_needs"),
            node_needs=record.numbers["node_needs"],
            **saved_fields(record),
        )


def evaluate_circuits(
    model: Model,
    circuits: Sequence[Circuit | PositionalCircuit],
    split: Split,
    *,
    conventions: Conventions | None = None,
    measures: Measures | None = None,
) -> list[CircuitEvaluation]:
    """Evaluate circuits on one split; the clean, corrupt and reference runs and equal circuits are shared.

    Args:
        model: The model that they were found in.
        circuits: At least one; all with the same spans, or without.
        split: Prompt pairs; for a claim about them, ones that no search has seen.
        conventions: What removed edges carry, and in which run.
        measures: What is measured beside faithfulness.

    Returns:
        One evaluation a circuit, in the order given.

    Raises:
        UnknownEdge: a circuit of another model.
        ShapeError: circuits with and without positions, or prompts that do not have them.
        NotEnoughEvidence: an empty circuit, or none at all.

    Cost: two forward passes, one for all edges, one for each circuit less what it need not compute; minimality
        adds one for each edge, completeness two for each set (and two for each node of each greedy round).
    """
    if not circuits:
        raise NotEnoughEvidence(
            "There is no circuit to evaluate.", got="an empty list", instead="one circuit or more"
        )
    for circuit in circuits:
        circuit.refuse_unless_of(model)
    conventions, measures = conventions or Conventions(), measures or Measures()
    runs = CircuitRuns(model, split, conventions=conventions, spans=shared_spans(model, split, circuits))
    plans = [Plan(circuit, measures) for circuit in circuits]
    masks = [np.ones_like(circuits[0].kept), np.zeros_like(circuits[0].kept)]
    for plan in plans:
        masks += plan.masks
    with runs.hold():
        values = runs.measure(np.stack(masks))
        refuse_without_gap(values[0], values[1])
        worst = [
            _worst(runs, circuit, measures, gap=float((values[0] - values[1]).mean())) for circuit in circuits
        ]
    settings = {"split": split.name, "metric": split.metric.kind, **conventions.to_json()}
    settings |= {name: value for name, value in asdict(measures).items() if name != "parts"}
    found, start = [], 2
    for plan, searched in zip(plans, worst, strict=True):
        own = values[start : start + len(plan.masks)]
        start += len(plan.masks)
        read = plan.read(own.mean(1), float(values[0].mean()), float(values[1].mean()))
        if searched:
            read["incompleteness"] |= searched
        found.append(
            CircuitEvaluation(
                circuit=plan.circuit,
                values=own[0],
                model_values=values[0],
                none_values=values[1],
                units=split.units,
                settings=settings,
                model=model.fingerprint,
                data_sha256=split.data_hash,
                **read,
            )
        )
    return found


def _worst(
    runs: CircuitRuns, circuit: Circuit | PositionalCircuit, measures: Measures, *, gap: float
) -> dict[str, float]:
    if not measures.n_greedy or "completeness" not in measures.parts:
        return {}
    return worst_sets(runs, circuit, nodes=writers_of(circuit), n=measures.n_greedy, gap=gap)
