"""Testing a claim: open the held-out split once, measure, judge, and keep everything.

Owns the order of events: what can't be measured is refused and controls are drawn (from the claim's seed, on train
prompts) before the ledger is written, the ledger is written before a held-out prompt is read, and the verdict is made
by the rule alone. Models come through the `Bench` protocol, which the engine's side implements. Invariant: with an
equal claim, model and data, equal records up to round-off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from mechscope.circuits.circuit import Circuit
from mechscope.circuits.statistics.checks import CheckSettings
from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.claims import ledger as ledgers
from mechscope.claims import rule
from mechscope.claims.claim import Claim
from mechscope.claims.claim_file import ClaimRecord, dressed, refuse_unless_consistent
from mechscope.claims.controls import STRICTEST
from mechscope.claims.evidence import Controls, Evidence, HeldOut
from mechscope.claims.judge import judge
from mechscope.claims.ledger import Ledger
from mechscope.claims.part_claims import Parts
from mechscope.claims.predictions import Prediction, RecordedBehavior, recorded
from mechscope.claims.sites import Sites
from mechscope.claims.verification import Difference, compare_records
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import BadClaim, HeldOutOpened, NotEnoughEvidence

CONTROLLED = ("lowers", "recovers", "raises")
"""Kinds of prediction that ask for controls."""

N_SHOWN = 19
"""Members of a family that the claim does not name: enough for a rank of 20, and they decide nothing."""


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

    def check(self, mechanism: Any, predictions: Sequence[Prediction]) -> None:
        """Refuse what can't be measured of this mechanism in this model; reads no prompt."""
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
        self, mechanism: Any, behavior: Any, *, family: str, n_draws: int, seed: int
    ) -> DrawnControls:
        """At least `n_draws` members of the family, or all where it has fewer or at most 1,000.

        A continuous family is matched to activations on the behaviour's train prompts.
        """
        ...

    def families_for(self, mechanism: Any) -> Sequence[str]:
        """All families that this mechanism can be held against."""
        ...

    def best_family(self, mechanism: Any, behavior: Any) -> str:
        """The strictest of them that can gate: what a claim means that names none."""
        ...


@runtime_checkable
class CheckingBench(Protocol):
    """A bench that can hold a circuit against more than its claim predicts."""

    def check_circuit(
        self, circuit: Circuit | Parts, behavior: Any, held_out: HeldOut, *, settings: CheckSettings
    ) -> CircuitChecks:
        """The tests and controls of a circuit on held-out prompts that were opened for its claim."""
        ...


@dataclass(frozen=True)
class Ready:
    """A claim as it stands before its held-out split is opened.

    Args:
        mechanism: The claim's own.
        drawn: Controls by family: the one that decides, and others that are shown.
        family: The one that decides.
    """

    mechanism: Any
    drawn: dict[str, DrawnControls]
    family: str = ""


@dataclass(frozen=True)
class Opened:
    """Held-out splits that were opened, and the claims that were frozen and ready before.

    Args:
        ready: By the claim's id.
        splits: By behaviour.
        openings: How often each was opened, this time included; 0 where nobody counts.
        fresh_seed: Of prompts drawn anew, or None.
    """

    ready: dict[str, Ready]
    splits: dict[RecordedBehavior, HeldOut]
    openings: dict[RecordedBehavior, int]
    fresh_seed: int | None = None


def test_claim(
    claim: Claim,
    bench: Bench,
    *,
    mechanism: Any = None,
    ledger: Ledger | None = None,
    fresh_seed: int | None = None,
    checks: CheckSettings | None = None,
) -> ClaimRecord:
    """Test a frozen claim on its held-out split.

    Args:
        claim: Frozen; nothing in it changes from here on.
        bench: The model.
        mechanism: The claim's own, where a claim from a file only remembers it; see `mechanism_from_json`.
        ledger: Where the opening is written down; None keeps no count, and the verdict says 0 openings.
        fresh_seed: Draw new held-out prompts from the behaviour's generator with this seed.
        checks: What a circuit is held against beside the claim; None for nothing. See `test_opened`.

    Cost: one evaluation per prediction, and one per control and prediction that needs controls.
    """
    opened = open_held_out([claim], bench, mechanism=mechanism, ledger=ledger, fresh_seed=fresh_seed)
    return test_opened(claim, bench, opened, checks=checks)


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

    Of the checks of a circuit the tests are recomputed; the search is not run again where there is nothing to find.

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
    beside = record.verdict.checks
    checks = None if beside is None else CheckSettings.from_json({**beside.settings, "n_controls": 0})
    again = test_opened(record.claim, bench, opened, checks=checks)
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

    What can't be measured is refused, and controls are drawn, before a ledger is written or a prompt read.

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
    ready = {claim.id: _make_ready(claim, bench, mechanism) for claim in claims}
    if fresh_seed is not None:
        for one in ready.values():
            _refuse_own_positions(one.mechanism)
    splits: dict[RecordedBehavior, HeldOut] = {}
    openings: dict[RecordedBehavior, int] = {}
    for key, (behavior, readers) in _needed_by(claims).items():
        openings[key] = 0
        if ledger is not None:
            first, *also = dict.fromkeys(claim.id for claim in readers)
            data_hash = bench.data_hash(behavior, fresh_seed=fresh_seed)
            openings[key] = ledger.record(data_hash, claim_id=first, purpose=purpose, also=also)
        splits[key] = bench.open_split(behavior, fresh_seed=fresh_seed)
    return Opened(ready, splits, openings, fresh_seed)


