"""ExpertCircuit: some experts of a mixture's layers; the others add what they add in the run removed values are from.

An expert is a node, "m3:5". Whether routers choose anew in the circuit's run or as in the prompts' own is said.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from mechscope.attribution.experts import attribute_experts
from mechscope.attribution.settings import refuse_unknown
from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import Conventions, split_to_search
from mechscope.circuits.discover import remember
from mechscope.circuits.parts.circuit import PartCircuit, strongest
from mechscope.circuits.parts.evaluation import (
    PartEvaluation,
    PartMeasures,
    evaluate_parts,
    measure_kept,
    prompts_for,
    refuse_none,
)
from mechscope.engine.kept_parts.experts import ROUTINGS, ExpertRuns, Routing, mixture_of, site_of
from mechscope.models.model import Model
from mechscope.records.record import Record
from mechscope.vocabulary.errors import InterventionMismatch, UnknownEdge

METHODS = ("attribution", "ig", "relp", "ablation")


class ExpertCircuitRecord(Record):
    """A saved `ExpertCircuit`."""

    kind: ClassVar[str] = "expert-circuit"


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertCircuit(PartCircuit):
    """Some experts of a mixture; `ExpertCircuit.of` makes one by hand.

    Args:
        kept: By site ("expert_out.3"), [n_experts] truth values.
        routing: "recomputed": routers follow what they read in the circuit's run; "frozen": who is chosen, and with
            what weight, is as in the prompts' own run.
    """

    part = "expert"
    record = ExpertCircuitRecord

    routing: Routing = "recomputed"

    @classmethod
    def of(
        cls, model: Model, *, experts: Mapping[int, Iterable[int]], routing: Routing, **more: Any
    ) -> "ExpertCircuit":
        """The circuit of some experts.

        Args:
            model: A mixture.
            experts: Which are kept, by layer; a layer that is not named keeps all.
            routing: "recomputed" or "frozen".
            more: Other fields.

        Raises:
            PointUnavailable: a model without experts.
            UnknownEdge: a dense layer, or an expert that does not exist.
        """
        refuse_unknown("routing", routing, ROUTINGS)
        layers, n_experts = mixture_of(model)
        listed = {layer: list(which) for layer, which in experts.items()}
        problems = [f"layer {layer} has no experts" for layer in listed if layer not in layers]
        problems += [
            f"m{layer}:{one}"
            for layer, which in listed.items()
            for one in which
            if layer in layers and not 0 <= one < n_experts
        ]
        if problems:
            raise UnknownEdge(
                f"Experts that {model.identity.name} does not have.",
                got=", ".join(problems)[:200],
                because=f"layers {', '.join(map(str, layers))} have {n_experts} experts each",
                instead="experts={0: (1, 4)}, numbers from 0 on",
            )
        kept = {site_of(layer): np.ones(n_experts, dtype=bool) for layer in layers}
        for layer, which in listed.items():
            kept[site_of(layer)][:] = False
            kept[site_of(layer)][which] = True
        return cls(kept=kept, routing=routing, **more)

    @property
    def experts(self) -> dict[int, tuple[int, ...]]:
        """Experts that are kept, by layer."""
        return {
            int(site.split(".")[1]): tuple(np.flatnonzero(which).tolist())
            for site, which in self.kept.items()
        }

    @property
    def name(self) -> str:
        return f"{super().name}, routing {self.routing}"

    @property
    def conventions(self) -> dict[str, Any]:
        """What an evaluation says of it."""
        return {"routing": self.routing}

    def resized(self, n_experts: int) -> "ExpertCircuit":
        """The n strongest experts by its scores.

        Raises:
            NotEnoughEvidence: it has no scores.
        """
        kept = strongest(self._scored(), n_experts)
        return replace(self, kept=kept, settings={**self.settings, "n_experts": n_experts})

    def evaluate(
        self,
        model: Model,
        split: Split,
        *,
        conventions: Conventions | None = None,
        measures: PartMeasures | None = None,
    ) -> PartEvaluation:
        """Faithfulness, its complement's, and random circuits', on a split; see `evaluate_experts`."""
        return evaluate_experts(model, [self], split=split, conventions=conventions, measures=measures)[0]

    def refuse_unless_of(self, model: Model) -> None:
        """Refuse to be run in a dense model, in another mixture, or empty.

        Raises:
            PointUnavailable: a model without experts.
            UnknownEdge: other layers or another number of experts, or other weights.
            NotEnoughEvidence: nothing is kept.
        """
        layers, n_experts = mixture_of(model)
        here = {site_of(layer): n_experts for layer in layers}
        mine = {site: len(which) for site, which in self.kept.items()}
        if mine != here:
            raise UnknownEdge(
                "This circuit is of a mixture of another shape.",
                got=", ".join(f"{n} experts at {site}" for site, n in mine.items())[:160],
                because=f"{model.identity.name} has {n_experts} in layers {', '.join(map(str, layers))}",
                instead="the model that it was found in",
            )
        super().refuse_unless_of(model)

    def to_json(self) -> dict[str, Any]:
        """What identifies it: layers, experts, routing."""
        return super().to_json() | {"routing": self.routing}

    @classmethod
    def _rest_of(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        return {"routing": saved["routing"]}


def choose_experts(
    model: Model,
    behavior: Behavior | Split,
    *,
    n_experts: int,
    routing: Routing,
    method: str = "attribution",
    conventions: Conventions | None = None,
) -> ExpertCircuit:
    """The strongest experts of a mixture.

    Args:
        model: An open mixture.
        behavior: Prompt pairs; of a behavior the train split.
        n_experts: How many are kept in all; experts without an effect are never among them.
        routing: "recomputed" or "frozen", in the search and in the circuit.
        method: Of `ms.attribute_experts`: "attribution", "ig", "relp"; or "ablation": each expert that some token is
            sent to is really removed (denoising: put in) alone.
        conventions: What removed experts add; by default what they add in the corrupt twin.

    Raises:
        PointUnavailable: a model without experts.
        InterventionMismatch: an unknown method or routing.

    Cost: that of `ms.attribute_experts`; "ablation": one evaluation an expert.
    """
    refuse_unknown("way to choose experts", method, METHODS)
    refuse_unknown("routing", routing, ROUTINGS)
    mixture_of(model)
    conventions = conventions or Conventions()
    split = split_to_search(behavior, ablation=conventions.ablation)
    _, _, removed = prompts_for(split, conventions)
    if method == "ablation":
        scores = _ablate_each(model, split, routing, conventions)
    else:
        scores = attribute_experts(
            model,
            split,
            method=method,
            direction=conventions.direction,
            removed=removed,
            routing=routing,
        ).effects
    found = ExpertCircuit(
        kept=strongest(scores, n_experts),
        scores=scores,
        unit=split.metric.unit,
        routing=routing,
        settings={"method": method, "n_experts": n_experts, "split": split.name} | conventions.to_json(),
        model=model.fingerprint,
        data_sha256=split.data_hash,
    )
    return remember(found, behavior) if isinstance(behavior, Behavior) else found


def evaluate_experts(
    model: Model,
    circuits: Sequence[ExpertCircuit],
    *,
    split: Split,
    conventions: Conventions | None = None,
    measures: PartMeasures | None = None,
) -> list[PartEvaluation]:
    """Evaluate circuits of experts on one split; runs that they have in common are shared.

    Args:
        model: The mixture that they were found in.
        circuits: All with the same routing.
        split: Prompt pairs; for a claim about them, ones that no search has seen.
        conventions: What removed experts add, and in which run.
        measures: Random circuits (of experts that some token is sent to) and resamples.

    Raises:
        PointUnavailable: a model without experts.
        UnknownEdge: a circuit of another model.
        InterventionMismatch: circuits of several routings, or an ablation that gives experts no value ("optimal").
        NotEnoughEvidence: no gap, an empty circuit, or none at all.

    Cost: a forward pass for each circuit, its complement and its random circuits, from the first layer that changes.
    """
    refuse_none(circuits)
    conventions = conventions or Conventions()
    for one in circuits:
        one.refuse_unless_of(model)
    routings = sorted({one.routing for one in circuits})
    if len(routings) > 1:
        raise InterventionMismatch(
            "These circuits say different things of routing.",
            got=", ".join(routings),
            because="circuits that are evaluated together share their runs",
            instead="one call for each routing",
        )
    return evaluate_parts(
        model,
        circuits,
        runs=expert_runs(model, split, routing=circuits[0].routing, conventions=conventions),
        split=split,
        conventions=conventions,
        measures=measures or PartMeasures(),
    )


def expert_runs(model: Model, split: Split, *, routing: Routing, conventions: Conventions) -> ExpertRuns:
    """A split made ready to be run under circuits of experts.

    Raises:
        PointUnavailable: a model without experts.
        InterventionMismatch: an ablation that gives experts no value.
    """
    tokens, other, ablation = prompts_for(split, conventions)
    return ExpertRuns(model, tokens, metric=split.metric, routing=routing, ablation=ablation, other=other)


def _ablate_each(
    model: Model, split: Split, routing: Routing, conventions: Conventions
) -> dict[str, np.ndarray]:
    """The change of the metric by exchanging each expert alone; experts that no token is sent to change nothing."""
    runs = expert_runs(model, split, routing=routing, conventions=conventions)
    is_denoising = conventions.direction == "denoising"
    places = [(site, int(i)) for site, which in runs.active.items() for i in np.flatnonzero(which)]
    start = {site: every & (not is_denoising) for site, every in runs.whole.items()}
    asked = [start]
    for site, index in places:
        changed = start[site].copy()
        changed[index] = is_denoising
        asked.append(start | {site: changed})
    means = measure_kept(runs, asked, conventions).mean(1)
    scores = {site: np.zeros(len(every)) for site, every in runs.whole.items()}
    for (site, index), mean in zip(places, means[1:], strict=True):
        scores[site][index] = mean - means[0]
    return scores
