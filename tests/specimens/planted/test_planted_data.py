"""Planted activations are what their truth says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechscope.specimens import planted
from mechscope.specimens.planted.stream import draw_on, mix_codes

SMALL = planted.PlantedSettings(d_model=16, n_features=48, n_active=3.0)


def codes_of(settings: planted.PlantedSettings, n_tokens: int = 20_000) -> tuple[planted.Truth, torch.Tensor]:
    truth = planted.plant(settings)
    on = planted.draw_codes(truth, n_tokens, torch.Generator().manual_seed(1)).dense() != 0
    return truth, on.double()


def test_activations_are_the_sum_of_what_is_on() -> None:
    truth = planted.plant(SMALL)
    codes = planted.draw_codes(truth, 50, torch.Generator().manual_seed(0))
    by_hand = codes.dense().double() @ truth.directions.double()
    torch.testing.assert_close(mix_codes(truth, codes).double(), by_hand, rtol=1e-6, atol=1e-6)


def test_directions_have_unit_norm_and_the_coherence_of_random_ones() -> None:
    truth = planted.plant(planted.PlantedSettings(d_model=256, n_features=512))
    torch.testing.assert_close(truth.directions.norm(dim=1), torch.ones(512))
    gram = (truth.directions @ truth.directions.T).fill_diagonal_(0)
    assert abs(float(gram.std()) * 16 - 1) < 0.05  # 1/sqrt(256)
    assert truth.coherence < 0.45


@pytest.mark.parametrize("name", planted.VARIANTS)
def test_every_variant_fires_at_its_rates(name: str) -> None:
    settings = replace(planted.VARIANTS[name](), n_features=48, d_model=16, n_active=3.0)
    truth, on = codes_of(settings)
    assert abs(float(truth.rates.sum()) - 3.0) < 1e-6
    spread = (truth.rates / len(on)).sqrt() * (settings.group_size or 1) ** 0.5
    assert float(((on.mean(0) - truth.rates).abs() / spread).max()) < 5
    values = planted.draw_codes(truth, 2000, torch.Generator().manual_seed(2)).value
    assert float(values.min()) > 0
    assert abs(float(values.log().std()) - settings.tail) < 0.05


def test_independent_features_are_drawn_independently() -> None:
    truth, on = codes_of(SMALL)
    observed = torch.corrcoef(on.T).fill_diagonal_(0)
    assert float(observed.abs().max()) < 5 / len(on) ** 0.5
    assert truth.correlation(0, 1) == 0.0


def test_groups_have_the_correlation_on_record() -> None:
    truth, on = codes_of(replace(SMALL, group_size=4))
    observed = torch.corrcoef(on.T)
    assert abs(float(observed[0, 1]) - truth.correlation(0, 1)) < 0.05
    assert truth.correlation(0, 1) > 0.4
    assert abs(float(observed[0, 5])) < 0.04


def test_a_child_is_never_on_without_its_parent() -> None:
    truth, on = codes_of(replace(SMALL, n_children=3))
    child = int((truth.parents >= 0).nonzero()[0])
    parent = int(truth.parents[child])
    assert float((on[:, child] * (1 - on[:, parent])).sum()) == 0
    assert abs(float(on[:, child].sum() / on[:, parent].sum()) - 0.3) < 0.05
    observed = torch.corrcoef(on.T)
    assert abs(float(observed[child, parent]) - truth.correlation(child, parent)) < 0.05
    sibling = int((truth.parents == parent).nonzero()[1])
    assert abs(float(observed[child, sibling]) - truth.correlation(child, sibling)) < 0.06


def test_gap_sampling_equals_bernoulli_draws_in_distribution() -> None:
    rates = torch.tensor([0.5, 0.1, 0.01])
    token, unit = draw_on(rates, 40_000, torch.Generator().manual_seed(0))
    on = torch.zeros(40_000, 3, dtype=torch.float64)
    on[token, unit] = 1
    assert float(on.sum()) == len(token)  # no cell twice
    assert float((on.mean(0) - rates).abs().max()) < 0.01
    follows = (on[1:] * on[:-1]).mean(0) - on.mean(0) ** 2  # neighbouring tokens are independent
    assert float(follows.abs().max()) < 0.01


def test_a_batch_is_found_by_its_number_whatever_was_drawn_before() -> None:
    truth = planted.plant(replace(SMALL, noise=0.3))
    stream = planted.PlantedStream(truth=truth, n_tokens=250, batch_tokens=100)
    batches = list(stream)
    assert [len(batch.activations) for batch in batches] == [100, 100, 50]
    assert torch.equal(stream.batch(1).activations, batches[1].activations)
    other = replace(stream, split="held_out")
    assert not torch.equal(other.batch(1).activations, batches[1].activations)


def test_noise_has_the_norm_it_says() -> None:
    quiet = planted.PlantedStream(truth=planted.plant(SMALL), n_tokens=2000)
    loud = planted.PlantedStream(truth=planted.plant(replace(SMALL, noise=0.5)), n_tokens=2000)
    difference = loud.batch(0).activations - quiet.batch(0).activations
    assert abs(float(difference.norm(dim=1).pow(2).mean().sqrt()) - 0.5) < 0.02


def test_the_shuffled_control_keeps_each_coordinate_and_breaks_the_rest() -> None:
    truth = planted.plant(SMALL)
    stream = planted.PlantedStream(truth=truth, n_tokens=2000)
    real, broken = stream.batch(0).activations, replace(stream, is_shuffled=True).batch(0).activations
    assert torch.equal(real.sort(dim=0).values, broken.sort(dim=0).values)
    assert not torch.equal(real.sum(1).sort().values, broken.sum(1).sort().values)


def test_a_saved_truth_comes_back(tmp_path: Path) -> None:
    truth = planted.plant(replace(SMALL, n_children=3))
    truth.save(tmp_path / "truth.json")
    again = planted.Truth.load(tmp_path / "truth.json")
    assert again.settings == truth.settings
    assert torch.equal(again.directions, truth.directions)
    assert torch.equal(again.parents, truth.parents)