def test_opened(
    claim: Claim, bench: Bench, opened: Opened, *, checks: CheckSettings | None = None
) -> ClaimRecord:
    """Test a claim on splits that were opened for it.

    The checks of a circuit are done after the verdict was made and stand beside it: nothing depends on them.

    Args:
        claim: One of those that `opened` was made for.
        bench: The one that opened them.
        opened: From `open_held_out`.
        checks: What a circuit is held against beside the claim; None for nothing, and for other mechanisms nothing.

    Raises:
        HeldOutOpened: the claim was not frozen when the splits were opened.
    """
    if claim.id not in opened.ready:
        raise HeldOutOpened(
            "This claim was not frozen when the held-out split was opened.",
            got=f"claim {claim.id[:12]}",
            because="what was seen there could have shaped it",
            instead="open_held_out([this, ...]), or claim.test(model, fresh=True)",
        )
    ready = opened.ready[claim.id]
    held_out = opened.splits[recorded(claim.behavior)]
    evidence = tuple(
        _measure(
            claim,
            prediction,
            bench,
            ready,
            splits=opened.splits,
        )
        for prediction in claim.predictions
    )
    found = judge(held_out, evidence, seed=claim.seed)
    openings = max(opened.openings[recorded(behavior)] for behavior in _behaviors_of(claim))
    verdict = dressed(found, claim, openings=openings, fresh_seed=opened.fresh_seed)
    if (
        checks is not None
        and isinstance(ready.mechanism, Circuit | Parts)
        and isinstance(bench, CheckingBench)
    ):
        beside = bench.check_circuit(ready.mechanism, claim.behavior, held_out, settings=checks)
        verdict = replace(verdict, checks=beside)
    return ClaimRecord(
        claim=claim,
        verdict=verdict,
        held_out=held_out,
        evidence=evidence,
        model=bench.fingerprint,
    )


test_opened.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - not for pytest to collect


def _make_ready(claim: Claim, bench: Bench, mechanism: Any) -> Ready:
    """Check what is to be measured, and draw the controls: the family that gates and the others, shown."""
    mechanism = claim.mechanism if mechanism is None else mechanism
    bench.check(mechanism, claim.predictions)
    if not any(prediction.kind in CONTROLLED for prediction in claim.predictions):
        return Ready(mechanism, {})
    named = bench.best_family(mechanism, claim.behavior) if claim.controls == STRICTEST else claim.controls
    drawn: dict[str, DrawnControls] = {}
    for family in dict.fromkeys([named, *bench.families_for(mechanism)]):
        is_named = family == named
        n_draws = rule.required_draws(len(claim.predictions)) if is_named else N_SHOWN
        try:
            members = bench.draw_controls(
                mechanism, claim.behavior, family=family, n_draws=n_draws, seed=claim.seed
            )
        except NotEnoughEvidence:
            if is_named:
                raise
            continue
        drawn[family] = members if is_named else _some(members, family, claim.seed)
    return Ready(mechanism, drawn, named)


def _refuse_own_positions(mechanism: Any) -> None:
    if isinstance(mechanism, Sites) and mechanism.n_rows is not None:
        raise BadClaim(
            "own positions for each prompt can't be tested on fresh prompts",
            got=mechanism.name,
            because="they are positions in the recorded held-out prompts, and mean other words elsewhere",
            instead="indices or words as positions, or the recorded prompts",
        )


def _some(members: DrawnControls, family: str, seed: int, *, n: int = N_SHOWN) -> DrawnControls:
    """At most `n` of them, by the claim's seed."""
    n_drawn = len(members.mechanisms)
    if n_drawn <= n:
        return members
    chosen = sorted(generator_for(seed, "shown", family).choice(n_drawn, n, replace=False).tolist())
    names = tuple(members.names[i] for i in chosen) if members.names else ()
    return DrawnControls([members.mechanisms[i] for i in chosen], members.n_members, names)


def _enough(drawn: DrawnControls, claim: Claim, held_out: HeldOut, family: str) -> DrawnControls:
    """All that were drawn; of more than 39, where each measurement is a generation, 39 by the claim's seed."""
    if not held_out.generated_text:
        return drawn
    n = rule.required_draws(len(claim.predictions), generated_text=True)
    return _some(drawn, family, claim.seed, n=n)


def _behaviors_of(claim: Claim) -> list[Any]:
    return [claim.behavior, *(entry.behavior for entry in claim.predictions if entry.behavior)]


def _needed_by(claims: Sequence[Claim]) -> dict[RecordedBehavior, tuple[Any, list[Claim]]]:
    """Behaviours, with the claims that read their held-out prompts."""
    found: dict[RecordedBehavior, tuple[Any, list[Claim]]] = {}
    for claim in claims:
        for behavior in _behaviors_of(claim):
            found.setdefault(recorded(behavior), (behavior, []))[1].append(claim)
    return found


def _measure(
    claim: Claim,
    prediction: Prediction,
    bench: Bench,
    ready: Ready,
    *,
    splits: dict[RecordedBehavior, HeldOut],
) -> Evidence:
    behavior = prediction.behavior or claim.behavior
    held_out = splits[recorded(behavior)]
    after = bench.measure([ready.mechanism], prediction, behavior, held_out)[0]
    if prediction.kind not in CONTROLLED:
        return Evidence(prediction, after, held_out)
    found = {
        family: Controls(
            family,
            after=bench.measure(members.mechanisms, prediction, behavior, held_out),
            n_members=members.n_members,
            names=members.names,
        )
        for family, members in (
            (name, _enough(found, claim, held_out, name)) for name, found in ready.drawn.items()
        )
        if members.mechanisms
    }
    named = found.pop(ready.family, None)
    return Evidence(prediction, after, held_out, named, tuple(found.values()))
