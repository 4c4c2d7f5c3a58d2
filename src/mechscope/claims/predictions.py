"""What a claim predicts, as frozen values: `lowers`, `recovers`, `needs`, `raises`, `spares`.

Each prediction is a size that held-out prompts can contradict, and names the convention it is made under
(ablation value, unit), because published results differ by exactly those. Refuses a prediction that nothing
could contradict: a size of zero or below, a fraction above one, an unnamed convention.
Invariant: `Prediction.from_json(p.to_json()) == p`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from mechscope.records.canonical import canonical_json, to_plain
from mechscope.vocabulary.errors import BadClaim

KINDS = ("lowers", "recovers", "needs", "raises", "spares")
ABLATIONS = ("mean", "zero", "resample", "optimal", "corrupt")
"""Ablation values; "corrupt" puts in the value of the same pair's corrupt prompt."""

UNITS = ("metric", "gap")
"""A bound in the metric's own unit, or as a fraction (0 to 1) of the mean clean-corrupt gap."""


@runtime_checkable
class Behavior(Protocol):
    """What a claim needs to know of a behaviour before any of its held-out prompts is read."""

    @property
    def name(self) -> str:
        """Short text for reports: "ioi"."""
        ...

    def recipe(self) -> dict[str, Any]:
        """How its prompts are drawn and split, as JSON, with the hash of each split under "hashes"."""
        ...


@dataclass(frozen=True)
class RecordedBehavior:
    """A behaviour as a claim file remembers it: its name and recipe, without prompts."""

    name: str
    recipe_json: str

    def recipe(self) -> dict[str, Any]:
        """The data recipe that was frozen with the claim."""
        import json

        return json.loads(self.recipe_json)


@dataclass(frozen=True)
class Prediction:
    """One quantitative prediction; build it with `lowers`, `recovers`, `needs`, `raises` or `spares`.

    Args:
        kind: One of `KINDS`.
        bound: x, y or z: positive; in `unit`.
        unit: "metric" or "gap" (a fraction of the clean-corrupt gap, a ratio of means).
        how: The ablation value of "lowers" and "spares"; "" elsewhere.
        dose: Steering dose of "raises", in the site's reference norms; 0 elsewhere.
        behavior: The other behaviour that is spared; None elsewhere.
    """

    kind: str
    bound: float
    unit: str = "metric"
    how: str = ""
    dose: float = 0.0
    behavior: RecordedBehavior | None = field(default=None)

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise BadClaim(
                "a prediction that can't be tested",
                got=f"{self.kind}({self.bound!r}, unit={self.unit!r}, how={self.how!r}, dose={self.dose!r})",
                because="; ".join(problems),
                instead="lowers(0.5), recovers(0.8), raises(1.0, dose=2), spares(other, 0.1)",
            )

    def __str__(self) -> str:
        amount = f"{self.bound:.0%} of the gap" if self.unit == "gap" else f"{self.bound:g}"
        match self.kind:
            case "lowers":
                return f"ablating it ({self.how}) lowers the metric by at least {amount}"
            case "recovers":
                return f"restoring it alone recovers at least {amount}"
            case "needs":
                return f"without any one of its parts, that falls by at least {amount}"
            case "raises":
                return f"steering along it (dose {self.dose:g}) raises the metric by at least {amount}"
            case _:
                name = self.behavior.name if self.behavior else "?"
                return f"ablating it ({self.how}) spares {name} within {amount}"

    def to_json(self) -> dict[str, Any]:
        """Canonical: every convention is written out, also where it is the default."""
        behavior = self.behavior and {"name": self.behavior.name, "recipe": self.behavior.recipe()}
        fields = ("kind", "bound", "unit", "how", "dose")
        return {name: getattr(self, name) for name in fields} | {"behavior": behavior}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Prediction":
        """Rebuild a prediction; unknown or missing fields are refused as a BadClaim."""
        wanted = {"kind", "bound", "unit", "how", "dose", "behavior"}
        if set(plain) != wanted:
            raise BadClaim(
                "a prediction with other fields than ours", got=sorted(plain), instead=str(sorted(wanted))
            )
        behavior = plain["behavior"]
        if behavior is not None:
            behavior = RecordedBehavior(behavior["name"], canonical_json(behavior["recipe"]))
        return cls(**{**plain, "behavior": behavior})


