"""What was measured on held-out prompts, and the per-prompt effects that follow from it.

Owns `HeldOut` (the split without intervention), `Controls` and `Evidence` (one prediction's measurements).
The metric's raw values are kept, not only differences, so that a verdict can be rebuilt from a claim file.
Refuses tables whose lengths disagree. Invariant: an effect's sign is such that a stronger mechanism has a
larger effect, for the mechanism and its controls alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechscope.claims.predictions import Prediction
from mechscope.data.units import Units
from mechscope.vocabulary.errors import BadClaim, ShapeError


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A held-out split as the untouched model answers it.

    Args:
        data_hash: Hash of the prompts and answers of this split; the ledger counts by it.
        clean: The metric on each clean prompt.
        corrupt: The metric on each corrupt prompt, or None where the behaviour has none.
        units: From `units_of`.
        bounds: Lowest and highest possible value of the metric; infinite where there is none.
        strata: Per prompt, its template; effects are shown for each. Empty shows none.
        generated_text: True where each measurement is a generation: 39 controls then suffice, marked so.
    """

    data_hash: str
    clean: Float[np.ndarray, " prompt"]
    corrupt: Float[np.ndarray, " prompt"] | None
    units: Units
    bounds: tuple[float | int, float | int] = (-np.inf, np.inf)
    strata: tuple[str, ...] = ()
    generated_text: bool = False

    def __post_init__(self) -> None:
        n = self.units.n_prompts
        lengths = {"clean": len(self.clean), "corrupt": n if self.corrupt is None else len(self.corrupt)}
        lengths |= {"strata": len(self.strata)} if self.strata else {}
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong:
            raise ShapeError(
                "a split's columns disagree in length", got=wrong, because=f"there are {n} units labels"
            )

    @property
    def gap(self) -> Float[np.ndarray, " prompt"]:
        """Clean minus corrupt, per pair.

        Raises:
            BadClaim: the behaviour has no corrupt prompts.
        """
        if self.corrupt is None:
            raise BadClaim(
                "a fraction of a gap needs corrupt prompts",
                because="this behaviour has clean prompts only",
                instead='a bound in the metric itself, unit="metric"',
            )
        return self.clean - self.corrupt


@dataclass(frozen=True, eq=False)
class Controls:
    """The metric under the same intervention by mechanisms that should not matter.

    Args:
        family: Its name, as the claim says it.
        after: Per control and prompt.
        n_members: How many different members the family has; infinite for a continuous one.
        names: Per control, what it was; for reports. May be empty.
    """

    family: str
    after: Float[np.ndarray, "control prompt"]
    n_members: float | int = np.inf
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Evidence:
    """The measurements for one prediction.

    Args:
        prediction: What they test.
        after: The metric per prompt under the mechanism's intervention.
        held_out: The untouched split that `after` is compared with: the other behaviour's for "spares".
        controls: None only where the rule asks for none ("spares", "needs") or none could be drawn.
        others: Some members of each other family that fits the mechanism: shown as ranks, without a say.
    """

    prediction: Prediction
    after: Float[np.ndarray, " prompt"]
    held_out: HeldOut
    controls: Controls | None = None
    others: tuple[Controls, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.held_out.clean)
        families = [*([self.controls] if self.controls else []), *self.others]
        shapes = [self.after.shape[-1], *(family.after.shape[-1] for family in families)]
        if any(length != n for length in shapes):
            raise ShapeError(
                "measurements of another split", got=f"{shapes} prompts", because=f"the split has {n}"
            )

    @property
    def effect(self) -> Float[np.ndarray, " prompt"]:
        """The mechanism's effect on each prompt, in the metric's unit."""
        return effect_of(self.prediction, self.held_out, self.after)

    @property
    def control_effects(self) -> Float[np.ndarray, "control prompt"]:
        """The controls' effects, with the same sign convention; no rows without controls."""
        if self.controls is None:
            return np.empty((0, len(self.after)))
        return self.effects_of(self.controls)

    def effects_of(self, family: Controls) -> Float[np.ndarray, "control prompt"]:
        """The effects of one family of controls, with the same sign convention."""
        return effect_of(self.prediction, self.held_out, family.after)

    @property
    def denominator(self) -> Float[np.ndarray, " prompt"]:
        """What the mean effect is divided by: the gap, or one per prompt."""
        return self.held_out.gap if self.prediction.unit == "gap" else np.ones(len(self.after))


def effect_of(
    prediction: Prediction, held_out: HeldOut, after: Float[np.ndarray, "*control prompt"]
) -> Float[np.ndarray, "*control prompt"]:
    """Signed so that more is stronger: a drop for "lowers", a rise for "raises", a return for "recovers".

    For "needs" the drop itself is what was measured. For "spares" it is the change itself, whose sign matters to
    neither side of the equivalence test.
    """
    match prediction.kind:
        case "lowers":
            return held_out.clean - after
        case "needs":
            return after
        case "recovers":
            return after - (held_out.clean - held_out.gap)
        case _:
            return after - held_out.clean


def stratum_means(evidence: Evidence) -> tuple[tuple[str, float], ...]:
    """The effect within each template, in order of appearance: templates held fixed are not averaged away."""
    strata: Sequence[str] = evidence.held_out.strata
    if not strata:
        return ()
    label = np.array(strata)
    effect, below = evidence.effect, evidence.denominator
    means = []
    for name in dict.fromkeys(strata):
        inside = label == name
        total = float(below[inside].sum())
        means.append((name, float(effect[inside].sum()) / total if total else float("nan")))
    return tuple(means)
