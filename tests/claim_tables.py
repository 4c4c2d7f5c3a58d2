"""Hand-made claims, splits and measurements for the tests of claims: no model."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mechscope.claims.claim import Claim
from mechscope.claims.controls import draw_selections
from mechscope.claims.evidence import Controls, Evidence, HeldOut
from mechscope.claims.predictions import Prediction, lowers
from mechscope.claims.testing import DrawnControls
from mechscope.data.units import as_units
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.vocabulary.errors import BadClaim

FINGERPRINT = ModelFingerprint(
    name="toy",
    family="toy",
    dtype="float32",
    weights_sha256="a" * 64,
    n_parameters=10,
    config_sha256="b" * 64,
)
FAMILY = "other heads, any layer"


@dataclass(frozen=True)
class ToyBehavior:
    """A behaviour by name."""

    name: str = "toy-ioi"
    settings: dict[str, Any] = field(default_factory=lambda: {"n": 120, "seed": 0})

    def recipe(self) -> dict[str, Any]:
        """Its settings."""
        return {"name": self.name, **self.settings}


@dataclass(frozen=True)
class ToyMechanism:
    """Heads per layer."""

    heads: tuple[tuple[int, tuple[int, ...]], ...] = ((1, (2,)), (2, (0,)))

    @property
    def name(self) -> str:
        """Heads as text."""
        return "heads " + ", ".join(f"{layer}.{head}" for layer, heads in self.heads for head in heads)

    def to_json(self) -> dict[str, Any]:
        """Kind and heads."""
        return {"kind": "heads", "heads": {str(layer): list(heads) for layer, heads in self.heads}}


def toy_claim(*predictions: Prediction, **changes: Any) -> Claim:
    """A claim about heads 1.2 and 2.0."""
    settings = {
        "behavior": ToyBehavior(),
        "mechanism": ToyMechanism(),
        "predictions": list(predictions) or [lowers(1.0)],
        "controls": FAMILY,
        "seed": 0,
    }
    return Claim("Heads 1.2 and 2.0 carry the name", **{**settings, **changes})


def split(
    *,
    n_units: int = 24,
    per_unit: int = 5,
    gap: float = 3.0,
    gap_sd: float = 0.5,
    seed: int = 0,
    name: str = "hash",
    **changes: Any,
) -> HeldOut:
    """A held-out split of independent units with a clean-corrupt gap."""
    rng = np.random.default_rng(seed)
    n = n_units * per_unit
    clean = 2.0 + 0.5 * rng.standard_normal(n)
    corrupt = clean - gap - gap_sd * rng.standard_normal(n)
    units = as_units(np.repeat(np.arange(n_units), per_unit))
    return HeldOut(name, clean, **{"corrupt": corrupt, "units": units, **changes})


def measured(
    prediction: Prediction,
    held_out: HeldOut,
    effect: float,
    *,
    control_effect: float = 0.0,
    n_controls: int = 199,
    sd: float = 0.3,
    seed: int = 1,
    **family: Any,
) -> Evidence:
    """Evidence whose mean effect is `effect`, and whose controls' are about `control_effect`."""
    rng = np.random.default_rng(seed)
    n = len(held_out.clean)
    sign = -1.0 if prediction.kind == "lowers" else 1.0
    start = held_out.clean - held_out.gap if prediction.kind == "recovers" else held_out.clean
    noise = sd * rng.standard_normal((1 + n_controls, n))
    offsets = np.concatenate([[effect], control_effect + 0.05 * rng.standard_normal(n_controls)])
    after = start + sign * (offsets[:, None] + noise - noise.mean(axis=1, keepdims=True))
    controls = Controls(FAMILY, after[1:], **family) if n_controls and prediction.kind != "spares" else None
    return Evidence(prediction, after[0], held_out, controls)


class ToyBench:
    """A "model" in which each head of a 4 x 4 grid has a known effect on the metric."""

    def __init__(self, effects: dict[tuple[int, int], float] | None = None, *, drift: float = 0.0) -> None:
        self.effects = {(1, 2): 0.8, (2, 0): 0.8} if effects is None else effects
        self.drift = drift
        self.shown: tuple[str, ...] = ()
        self.log: list[str] = []

    @property
    def fingerprint(self) -> ModelFingerprint:
        """Always the same toy."""
        return FINGERPRINT

    def check(self, mechanism: Any, predictions: Any) -> None:
        """Everything can be measured here, but steering along heads."""
        if any(prediction.kind == "raises" for prediction in predictions):
            raise BadClaim("only a direction can be steered along")

    def families_for(self, mechanism: Any) -> tuple[str, ...]:
        """One, and one more to be shown."""
        return (FAMILY, *self.shown)

    def best_family(self, mechanism: Any, behavior: Any) -> str:
        """The one that it has."""
        return FAMILY

    def data_hash(self, behavior: Any, *, fresh_seed: int | None) -> str:
        """A name for the split."""
        return f"{behavior.name} {fresh_seed}"

    def open_split(self, behavior: Any, *, fresh_seed: int | None) -> HeldOut:
        """Log the opening and draw the split."""
        self.log.append(f"open {behavior.name}")
        return split(seed=fresh_seed or 0, name=self.data_hash(behavior, fresh_seed=fresh_seed))

    def measure(
        self, mechanisms: Any, prediction: Prediction, behavior: Any, held_out: HeldOut
    ) -> np.ndarray:
        """Each mechanism's heads, added up, with noise that depends on the heads only."""
        rows = []
        for mechanism in mechanisms:
            heads = [
                (int(layer), head) for layer, some in mechanism.to_json()["heads"].items() for head in some
            ]
            size = 0.0 if prediction.kind == "spares" else sum(self.effects.get(head, 0.0) for head in heads)
            noise = np.random.default_rng([layer * 4 + head for layer, head in heads]).standard_normal(
                len(held_out.clean)
            )
            start = held_out.clean - held_out.gap if prediction.kind == "recovers" else held_out.clean
            sign = -1.0 if prediction.kind == "lowers" else 1.0
            rows.append(start + sign * (size + self.drift) + 0.1 * noise)
        return np.stack(rows)

    def draw_controls(
        self, mechanism: Any, behavior: Any, *, family: str, n_draws: int, seed: int
    ) -> DrawnControls:
        """Other heads, in any layer; a family that does not fit is refused."""
        self.log.append(f"draw {family}")
        if family not in self.families_for(mechanism):
            raise BadClaim(f'no controls "{family}" for this mechanism')
        heads = {int(layer): tuple(some) for layer, some in mechanism.to_json()["heads"].items()}
        universe = {layer: tuple(range(4)) for layer in range(4)}
        drawn = draw_selections(heads, universe, n_draws=n_draws, seed=seed, name=family, anywhere=True)
        members = [ToyMechanism(tuple(sorted(member.items()))) for member in drawn.members]
        return DrawnControls(members, drawn.n_members, tuple(member.name for member in members))
