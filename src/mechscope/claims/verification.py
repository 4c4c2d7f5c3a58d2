"""What it means that a recomputed claim agrees with the saved one.

Owns the tolerances: model and data hashes equal, every effect and interval end within max(1e-4 relative,
5% of the interval's width), every control p within one rank, every outcome the same; or, if
`exact`, equal bits.
Invariant: all differences are collected; nothing is compared that a second run may rightly change (when it
ran, with which library versions, how often the split was opened).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mechscope.circuits.statistics.significance_result import CircuitTest
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.verdict import ControlSummary, Estimate, PredictionResult
from mechscope.vocabulary.errors import NotReproduced

RELATIVE, OF_WIDTH = 1e-4, 0.05


@dataclass(frozen=True)
class Difference:
    """One disagreement; `tolerance` is what would have been allowed, None where only equality is."""

    what: str
    saved: object
    recomputed: object
    tolerance: float | None = None

    def __str__(self) -> str:
        allowed = "" if self.tolerance is None else f" (allowed: {self.tolerance:.3g})"
        return f"{self.what}: {self.saved} on record, {self.recomputed} now{allowed}"


def compare_records(saved: ClaimRecord, again: ClaimRecord, *, exact: bool = False) -> list[Difference]:
    """All differences between a claim file and its recomputation; empty if it was reproduced."""
    found = list(_identities(saved, again))
    if found:
        return found  # other data or another model: comparing numbers would say nothing
    if exact:
        return [*_unequal_bits(saved, again), *_outcomes(saved, again)]
    found += _outcomes(saved, again)
    old, new = saved.verdict, again.verdict
    if old.held_out.gap is not None and new.held_out.gap is not None:
        found += _estimates("clean-corrupt gap", old.held_out.gap, new.held_out.gap)
    for before, now in zip(old.predictions, new.predictions, strict=True):
        found += _predictions(before, now)
    if old.checks is not None and new.checks is not None:
        found += _checks(old.checks.tests, new.checks.tests)
    return found


def refuse_unless_reproduced(saved: ClaimRecord, again: ClaimRecord, *, exact: bool = False) -> None:
    """Raise with every difference at once.

    Raises:
        NotReproduced: the recomputation differs beyond its tolerance.
    """
    found = compare_records(saved, again, exact=exact)
    if found:
        raise NotReproduced(
            f"{len(found)} of the claim's results came out differently",
            got="; ".join(str(difference) for difference in found),
            because="equal bits were asked for"
            if exact
            else "beyond max(1e-4 relative, 5% of the interval's width)",
            instead="the model, data and software on record; `software` in the file lists the versions",
        )


def _identities(saved: ClaimRecord, again: ClaimRecord) -> Iterator[Difference]:
    if saved.claim.id != again.claim.id:
        yield Difference("claim id", saved.claim.id, again.claim.id)
    for name in ("weights_sha256", "config_sha256", "dtype", "family"):
        old, new = getattr(saved.model, name), getattr(again.model, name)
        if old != new:
            yield Difference(f"model's {name}", old, new)
    old_hashes = [split.data_hash for split in saved.splits]
    new_hashes = [split.data_hash for split in again.splits]
    if old_hashes != new_hashes:
        yield Difference("held-out data hashes", old_hashes, new_hashes)


def _outcomes(saved: ClaimRecord, again: ClaimRecord) -> Iterator[Difference]:
    if saved.verdict.outcome != again.verdict.outcome:
        yield Difference("verdict", saved.verdict.outcome, again.verdict.outcome)
    for old, new in zip(saved.verdict.predictions, again.verdict.predictions, strict=True):
        if old.outcome != new.outcome:
            yield Difference(str(old.prediction), old.outcome, new.outcome)


def _predictions(old: PredictionResult, new: PredictionResult) -> Iterator[Difference]:
    name = str(old.prediction)
    if (old.effect is None) != (new.effect is None) or (old.controls is None) != (new.controls is None):
        yield Difference(f"{name}, what was measured", _measured(old), _measured(new))
        return
    if old.effect is not None and new.effect is not None:
        yield from _estimates(f"{name}, effect", old.effect, new.effect)
    if old.inner is not None and new.inner is not None:
        for end in ("low", "high"):
            yield from _numbers(
                f"{name}, 90% {end}", getattr(old.inner, end), getattr(new.inner, end), old.inner.width
            )
    if old.controls is not None and new.controls is not None:
        yield from _controls(name, old.controls, new.controls)
    before, now = ([shown.family for shown in result.others] for result in (old, new))
    if before != now:
        yield Difference(f"{name}, other families shown", before, now)
        return
    for shown, again in zip(old.others, new.others, strict=True):
        yield from _controls(name, shown, again)


def _controls(name: str, old: ControlSummary, new: ControlSummary) -> Iterator[Difference]:
    for attribute in ("family", "n_drawn", "n_members"):
        if getattr(old, attribute) != getattr(new, attribute):
            yield Difference(
                f"{name}, controls' {attribute}", getattr(old, attribute), getattr(new, attribute)
            )
    if abs(old.n_strong - new.n_strong) > 1:
        yield Difference(f"{name}, rank among controls", old.rank, new.rank, 1.0)
    if old.margin is not None and new.margin is not None:
        yield from _estimates(f"{name}, margin over controls", old.margin, new.margin)


def _checks(old: Sequence[CircuitTest], new: Sequence[CircuitTest]) -> Iterator[Difference]:
    """Tests that stand beside a verdict; the search where there is nothing to find is not run again."""
    before, now = ([test.name for test in tests] for tests in (old, new))
    if before != now:
        yield Difference("tests beside the claim", before, now)
        return
    for saved, again in zip(old, new, strict=True):
        if saved.outcome != again.outcome:
            yield Difference(f"{saved.name}, beside the claim", saved.outcome, again.outcome)
        if saved.estimate is not None and again.estimate is not None:
            low, high = saved.interval or (saved.estimate, saved.estimate)
            yield from _numbers(f"{saved.name}, beside the claim", saved.estimate, again.estimate, high - low)


def _estimates(what: str, old: Estimate, new: Estimate) -> Iterator[Difference]:
    width = old.interval.width
    yield from _numbers(what, old.value, new.value, width)
    yield from _numbers(f"{what}, 95% low", old.interval.low, new.interval.low, width)
    yield from _numbers(f"{what}, 95% high", old.interval.high, new.interval.high, width)


def _numbers(what: str, old: float, new: float, width: float) -> Iterator[Difference]:
    if old == new:
        return
    tolerance = max(RELATIVE * abs(old), OF_WIDTH * width if np.isfinite(width) else 0.0)
    if not abs(old - new) <= tolerance:  # not ">": NaN agrees with nothing
        yield Difference(what, old, new, tolerance)


def _unequal_bits(saved: ClaimRecord, again: ClaimRecord) -> Iterator[Difference]:
    for name, old, new in _tables(saved, again):
        if old.dtype != new.dtype or old.tobytes() != new.tobytes():
            worst = float(np.abs(old - new).max()) if old.shape == new.shape else float("nan")
            yield Difference(f"{name}: bits", f"{old.dtype} {old.shape}", f"differs by up to {worst:.3g}")
    for old, new in zip(saved.verdict.predictions, again.verdict.predictions, strict=True):
        if _statistics(old) != _statistics(new):
            yield Difference(f"{old.prediction}: statistics", _measured(old), _measured(new))
    if saved.verdict.held_out.gap != again.verdict.held_out.gap:
        yield Difference(
            "clean-corrupt gap: statistics", saved.verdict.held_out.gap, again.verdict.held_out.gap
        )


def _statistics(result: PredictionResult) -> tuple[object, ...]:
    return (
        result.effect,
        result.inner,
        result.controls,
        result.others,
        result.p_failure,
        result.p_failure_holm,
    )


def _tables(saved: ClaimRecord, again: ClaimRecord) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Every table of measurements, saved and recomputed."""
    for index, (old, new) in enumerate(zip(saved.splits, again.splits, strict=True)):
        yield f"split {index}", old.clean, new.clean
        if old.corrupt is not None and new.corrupt is not None:
            yield f"split {index}, corrupt", old.corrupt, new.corrupt
    for old, new in zip(saved.evidence, again.evidence, strict=True):
        yield f"{old.prediction}, measurements", old.after, new.after
        families = ((old.controls, new.controls), *zip(old.others, new.others, strict=False))
        for before, now in families:
            if before is not None and now is not None:
                yield f"{old.prediction}, controls", before.after, now.after


def _measured(result: PredictionResult) -> str:
    effect = "no effect" if result.effect is None else str(result.effect)
    return effect + (f", {result.controls.rank}" if result.controls else ", no controls")
