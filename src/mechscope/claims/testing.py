"""Testing a claim: open the held-out split once, measure, judge, and keep everything.

Owns the order of events: the ledger is written before a held-out prompt is read, controls are drawn from the
claim's seed, and the verdict is made by the rule alone. Models come through the `Bench` protocol, which the
engine's side implements. Invariant: with an equal claim, model and data, equal records up to round-off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from mechscope.claims import ledger as ledgers
from mechscope.claims import rule
from mechscope.claims.claim import Claim
from mechscope.claims.claim_file import ClaimRecord, dressed, refuse_unless_consistent
from mechscope.claims.evidence import Controls, Evidence, HeldOut
from mechscope.claims.judge import judge
from mechscope.claims.ledger import Ledger
from mechscope.claims.predictions import Prediction
from mechscope.claims.verification import Difference, compare_records
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.vocabulary.errors import HeldOutOpened


@dataclass(frozen=True)
class DrawnControls:
    """A control family's mechanisms, ready to be measured.

    Args:
        mechanisms: The draws, in order of their index.
        n_members: Members of the family; infinite for a continuous one.
        names: What each is, for reports.
    """

    mechanisms: Sequence[Any]
    n_members: float | int = float("inf")
    names: tuple[str, ...] = ()


@runtime_checkable
class Bench(Protocol):
    """What testing needs from a model and its engine. One object serves one open model."""

    @property
    def fingerprint(self) -> ModelFingerprint:
        """Which model."""
        ...

    def data_hash(self, behavior: Any, *, fresh_seed: int | None) -> str:
        """Hash of the held-out split, or of the prompts that `fresh_seed` draws; runs no model."""
        ...

    def open_split(self, behavior: Any, *, fresh_seed: int | None) -> HeldOut:
        """Read the held-out split and measure it without intervention."""
        ...

    def measure(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, held_out: HeldOut
    ) -> Float[np.ndarray, "mechanism prompt"]:
        """The metric on every held-out prompt under the prediction's intervention, by each mechanism."""
        ...

    def draw_controls(
        self, mechanism: Any, prediction: Prediction, *, family: str, n_draws: int, seed: int
    ) -> DrawnControls:
        """At least `n_draws` members of the family, or all where it has fewer or at most 1,000."""
        ...


@dataclass(frozen=True)
class Opened:
    """Held-out splits that were opened, and the claims that were frozen before.

    Args:
        mechanisms: By the claim's id.
        splits: By the behaviour's name.
        openings: How often each was opened, this time included; 0 where nobody counts.
        fresh_seed: Of prompts drawn anew, or None.
    """

    mechanisms: dict[str, Any]
    splits: dict[str, HeldOut]
    openings: dict[str, int]
    fresh_seed: int | None = None


def test_claim(
    claim: Claim,
    bench: Bench,
    *,
    mechanism: Any = None,
    ledger: Ledger | None = None,
    fresh_seed: int | None = None,
) -> ClaimRecord:
    """Test a frozen claim on its held-out split.

    Args:
        claim: Frozen; nothing in it changes from here on.
        bench: The model.
        mechanism: The claim's own, where a claim from a file only remembers it; see `mechanism_from_json`.
        ledger: Where the opening is written down; None keeps no count, and the verdict says 0 openings.
        fresh_seed: Draw new held-out prompts from the behaviour's generator with this seed.

    Cost: one evaluation per prediction, and one per control and prediction that needs controls.
    """
    opened = open_held_out([claim], bench, mechanism=mechanism, ledger=ledger, fresh_seed=fresh_seed)
    return test_opened(claim, bench, opened)


test_claim.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - not for pytest to collect


def verify_claim(
    record: ClaimRecord,
    bench: Bench,
    *,
    mechanism: Any = None,
    ledger: Ledger | None = None,
    exact: bool = False,
) -> list[Difference]:
    """Recompute a claim file and list every difference beyond its tolerance; empty if reproduced.

    Args:
        record: From a file.
        bench: The model.
        mechanism: The claim's own, rebuilt: a file only remembers it.
        ledger: Where the opening is written down; a verification does not count.
        exact: Ask for equal bits.

    Raises:
        ClaimEdited: the verdict on record does not even follow from the measurements on record.
    """
    refuse_unless_consistent(record)
    fresh_seed = record.verdict.held_out.fresh_seed
    opened = open_held_out(
        [record.claim],
        bench,
        mechanism=mechanism,
        ledger=ledger,
        purpose=ledgers.VERIFY,
        fresh_seed=fresh_seed,
    )
    again = test_opened(record.claim, bench, opened)
    return compare_records(record, again, exact=exact)