def lowers(x: float | int, *, unit: str = "metric", how: str = "mean") -> Prediction:
    """Ablating the mechanism lowers the metric by at least `x` on average over held-out prompts.

    Args:
        x: Positive. In the metric's own unit, or with `unit="gap"` a fraction of the clean-corrupt gap.
        how: The ablation value: mean, zero, resample, optimal, or corrupt (the pair's own corrupt value).
    """
    return Prediction("lowers", _number(x), unit=unit, how=how)


def recovers(y: float | int) -> Prediction:
    """Restoring the mechanism alone recovers at least the fraction `y` of the gap.

    Alone: on clean prompts, every other component of its kind keeps the value of the corrupt run, so nothing else
    can carry the answer; the mechanism's parts compute from what then reaches them. Of sites: on corrupt prompts,
    their clean values are put back.
    """
    return Prediction("recovers", _number(y), unit="gap")


def needs(x: float | int) -> Prediction:
    """Each part is needed: without the least needed one, what is recovered alone falls by at least `x` of the gap.

    It asks for size only: a mechanism diluted with bystanders fails it. See docs/decisions/0007.
    """
    return Prediction("needs", _number(x), unit="gap")


def raises(x: float | int, *, dose: float | int = 1.0, unit: str = "metric") -> Prediction:
    """Steering along the mechanism raises the metric by at least `x`, at `dose` reference norms."""
    return Prediction("raises", _number(x), unit=unit, dose=_number(dose))


def spares(behavior: Behavior, z: float | int, *, how: str = "mean") -> Prediction:
    """Ablating the mechanism changes `behavior` by less than `z` either way, shown by an equivalence test.

    Args:
        behavior: Another behaviour, with held-out prompts of its own.
        z: Positive, in that behaviour's metric.
    """
    return Prediction("spares", _number(z), how=how, behavior=recorded(behavior))


def recorded(behavior: Behavior) -> RecordedBehavior:
    """The behaviour as it stands in a claim: name and canonical recipe.

    Raises:
        BadClaim: it has no name or recipe.
        NotSerializable: the recipe holds something that is no JSON.
    """
    if isinstance(behavior, RecordedBehavior):
        return behavior
    if not isinstance(behavior, Behavior):
        raise BadClaim(
            "a behaviour without a name and a recipe",
            got=type(behavior).__name__,
            because="its data could not be drawn again",
            instead="a behaviour from ms.behaviors, or from_pairs for your own",
        )
    return RecordedBehavior(behavior.name, canonical_json(to_plain(behavior.recipe())))


def _number(value: float | int) -> float:
    given: object = value
    return float(value) if isinstance(given, int | float) and not isinstance(given, bool) else math.nan


def _problems(prediction: Prediction) -> list[str]:
    kind, bound = prediction.kind, prediction.bound
    problems = [] if kind in KINDS else [f"{kind!r} is none of {', '.join(KINDS)}"]
    if not (isinstance(bound, float) and math.isfinite(bound) and bound > 0):
        problems.append("the bound must be a positive number: nothing could contradict zero or less")
    elif prediction.unit == "gap" and bound > 1:
        problems.append("a fraction of the gap lies between 0 and 1: 80% is 0.8")
    if prediction.unit not in UNITS:
        problems.append(f"the unit is one of {', '.join(UNITS)}")
    if kind in ("recovers", "needs") and prediction.unit != "gap":
        problems.append("what is recovered is a fraction of the gap")
    if kind == "spares" and (prediction.unit != "metric" or prediction.behavior is None):
        problems.append("sparing names another behaviour and a bound in its metric")
    if kind in ("lowers", "spares") and prediction.how not in ABLATIONS:
        problems.append(f"the ablation value is one of {', '.join(ABLATIONS)}")
    dose: object = prediction.dose
    if kind == "raises" and not (isinstance(dose, int | float) and math.isfinite(dose) and dose != 0):
        problems.append("steering needs a dose that is not zero")
    return problems
