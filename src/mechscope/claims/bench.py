"""The bench: an open model and its engine, as testing a claim needs them.

Held-out prompts are read here and nowhere else in a test. Runs that do not depend on the mechanism (baselines,
reference means, donor runs) are done once and shared by the mechanism and all of its controls.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from mechscope.behaviors.rebuilding import rebuild_behavior
from mechscope.circuits.circuit import Circuit
from mechscope.claims.circuit_claims import measure_circuits
from mechscope.claims.control_families import draw_family
from mechscope.claims.evidence import HeldOut
from mechscope.claims.mechanisms import Direction, MeasurableMechanism, ModelSize
from mechscope.claims.predictions import Prediction, RecordedBehavior
from mechscope.claims.testing import DrawnControls
from mechscope.data.units import units_of
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.interventions.ablation import reference_rows
from mechscope.interventions.metrics import Metric
from mechscope.models.cache import Cache
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.vocabulary.errors import BadClaim
from mechscope.vocabulary.protocols import Write

N_REFERENCE = 200
"""Train prompts whose activations set mean and resample ablations."""

BOUNDS = {"accuracy": (0.0, 1.0), "probability_difference": (-1.0, 1.0)}


@runtime_checkable
class PairedSplit(Protocol):
    """Prompts of one split, clean and corrupt, with what is measured on them."""

    clean: TokenBatch
    corrupt: TokenBatch
    metric: Metric
    entities: Sequence[tuple[str, ...]]
    templates: Sequence[str]

    @property
    def data_hash(self) -> str: ...


class EngineBench:
    """Measures mechanisms on one open model through the engine.

    Args:
        model: An open model.
        behaviors: Behaviours by name, for predictions that name another one.
        progress: Told what is being measured, with rows done and rows in all.
    """

    def __init__(
        self,
        model: Model,
        behaviors: Mapping[str, Any] | None = None,
        *,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._model = model
        self._behaviors = dict(behaviors or {})
        self._progress = progress
        self._splits: dict[tuple[str, int | None], PairedSplit] = {}
        self._by_hash: dict[str, PairedSplit] = {}
        self._corrupt_runs: dict[str, Cache] = {}

    @property
    def fingerprint(self) -> ModelFingerprint:
        """Which model."""
        return self._model.fingerprint

    def data_hash(self, behavior: Any, *, fresh_seed: int | None) -> str:
        """Hash of the prompts that would be read; no model is run."""
        return self._split(behavior, fresh_seed).data_hash

    def open_split(self, behavior: Any, *, fresh_seed: int | None) -> HeldOut:
        """Read the held-out prompts and measure them without intervention."""
        split = self._split(behavior, fresh_seed)
        self._by_hash[split.data_hash] = split
        clean, corrupt = run_experiments(
            self._model,
            [Experiment(inputs=inputs, metric=split.metric) for inputs in (split.clean, split.corrupt)],
        ).values
        return HeldOut(
            data_hash=split.data_hash,
            clean=clean.numpy(),
            corrupt=corrupt.numpy(),
            units=units_of(list(split.entities), list(split.templates)),
            bounds=BOUNDS.get(split.metric.kind, (-np.inf, np.inf)),
            strata=tuple(split.templates),
        )

    def measure(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, held_out: HeldOut
    ) -> Float[np.ndarray, "mechanism prompt"]:
        """The metric on every held-out prompt under the prediction's intervention, by each mechanism."""
        split = self._by_hash[held_out.data_hash]
        if isinstance(mechanisms[0], Circuit):
            return measure_circuits(self._model, mechanisms, prediction, split)
        if prediction.kind == "needs":
            return np.stack([self._least_needed(m, prediction, behavior, split) for m in mechanisms])
        return self._after(mechanisms, prediction, behavior, split)

    def _after(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, split: PairedSplit
    ) -> Float[np.ndarray, "mechanism prompt"]:
        writes = self._writers(mechanisms, prediction, behavior, split)
        experiments = [
            Experiment(inputs=split.clean, writes=tuple(writes(m)), metric=split.metric, name=m.name)
            for m in mechanisms
        ]
        told = self._told(f"{prediction.kind}, {len(mechanisms)} mechanisms")
        return run_experiments(self._model, experiments, progress=told).table().numpy()

    def _least_needed(
        self, mechanism: Any, prediction: Prediction, behavior: Any, split: PairedSplit
    ) -> Float[np.ndarray, " prompt"]:
        """The drop of what is recovered alone when the part that matters least is left out."""
        smaller = list(mechanism.without_each())
        if not smaller:
            raise BadClaim(
                "this mechanism has no parts to leave out",
                got=mechanism.name,
                because="needs(...) asks whether each part is needed",
                instead="lowers(...) and recovers(...)",
            )
        after = self._after([mechanism, *smaller], prediction, behavior, split)
        drops = after[0] - after[1:]
        return drops[int(np.argmin(drops.mean(axis=1)))]

    def draw_controls(
        self, mechanism: Any, prediction: Prediction, *, family: str, n_draws: int, seed: int
    ) -> DrawnControls:
        """Members of a control family; see `control_families`."""
        del prediction  # every prediction of a claim is held against the same controls
        return draw_family(
            self._model, mechanism, reference=self._reference(), family=family, n_draws=n_draws, seed=seed
        )

    def _writers(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, split: PairedSplit
    ) -> Callable[[Any], Sequence[Write]]:
        if prediction.kind == "raises":
            return lambda m: _steering(m, prediction.dose)
        if prediction.kind in ("recovers", "needs"):
            everything = self._everything(split)
            size = ModelSize(self._model.n_layers, self._model.n_heads)
            return lambda m: m.isolation(everything, size)
        if prediction.how == "corrupt":
            donor = self._donor(mechanisms, split.corrupt)
            return lambda m: m.ablation("corrupt", donor)
        rows = () if prediction.how == "zero" else reference_rows(self._train_prompts(behavior))
        return lambda m: m.ablation(prediction.how, rows)

    def _donor(self, mechanisms: Sequence[MeasurableMechanism], inputs: TokenBatch) -> Cache:
        sites = sorted({site for mechanism in mechanisms for site in mechanism.sites})
        return self._model.run(inputs, capture=sites).cache

    def _everything(self, split: PairedSplit) -> Cache:
        """The corrupt run's heads and MLPs, once per split."""
        if split.data_hash not in self._corrupt_runs:
            points = {"z", "mlp_out"} & {site.point for site in self._model.binding.formed}
            run = self._model.run(split.corrupt, capture=[f"{point}.*" for point in sorted(points)])
            self._corrupt_runs[split.data_hash] = run.cache
        return self._corrupt_runs[split.data_hash]

    def _train_prompts(self, behavior: Any) -> TokenBatch:
        train = self._live(behavior).train
        n = min(N_REFERENCE, len(train.clean))
        return train.clean.select(range(n))

    def _reference(self) -> TokenBatch:
        name = next(iter(self._splits))[0]
        return self._train_prompts(self._behaviors[name])

    def _split(self, behavior: Any, fresh_seed: int | None) -> PairedSplit:
        key = (behavior.name, fresh_seed)
        if key not in self._splits:
            live = self._live(behavior)
            self._splits[key] = live.held_out if fresh_seed is None else live.redraw(fresh_seed).held_out
        return self._splits[key]

    def _live(self, behavior: Any) -> Any:
        if not isinstance(behavior, RecordedBehavior):
            self._behaviors.setdefault(behavior.name, behavior)
        if behavior.name not in self._behaviors:  # a claim or circuit remembers a recipe, not the prompts
            self._behaviors[behavior.name] = rebuild_behavior(behavior.recipe(), self._model)
        return self._behaviors[behavior.name]

    def _told(self, what: str) -> Callable[[int, int], None] | None:
        tell = self._progress
        return None if tell is None else lambda done, total: tell(what, done, total)


def _steering(mechanism: Any, dose: float) -> Sequence[Write]:
    if not isinstance(mechanism, Direction):
        raise BadClaim(
            "only a direction can be steered along",
            got=mechanism.name,
            because="heads and MLPs have no direction of their own",
            instead="lowers(...) or recovers(...), or a Direction as the mechanism",
        )
    return mechanism.steering(dose)
