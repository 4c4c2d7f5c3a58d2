"""The circuit of a behaviour: found on train prompts and again on resamples, tested and described on held-out ones.

The claim is frozen and tested before anything else is measured on held-out prompts; what it is held against beside
(`verdict.checks`) decides nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.discover import discover, remember
from mechscope.circuits.evaluation import CircuitEvaluation, evaluate_circuits
from mechscope.circuits.measures import Measures
from mechscope.circuits.size_curve import SizeCurve, size_curve
from mechscope.circuits.statistics.checks import CheckSettings
from mechscope.circuits.statistics.resampling import Stability, measure_stability
from mechscope.circuits.statistics.significance import TestSettings
from mechscope.claims.claim import Claim
from mechscope.investigations.found_circuit import N_EVALUATED, N_TRAIN, FoundCircuit
from mechscope.investigations.investigate import examples_of
from mechscope.investigations.stages import Progress, Stages
from mechscope.models.model import Model


@dataclass(frozen=True, kw_only=True)
class CircuitSearch:
    """How a circuit is looked for.

    Args:
        method: As in `ms.discover`.
        n_edges: Edges at most.
        n_runs: Discoveries on resampled units; 0 leaves stability out.
        n_controls: Discoveries in each world without the mechanism; 0 leaves them out.
        seed: Of resamples and controls.
    """

    method: str = "eap-ig"
    n_edges: int = 50
    n_runs: int = 100
    n_controls: int = 19
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CircuitInvestigation(FoundCircuit):
    """What was found about a behaviour's circuit of edges.

    Args:
        curves: Faithfulness by size on held-out prompts, of the strongest edges by magnitude and by signed scores; none
            where the method scores no edges.
        stability: Discovery on resampled units; None if it was not asked for.
        stable: Evaluation of the edges that keep being found; None without such edges.
    """

    circuit: Circuit
    evaluation: CircuitEvaluation
    curves: tuple[SizeCurve, ...]
    stability: Stability | None
    stable: CircuitEvaluation | None


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
        search: How; EAP-IG, 50 edges, 100 resamples and 19 searches in each world without the mechanism by default.
        ledger: Folder of the ledger of held-out openings.
        progress: Told the stage and the share done.

    Raises:
        NotEnoughEvidence: the model does not show the behaviour, or nothing was found.

    Cost: `n_runs + 3 * n_controls` discoveries, and about 1,000 runs of held-out prompts under circuits.
    """
    stages = Stages(progress)
    search = search or CircuitSearch()
    train = behavior.train.select(range(min(N_TRAIN, len(behavior.train))))

    def find(split: Split) -> Circuit:
        return discover(model, split, method=search.method, n_edges=search.n_edges)

    stages.begin("looking for the circuit", 0.0, 0.03)
    circuit = remember(find(train), behavior)
    stages.begin("testing on held-out prompts", 0.03, 0.5)
    checks = CheckSettings(
        tests=TestSettings(seed=search.seed), n_controls=search.n_controls, n_search=N_TRAIN
    )
    claim = Claim.about(circuit, seed=search.seed)
    record = claim.examine(model, ledger=ledger, behaviors=[behavior], checks=checks, progress=stages.tell)
    stages.begin("describing the circuit on held-out prompts", 0.5, 0.6)
    held_out = behavior.held_out.select(range(min(N_EVALUATED, len(behavior.held_out))))
    evaluation = evaluate_circuits(model, [circuit], held_out, measures=Measures(seed=search.seed))[0]
    curves: tuple[SizeCurve, ...] = ()
    if circuit.scores is not None:
        orders = ("magnitude", "signed")
        curves = tuple(size_curve(model, circuit, split=held_out, by=order) for order in orders)
    stability = stable = None
    if search.n_runs:
        stages.begin("searching on resampled prompts", 0.6, 0.99, part=1.0)
        stability = measure_stability(
            train, find, n_runs=search.n_runs, seed=search.seed, progress=stages.tell
        )
        if len(stability.stable):
            few = Measures(parts=(), seed=search.seed)
            stable = evaluate_circuits(model, [stability.stable], held_out, measures=few)[0]
    return CircuitInvestigation(
        model_name=model.identity.name,
        behavior=behavior,
        circuit=circuit,
        evaluation=evaluation,
        curves=curves,
        stability=stability,
        stable=stable,
        record=record,
        examples=examples_of(model, behavior),
    )
