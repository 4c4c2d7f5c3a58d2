"""From measurements to a verdict: resample, ask the rule, collect the reasons.

Owns the one path from `Evidence` to `Verdict`; every threshold lives in rule.py, every interval in
intervals.py. Invariant: the same evidence and seed give the same verdict, so a claim file can be judged
again without a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mechscope.claims import rule
from mechscope.claims.evidence import Controls, Evidence, HeldOut, stratum_means
from mechscope.claims.verdict import ControlSummary, Estimate, HeldOutSummary, PredictionResult, Verdict
from mechscope.data.intervals import (
    N_RESAMPLES,
    Bootstrap,
    Resamples,
    bootstrap,
    mean_bootstrap,
    ratio_bootstrap,
)
from mechscope.records.seeds import seed_for
from mechscope.vocabulary.errors import BadClaim


@dataclass(frozen=True, eq=False)
class _Split:
    """A held-out split with its resamples, made once and shared by every number that is computed on it."""

    held_out: HeldOut
    resamples: Resamples
    gap: Estimate | None
    shortfalls: tuple[str, ...]


def judge(
    held_out: HeldOut, evidence: Sequence[Evidence], *, seed: int, n_resamples: int = N_RESAMPLES
) -> Verdict:
    """Apply the verdict rule to what was measured.

    Args:
        held_out: The split of the claim's own behaviour.
        evidence: One entry per prediction, in the claim's order.
        seed: The claim's; resamples take their own branch of its tree of seeds.
        n_resamples: 10,000 by the rule; fewer only in simulations.

    Returns:
        The verdict, without the claim's id and statement.

    Raises:
        BadClaim: no predictions, or a fraction of a gap without corrupt prompts.
        NotEnoughEvidence: a measurement is NaN or infinite.

    Cost: per prediction, n_resamples x units x (controls + 2) multiplications; no model is run.
    """
    if not evidence:
        raise BadClaim(
            "a verdict without predictions", because="nothing was predicted", instead="lowers(0.5)"
        )
    splits: dict[int, _Split] = {}
    for split in (held_out, *(entry.held_out for entry in evidence)):
        if id(split) not in splits:
            splits[id(split)] = _prepare(split, seed, n_resamples)
    main = splits[id(held_out)]
    results = [_judge_one(entry, splits[id(entry.held_out)], len(evidence)) for entry in evidence]
    outcome, adjusted = rule.claim_outcome(
        [result.outcome for result in results], [result.p_failure for result in results], main.shortfalls
    )
    results = [replace(result, p_failure_holm=p) for result, p in zip(results, adjusted, strict=True)]
    return Verdict(
        outcome=outcome,
        predictions=tuple(results),
        held_out=_summary(main),
        reasons=_reasons(outcome, results, main.shortfalls),
        notes=(*_notes(held_out, evidence), *_other_ranks(results)),
        seed=seed,
    )


def _prepare(held_out: HeldOut, seed: int, n_resamples: int) -> _Split:
    units = held_out.units
    resamples = Resamples(
        units, seed=seed_for(seed, "resamples", held_out.data_hash), n_resamples=n_resamples
    )
    shortfalls = list(rule.evidence_shortfalls(units.n_prompts, units.n_units, units.effective_units))
    gap = None
    if held_out.corrupt is not None:
        gap = _estimate(mean_bootstrap(resamples, held_out.gap))
        shortfalls.append(rule.gap_shortfall(gap.interval.low, gap.interval.high))
    shortfalls.append(rule.saturation(float(held_out.clean.mean()), held_out.bounds))
    return _Split(held_out, resamples, gap, tuple(reason for reason in shortfalls if reason))


def _judge_one(evidence: Evidence, split: _Split, n_predictions: int) -> PredictionResult:
    units = split.held_out.units
    undefined = evidence.prediction.unit == "gap" and any(
        reason.startswith(rule.ABSENT) for reason in split.shortfalls
    )
    result = PredictionResult(
        prediction=evidence.prediction,
        outcome=rule.UNDECIDED,
        effect=None,
        inner=None,
        controls=None,
        p_failure=1.0,
        p_failure_holm=1.0,
        n_prompts=units.n_prompts,
        n_units=units.n_units,
        reasons=split.shortfalls,
        by_stratum=() if undefined else stratum_means(evidence),
    )
    if undefined:
        return result
    judged = {"spares": _judge_sparing, "needs": _judge_parts}.get(evidence.prediction.kind, _judge_effect)
    result = judged(result, evidence, split, n_predictions)
    if split.shortfalls:  # the numbers are shown, but they decide nothing
        return replace(result, outcome=rule.UNDECIDED, p_failure=1.0, reasons=split.shortfalls)
    return result


def _judge_effect(
    result: PredictionResult, evidence: Evidence, split: _Split, n_predictions: int
) -> PredictionResult:
    bound = evidence.prediction.bound
    sampled = _effect_bootstrap(evidence, split)
    effect = _estimate(sampled)
    controls, margin = None, None
    shown = tuple(_shown(evidence, family) for family in evidence.others)
    if evidence.controls is not None and len(evidence.controls.after):
        controls, margin = _judge_controls(evidence, evidence.controls, split, n_predictions)
    margin_high = None if controls is None or controls.margin is None else controls.margin.interval.high
    size = rule.size_outcome(effect.interval.low, effect.interval.high, bound)
    outcome = rule.effect_outcome(size, None if controls is None else controls.p, margin_high)
    p_margin = None if margin is None else margin.p_at_least(0.0)
    return replace(
        result,
        outcome=outcome,
        effect=effect,
        controls=controls,
        others=shown,
        p_failure=rule.failure_p(sampled.p_at_least(bound), p_margin),
        reasons=_effect_reasons(outcome, size, effect, bound, controls),
    )


def _judge_parts(
    result: PredictionResult, evidence: Evidence, split: _Split, n_predictions: int
) -> PredictionResult:
    del n_predictions  # size only: no controls are asked for
    bound = evidence.prediction.bound
    sampled = _effect_bootstrap(evidence, split)
    effect = _estimate(sampled)
    low, high = effect.interval.low, effect.interval.high
    outcome = rule.size_outcome(low, high, bound)
    reasons = {
        rule.HOLDS: (),
        rule.FAILS: (f"a part that is not needed: [{low:.4g}, {high:.4g}] lies below {bound:g}",),
        rule.UNDECIDED: (f"{rule.TOO_WIDE}: [{low:.4g}, {high:.4g}] includes {bound:g}",),
    }[outcome]
    p_failure = rule.failure_p(sampled.p_at_least(bound), None)
    return replace(result, outcome=outcome, effect=effect, p_failure=p_failure, reasons=reasons)


def _judge_sparing(
    result: PredictionResult, evidence: Evidence, split: _Split, n_predictions: int
) -> PredictionResult:
    bound = evidence.prediction.bound
    sampled = mean_bootstrap(split.resamples, evidence.effect)
    inner, effect = sampled.interval(0.90), _estimate(sampled)
    outer = effect.interval
    outcome = rule.sparing_outcome((inner.low, inner.high), (outer.low, outer.high), bound)
    reasons = {
        rule.HOLDS: (),
        rule.FAILS: (f"not spared: the change's 95% interval lies outside (-{bound:g}, {bound:g})",),
        rule.UNDECIDED: (f"{rule.TOO_WIDE}: the change's 90% interval reaches beyond {bound:g} either way",),
    }[outcome]
    p_failure = rule.sparing_failure_p(sampled.p_at_most(bound), sampled.p_at_least(-bound))
    return replace(result, outcome=outcome, effect=effect, inner=inner, p_failure=p_failure, reasons=reasons)


def _effect_bootstrap(evidence: Evidence, split: _Split) -> Bootstrap:
    if evidence.prediction.unit == "gap":
        return ratio_bootstrap(split.resamples, evidence.effect, evidence.denominator)
    return mean_bootstrap(split.resamples, evidence.effect)


def _judge_controls(
    evidence: Evidence, controls: Controls, split: _Split, n_predictions: int
) -> tuple[ControlSummary, Bootstrap | None]:
    below = evidence.denominator.sum()
    effect = float(evidence.effect.sum() / below)
    strengths = evidence.control_effects.sum(axis=1) / below
    shortfall = rule.control_shortfall(
        len(strengths), controls.n_members, n_predictions, generated_text=split.held_out.generated_text
    )
    n_strong = rule.n_at_least_as_strong(effect, strengths)
    sampled = None
    if not shortfall:
        columns = [evidence.denominator[:, None], evidence.effect[:, None], evidence.control_effects.T]
        sampled = bootstrap(split.resamples, np.concatenate(columns, axis=1), margin_over_controls)
    summary = ControlSummary(
        family=controls.family,
        n_drawn=len(strengths),
        n_members=controls.n_members,
        n_strong=n_strong,
        p=None if shortfall else rule.control_p(n_strong, len(strengths)),
        quantile=float(rule.control_quantile(strengths[None, :])[0]),
        margin=None if sampled is None else _estimate(sampled),
        generated_text=split.held_out.generated_text,
        shortfall=shortfall,
    )
    return summary, sampled


def _shown(evidence: Evidence, family: Controls) -> ControlSummary:
    """A family that the claim did not name: its rank, and no p."""
    below = evidence.denominator.sum()
    strengths = evidence.effects_of(family).sum(axis=1) / below
    return ControlSummary(
        family=family.family,
        n_drawn=len(strengths),
        n_members=family.n_members,
        n_strong=rule.n_at_least_as_strong(float(evidence.effect.sum() / below), strengths),
        p=None,
        quantile=float(rule.control_quantile(strengths[None, :])[0]),
        margin=None,
        generated_text=evidence.held_out.generated_text,
        shortfall=rule.NOT_NAMED,
    )


def margin_over_controls(sums: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, " draw"]:
    """Effect minus the 95th percentile of its controls, from sums [denominator, effect, control, ...]."""
    return (sums[..., 1] - rule.control_quantile(sums[..., 2:])) / sums[..., 0]


def _estimate(sampled: Bootstrap) -> Estimate:
    return Estimate(sampled.value, sampled.interval(0.95))


def _effect_reasons(
    outcome: str, size: str, effect: Estimate, bound: float, controls: ControlSummary | None
) -> tuple[str, ...]:
    if outcome == rule.HOLDS:
        return ()
    low, high = effect.interval.low, effect.interval.high
    reasons = []
    if size == rule.FAILS:
        reasons.append(f"too small: the 95% interval [{low:.4g}, {high:.4g}] lies below {bound:g}")
    elif size == rule.UNDECIDED:
        reasons.append(f"{rule.TOO_WIDE}: [{low:.4g}, {high:.4g}] includes {bound:g}")
    if controls is None:
        reasons.append(f"{rule.NO_RESOLUTION}: none were measured")
    elif controls.shortfall:
        reasons.append(controls.shortfall)
    elif controls.margin is not None and controls.margin.interval.high < 0:
        reasons.append(f"weaker than its controls' 95th percentile by {-controls.margin.value:.4g}")
    elif controls.p is not None and controls.p > rule.ALPHA:
        reasons.append(f"{rule.NOT_SPECIFIC}: {controls.rank} ({controls.family}), p = {controls.p:.3g}")
    return tuple(reasons)


def _summary(split: _Split) -> HeldOutSummary:
    units = split.held_out.units
    return HeldOutSummary(
        data_hash=split.held_out.data_hash,
        n_prompts=units.n_prompts,
        n_units=units.n_units,
        effective_units=units.effective_units,
        basis=units.basis,
        baseline=float(split.held_out.clean.mean()),
        gap=split.gap,
    )


def _reasons(
    outcome: str, results: Sequence[PredictionResult], shortfalls: tuple[str, ...]
) -> tuple[str, ...]:
    if shortfalls or outcome == rule.SUPPORTED:
        return shortfalls
    wanted = rule.FAILS if outcome == rule.REFUTED else None
    reasons = []
    for result in results:
        if result.outcome == rule.HOLDS or (wanted and result.outcome != wanted):
            continue
        uncorrected = result.outcome == rule.FAILS and result.p_failure_holm > rule.ALPHA
        found = (*result.reasons, *([rule.UNCORRECTED] if uncorrected else []))
        reasons += [f"{result.prediction}: {reason}" for reason in found]
    return tuple(reasons)


def _notes(held_out: HeldOut, evidence: Sequence[Evidence]) -> tuple[str, ...]:
    notes = []
    if held_out.corrupt is None:
        notes.append("no corrupt prompts: that the model shows the behaviour was not tested")
    if any(entry.controls is not None and entry.held_out.generated_text for entry in evidence):
        notes.append("controls measured on generated text: 39 draws suffice, so p is at least 0.025")
    n_strata = len(set(held_out.strata))
    if held_out.strata and "templates" not in held_out.units.basis:
        notes.append(
            f"the {n_strata} templates are held fixed: the intervals are about these, not about others"
        )
    return tuple(notes)


def _other_ranks(results: Sequence[PredictionResult]) -> list[str]:
    """One sentence per prediction on the families that the claim did not name."""
    return [
        f"other controls, shown only: {result.prediction}: "
        + ", ".join(f"{shown.rank} among {shown.family}" for shown in result.others)
        for result in results
        if result.others
    ]