def open_held_out(
    claims: Sequence[Claim],
    bench: Bench,
    *,
    mechanism: Any = None,
    ledger: Ledger | None = None,
    purpose: str = ledgers.TEST,
    fresh_seed: int | None = None,
) -> Opened:
    """Open the held-out splits that some claims need, once for all of them: each must be frozen by now.

    Args:
        claims: As frozen; none can be added afterwards.
        bench: The model.
        mechanism: Of a single claim from a file, which only remembers it.
        ledger: Where each opening is written down, before the split is read; None keeps no count.
        purpose: As in the ledger.
        fresh_seed: Draw new held-out prompts from the behaviours' generators with this seed.
    """
    if purpose == ledgers.TEST and fresh_seed is not None:
        purpose = ledgers.FRESH
    mechanisms = {claim.id: claim.mechanism if mechanism is None else mechanism for claim in claims}
    splits: dict[str, HeldOut] = {}
    openings: dict[str, int] = {}
    for name, (behavior, readers) in _needed_by(claims).items():
        openings[name] = 0
        if ledger is not None:
            first, *also = dict.fromkeys(claim.id for claim in readers)
            data_hash = bench.data_hash(behavior, fresh_seed=fresh_seed)
            openings[name] = ledger.record(data_hash, claim_id=first, purpose=purpose, also=also)
        splits[name] = bench.open_split(behavior, fresh_seed=fresh_seed)
    return Opened(mechanisms, splits, openings, fresh_seed)


def test_opened(claim: Claim, bench: Bench, opened: Opened) -> ClaimRecord:
    """Test a claim on splits that were opened for it.

    Args:
        claim: One of those that `opened` was made for.
        bench: The one that opened them.
        opened: From `open_held_out`.

    Raises:
        HeldOutOpened: the claim was not frozen when the splits were opened.
    """
    if claim.id not in opened.mechanisms:
        raise HeldOutOpened(
            "This claim was not frozen when the held-out split was opened.",
            got=f"claim {claim.id[:12]}",
            because="what was seen there could have shaped it",
            instead="open_held_out([this, ...]), or claim.test(model, fresh=True)",
        )
    held_out = opened.splits[claim.behavior.name]
    evidence = tuple(
        _measure(claim, entry, bench, mechanism=opened.mechanisms[claim.id], splits=opened.splits)
        for entry in claim.predictions
    )
    found = judge(held_out, evidence, seed=claim.seed)
    openings = max(opened.openings[behavior.name] for behavior in _behaviors_of(claim))
    return ClaimRecord(
        claim=claim,
        verdict=dressed(found, claim, openings=openings, fresh_seed=opened.fresh_seed),
        held_out=held_out,
        evidence=evidence,
        model=bench.fingerprint,
    )


test_opened.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - not for pytest to collect


def _behaviors_of(claim: Claim) -> list[Any]:
    return [claim.behavior, *(entry.behavior for entry in claim.predictions if entry.behavior)]


def _needed_by(claims: Sequence[Claim]) -> dict[str, tuple[Any, list[Claim]]]:
    """Behaviours by name, with the claims that read their held-out prompts."""
    found: dict[str, tuple[Any, list[Claim]]] = {}
    for claim in claims:
        for behavior in _behaviors_of(claim):
            found.setdefault(behavior.name, (behavior, []))[1].append(claim)
    return found


def _measure(
    claim: Claim, prediction: Prediction, bench: Bench, *, mechanism: Any, splits: dict[str, HeldOut]
) -> Evidence:
    behavior = prediction.behavior or claim.behavior
    held_out = splits[behavior.name]
    after = bench.measure([mechanism], prediction, behavior, held_out)[0]
    if prediction.kind in ("spares", "needs"):
        return Evidence(prediction, after, held_out)
    drawn = bench.draw_controls(
        mechanism,
        prediction,
        family=claim.controls,
        n_draws=rule.required_draws(len(claim.predictions), generated_text=held_out.generated_text),
        seed=claim.seed,
    )
    if not drawn.mechanisms:
        return Evidence(prediction, after, held_out)
    controls = Controls(
        claim.controls,
        after=bench.measure(drawn.mechanisms, prediction, behavior, held_out),
        n_members=drawn.n_members,
        names=drawn.names,
    )
    return Evidence(prediction, after, held_out, controls)
