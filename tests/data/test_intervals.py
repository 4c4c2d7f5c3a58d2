"""The cluster bootstrap against arithmetic, an independent implementation, and its own coverage."""

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from mechscope.data.intervals import (
    Bootstrap,
    Resamples,
    bootstrap,
    bootstraps,
    first_over_second,
    mean_bootstrap,
    ratio_bootstrap,
)
from mechscope.data.units import Units, as_units, units_of
from mechscope.vocabulary.errors import NotEnoughEvidence, ShapeError


def one_way(n_units: int, per_unit: int) -> np.ndarray:
    return np.repeat(np.arange(n_units), per_unit)


def test_weights_are_resamples_of_whole_units():
    units = as_units(one_way(30, 4))
    resamples = Resamples(units, seed=0, n_resamples=500)
    sums = resamples.cell_sums(np.ones((120, 1)))
    counts = resamples.draws(sums, lambda s: s[..., 0])
    assert (counts == 120).all()  # every resample draws 30 units of 4 prompts


def test_a_crossed_prompt_weighs_the_product_of_its_entities():
    levels = np.array([[0, 0, 1, 2], [1, 2, 2, -1]])
    resamples = Resamples(Units(levels, (0, 0), "entities"), seed=3, n_resamples=400)
    each = np.stack(
        [resamples.draws(resamples.cell_sums(row[:, None]), lambda s: s[..., 0]) for row in np.eye(4)]
    )
    alone = each[3]  # the weight of entity 2 itself
    assert (each[1] * each[2] == each[0] * alone**2).all()  # w0 w2 * w1 w2 = w0 w1 * w2^2


def test_draws_equal_a_loop_over_resamples_and_prompts():
    rng = np.random.default_rng(0)
    labels, y, d = rng.integers(0, 25, 150), rng.normal(size=150), rng.uniform(1, 2, 150)
    resamples = Resamples(labels, seed=1, n_resamples=50)
    found = resamples.draws(resamples.cell_sums(np.stack([y, d], axis=1)), first_over_second)
    weights = (
        np.stack(
            [
                resamples.draws(
                    resamples.cell_sums((labels == u)[:, None].astype(float)), lambda s: s[..., 0]
                )
                for u in range(25)
            ]
        )
        / np.bincount(labels)[:, None]
    )
    for b in range(50):
        w = weights[labels, b]
        assert found[b] == pytest.approx((w * y).sum() / (w * d).sum())


