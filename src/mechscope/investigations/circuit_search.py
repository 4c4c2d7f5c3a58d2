"""The circuit of a behaviour: found on train prompts and again on resamples, tested and described on held-out ones.

The claim is frozen and tested before anything else is measured on held-out prompts.
"""

from dataclasses import dataclass, field
from pathlib import Path

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.discover import discover, remember
from mechscope.circuits.evaluation import CircuitEvaluation, evaluate_circuits
from mechscope.circuits.measures import Measures
from mechscope.circuits.size_curve import SizeCurve, size_curve
from mechscope.circuits.statistics.resampling import Stability, measure_stability
from mechscope.claims.claim import Claim
from mechscope.claims.claim_file import ClaimRecord
from mechscope.investigations.stages import Progress
from mechscope.models.model import Model

N_TRAIN = 48
"""Train pairs that discovery looks at."""

N_EVALUATED = 60
"""Held-out pairs of the evaluation; the claim reads all of them."""


@dataclass(frozen=True, kw_only=True)
class CircuitSearch:
    """How a circuit is looked for.

    Args:
        method: As in `ms.discover`.
        n_edges: Edges at most.
        n_runs: Discoveries on resampled units; 0 leaves stability out.
        seed: Of resamples and controls.
    """

    method: str = "eap-ig"
    n_edges: int = 50
    n_runs: int = 100
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CircuitInvestigation:
    """What was found about a behaviour's circuit.

    Args:
        model_name: Of the model.
        behavior: Of the circuit.
        circuit: Found on train prompts.
        evaluation: On held-out prompts.
        curve: Faithfulness by size, on held-out prompts; None where the method scores no edges.
        stability: Discovery on resampled units; None if it was not asked for.
        stable: Evaluation of the edges that keep being found; None without such edges.
        record: The tested claim.
        command: How to ask for it again.
    """

    model_name: str
    behavior: Behavior
    circuit: Circuit
    evaluation: CircuitEvaluation
    curve: SizeCurve | None
    stability: Stability | None
    stable: CircuitEvaluation | None
    record: ClaimRecord
    command: str = field(default="")


def investigate_circuit(
    model: Model,
    behavior: Behavior,
    *,
    search: CircuitSearch | None = None,
    ledger: Path | None = None,
    progress: Progress | None = None,
) -> CircuitInvestigation:
    """Find a circuit, test a claim about it on prompts that the search has not seen, and describe it on them.

    Args:
        model: An open model.
        behavior: With train and held-out splits.
        search: How; EAP-IG, 50 edges and 100 resamples by default.
        ledger: Folder of the ledger of held-out openings.
        progress: Told the stage and the share done.

    Raises:
        NotEnoughEvidence: the model does not show the behaviour, or nothing was found.

    Cost: `n_runs` discoveries, and about 500 runs of held-out prompts under circuits.
    """
    tell = progress or (lambda what, share: None)
    search = search or CircuitSearch()
    train = behavior.train.select(range(min(N_TRAIN, len(behavior.train))))

    def find(split: Split) -> Circuit:
        return discover(model, split, method=search.method, n_edges=search.n_edges)

    tell("looking for the circuit", 0.0)
    circuit = remember(find(train), behavior)
    tell("testing the claim on held-out prompts", 0.05)
    record = Claim.about(circuit, seed=search.seed).examine(model, ledger=ledger, behaviors=[behavior])
    tell("describing the circuit on held-out prompts", 0.45)
    held_out = behavior.held_out.select(range(min(N_EVALUATED, len(behavior.held_out))))
    evaluation = evaluate_circuits(model, [circuit], held_out, measures=Measures(seed=search.seed))[0]
    curve = None
    if circuit.scores is not None:
        curve = size_curve(model, circuit, split=held_out, by="magnitude")
    stability = stable = None
    if search.n_runs:
        stability = measure_stability(
            train,
            find,
            n_runs=search.n_runs,
            seed=search.seed,
            progress=lambda what, done, total: tell(what, 0.55 + 0.4 * done / total),
        )
        if len(stability.stable):
            few = Measures(parts=(), seed=search.seed)
            stable = evaluate_circuits(model, [stability.stable], held_out, measures=few)[0]
    return CircuitInvestigation(
        model_name=model.identity.name,
        behavior=behavior,
        circuit=circuit,
        evaluation=evaluation,
        curve=curve,
        stability=stability,
        stable=stable,
        record=record,
    )
