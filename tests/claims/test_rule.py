"""The verdict rule, by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechscope.claims import rule


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.5, 0.9, "holds"),
        (0.51, 0.9, "holds"),
        (0.1, 0.49, "fails"),
        (0.1, 0.5, "undecided"),
        (0.4, 0.6, "undecided"),
    ],
)
def test_a_size_holds_above_its_bound_and_fails_below_it(low: float, high: float, outcome: str):
    assert rule.size_outcome(low, high, 0.5) == outcome


@pytest.mark.parametrize(
    ("size", "p", "margin_high", "outcome"),
    [
        ("holds", 0.05, 0.3, "holds"),
        ("holds", 0.0501, 0.3, "undecided"),
        ("holds", None, None, "undecided"),
        ("holds", 0.4, -0.01, "fails"),
        ("fails", 0.005, 0.3, "fails"),
        ("fails", None, None, "fails"),
        ("undecided", 0.005, 0.3, "undecided"),
        ("undecided", 0.9, -0.1, "fails"),
    ],
)
def test_a_prediction_needs_size_and_specificity(
    size: str, p: float | None, margin_high: float | None, outcome: str
):
    assert rule.effect_outcome(size, p, margin_high) == outcome


@pytest.mark.parametrize(
    ("inner", "outer", "outcome"),
    [
        ((-0.05, 0.05), (-0.06, 0.06), "holds"),
        ((-0.05, 0.099), (-0.06, 0.11), "holds"),
        ((-0.05, 0.10), (-0.06, 0.11), "undecided"),
        ((-0.5, 0.5), (-0.6, 0.6), "undecided"),  # "no significant change" is no evidence of sparing
        ((0.12, 0.3), (0.10, 0.32), "fails"),
        ((-0.3, -0.12), (-0.32, -0.10), "fails"),
        ((0.09, 0.3), (0.08, 0.32), "undecided"),
    ],
)
def test_sparing_is_an_equivalence_test(inner: tuple[float, float], outer: tuple[float, float], outcome: str):
    assert rule.sparing_outcome(inner, outer, 0.1) == outcome


def test_the_mechanism_counts_among_its_controls():
    controls = np.arange(199.0)
    assert rule.control_p(rule.n_at_least_as_strong(500.0, controls), 199) == 1 / 200
    assert rule.control_p(rule.n_at_least_as_strong(189.5, controls), 199) == pytest.approx(0.05)
    assert rule.n_at_least_as_strong(198.0, controls) == 1  # a tie is as strong
    assert rule.n_at_least_as_strong(198.0 * (1 + 1e-12), controls) == 1  # also up to round-off


@pytest.mark.parametrize("n", [39, 40, 79, 199, 240, 1000])
def test_an_effect_above_the_95th_percentile_is_exactly_one_with_p_of_at_most_5_percent(n: int):
    controls = np.random.default_rng(n).permutation(np.arange(float(n)))
    quantile = float(rule.control_quantile(controls[None, :])[0])
    for effect, passes in ((quantile + 0.5, True), (quantile - 0.5, False)):
        p = rule.control_p(rule.n_at_least_as_strong(effect, controls), n)
        assert (p <= rule.ALPHA) is passes


def test_holm_by_hand():
    assert rule.holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert rule.holm([0.04]) == (0.04,)
    assert rule.holm([0.9, 0.9]) == (1.0, 1.0)
    assert rule.holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(ps: list[float]):
    adjusted = rule.holm(ps)
    assert all(a >= p or a == 1.0 for a, p in zip(adjusted, ps, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(order))
    assert min(adjusted) == min(1.0, len(ps) * min(ps))


def test_a_family_wise_error_of_holm_stays_at_5_percent_and_that_of_no_correction_does_not():
    ps = np.random.default_rng(0).uniform(size=(4000, 4))
    corrected = np.mean([min(rule.holm(row.tolist())) <= 0.05 for row in ps])
    assert corrected < 0.06
    assert np.mean(ps.min(axis=1) <= 0.05) > 0.15


def test_how_many_controls_are_needed():
    assert rule.required_draws(1) == 199
    assert rule.required_draws(4) == 199
    assert rule.required_draws(5) == 200
    assert rule.required_draws(8) == 320
    assert rule.required_draws(8, generated_text=True) == 39


@pytest.mark.parametrize(
    ("drawn", "members", "predictions", "generated", "gates"),
    [
        (8, 8, 1, False, False),
        (38, 38, 1, False, False),
        (39, 39, 1, False, True),
        (100, 100, 1, False, True),
        (99, 100, 1, False, False),
        (198, np.inf, 1, False, False),
        (199, np.inf, 1, False, True),
        (199, np.inf, 5, False, False),
        (200, 5000, 5, False, True),
        (39, np.inf, 1, True, True),
        (38, np.inf, 1, True, False),
    ],
)
def test_a_family_gates_if_it_is_large_enough_or_exhausted(
    drawn: int, members: float, predictions: int, generated: bool, gates: bool
):
    shortfall = rule.control_shortfall(drawn, float(members), predictions, generated_text=generated)
    assert (shortfall == "") is gates
    assert gates or shortfall.startswith(rule.NO_RESOLUTION)


def test_99_prompts_or_19_units_decide_nothing():
    assert rule.evidence_shortfalls(100, 20, 20.0) == ()
    assert rule.evidence_shortfalls(99, 20, 20.0)[0].startswith(rule.TOO_FEW_PROMPTS)
    assert rule.evidence_shortfalls(100, 19, 19.0)[0].startswith(rule.TOO_FEW_UNITS)
    assert rule.evidence_shortfalls(100, 20, 1.5)[0].startswith(rule.TOO_FEW_UNITS)
    assert len(rule.evidence_shortfalls(10, 2, 2.0)) == 2


def test_a_gap_that_may_be_zero_is_no_behaviour():
    assert rule.gap_shortfall(0.1, 0.5) == ""
    assert "includes zero" in rule.gap_shortfall(0.0, 0.5)
    assert "includes zero" in rule.gap_shortfall(-0.1, 0.5)
    assert "below zero" in rule.gap_shortfall(-0.5, -0.1)


def test_a_baseline_at_a_bound_shows_no_change():
    assert rule.saturation(0.9, (0.0, 1.0)) == ""
    assert "ceiling" in rule.saturation(0.99, (0.0, 1.0))
    assert "floor" in rule.saturation(0.01, (0.0, 1.0))
    assert rule.saturation(3.0, (-np.inf, np.inf)) == ""
    assert "ceiling" in rule.saturation(-0.001, (-np.inf, 0.0))  # a log-probability


def test_the_verdict_of_several_predictions():
    assert rule.claim_outcome(["holds", "holds"], [0.9, 0.9], [])[0] == "supported"
    assert rule.claim_outcome(["holds", "undecided"], [0.9, 0.9], [])[0] == "inconclusive"
    assert rule.claim_outcome(["holds", "fails"], [0.9, 0.001], [])[0] == "refuted"
    assert rule.claim_outcome(["holds", "fails"], [0.9, 0.04], [])[0] == "inconclusive"  # 0.08 after Holm
    assert rule.claim_outcome(["fails"], [0.04], [])[0] == "refuted"
    assert rule.claim_outcome(["fails"], [0.001], ["too few units"])[0] == "inconclusive"
    assert rule.claim_outcome([], [], [])[0] == "inconclusive"


def test_failing_is_having_a_p_of_at_most_5_percent():
    assert rule.failure_p(0.025, None) == 0.05
    assert rule.failure_p(0.4, 0.02) == 0.04
    assert rule.failure_p(0.9, 0.8) == 1.0
    assert rule.sparing_failure_p(0.02, 0.9) == 0.04
