"""The latents or experts that carry a behaviour: chosen on train prompts, tested and described on held-out ones.

The claim is frozen and tested before anything else is measured on held-out prompts; what it is held against beside
(`verdict.checks`) decides nothing. What a circuit is made of is said
in one word, its grain, that also says what happens to what is no part: errors of dictionaries, choices of routers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mechscope.attribution.part_scores import node_of
from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.discover import remember
from mechscope.circuits.parts.evaluation import PartEvaluation, PartMeasures
from mechscope.circuits.parts.experts import ExpertCircuit, choose_experts, evaluate_experts
from mechscope.circuits.parts.latents import LatentCircuit, choose_latents, evaluate_latents
from mechscope.circuits.statistics.checks import CheckSettings
from mechscope.circuits.statistics.significance import TestSettings
from mechscope.claims.claim import Claim
from mechscope.claims.dictionary_places import Placed, open_place
from mechscope.claims.part_claims import Parts, measure_parts
from mechscope.claims.predictions import recovers
from mechscope.features.index import open_index
from mechscope.features.shipped import bundled
from mechscope.investigations.found_circuit import N_EVALUATED, N_TRAIN, FoundCircuit
from mechscope.investigations.investigate import examples_of
from mechscope.investigations.stages import Progress, Stages
from mechscope.models.model import Model
from mechscope.vocabulary.errors import InterventionMismatch

GRAINS = {
    "latents": "latents of dictionaries; what these leave over is kept",
    "latents-alone": "latents of dictionaries; what these leave over is removed with the other latents",
    "experts": "experts of a mixture; routers choose anew in the circuit's run",
    "experts-frozen": "experts of a mixture; routers choose as in the prompts' own run",
}
"""What a circuit is made of, by name."""

N_LATENTS = 100
SHARE_OF_EXPERTS = 0.25
"""Parts that are kept unless asked for: latents in all, a share of all experts."""

N_NEEDS = 20
"""The strongest parts, each of which is also removed by itself."""

SIZES = (0.125, 0.25, 0.5, 1, 2)
"""Sizes at which faithfulness is told, times the circuit's."""


@dataclass(frozen=True, kw_only=True)
class PartSearch:
    """How parts are chosen.

    Args:
        grain: One of `GRAINS`.
        n_parts: How many at most; None for 100 latents, or a quarter of all experts.
        dictionaries: Places of the dictionaries of latents.
        n_controls: Searches in each world without the mechanism; 0 leaves them out.
        seed: Of controls and resamples.
    """

    grain: str = "latents"
    n_parts: int | None = None
    dictionaries: tuple[str, ...] = ()
    n_controls: int = 19
    seed: int = 0

    def __post_init__(self) -> None:
        if self.grain not in GRAINS or self.is_of_latents != bool(self.dictionaries):
            raise InterventionMismatch(
                "Parts can't be chosen so.",
                got=f"grain={self.grain!r}, dictionaries={list(self.dictionaries)}",
                because=f"grains are {', '.join(GRAINS)}; latents are those of dictionaries, and experts of none",
                instead='PartSearch(grain="latents", dictionaries=("village/mlp.*",)), PartSearch(grain="experts")',
            )

    @property
    def is_of_latents(self) -> bool:
        """Latents and not experts."""
        return self.grain.startswith("latents")


@dataclass(frozen=True, kw_only=True)
class PartInvestigation(FoundCircuit):
    """What was found about the latents or experts of a behaviour.

    Args:
        search: As it was asked for.
        sizes: Evaluations of the strongest parts in other numbers, likewise.
        needs: What each of the strongest parts alone is missed by, as a share of the evaluation's gap, by node.
        labels: What latents are taken to mean, by node, where their dictionary ships with labels.
    """

    circuit: LatentCircuit | ExpertCircuit
    evaluation: PartEvaluation
    search: PartSearch
    sizes: tuple[PartEvaluation, ...]
    needs: Mapping[str, float]
    labels: Mapping[str, str]