def test_the_interval_agrees_with_scipys_bca_where_units_are_many():
    rng = np.random.default_rng(0)
    y = rng.exponential(size=500)
    ours = mean_bootstrap(Resamples(np.arange(500), seed=0), y).interval(0.95)
    theirs = stats.bootstrap((y,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(1))
    width = ours.width
    assert abs(ours.low - theirs.confidence_interval.low) < 0.03 * width
    assert abs(ours.high - theirs.confidence_interval.high) < 0.03 * width
    percentile = stats.bootstrap(
        (y,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(1)
    )
    assert ours.high > percentile.confidence_interval.high  # BCa follows the skew


def test_with_few_units_the_interval_is_as_wide_as_students():
    rng = np.random.default_rng(0)
    ratios = []
    for seed in range(30):
        y = rng.normal(size=20)
        ours = mean_bootstrap(Resamples(np.arange(20), seed=seed, n_resamples=4000), y).interval(0.95)
        student = 2 * stats.t.ppf(0.975, 19) * y.std(ddof=1) / np.sqrt(20)
        ratios.append(ours.width / student)
    assert 0.95 < np.mean(ratios) < 1.05


def test_p_values_invert_the_interval():
    rng = np.random.default_rng(2)
    sampled = mean_bootstrap(Resamples(one_way(24, 5), seed=0), rng.exponential(size=120))
    for level in (0.90, 0.95, 0.99):
        interval = sampled.interval(level)
        tail = (1 - level) / 2
        assert sampled.p_at_least(interval.high) == pytest.approx(tail, rel=0.05)
        assert sampled.p_at_most(interval.low) == pytest.approx(tail, rel=0.05)


def test_p_falls_as_the_bound_moves_away():
    sampled = mean_bootstrap(Resamples(one_way(24, 5), seed=0), np.random.default_rng(2).normal(size=120))
    ps = [sampled.p_at_least(bound) for bound in np.linspace(-0.5, 0.5, 30)]
    assert all(a >= b for a, b in itertools.pairwise(ps))
    assert sampled.p_at_least(1e9) < 1e-3
    assert sampled.p_at_least(-1e9) > 0.999


@pytest.mark.parametrize("acceleration", [-0.35, 0.35])
def test_p_is_monotone_far_out_also_where_the_correction_has_a_pole(acceleration: float):
    draws = np.sort(np.random.default_rng(0).normal(size=10_000))
    sampled = Bootstrap(0.0, draws=draws, bias=0.0, acceleration=acceleration, n_units=24)
    assert sampled.interval().method == "bca"
    bounds = np.linspace(-6, 6, 200)
    below, above = [[p(b) for b in bounds] for p in (sampled.p_at_least, sampled.p_at_most)]
    assert all(a >= b for a, b in itertools.pairwise(below)) and below[-1] < 0.01
    assert all(a <= b for a, b in itertools.pairwise(above)) and above[0] < 0.01


def test_the_same_seed_gives_the_same_interval_whatever_was_computed_before():
    y = np.random.default_rng(0).normal(size=100)
    labels = one_way(25, 4)
    first = mean_bootstrap(Resamples(labels, seed=5), y).interval()
    shared = Resamples(labels, seed=5)
    mean_bootstrap(shared, y**2)
    assert mean_bootstrap(shared, y).interval() == first
    assert mean_bootstrap(Resamples(labels, seed=6), y).interval() != first


def test_effects_on_the_same_prompts_are_paired():
    rng = np.random.default_rng(0)
    base = 10 * rng.normal(size=200)
    resamples = Resamples(one_way(40, 5), seed=0)
    paired = mean_bootstrap(resamples, (base + 0.1 * rng.normal(size=200)) - base).interval()
    unpaired = mean_bootstrap(resamples, base).interval()
    assert paired.width < 0.05 * unpaired.width


def test_a_ratio_of_means_is_resampled_together():
    rng = np.random.default_rng(0)
    gap = rng.uniform(1, 9, 200)
    exact = ratio_bootstrap(Resamples(one_way(40, 5), seed=0), 0.5 * gap, gap)
    assert exact.value == pytest.approx(0.5)
    assert exact.interval().width < 1e-9  # a mean of ratios or separate resamples would vary


def test_a_ratio_whose_denominator_may_be_zero_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(NotEnoughEvidence, match="denominator could be zero"):
        ratio_bootstrap(Resamples(one_way(24, 5), seed=0), rng.normal(size=120), rng.normal(size=120))


def test_a_constant_effect_has_an_interval_of_no_width_and_a_certain_p():
    sampled = mean_bootstrap(Resamples(one_way(24, 5), seed=0), np.full(120, 0.1))
    assert sampled.interval().method == "constant"
    assert sampled.interval().low == sampled.interval().high == pytest.approx(0.1)
    assert sampled.p_at_least(0.2) < 1e-3
    assert sampled.p_at_least(sampled.value) == 1.0


def test_one_unit_has_an_unbounded_interval_and_rejects_nothing():
    sampled = mean_bootstrap(
        Resamples(np.zeros(50, dtype=int), seed=0), np.random.default_rng(0).normal(size=50)
    )
    interval = sampled.interval()
    assert (interval.low, interval.high, interval.method) == (-np.inf, np.inf, "none")
    assert sampled.p_at_least(1e9) == 1.0


def test_where_bca_is_undefined_the_percentile_interval_says_so():
    draws = np.sort(np.random.default_rng(0).normal(size=2000))
    steep = Bootstrap(value=0.0, draws=draws, bias=0.0, acceleration=0.6, n_units=30)
    assert steep.interval().method == "percentile"
    outside = Bootstrap(value=10.0, draws=draws, bias=np.inf, acceleration=0.0, n_units=30)
    assert outside.interval().method == "percentile"
    assert 0 < outside.p_at_least(2.0) < 0.1


def test_an_effect_that_is_not_a_number_is_refused_with_its_prompt():
    y = np.zeros(120)
    y[17] = np.nan
    with pytest.raises(NotEnoughEvidence, match="not a number") as refusal:
        mean_bootstrap(Resamples(one_way(24, 5), seed=0), y)
    assert "prompt 17" in str(refusal.value)


def test_a_table_of_another_length_is_refused():
    with pytest.raises(ShapeError, match="one row per prompt"):
        bootstrap(Resamples(one_way(24, 5), seed=0), np.zeros((7, 2)), first_over_second)


def test_ten_thousand_resamples_of_400_units_take_well_under_a_fifth_of_a_second():
    y = np.random.default_rng(0).normal(size=800)
    resamples = Resamples(one_way(400, 2), seed=0)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        mean_bootstrap(resamples, y)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2


def misses(n_units: int, n_tables: int, *, units: str, crossed: bool, seed: int = 0) -> float:
    """Fraction of 95% intervals that miss a true mean of zero."""
    rng, missed = np.random.default_rng(seed), 0
    for table in range(n_tables):
        first = rng.integers(0, n_units, 12 * n_units) if crossed else one_way(n_units, 6)
        second = (first + rng.integers(1, n_units, len(first))) % n_units
        y = 0.5 * rng.normal(size=n_units)[first] + rng.normal(size=len(first))
        entities = [(f"a{i}",) for i in first]
        if crossed:
            y = y + 0.5 * rng.normal(size=n_units)[second]
            entities = [(f"a{i}", f"a{j}") for i, j in zip(first, second, strict=True)]
        labels = {
            "ours": lambda e=entities: units_of(e, ["t"] * len(e)),
            "first entity": lambda f=first: as_units(f),
            "prompts": lambda f=first: as_units(np.arange(len(f))),
        }[units]()
        interval = mean_bootstrap(Resamples(labels, seed=table, n_resamples=1000), y).interval()
        missed += not interval.low <= 0 <= interval.high
    return missed / n_tables


def test_intervals_over_units_cover_and_intervals_over_prompts_do_not():
    assert misses(24, 200, units="ours", crossed=False) < 0.10
    assert misses(24, 200, units="prompts", crossed=False) > 0.15


@pytest.mark.slow
@pytest.mark.parametrize("n_units", [20, 24, 40])
def test_coverage_is_95_percent_for_independent_units(n_units: int):
    rate = misses(n_units, 1500, units="ours", crossed=False)
    assert 0.035 < rate < 0.065


@pytest.mark.slow
@pytest.mark.parametrize("n_units", [24, 40])
def test_crossed_entities_are_covered_conservatively_and_one_entity_alone_is_not(n_units: int):
    assert misses(n_units, 400, units="ours", crossed=True) < 0.05
    assert misses(n_units, 400, units="first entity", crossed=True) > 0.075
    assert misses(n_units, 400, units="prompts", crossed=True) > 0.25


def test_many_statistics_at_once_equal_each_by_itself() -> None:
    rng = np.random.default_rng(2)
    units = np.repeat(rng.permutation(25), 3)  # labels in no order
    tokens, fires = rng.integers(5, 9, 75).astype(float), rng.poisson(1.0, (75, 4)).astype(float)
    resamples = Resamples(units, seed=1, n_resamples=300)
    table = np.concatenate([tokens[:, None], fires], axis=1)
    together = bootstraps(resamples, table, lambda sums: sums[:, 1:] / sums[:, :1])
    for number, found in enumerate(together):
        alone = bootstrap(resamples, np.stack([fires[:, number], tokens], axis=1), first_over_second)
        assert found.interval() == alone.interval()
        assert (found.value, found.bias, found.acceleration) == (alone.value, alone.bias, alone.acceleration)


def test_the_jackknife_leaves_out_the_unit_that_it_names() -> None:
    rng = np.random.default_rng(3)
    values, units = rng.normal(size=12), np.repeat([2, 0, 3, 1], 3)
    resamples = Resamples(units, seed=0, n_resamples=10)
    found = resamples.without_each(resamples.cell_sums(values[:, None]), lambda sums: sums[..., 0])[0]
    assert np.allclose(found, [values[units != unit].sum() for unit in range(4)])
