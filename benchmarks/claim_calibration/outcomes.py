"""Outcomes: verdicts counted, with the bounds that a gate is asked of, and saved."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.special import betaincinv

from mechscope.claims import rule
from mechscope.claims.verdict import Verdict
from mechscope.records.canonical import to_plain
from mechscope.records.files import save_json
from mechscope.records.fingerprint import SoftwareVersions

MOST_FALSE = 0.05
LEAST_POWER = 0.90


@dataclass
class Tally:
    """Verdicts of many claims.

    Args:
        outcomes: Claims by outcome.
        reasons: Claims by the first reason given for not being supported, numbers left out.
        n_decidable: Claims whose held-out prompts could decide: enough of them, behaviour present.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    n_decidable: int = 0

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.add_plain(plain_verdict(verdict))

    def add_plain(self, found: Mapping[str, Any]) -> None:
        """Count one verdict as `plain_verdict` keeps it."""
        self.outcomes[found["outcome"]] += 1
        self.n_decidable += bool(found["is_decidable"])
        if found["outcome"] != rule.SUPPORTED and found["reason"]:
            self.reasons[found["reason"]] += 1

    @property
    def n(self) -> int:
        """Claims."""
        return sum(self.outcomes.values())

    @property
    def n_supported(self) -> int:
        """Claims that came out supported."""
        return self.outcomes[rule.SUPPORTED]

    @property
    def upper_bound(self) -> float:
        """One-sided 95% Clopper-Pearson upper bound of the rate of support."""
        k, n = self.n_supported, self.n
        return 1.0 if k == n else float(betaincinv(k + 1, n - k, 0.95))

    @property
    def lower_bound(self) -> float:
        """One-sided 95% Clopper-Pearson lower bound of the rate of support."""
        k, n = self.n_supported, self.n
        return 0.0 if k == 0 else float(betaincinv(k, n - k + 1, 0.05))

    def to_json(self) -> dict[str, Any]:
        """Counts and bounds."""
        return {
            "n_claims": self.n,
            "n_supported": self.n_supported,
            "n_refuted": self.outcomes[rule.REFUTED],
            "n_inconclusive": self.outcomes[rule.INCONCLUSIVE],
            "n_decidable": self.n_decidable,
            "rate": self.n_supported / max(self.n, 1),
            "lower_95": self.lower_bound,
            "upper_95": self.upper_bound,
            "reasons": dict(self.reasons.most_common()),
        }


def plain_verdict(verdict: Verdict) -> dict[str, Any]:
    """What is kept of a verdict: outcome, first reason, and whether its prompts could decide anything."""
    blocking = (rule.TOO_FEW_PROMPTS, rule.TOO_FEW_UNITS, rule.ABSENT, rule.AT_BOUND)
    reasons = [*verdict.reasons, *(reason for result in verdict.predictions for reason in result.reasons)]
    kinds = [_kind(reason) for reason in reasons]
    return {
        "outcome": verdict.outcome,
        "reason": kinds[0] if kinds else "",
        "is_decidable": not any(kind in blocking for kind in kinds),
    }


def _kind(reason: str) -> str:
    """A reason without its numbers: what stands before the colon, else its first words."""
    head = reason.partition(":")[0]
    return " ".join(word for word in head.split() if not any(c.isdigit() for c in word))[:80]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a rate of support must be.

    Args:
        kind: "false" (upper bound at most 5%), "boundary" (not above 5% beyond Monte Carlo error), "exceeds" (a
            cheat that must be seen: lower bound above 5%), "power" (at least 90%), "unsupported" (at most half:
            a mechanism that is not the true one must usually not pass), or "shown" (no gate).
    """

    kind: str

    def passes(self, tally: Tally) -> bool:
        """Whether the tally meets it."""
        match self.kind:
            case "false":
                return tally.upper_bound <= MOST_FALSE
            case "boundary":
                return tally.lower_bound <= MOST_FALSE
            case "exceeds":
                return tally.lower_bound > MOST_FALSE
            case "power":
                return tally.n_supported >= LEAST_POWER * tally.n
            case "unsupported":
                return tally.upper_bound <= MOST_FALSE
            case _:
                return True


@dataclass(frozen=True, kw_only=True)
class Rates:
    """One calibration as it is saved.

    Args:
        name: Of the calibration.
        settings: Everything that decides the numbers: seeds, sizes, model, behaviour.
        hashes: Of weights and prompts.
        independence: In words, what the claims share.
        tallies: Verdicts by variant, with the gate of each.
        seconds: It took.
    """

    name: str
    settings: dict[str, Any]
    hashes: dict[str, str]
    independence: str
    tallies: dict[str, tuple[Gate, Tally]]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every gate is met."""
        return all(gate.passes(tally) for gate, tally in self.tallies.values())

    def to_json(self) -> dict[str, Any]:
        """As it is saved and printed."""
        variants = {
            name: {"gate": gate.kind, "passed": gate.passes(tally), **tally.to_json()}
            for name, (gate, tally) in self.tallies.items()
        }
        return {
            "name": self.name,
            "passed": self.passed,
            "variants": variants,
            "settings": self.settings,
            "hashes": self.hashes,
            "independence": self.independence,
            "seconds": round(self.seconds, 1),
            "software": SoftwareVersions.here().model_dump(),
        }

    def save(self, folder: Path) -> Path:
        """Write it to `folder/<name>.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"claims_{self.name.replace('-', '_')}.json"
        save_json(path, to_plain(self.to_json()))
        return path