def investigate_parts(
    model: Model,
    behavior: Behavior,
    *,
    search: PartSearch,
    ledger: Path | None = None,
    progress: Progress | None = None,
) -> PartInvestigation:
    """Choose latents or experts, test a claim about them on prompts that the choice has not seen, and describe them.

    Args:
        model: An open model.
        behavior: With train and held-out splits.
        search: How.
        ledger: Folder of the ledger of held-out openings.
        progress: Told the stage and the share done.

    Raises:
        NotEnoughEvidence: the model does not show the behaviour, or no part has an effect.
        BadFile, DictionaryMismatch: no dictionaries there, or none of this model.
        PointUnavailable: experts of a model that has none.

    Cost: about 900 runs of held-out prompts under circuits, one more for each part, and `3 * n_controls` searches.
    """
    stages = Stages(progress)
    train = behavior.train.select(range(min(N_TRAIN, len(behavior.train))))
    stages.begin("choosing parts", 0.0, 0.03)
    placed = [one for place in search.dictionaries for one in open_place(place)]
    circuit = remember(_choose(model, train, search, placed), behavior)
    circuit.refuse_unless_of(model)
    stages.begin("testing on held-out prompts", 0.03, 0.9)
    claim = Claim.about(circuit, dictionaries=search.dictionaries or None, seed=search.seed)
    checks = CheckSettings(
        tests=TestSettings(seed=search.seed), n_controls=search.n_controls, n_search=N_TRAIN
    )
    record = claim.examine(model, ledger=ledger, behaviors=[behavior], checks=checks, progress=stages.tell)
    stages.begin("describing the circuit on held-out prompts", 0.9, 0.99)
    held_out = behavior.held_out.select(range(min(N_EVALUATED, len(behavior.held_out))))
    mechanism = claim.mechanism
    assert isinstance(mechanism, Parts)
    tried = [circuit.resized(max(1, round(share * len(circuit)))) for share in SIZES]
    other = list({len(one): one for one in tried}.values())  # parts without an effect are in none of them
    few = PartMeasures(n_random=5, seed=search.seed)
    evaluation = _evaluate(model, [circuit], held_out, placed, PartMeasures(seed=search.seed))[0]
    return PartInvestigation(
        model_name=model.identity.name,
        behavior=behavior,
        search=search,
        circuit=circuit,
        evaluation=evaluation,
        sizes=tuple(_evaluate(model, other, held_out, placed, few)),
        needs=_needs(model, mechanism, held_out, evaluation.gap),
        labels=_labels(mechanism),
        record=record,
        examples=examples_of(model, behavior),
    )


def strongest_parts(circuit: LatentCircuit | ExpertCircuit, n: int) -> list[tuple[str, int, float]]:
    """Site, index and score of the strongest latents or experts of a circuit; errors are not among them."""
    scores = circuit.scores or {}
    found = [
        (site, index, float(scores[site][index]) if site in scores else 0.0)
        for site, kept in Parts(circuit).members.items()
        for index in kept
    ]
    return sorted(found, key=lambda one: -abs(one[2]))[:n]


def name_of(circuit: LatentCircuit | ExpertCircuit, site: str, index: int) -> str:
    """A part as reports name it: "mlp_out.3:417", "m3:5"."""
    return str(node_of(circuit.part, site, index, len(circuit.kept[site])))


def _choose(
    model: Model, train: Split, search: PartSearch, placed: Sequence[Placed]
) -> LatentCircuit | ExpertCircuit:
    if search.is_of_latents:
        return choose_latents(
            model,
            train,
            dictionaries=[one.dictionary.to(device=model.device) for one in placed],
            n_latents=search.n_parts or N_LATENTS,
            errors="kept" if search.grain == "latents" else "removed",
        )
    routing = "recomputed" if search.grain == "experts" else "frozen"
    found = choose_experts(model, train, n_experts=search.n_parts or 1, routing=routing)
    n_all = sum(len(which) for which in found.kept.values())
    return found if search.n_parts else found.resized(max(1, round(SHARE_OF_EXPERTS * n_all)))


def _evaluate(
    model: Model,
    circuits: Sequence[LatentCircuit | ExpertCircuit],
    split: Split,
    placed: Sequence[Placed],
    measures: PartMeasures,
) -> list[PartEvaluation]:
    latents = [one for one in circuits if isinstance(one, LatentCircuit)]
    if latents:
        dictionaries = [one.dictionary.to(device=model.device) for one in placed]
        return evaluate_latents(model, latents, split=split, dictionaries=dictionaries, measures=measures)
    experts = [one for one in circuits if isinstance(one, ExpertCircuit)]
    return evaluate_experts(model, experts, split=split, measures=measures)


def _needs(model: Model, mechanism: Parts, split: Split, gap: float) -> dict[str, float]:
    """What is lost alone when one of the strongest parts is left out too, as a share of the gap."""
    circuit = mechanism.circuit
    assert isinstance(circuit, LatentCircuit | ExpertCircuit)
    top = strongest_parts(circuit, N_NEEDS)
    less = [mechanism.without(site, index) for site, index, _ in top]
    values = measure_parts(model, [mechanism, *less], prediction=recovers(1.0), split=split)
    lost: list[float] = ((values[0] - values[1:]).mean(1) / gap).tolist()
    return {name_of(circuit, site, index): one for (site, index, _), one in zip(top, lost, strict=True)}


def _labels(mechanism: Parts) -> dict[str, str]:
    circuit = mechanism.circuit
    if not isinstance(circuit, LatentCircuit):
        return {}
    indexes = {
        site: open_index(one.place)
        for site, one in mechanism.placed.items()
        if bundled(one.place) is not None
    }
    found: dict[str, str] = {}
    for site, index, _ in strongest_parts(circuit, N_NEEDS):
        label = indexes[site].labels.get(index) if site in indexes else None
        if label is not None:
            found[name_of(circuit, site, index)] = label.text
    return found
