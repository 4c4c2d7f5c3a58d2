"""Edges: the part of an investigation that finds the smallest faithful circuit, and freezes a claim about it.

Edges are scored on train prompts, the size is chosen on validation prompts: the fewest of the strongest edges that
alone keep enough of the behaviour there. Held-out prompts play no part before the claim is tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from mechscope.behaviors import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.discover import discover, remember
from mechscope.circuits.evaluation import CircuitEvaluation, evaluate_circuits
from mechscope.circuits.measures import Measures
from mechscope.circuits.size_curve import SizeCurve, size_curve, strongest_edges
from mechscope.claims.claim import Claim
from mechscope.investigations.prediction_sizes import size_predictions
from mechscope.investigations.search import ENOUGH
from mechscope.models.model import Model
from mechscope.vocabulary.errors import NoGradient, NotEnoughEvidence, PairLengthMismatch, PointUnavailable

METHOD = "eap-ig"
N_SIZES = 40
"""Sizes tried, from one edge on, each about an eighth larger than the last."""

MOST = 0.25
"""A circuit of more than this share of all edges explains little and leaves its rivals no room."""

FEWEST_TRIED = 12
"""In a small model as many edges are tried, whatever share of all that is."""

N_SIZED = 64
"""Validation pairs on which sizes are tried."""


@dataclass(frozen=True, kw_only=True)
class EdgePart:
    """What was found about edges, and what is claimed of them.

    Args:
        stopped: Why there is no claim; "" if there is one.
        curve: Faithfulness by size on validation prompts; None where no edge could be scored.
        sizes: How many of the strongest edges each point of the curve keeps, before pruning to connected.
        chosen: Place of the circuit on the curve.
        evaluation: Of the circuit on validation prompts, each edge also taken away alone; None without a circuit.
        claim: Frozen, not yet tested; None if nothing is claimed.
        left_out: What was not predicted, and why.
    """

    stopped: str = ""
    curve: SizeCurve | None = None
    sizes: tuple[int, ...] = ()
    chosen: int | None = None
    evaluation: CircuitEvaluation | None = None
    claim: Claim | None = None
    left_out: tuple[str, ...] = ()

    @property
    def circuit(self) -> Circuit | None:
        """The edges that were found."""
        # It was looked for without positions.
        return None if self.evaluation is None else cast(Circuit, self.evaluation.circuit)


def find_edges(model: Model, behavior: Behavior, train: Split) -> EdgePart:
    """Score every edge on train prompts, and take the fewest that are faithful enough on validation prompts.

    Args:
        model: An open model.
        behavior: Its validation split decides the size.
        train: Where edges are scored.

    Cost: the attribution, and a run of validation prompts for each size and each edge of the circuit.
    """
    validation = behavior.validation.select(range(min(N_SIZED, len(behavior.validation))))
    try:
        scored = remember(discover(model, train, method=METHOD, n_edges=1), behavior)
        sizes = sizes_to_try(scored.wiring.n_edges)
        shares = [size / scored.wiring.n_edges for size in sizes]
        curve = size_curve(model, scored, split=validation, by="magnitude", fractions=shares)
    except (PointUnavailable, NoGradient, NotEnoughEvidence, PairLengthMismatch) as refusal:
        return EdgePart(stopped=f"No edges were looked for. {refusal.what} {_sentence(refusal.because)}")
    chosen = smallest_faithful(curve)
    if chosen is None:
        stopped = _none_faithful(curve, sizes[-1], scored.wiring.n_edges)
        return EdgePart(stopped=stopped, curve=curve, sizes=sizes)
    circuit = strongest_edges(scored, sizes[chosen])
    circuit = replace(circuit, settings={**circuit.settings, "n_edges": sizes[chosen]})
    alone = Measures(parts=("minimality",), n_subsets=0)
    evaluation = evaluate_circuits(model, [circuit], validation, measures=alone)[0]
    return EdgePart(curve=curve, sizes=sizes, chosen=chosen, evaluation=evaluation)


def claim_edges(
    model: Model, behavior: Behavior, *, part: EdgePart, others: Sequence[Behavior] = (), seed: int = 0
) -> EdgePart:
    """Choose on validation prompts what to predict of the circuit, and freeze the claim.

    Args:
        model: An open model.
        behavior: What the circuit is claimed to carry.
        part: As found; one that stopped is returned as it is.
        others: Behaviours that the circuit might spare.
        seed: Of rivals and resamples.
    """
    circuit = part.circuit
    if part.stopped or circuit is None:
        return part
    sized = size_predictions(model, behavior, mechanism=circuit, others=tuple(others), seed=seed)
    if "recovers" not in {prediction.kind for prediction in sized.predictions}:  # a bottleneck is no circuit
        stopped = "On validation prompts it is too uncertain what the circuit that was found keeps alone to predict it."
        return replace(part, stopped=stopped, left_out=sized.left_out)
    claim = Claim.about(
        circuit,
        behavior=behavior,
        predictions=sized.predictions,
        statement=f"In {model.identity.name}, a circuit of {len(circuit)} of the {circuit.wiring.n_edges:,} edges "
        f"carries {behavior.name}.",
        seed=seed,
    )
    return replace(part, claim=claim, left_out=sized.left_out)


def sizes_to_try(n_edges: int) -> tuple[int, ...]:
    """Numbers of edges, from one to the most that is tried.

    >>> sizes_to_try(32)
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    """
    most = min(n_edges, max(FEWEST_TRIED, round(MOST * n_edges)))
    return tuple(sorted({round(size) for size in np.geomspace(1, most, N_SIZES).tolist()}))


def smallest_faithful(curve: SizeCurve, wanted: float = ENOUGH) -> int | None:
    """Place of the first size whose faithfulness reaches what is wanted, or None."""
    return next((i for i, value in enumerate(curve.faithfulness) if value >= wanted), None)


def _none_faithful(curve: SizeCurve, most: int, n_edges: int) -> str:
    best = int(np.argmax(curve.faithfulness))
    return (
        f"Of the strongest edges by {METHOD}, up to {most} of {n_edges:,} ({most / n_edges:.0%}) were tried, and none "
        f"of these circuits keeps {ENOUGH:.0%} of the behaviour on validation prompts. The best keeps "
        f"{curve.faithfulness[best]:.0%} with {curve.n_edges[best]} edges. No circuit is claimed."
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
