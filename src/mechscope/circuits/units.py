"""UnitCircuit: a circuit whose MLPs are some of their units (neurons) and not the whole.

Edges are those of a circuit; a unit that is not kept carries its activation from the run that removed edges' values
are from, for every reader alike. So a unit is a node: "m3:17". MLPs that are not named keep all their units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.attribution.nodes import attribute
from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import CircuitRuns, Conventions, split_to_search
from mechscope.circuits.evaluation import CircuitEvaluation
from mechscope.circuits.faithfulness import refuse_without_gap
from mechscope.models.model import Model
from mechscope.records.record import Record
from mechscope.vocabulary.edges import Node
from mechscope.vocabulary.errors import InterventionMismatch, NotEnoughEvidence, UnknownEdge


class UnitCircuitRecord(Record):
    """A saved `UnitCircuit`."""

    kind: ClassVar[str] = "unit-circuit"


@dataclass(frozen=True, kw_only=True)
class UnitCircuit:
    """A circuit with some units of some of its MLPs.

    Args:
        circuit: Its edges.
        d_mlp: Units of each MLP of the model.
        units: Units that are kept, by layer; a layer that is not named keeps all.
        settings: How the units were chosen, JSON.
    """

    circuit: Circuit
    d_mlp: int
    units: Mapping[int, tuple[int, ...]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wiring = self.circuit.wiring
        problems = [f"layer {layer}" for layer in self.units if not 0 <= layer < wiring.n_layers]
        problems += [
            f"m{layer}:{unit}"
            for layer, kept in self.units.items()
            for unit in kept
            if not 0 <= unit < self.d_mlp
        ]
        problems += ["MLPs" if not wiring.has_mlps else ""]
        if any(problems):
            raise UnknownEdge(
                "Units that this model does not have.",
                got=", ".join(filter(None, problems))[:200],
                because=f"it has {wiring.n_layers} layers of {self.d_mlp} units",
                instead="units={3: (17, 40)}, numbers from 0 on",
            )
        units = {layer: tuple(sorted(set(kept))) for layer, kept in sorted(self.units.items())}
        object.__setattr__(self, "units", units)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Its nodes: heads, whole MLPs where all units are kept, and single units elsewhere."""
        found: list[Node] = []
        for node in self.circuit.nodes:
            kept = self.units.get(node.layer) if node.kind == "mlp" and node.layer is not None else None
            if kept is None:
                found.append(node)
            else:
                found += [Node(kind="mlp", layer=node.layer, unit=unit) for unit in kept]
        return tuple(found)

    @property
    def n_units(self) -> int:
        """Units kept in the MLPs that are named."""
        return sum(len(kept) for kept in self.units.values())

    @property
    def kept_units(self) -> np.ndarray:
        """Units kept, [layer, d_mlp] truth values."""
        kept = np.ones((self.circuit.wiring.n_layers, self.d_mlp), dtype=bool)
        for layer, units in self.units.items():
            kept[layer] = False
            kept[layer, list(units)] = True
        return kept

    def evaluate(
        self, model: Model, split: Split, *, conventions: Conventions | None = None, n_resamples: int = 2000
    ) -> CircuitEvaluation:
        """Faithfulness on a split, by the engine's edge runs.

        Raises:
            UnknownEdge: a circuit of another model, or another number of units.
            PointUnavailable: MLPs whose units are out of reach.
            InterventionMismatch: an ablation that gives units no value ("mean", "optimal"), or denoising.

        Cost: two forward passes, and one for all edges and one for the circuit.
        """
        return evaluate_units(model, [self], split=split, conventions=conventions, n_resamples=n_resamples)[0]

    def __repr__(self) -> str:
        return f"<UnitCircuit of {self.circuit.name}, {self.n_units} units of {len(self.units)} MLPs>"

    def to_json(self) -> dict[str, Any]:
        """What identifies it."""
        units = {str(layer): list(kept) for layer, kept in self.units.items()}
        return {
            "kind": UnitCircuitRecord.kind,
            "circuit": self.circuit.to_json(),
            "d_mlp": self.d_mlp,
            "units": units,
        }

    def save(self, path: str | Path) -> None:
        """Write a record."""
        UnitCircuitRecord(
            settings={**self.settings, "found_by": dict(self.circuit.settings)},
            model=self.circuit.model,
            data_sha256=self.circuit.data_sha256,
            numbers=self.to_json(),
            arrays={} if self.circuit.scores is None else {"scores": self.circuit.scores},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "UnitCircuit":
        """Read what `save` wrote."""
        record = UnitCircuitRecord.load(path)
        settings, numbers = dict(record.settings), record.numbers
        circuit = Circuit.from_json(
            numbers["circuit"],
            scores=record.arrays.get("scores"),
            settings=settings.pop("found_by"),
            model=record.model,
            data_sha256=record.data_sha256,
        )
        units = {int(layer): tuple(kept) for layer, kept in numbers["units"].items()}
        return cls(circuit=circuit, d_mlp=numbers["d_mlp"], units=units, settings=settings)


def evaluate_units(
    model: Model,
    circuits: Sequence[UnitCircuit],
    *,
    split: Split,
    conventions: Conventions | None = None,
    n_resamples: int = 2000,
) -> list[CircuitEvaluation]:
    """Evaluate circuits with units on one split; their `circuit` field holds the edges.

    Raises:
        As `UnitCircuit.evaluate`, and NotEnoughEvidence where there is no gap, or no circuit.
    """
    if not circuits:
        raise NotEnoughEvidence(
            "There is no circuit to evaluate.", got="an empty list", instead="one circuit or more"
        )
    for one in circuits:
        one.circuit.refuse_unless_of(model)
        _refuse_other_units(model, one)
    conventions = conventions or Conventions()
    if conventions.direction == "denoising":
        raise InterventionMismatch(
            "Units are removed from the clean run.",
            got='direction="denoising"',
            because="an edge given the clean value carries all units of its MLP as they are there",
            instead='Conventions(direction="noising")',
        )
    runs = CircuitRuns(model, split, conventions=conventions, with_units=True)
    masks = [one.circuit.kept for one in circuits]
    whole = np.ones_like(masks[0])
    every = np.ones_like(circuits[0].kept_units)
    values = runs.measure(
        np.stack([whole, ~whole, *masks]), np.stack([every, every, *(one.kept_units for one in circuits)])
    )
    refuse_without_gap(values[0], values[1])
    settings = {"split": split.name, "metric": split.metric.kind, **conventions.to_json()}
    return [
        CircuitEvaluation(
            circuit=one.circuit,
            values=own,
            model_values=values[0],
            none_values=values[1],
            units=split.units,
            settings=settings | {"n_resamples": n_resamples, "units": one.to_json()["units"]},
            model=model.fingerprint,
            data_sha256=split.data_hash,
        )
        for one, own in zip(circuits, values[2:], strict=True)
    ]


def choose_units(
    model: Model, behavior: Behavior | Split, *, circuit: Circuit, n_units: int, method: str = "attribution"
) -> UnitCircuit:
    """The strongest units of a circuit's MLPs, by attribution at their activations.

    Args:
        model: The model that the circuit was found in.
        behavior: Prompt pairs; of a behavior the train split.
        circuit: Its MLPs' units are ranked together.
        n_units: How many are kept in all; an MLP of which none is among them keeps none.
        method: Of `ms.attribute`: "attribution", "ig", "relp".

    Raises:
        NotEnoughEvidence: a circuit without an MLP.
        PointUnavailable: units out of reach.

    Cost: that of `ms.attribute`.
    """
    circuit.refuse_unless_of(model)
    layers = circuit.mlps
    if not layers:
        raise NotEnoughEvidence(
            "This circuit has no MLP whose units could be chosen.",
            got=circuit.name,
            instead="a circuit with edges out of an MLP",
        )
    split = split_to_search(behavior)
    scored = attribute(model, split, site="mlp_post", method=method, direction="noising").scores
    scores = np.stack([np.asarray(scored.sel(layer=layer).values).reshape(-1) for layer in layers])
    strongest = np.argsort(-np.abs(scores), axis=None, kind="stable")[:n_units]
    units: dict[int, list[int]] = {layer: [] for layer in layers}
    for row, unit in zip(*np.unravel_index(strongest, scores.shape), strict=True):
        units[layers[int(row)]].append(int(unit))
    return UnitCircuit(
        circuit=circuit,
        d_mlp=scores.shape[1],
        units={layer: tuple(kept) for layer, kept in units.items()},
        settings={"method": method, "n_units": n_units, "split": split.name},
    )


def _refuse_other_units(model: Model, one: UnitCircuit) -> None:
    n = int(model.weights["W_out", 0].shape[-2]) if one.circuit.wiring.has_mlps else 0
    if n != one.d_mlp:
        raise UnknownEdge(
            "This circuit's units are of a model of another width.",
            got=f"{one.d_mlp} units a layer",
            because=f"the model has {n}",
            instead="the model that it was found in",
        )
