"""The bench: an open model and its engine, as testing a claim needs them.

Held-out prompts are measured here and nowhere else in a test. Runs that do not depend on the mechanism are done once
and shared by the mechanism and all of its controls, and what was measured of a mechanism on a split is kept: claims
that are tested on one bench share their controls.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.parts.circuit import PartCircuit
from mechscope.circuits.statistics.checks import CheckSettings, check_circuit
from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.circuits.statistics.part_checks import check_parts
from mechscope.claims.circuit_claims import measure_circuits, refuse_unless_of_parts
from mechscope.claims.control_families import best_family, draw_family, families_for, refuse_outside
from mechscope.claims.evidence import HeldOut
from mechscope.claims.generated_claims import measure_text
from mechscope.claims.mechanisms import Components
from mechscope.claims.neurons import Neurons
from mechscope.claims.part_claims import Parts, draw_parts, measure_parts
from mechscope.claims.predicted_writes import PredictedWrites, restores_into_corrupt, same_writes, steering
from mechscope.claims.predictions import Prediction
from mechscope.claims.prompts import ClaimPrompts, PairedSplit
from mechscope.claims.site_controls import SiteControls
from mechscope.claims.sites import Sites
from mechscope.claims.testing import DrawnControls
from mechscope.data.units import units_of
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.interventions.generated_text import GeneratedText
from mechscope.models.model import Model
from mechscope.records.canonical import canonical_json
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.vocabulary.errors import BadClaim
from mechscope.vocabulary.protocols import Write

BOUNDS = {
    "accuracy": (0.0, 1.0),
    "probability_difference": (-1.0, 1.0),
    "log_probability": (-np.inf, 0.0),
    "rank": (0.0, np.inf),
    "generated_text": (0.0, 1.0),
}
"""Lowest and highest value of a metric: a baseline at one of them leaves no room to see a change."""


class EngineBench:
    """Measures mechanisms on one open model through the engine.

    Args:
        model: An open model.
        behaviors: Behaviours that the claim or its predictions recorded, with their prompts.
        split: Which split is measured: "validation" where sizes are set, before anything held out is read.
        most: So many of its prompts at most; 0 for all.
        progress: Told what is being measured, with rows done and rows in all.
    """

    def __init__(
        self,
        model: Model,
        behaviors: Mapping[str, Any] | Sequence[Any] = (),
        *,
        split: str = "held_out",
        most: int = 0,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._model = model
        self.prompts = ClaimPrompts(model, behaviors, split=split, most=most)
        self._writes = PredictedWrites(model, self.prompts)
        self._progress = progress
        self._opened: list[tuple[HeldOut, PairedSplit]] = []
        self._measured: dict[tuple[Hashable, ...], np.ndarray] = {}

    @property
    def fingerprint(self) -> ModelFingerprint:
        """Which model."""
        return self._model.fingerprint

    def check(self, mechanism: Any, predictions: Sequence[Prediction]) -> None:
        """Refuse a site that the model lacks, steering along what has no direction, parts of what has none."""
        if isinstance(mechanism, PartCircuit):
            raise _without_dictionaries(mechanism)
        if isinstance(mechanism, Circuit | Parts):
            mechanism.refuse_unless_of(self._model)
            for prediction in predictions:
                refuse_unless_of_parts(prediction)
            return
        for site in mechanism.sites:
            self._model.binding.site(site)
        if isinstance(mechanism, Sites):
            mechanism.refuse_unless_of(self._model)
            _refuse_own_positions_elsewhere(mechanism, predictions)
        if isinstance(mechanism, Components | Neurons):
            refuse_outside(self._model, mechanism)
        for prediction in predictions:
            if prediction.kind == "raises":
                steering(mechanism, prediction.dose)
            if prediction.kind == "needs" and not mechanism.without_each():
                raise _no_parts(mechanism)

    def data_hash(self, behavior: Any, *, fresh_seed: int | None) -> str:
        """Hash of the prompts that would be read; no model is run."""
        return self.prompts.tested(behavior, fresh_seed=fresh_seed).data_hash

    def open_split(self, behavior: Any, *, fresh_seed: int | None) -> HeldOut:
        """Read the held-out prompts and measure them without intervention."""
        split = self.prompts.tested(behavior, fresh_seed=fresh_seed)
        clean, corrupt = self._untouched(split)
        held_out = HeldOut(
            data_hash=split.data_hash,
            clean=clean,
            corrupt=corrupt,
            units=units_of(list(split.entities), list(split.templates)),
            bounds=BOUNDS.get(split.metric.kind, (-np.inf, np.inf)),
            strata=tuple(split.templates),
            generated_text=isinstance(split.metric, GeneratedText),
        )
        self._opened.append((held_out, split))
        return held_out

    def _untouched(self, split: Any) -> tuple[np.ndarray, np.ndarray]:
        """The metric on clean and on corrupt prompts without any intervention."""
        if isinstance(split.metric, GeneratedText):
            clean, corrupt = (
                measure_text(self._model, split, writes_of=lambda _part: [[]], side=side)[0]
                for side in ("clean", "corrupt")
            )
            return clean, corrupt
        sides = [Experiment(inputs=inputs, metric=split.metric) for inputs in (split.clean, split.corrupt)]
        found = run_experiments(self._model, sides).values
        return found[0].numpy(), found[1].numpy()

    def measure(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, held_out: HeldOut
    ) -> Float[np.ndarray, "mechanism prompt"]:
        """The metric on every held-out prompt under the prediction's intervention, by each mechanism."""
        split = self._behind(held_out)
        if prediction.kind == "needs" and isinstance(mechanisms[0], Circuit):  # drops, not what is left alone
            return measure_circuits(self._model, mechanisms, prediction=prediction, split=split)
        if prediction.kind == "needs":
            return np.stack([self._least_needed(m, prediction, behavior, split) for m in mechanisms])
        return self._after(mechanisms, prediction, behavior, split)

    def check_circuit(
        self, circuit: Circuit | Parts, behavior: Any, held_out: HeldOut, *, settings: CheckSettings
    ) -> CircuitChecks:
        """The tests and controls of a circuit of edges, latents or experts, on prompts that this bench opened."""
        search, test = self.prompts.train(behavior), cast(Split, self._behind(held_out))
        if isinstance(circuit, Circuit):
            return check_circuit(
                self._model, circuit, search=search, test=test, settings=settings, progress=self._progress
            )
        return check_parts(
            self._model,
            circuit.circuit,
            search=search,
            test=test,
            dictionaries=circuit.dictionaries_on(self._model),
            settings=settings,
            progress=self._progress,
        )

    def _behind(self, held_out: HeldOut) -> PairedSplit:
        for opened, split in self._opened:
            if opened is held_out:
                return split
        raise BadClaim(
            "a split that this bench did not open",
            got=held_out.data_hash[:12],
            because="it holds no prompts for it",
            instead="what bench.open_split(...) returned",
        )

    def _after(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, split: PairedSplit
    ) -> Float[np.ndarray, "mechanism prompt"]:
        """As measured before, or measured now: one mechanism under one intervention on one split is run once."""
        done = (id(split), *same_writes(prediction))
        keys = [(*done, canonical_json(mechanism.to_json())) for mechanism in mechanisms]
        missing = {key: m for key, m in zip(keys, mechanisms, strict=True) if key not in self._measured}
        if missing:
            found = self._run(list(missing.values()), prediction, behavior, split)
            self._measured.update(zip(missing, found, strict=True))
        return np.stack([self._measured[key] for key in keys])

    def _run(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, split: PairedSplit
    ) -> Float[np.ndarray, "mechanism prompt"]:
        told = self._told(f"{prediction.kind}, {len(mechanisms)} mechanisms")
        if isinstance(mechanisms[0], Circuit):
            return measure_circuits(
                self._model, mechanisms, prediction=prediction, split=split, progress=told
            )
        if isinstance(mechanisms[0], Parts):
            return measure_parts(
                self._model,
                mechanisms,
                prediction=prediction,
                split=split,  # pyright: ignore[reportArgumentType] - the splits of live behaviours
                progress=told,
            )
        if isinstance(split.metric, GeneratedText):
            return self._written(mechanisms, prediction, behavior, split)
        writes = self._writes.of(mechanisms, prediction, behavior, split)
        inputs = split.corrupt if restores_into_corrupt(mechanisms[0], prediction) else split.clean
        experiments = [
            Experiment(inputs=inputs, writes=tuple(writes(m)), metric=split.metric, name=m.name)
            for m in mechanisms
        ]
        return run_experiments(self._model, experiments, progress=told).table().numpy()

    def _written(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, split: Any
    ) -> Float[np.ndarray, "mechanism prompt"]:
        """What is mentioned in text that is written under each mechanism's interventions."""

        def writes_of(part: Any) -> list[Sequence[Write]]:
            writes = self._writes.of(mechanisms, prediction, behavior, part)
            return [writes(mechanism) for mechanism in mechanisms]

        told = self._told(f"{prediction.kind} generated text, {len(mechanisms)} mechanisms")
        return measure_text(self._model, split, writes_of=writes_of, progress=told)

    def _least_needed(
        self, mechanism: Any, prediction: Prediction, behavior: Any, split: PairedSplit
    ) -> Float[np.ndarray, " prompt"]:
        """The drop of what is recovered alone when the part that matters least is left out."""
        smaller = list(mechanism.without_each())
        if not smaller:
            raise _no_parts(mechanism)
        after = self._after([mechanism, *smaller], prediction, behavior, split)
        drops = after[0] - after[1:]
        return drops[int(np.argmin(drops.mean(axis=1)))]

    def draw_controls(
        self, mechanism: Any, behavior: Any, *, family: str, n_draws: int, seed: int
    ) -> DrawnControls:
        """Members of a control family; see `control_families`. Every prediction is held against the same."""
        reference = self.prompts.reference(behavior)
        if isinstance(mechanism, Parts) and family in families_for(mechanism):
            members, n_members = draw_parts(
                self._model, mechanism, family=family, train=reference, n_draws=n_draws, seed=seed
            )
            return DrawnControls(members, n_members, tuple(member.name for member in members))
        if isinstance(mechanism, Sites) and family in families_for(mechanism):
            return self._site_controls(mechanism, behavior).draw(family, n_draws=n_draws, seed=seed)
        return draw_family(
            self._model,
            mechanism,
            reference=reference.clean,
            corrupt=reference.corrupt,
            family=family,
            n_draws=n_draws,
            seed=seed,
        )

    def families_for(self, mechanism: Any) -> Sequence[str]:
        """All families that `draw_controls` can draw for this mechanism."""
        return families_for(mechanism)

    def best_family(self, mechanism: Any, behavior: Any) -> str:
        """The strictest of them that can gate."""
        if isinstance(mechanism, Sites):
            return self._site_controls(mechanism, behavior).best
        return best_family(self._model, mechanism)

    def _site_controls(self, mechanism: Sites, behavior: Any) -> SiteControls:
        """Which positions there are is read off the prompts; no model sees a held-out one."""
        held_out = self.prompts.tested(behavior).clean
        return SiteControls(self._model, mechanism, [self.prompts.reference(behavior).clean, held_out])

    def _told(self, what: str) -> Callable[[int, int], None] | None:
        tell = self._progress
        return None if tell is None else lambda done, total: tell(what, done, total)


def _without_dictionaries(circuit: PartCircuit) -> BadClaim:
    return BadClaim(
        f"A circuit of {circuit.part}s is claimed with what it takes to run it.",
        got=circuit.name,
        because="a claim says where its dictionaries are, if it has some",
        instead="Claim.about(circuit), or as the mechanism Claim.about(circuit, behavior=...).mechanism",
    )


def _refuse_own_positions_elsewhere(mechanism: Sites, predictions: Sequence[Prediction]) -> None:
    if mechanism.n_rows is not None and any(prediction.behavior for prediction in predictions):
        raise BadClaim(
            "own positions for each prompt say nothing about another behaviour",
            got=mechanism.name,
            because="the spared behaviour has other prompts",
            instead="indices or words as positions, or a claim without spares(...)",
        )


def _no_parts(mechanism: Any) -> BadClaim:
    return BadClaim(
        "this mechanism has no parts to leave out",
        got=mechanism.name,
        because="needs(...) asks whether each part is needed",
        instead="lowers(...) and recovers(...)",
    )
