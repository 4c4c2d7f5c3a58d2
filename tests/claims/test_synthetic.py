"""The rule's error rates on tables whose truth is known. 2,000 resamples here; the benchmark takes 10,000."""

from dataclasses import replace

import pytest

from mechscope.claims.synthetic import BOUND, Design, Rate, draw_table, support_rate
from mechscope.vocabulary.errors import BadClaim

CROSSED = {"crossed": True, "prompts_per_unit": 12}


@pytest.mark.parametrize("kind", sorted(BOUND))
def test_a_true_effect_of_exactly_the_bound_is_seldom_supported(kind: str):
    rate = support_rate(Design(kind=kind), n_tables=80, n_resamples=1000)
    assert not rate.exceeds(0.05), rate


@pytest.mark.parametrize("kind", ["lowers", "spares"])
def test_taking_prompts_for_units_is_caught_by_the_same_check(kind: str):
    rate = support_rate(Design(kind=kind, units_as_given=False), n_tables=80, n_resamples=1000)
    assert rate.exceeds(0.05), rate


def test_a_true_effect_well_above_the_bound_is_supported():
    assert support_rate(Design(times_bound=1.6), n_tables=40, n_resamples=1000).supported > 0.9
    unchanged = Design(kind="spares", times_bound=0.0, unit_sd=0.3)
    assert support_rate(unchanged, n_tables=40, n_resamples=1000).supported > 0.9


def test_a_true_effect_well_below_the_bound_is_refuted():
    rate = support_rate(Design(times_bound=0.4), n_tables=40, n_resamples=1000)
    assert rate.refuted > 0.9
    assert rate.supported == 0


def test_tables_depend_on_seed_and_index_only():
    one, two = draw_table(Design(), seed=0, index=3)[1], draw_table(Design(), seed=0, index=3)[1]
    assert (one.effect == two.effect).all()
    assert not (draw_table(Design(), seed=0, index=4)[1].effect == one.effect).all()


def test_what_exceeds_a_limit_is_judged_beyond_monte_carlo_error():
    assert not Rate(400, 20, 0).exceeds(0.05)
    assert not Rate(400, 27, 0).exceeds(0.05)
    assert Rate(400, 30, 0).exceeds(0.05)
    assert not Rate(400, 0, 0).exceeds(0.05)


def test_an_unknown_kind_is_refused():
    with pytest.raises(BadClaim, match="no synthetic tables"):
        draw_table(replace(Design(), kind="cures"), seed=0, index=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(BOUND))
@pytest.mark.parametrize(
    "shape", [{}, {"n_units": 60}, CROSSED], ids=["24 units", "60 units", "crossed names"]
)
def test_false_support_is_at_most_5_percent_over_400_tables(kind: str, shape: dict):
    rate = support_rate(Design(kind=kind, **shape), n_tables=400)
    assert not rate.exceeds(0.05), rate


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(BOUND))
def test_false_support_exceeds_5_percent_over_400_tables_if_prompts_are_taken_for_units(kind: str):
    unit_sd = 1.0 if kind == "recovers" else 0.5
    ignoring = Design(kind=kind, unit_sd=unit_sd, units_as_given=False)
    assert support_rate(ignoring, n_tables=400, n_resamples=2000).exceeds(0.05)
