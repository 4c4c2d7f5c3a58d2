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
    return _run(claim, bench, ledger, mechanism=mechanism, purpose=ledgers.TEST, fresh_seed=fresh_seed)


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
    again = _run(
        record.claim, bench, ledger, mechanism=mechanism, purpose=ledgers.VERIFY, fresh_seed=fresh_seed
    )
    return compare_records(record, again, exact=exact)


def _run(
    claim: Claim,
    bench: Bench,
    ledger: Ledger | None,
    *,
    mechanism: Any,
    purpose: str,
    fresh_seed: int | None,
) -> ClaimRecord:
    mechanism = claim.mechanism if mechanism is None else mechanism
    if purpose == ledgers.TEST and fresh_seed is not None:
        purpose = ledgers.FRESH
    openings = 0
    splits: dict[str, HeldOut] = {}
    for behavior in (claim.behavior, *(entry.behavior for entry in claim.predictions if entry.behavior)):
        if behavior.name in splits:
            continue
        if ledger is not None:
            data_hash = bench.data_hash(behavior, fresh_seed=fresh_seed)
            openings = max(openings, ledger.record(data_hash, claim_id=claim.id, purpose=purpose))
        splits[behavior.name] = bench.open_split(behavior, fresh_seed=fresh_seed)
    held_out = splits[claim.behavior.name]
    evidence = tuple(
        _measure(claim, prediction, bench, mechanism=mechanism, splits=splits)
        for prediction in claim.predictions
    )
    found = judge(held_out, evidence, seed=claim.seed)
    return ClaimRecord(
        claim=claim,
        verdict=dressed(found, claim, openings=openings, fresh_seed=fresh_seed),
        held_out=held_out,
        evidence=evidence,
        model=bench.fingerprint,
    )


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
