"""The verdict rule: pure functions from intervals and ranks to holds, fails, undecided; and to a verdict.

Owns every threshold of the rule. Two questions are asked of each prediction of a size: is it large enough
(95% interval), and is it larger than its controls' (rank). Sparing is an equivalence test: "no significant
change" is never evidence. A claim is supported if all predictions hold, refuted if one fails at a level
Holm-corrected over the predictions, else inconclusive, with the reason.
Invariant: at one prediction, "fails" and "its failure's p is at most 0.05" are the same event (up to the
resolution of the resamples).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"

ALPHA = 0.05
MIN_PROMPTS = 100
MIN_UNITS = 20
MIN_EFFECTIVE_UNITS = 10.0
"""Twenty units of which one holds nearly all prompts are not twenty."""
SATURATED = 0.02
"""A bounded metric whose baseline mean lies within this fraction of its range of a bound shows no change."""

FEWEST_THAT_GATE = 39
"""With 39 controls one may be as strong as the mechanism (p = 2/40); with fewer, none may."""
FEWEST_DRAWS, DRAWS_PER_PREDICTION = 199, 40
CONTROL_QUANTILE = 0.95

TOO_FEW_PROMPTS = "too few prompts"
TOO_FEW_UNITS = "too few units"
TOO_WIDE = "interval too wide"
NO_RESOLUTION = "controls without resolution"
NOT_SPECIFIC = "not set apart from its controls"
NOT_NAMED = "shown only: the claim names another family"
ABSENT = "behaviour absent"
AT_BOUND = "baseline at ceiling or floor"
UNCORRECTED = "fails only before correction"


def size_outcome(low: float, high: float, bound: float) -> str:
    """Is the effect at least `bound`? From its 95% interval."""
    if low >= bound:
        return HOLDS
    return FAILS if high < bound else UNDECIDED


def effect_outcome(size: str, p_controls: float | None, margin_high: float | None) -> str:
    """A size and its specificity together.

    Args:
        size: From `size_outcome`.
        p_controls: From `control_p`; None where the controls can't gate.
        margin_high: Upper end of the 95% interval of (effect minus the 95th percentile of its controls);
            None where the controls can't gate.
    """
    if size == FAILS or (margin_high is not None and margin_high < 0):
        return FAILS
    return HOLDS if size == HOLDS and p_controls is not None and p_controls <= ALPHA else UNDECIDED


def sparing_outcome(inner: tuple[float, float], outer: tuple[float, float], bound: float) -> str:
    """Two one-sided tests: the 90% interval `inner` inside (-bound, bound), or the 95% `outer` outside it."""
    if -bound < inner[0] and inner[1] < bound:
        return HOLDS
    return FAILS if outer[0] >= bound or outer[1] <= -bound else UNDECIDED


def n_at_least_as_strong(effect: float, controls: Float[np.ndarray, " control"]) -> int:
    """Controls whose effect reaches the mechanism's; equal up to round-off counts as reaching it."""
    return int((controls >= effect - 1e-9 * abs(effect)).sum())


def control_p(n_strong: int, n_controls: int) -> float:
    """(1 + controls at least as strong) / (1 + controls): the mechanism counts as one of them."""
    return (1 + n_strong) / (1 + n_controls)


def control_quantile(
    controls: Float[np.ndarray, "draw control"],
) -> Float[np.ndarray, " draw"]:
    """The 95th percentile of the controls, as the order statistic that agrees with `control_p`.

    An effect above it has p <= 0.05, an effect below it has not: of 199 controls it is the 190th from
    below.
    """
    n = controls.shape[-1]
    index = min(n - 1, int(np.ceil(CONTROL_QUANTILE * (n + 1) - 1e-9)) - 1)
    return np.partition(controls, index, axis=-1)[..., index]


def failure_p(p_size: float, p_margin: float | None) -> float:
    """p of "this prediction is true", for Holm: twice the smaller of two one-sided p values.

    A prediction fails by its size or by its margin over the controls, each judged by one end of a 95%
    interval (2.5%). Doubling the smaller is Bonferroni over the two, and makes p <= 0.05 the event "fails".
    """
    return min(1.0, 2 * (p_size if p_margin is None else min(p_size, p_margin)))


