"""How often latents fire: counts against a loop, intervals against the truth that texts are drawn from."""

import numpy as np
import pytest

from mechscope.data.firing import Firing, is_dead, is_denser_than, rates_of_sums
from mechscope.data.intervals import Resamples, bootstrap

N, PER, F = 60, 20, 200


def counted(table: np.ndarray, *, batch: int = N, n_units: int = N) -> Firing:
    """From [prompt, token, latent], True where it fires."""
    firing = Firing.empty(n_units=n_units, n_latents=table.shape[2])
    for start in range(0, len(table), batch):
        part = table[start : start + batch]
        units = np.repeat(np.arange(start, start + len(part)), part.shape[1])
        tokens, latents = np.nonzero(part.reshape(-1, part.shape[2]))
        firing.add(units, tokens=tokens, latents=latents)
    return firing


def drawn(rng: np.random.Generator, rates: np.ndarray) -> np.ndarray:
    """Latents that fire in bursts: at one to four tokens of a prompt, if at all."""
    table = np.zeros((N, PER, len(rates)), dtype=bool)
    on, many = rng.random((N, len(rates))) < rates, rng.integers(1, 5, (N, len(rates)))
    table[:, :4] = on[:, None] & (np.arange(4)[None, :, None] < many[:, None])
    return table


def test_counts_are_those_of_a_loop_whatever_the_batch() -> None:
    table = np.random.default_rng(0).random((N, PER, 7)) < 0.1
    for batch in (1, 7, N):
        firing = counted(table, batch=batch)
        assert np.array_equal(firing.counts, table.sum(1))
        assert np.array_equal(firing.fires, table.sum((0, 1)))
        assert firing.density == pytest.approx(table.mean((0, 1)))


def test_many_prompts_are_counted_in_groups_of_neighbours() -> None:
    firing = Firing.empty(n_units=2048, n_latents=3)
    firing.add(np.arange(2048), tokens=np.array([0, 5, 2047]), latents=np.array([1, 1, 2]))
    assert firing.counts.shape == (512, 3)
    assert (firing.tokens == 4).all()
    assert [firing.counts[0, 1], firing.counts[1, 1], firing.counts[511, 2]] == [1, 1, 1]
    assert Firing.empty(n_units=2048, n_latents=2**20).counts.shape[0] == 32


def test_a_densitys_interval_is_the_bootstraps_of_that_latent() -> None:
    rng = np.random.default_rng(1)
    firing = counted(drawn(rng, rng.uniform(0.05, 0.6, 300)))
    low, high = firing.density_intervals(seed=4, n_resamples=200)
    resamples = Resamples(np.arange(N), seed=4, n_resamples=200)
    for latent in (0, 17, 299):
        columns = np.stack([firing.tokens, firing.counts[:, latent]], axis=1).astype(float)
        wanted = bootstrap(resamples, columns, lambda sums: rates_of_sums(sums)[..., 0]).interval()
        assert (low[latent], high[latent]) == (wanted.low, wanted.high)


def test_a_densitys_interval_covers_the_rate() -> None:
    rng = np.random.default_rng(2)
    rates = rng.uniform(0.05, 0.6, F)
    low, high = counted(drawn(rng, rates)).density_intervals(seed=0, n_resamples=400)
    truth = rates * 2.5 / PER
    assert np.mean((low <= truth) & (truth <= high)) > 0.88


def test_a_latent_that_never_fired_may_fire_in_other_texts() -> None:
    low, high = counted(np.zeros((N, PER, 1), dtype=bool)).density_intervals(seed=0, n_resamples=50)
    assert low[0] == 0
    assert 0.05 < high[0] < 0.07  # none of 60


@pytest.mark.parametrize("which", [is_dead, is_denser_than(0.01)])
def test_a_shares_interval_covers_the_mean_over_texts_and_the_bootstraps_does_not(which) -> None:
    rng = np.random.default_rng(3)
    rates = 10 ** rng.uniform(-4, -0.3, F)

    def fires() -> np.ndarray:
        return (rng.random((N, F)) < rates) * rng.integers(1, 5, (N, F))

    truth = np.mean([which(fires().sum(0) / (N * PER)).mean() for _ in range(500)])
    ours, bootstraps = 0, 0
    for seed in range(40):
        counts = fires()
        firing = Firing(np.full(N, PER), counts.astype(np.int32), N)
        _, found = firing.share(which)
        ours += found.low <= truth <= found.high
        columns = np.concatenate([firing.tokens[:, None], counts], axis=1).astype(float)
        resamples = Resamples(np.arange(N), seed=seed, n_resamples=200)
        twin = bootstrap(resamples, columns, lambda sums: which(rates_of_sums(sums)).mean(-1)).interval()
        bootstraps += twin.low <= truth <= twin.high
    assert ours >= 37
    assert bootstraps <= 34


def test_a_share_that_no_prompt_changes_has_the_interval_of_as_many_latents() -> None:
    always = np.ones((N, PER, F), dtype=bool)
    value, interval = counted(always).share(is_dead)
    assert value == 0
    assert interval.low == 0
    assert 0.015 < interval.high < 0.02
    assert interval.method == "clopper-pearson"


def test_one_prompt_has_no_interval() -> None:
    firing = counted(np.ones((1, PER, 2), dtype=bool), n_units=1)
    assert np.isinf(firing.share(is_dead)[1].high)
    assert firing.density_intervals(seed=0, n_resamples=10)[1].tolist() == [1, 1]
