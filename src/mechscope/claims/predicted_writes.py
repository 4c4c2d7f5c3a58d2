"""The writes by which a prediction acts on a model: a mechanism ablated, left alone, or steered along.

Runs that don't depend on the mechanism (reference means, donors, the corrupt run that a mechanism alone is restored
into) are done once and shared by the mechanism and all of its controls.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from mechscope.claims.mechanisms import Direction, MeasurableMechanism, ModelSize, Subspaces
from mechscope.claims.neurons import Neurons
from mechscope.claims.predictions import Prediction
from mechscope.claims.prompts import ClaimPrompts, PairedSplit
from mechscope.claims.sites import Sites
from mechscope.interventions.ablation import reference_rows
from mechscope.models.cache import Cache
from mechscope.models.capturing import cache_at
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadClaim
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site

ALONE = ("recovers", "needs")
"""Kinds of prediction about what a mechanism does alone."""


class PredictedWrites:
    """Makes the writes of each prediction, for one open model.

    Args:
        model: An open model.
        prompts: Whose train prompts set mean and resample ablations.
    """

    def __init__(self, model: Model, prompts: ClaimPrompts) -> None:
        self._model = model
        self._prompts = prompts
        self._corrupt_runs: dict[tuple[str, tuple[str, ...]], Cache] = {}

    def of(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, split: PairedSplit
    ) -> Callable[[Any], Sequence[Write]]:
        """From each of `mechanisms` to its writes on the prompts of `split`.

        Raises:
            BadClaim: Steering along what has no direction.

        Cost: one forward of the split where values of another run are needed, once for all mechanisms.
        """
        if prediction.kind == "raises":
            return lambda m: steering(m, prediction.dose)
        if restores_into_corrupt(mechanisms[0], prediction):
            clean = self._donor(mechanisms, split.clean)
            return lambda m: m.on(self._model, split.clean).restoration(clean)
        if prediction.kind in ALONE:
            everything = self._others_of(mechanisms, split)
            size = ModelSize(self._model.n_layers, self._model.n_heads)
            return lambda m: m.isolation(everything, size)
        if prediction.how == "corrupt":
            donor = self._donor(mechanisms, split.corrupt)
            return lambda m: m.ablation("corrupt", donor)
        rows = () if prediction.how == "zero" else reference_rows(self._prompts.reference(behavior).clean)
        return lambda m: m.ablation(prediction.how, rows)

    def _donor(self, mechanisms: Sequence[Any], inputs: TokenBatch) -> Cache:
        sites = sorted({site for mechanism in mechanisms for site in mechanism.sites})
        return cache_at(self._model, inputs, sites)

    def _others_of(self, mechanisms: Sequence[MeasurableMechanism], split: PairedSplit) -> Cache:
        """The corrupt values that a mechanism alone is restored into: of heads and MLPs, of neurons, of its site."""
        if isinstance(mechanisms[0], Direction):
            return self._donor(mechanisms, split.corrupt)
        return self._everything(split, ("mlp_post",) if _are_neurons(mechanisms[0]) else ("z", "mlp_out"))

    def _everything(self, split: PairedSplit, points: tuple[str, ...]) -> Cache:
        """The corrupt run's heads and MLPs, or its neurons, once per split."""
        key = (split.data_hash, points)
        if key not in self._corrupt_runs:
            formed = {site.point for site in self._model.binding.formed}
            wanted = [f"{point}.*" for point in points if point in formed]
            self._corrupt_runs[key] = cache_at(self._model, split.corrupt, wanted)
        return self._corrupt_runs[key]


def restores_into_corrupt(mechanism: Any, prediction: Prediction) -> bool:
    """True where clean values are put into a corrupt run; elsewhere corrupt ones are put into a clean run."""
    return prediction.kind in ALONE and isinstance(mechanism, Sites)


def same_writes(prediction: Prediction) -> tuple[Hashable, ...]:
    """Equal for predictions that do the same to the model, whatever size they predict."""
    if prediction.kind in ALONE:
        return ("alone",)
    return ("along", prediction.dose) if prediction.kind == "raises" else ("without", prediction.how)


def steering(mechanism: Any, dose: float) -> Sequence[Write]:
    """A direction added at a dose.

    Raises:
        BadClaim: The mechanism is none.
    """
    if not isinstance(mechanism, Direction):
        raise BadClaim(
            "only a direction can be steered along",
            got=mechanism.name,
            because="heads and MLPs have no direction of their own",
            instead="lowers(...) or recovers(...), or a Direction as the mechanism",
        )
    return mechanism.steering(dose)


def _are_neurons(mechanism: Any) -> bool:
    """True for neurons, and for the random subspaces that they are held against."""
    if isinstance(mechanism, Subspaces):
        return Site.parse(mechanism.sites[0]).point == "mlp_post"
    return isinstance(mechanism, Neurons)