def sparing_failure_p(p_below_bound: float, p_above_minus_bound: float) -> float:
    """p of "the change lies inside (-z, z)": twice the smaller one-sided p, one for each end."""
    return min(1.0, 2 * min(p_below_bound, p_above_minus_bound))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjustment: reject where the adjusted p is at most 0.05; family-wise error 5%."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return tuple(adjusted)


def required_draws(n_predictions: int, *, generated_text: bool = False) -> int:
    """Draws that the confirmatory family needs: max(199, 40 x predictions); 39 where text is generated."""
    if generated_text:
        return FEWEST_THAT_GATE
    return max(FEWEST_DRAWS, DRAWS_PER_PREDICTION * n_predictions)


def control_shortfall(
    n_drawn: int, n_members: float | int, n_predictions: int, *, generated_text: bool = False
) -> str:
    """Why these controls can't gate, or "" if they can.

    Args:
        n_drawn: Controls measured.
        n_members: Members of the family; infinite for a continuous one. A family that was measured
            completely needs no more draws than it has members.
    """
    if n_members < FEWEST_THAT_GATE:
        return (
            f"{NO_RESOLUTION}: a family of {n_members:g}, at least {FEWEST_THAT_GATE} needed; shown as a rank"
        )
    needed = min(required_draws(n_predictions, generated_text=generated_text), n_members)
    return "" if n_drawn >= needed else f"{NO_RESOLUTION}: {n_drawn} drawn of at least {needed:g}"


def evidence_shortfalls(n_prompts: int, n_units: int, effective_units: float) -> tuple[str, ...]:
    """Why so few held-out prompts or units decide nothing."""
    reasons = []
    if n_prompts < MIN_PROMPTS:
        reasons.append(f"{TOO_FEW_PROMPTS}: {n_prompts} of at least {MIN_PROMPTS}")
    if n_units < MIN_UNITS:
        reasons.append(f"{TOO_FEW_UNITS}: {n_units} of at least {MIN_UNITS}")
    elif effective_units < MIN_EFFECTIVE_UNITS:
        reasons.append(
            f"{TOO_FEW_UNITS}: {n_units} so unequal that they weigh as {effective_units:.1f} equal ones, "
            f"at least {MIN_EFFECTIVE_UNITS:g} needed"
        )
    return tuple(reasons)


def gap_shortfall(low: float, high: float) -> str:
    """Why there is no behaviour to explain: the clean-corrupt gap's 95% interval is not above zero."""
    if low > 0:
        return ""
    kind = "includes zero" if high >= 0 else "lies below zero: the corrupt prompts do better"
    return f"{ABSENT}: the clean-corrupt gap's 95% interval [{low:.4g}, {high:.4g}] {kind}"


def saturation(baseline: float, bounds: tuple[float | int, float | int]) -> str:
    """Why the baseline leaves no room to see a change, or "": it sits at a finite bound of the metric."""
    low, high = bounds
    span = high - low if np.isfinite(high - low) else 1.0
    for name, bound in (("floor", low), ("ceiling", high)):
        if np.isfinite(bound) and abs(baseline - bound) <= SATURATED * span:
            return f"{AT_BOUND}: mean {baseline:.4g} at the metric's {name} {bound:g}"
    return ""


def claim_outcome(
    outcomes: Sequence[str], failure_ps: Sequence[float], blocking: Sequence[str]
) -> tuple[str, tuple[float, ...]]:
    """The verdict, and the Holm-adjusted p of each prediction's failure.

    Args:
        outcomes: holds, fails or undecided, per prediction.
        failure_ps: From `failure_p` or `sparing_failure_p`, per prediction.
        blocking: Reasons for which the held-out data decide nothing, whatever the outcomes.
    """
    adjusted = holm(failure_ps)
    if blocking:
        return INCONCLUSIVE, adjusted
    if outcomes and all(outcome == HOLDS for outcome in outcomes):
        return SUPPORTED, adjusted
    refuted = any(outcome == FAILS and p <= ALPHA for outcome, p in zip(outcomes, adjusted, strict=True))
    return (REFUTED if refuted else INCONCLUSIVE), adjusted
