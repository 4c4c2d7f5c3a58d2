"""Claims about circuits: what is predicted of one by default, and how a prediction about edges is measured.

Removed edges carry the pair's corrupt value ("corrupt"), or a mean or zero. Alone means that every other edge of the
model is removed. Controls are random connected circuits of the same size that share no edge with it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.parts.circuit import PartCircuit
from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.claims.predictions import Prediction, RecordedBehavior, lowers, recovers
from mechscope.records.canonical import canonical_json
from mechscope.vocabulary.errors import BadClaim, NotEnoughEvidence

RECOVERS, LOWERS = 0.8, 0.5
"""Fractions of the gap that a claim about a circuit predicts unless told otherwise."""

OF_PARTS = {"corrupt": "resample", "mean": "mean", "zero": "zero"}
"""What removed edges, latents or experts carry, by the ablation value of a prediction."""


def circuit_predictions() -> list[Prediction]:
    """Alone it recovers most of the gap, and without it at least half of the gap is lost."""
    return [recovers(RECOVERS), lowers(LOWERS, unit="gap", how="corrupt")]


def behavior_of(circuit: Circuit | PartCircuit) -> RecordedBehavior:
    """The behaviour that a circuit was found for.

    Raises:
        BadClaim: the circuit does not remember one.
    """
    saved = circuit.settings.get("behavior")
    if not isinstance(saved, Mapping):
        raise BadClaim(
            "a circuit that does not say which behaviour it is for",
            got=circuit.name,
            because="it was written down, or found on a single split",
            instead="Claim.about(circuit, behavior=ms.behaviors.load(...))",
        )
    return RecordedBehavior(saved["name"], canonical_json(saved["recipe"]))


def measure_circuits(
    model: Any,
    circuits: Sequence[Circuit],
    *,
    prediction: Prediction,
    split: Any,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "circuit prompt"]:
    """The metric under circuits alone ("recovers"), without them ("lowers", "spares"), or less their least edge.

    Args:
        model: The model that they are of.
        circuits: One or more.
        prediction: What is done to the model.
        split: Prompt pairs.
        progress: Told circuits done and circuits in all.

    Raises:
        BadClaim: a prediction that edges have no meaning for.
    """
    refuse_unless_of_parts(prediction)
    for circuit in circuits:
        circuit.refuse_unless_of(model)
    kept = np.stack([circuit.kept for circuit in circuits])
    if prediction.kind in ("recovers", "needs"):
        runs = CircuitRuns(model, split, conventions=Conventions())
        if prediction.kind == "needs":
            return np.stack([_least_needed(runs, mask) for mask in kept])
        return runs.measure(kept, progress=progress)
    ablation: Any = OF_PARTS[prediction.how]
    return CircuitRuns(model, split, conventions=Conventions(ablation=ablation)).measure(
        ~kept, progress=progress
    )


def refuse_unless_of_parts(prediction: Prediction) -> None:
    """Refuse a prediction that a circuit's edges, latents or experts have no meaning for.

    Raises:
        BadClaim: steering, or a value that removed parts can't carry.
    """
    if prediction.kind in ("recovers", "needs"):
        return
    if prediction.kind not in ("lowers", "spares") or prediction.how not in OF_PARTS:
        raise BadClaim(
            f"{prediction.kind} by {prediction.how} can't be predicted of a circuit",
            got=str(prediction),
            because="its parts are removed by the corrupt value, a mean or zero, and can't be steered along",
            instead='recovers(0.8), lowers(0.5, unit="gap", how="corrupt")',
        )


def draw_rivals(circuit: Circuit, *, n_draws: int, seed: int) -> list[Circuit]:
    """Random connected circuits of the same size without any of its edges; [] where the rest holds none."""
    try:
        return random_circuits(circuit, n_draws, seed=seed, avoiding=True)
    except NotEnoughEvidence:
        return []


def _least_needed(runs: CircuitRuns, kept: np.ndarray) -> np.ndarray:
    places = np.flatnonzero(kept)
    without = np.repeat(kept[None], len(places), axis=0)
    without[np.arange(len(places)), places] = False
    values = runs.measure(np.concatenate([kept[None], without]))
    drops = values[0] - values[1:]
    return drops[int(np.argmin(drops.mean(1)))]
