"""Monosemantic units are told from polysemantic ones, and neither is seen where contexts mean nothing."""

import pytest
import torch

from mechscope.superposition.geometry import corners_of_shapes
from mechscope.superposition.interference import measure_interference, measure_neighborhood
from mechscope.superposition.polysemanticity import (
    compare_units,
    count_unrelated,
    excess_kurtosis,
    measure_polysemanticity,
    measure_units,
    rotate_units,
    selectivity,
    top_context_count,
)

N_CONTEXTS, N_TOKENS = 8, 4000


def planted_units() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(one unit a context, units that each serve three contexts, context of each token)."""
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(0, N_CONTEXTS, (N_TOKENS,), generator=generator)
    on = torch.nn.functional.one_hot(contexts, N_CONTEXTS).float()
    on = on * (torch.rand(N_TOKENS, N_CONTEXTS, generator=generator) < 0.5)
    strength = 1 + 0.1 * torch.randn(N_TOKENS, N_CONTEXTS, generator=generator)
    features = on * strength
    serves = torch.stack([torch.roll(torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0]), i) for i in range(N_CONTEXTS)])
    return features, features @ serves.T, contexts


def test_a_unit_of_one_context_counts_one_and_a_unit_of_three_counts_three() -> None:
    mono, poly, contexts = planted_units()
    one = measure_polysemanticity(mono, contexts)
    three = measure_polysemanticity(poly, contexts)
    assert one.units.contexts.tolist() == [1.0] * N_CONTEXTS
    assert three.units.contexts.tolist() == [3.0] * N_CONTEXTS
    assert one.means["selectivity"][0] > 0.95 > three.means["selectivity"][0]
    assert one.means["top contexts"][0] == pytest.approx(1.0)
    assert three.means["top contexts"][0] > 2
    assert one.means["kurtosis"][0] > three.means["kurtosis"][0]


def test_shuffled_contexts_and_a_rotated_basis_show_nothing_special() -> None:
    mono, _, contexts = planted_units()
    found = measure_polysemanticity(mono, contexts)
    assert found.shuffled_means["contexts"][0] < 0.3
    assert found.shuffled_means["selectivity"][0] < 0.3
    assert found.rotated_means["selectivity"][0] < found.means["selectivity"][0]
    assert found.rotated_means["kurtosis"][1].high < found.means["kurtosis"][1].low
    assert found.array("contexts").shape == (3,)


def test_noise_answers_to_no_context() -> None:
    _, _, contexts = planted_units()
    noise = torch.randn(N_TOKENS, 10, generator=torch.Generator().manual_seed(2))
    found = measure_polysemanticity(noise, contexts)
    assert found.means["contexts"][0] < 0.3
    assert found.means["kurtosis"][1].low < 0.05 and abs(found.means["kurtosis"][0]) < 0.15


def test_answers_of_nothing_are_none_of_the_largest() -> None:
    """Three answers, all in one context, among fifty looked at."""
    contexts = torch.arange(200) % 4
    activations = torch.zeros(200, 2).double()
    activations[[1, 5, 9], 0] = 1.0
    activations[[1, 2, 5, 6], 1] = 1.0
    found = measure_units(activations, contexts).top_contexts
    assert found.tolist() == pytest.approx([1, 2])


def test_neighbourhoods_of_random_directions_spread_as_their_baseline_says() -> None:
    random = torch.randn(200, 6, generator=torch.Generator().manual_seed(4)).double()
    found = [measure_neighborhood(random, center, k=10, n_draws=40) for center in range(40)]
    spread, baseline = (
        sum(getattr(one, name) for one in found) / 40 for name in ("dimensions", "baseline_dimensions")
    )
    assert spread == pytest.approx(baseline, rel=0.05)
    cosine = sum(float(abs(one.cosines).mean()) for one in found) / 40
    assert cosine == pytest.approx(found[0].baseline_cosine, rel=0.05)


def test_related_contexts_count_as_one() -> None:
    _, poly, contexts = planted_units()
    related = torch.zeros(N_CONTEXTS, N_CONTEXTS, dtype=torch.bool)
    related[0, 1] = related[1, 2] = True  # a chain is one group
    found = measure_polysemanticity(poly, contexts, related=related)
    assert found.units.contexts[0] == 1.0
    assert found.units.contexts[4] == 3.0
    answered = torch.eye(3, dtype=torch.bool)
    assert count_unrelated(answered, None).tolist() == [1.0, 1.0, 1.0]


def test_latents_are_compared_with_neurons() -> None:
    mono, poly, contexts = planted_units()
    difference, interval = compare_units(poly, mono, contexts=contexts)["contexts"]
    assert difference == pytest.approx(-2.0)
    assert interval.high < 0
    same, between = compare_units(mono, mono, contexts=contexts)["selectivity"]
    assert between.low <= same <= between.high
    assert between.low <= 0 <= between.high


def test_a_dead_unit_counts_in_no_mean() -> None:
    mono, _, contexts = planted_units()
    found = measure_polysemanticity(torch.cat([mono, torch.zeros(N_TOKENS, 1)], dim=1), contexts)
    assert found.n_dead == 1
    assert found.means["contexts"][0] == 1.0


def test_the_measures_by_hand() -> None:
    assert float(excess_kurtosis(torch.tensor([[1.0], [-1.0]]).double())) == pytest.approx(-2.0)
    sums, counts = torch.tensor([[6.0], [2.0]]).double(), torch.tensor([2.0, 2.0]).double()
    assert float(selectivity(sums, counts)) == pytest.approx((3 - 1) / (3 + 1))
    answers = torch.tensor([[4.0], [3.0], [2.0], [1.0]]).double()
    labels = torch.tensor([0, 1, 1, 1])
    assert float(top_context_count(answers, labels, n_contexts=2, n_top=2)) == pytest.approx(2.0)
    assert float(top_context_count(answers, labels, n_contexts=2, n_top=1)) == pytest.approx(1.0)


def test_a_rotation_keeps_distances() -> None:
    acts = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double()
    turned = rotate_units(acts, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(acts, acts))


def test_random_directions_interfere_as_random_ones() -> None:
    found = measure_interference(torch.randn(200, 32, generator=torch.Generator().manual_seed(0)))
    assert found.ratio == pytest.approx(1.0, abs=0.05)
    assert found.mean_total.low < float(found.baseline_total.mean()) < found.mean_total.high
    assert found.total.mean() == pytest.approx(199 / 32, rel=0.05)


def test_packed_directions_interfere_less_and_crowded_ones_more() -> None:
    apart = measure_interference(torch.eye(16))
    assert apart.ratio == 0.0 == apart.welch
    generator = torch.Generator().manual_seed(0)
    crowded = torch.randn(1, 32, generator=generator) + 0.5 * torch.randn(100, 32, generator=generator)
    assert measure_interference(crowded).ratio > 5
    assert measure_interference(crowded).n_dimensions < 3


def test_mean_interference_is_said_by_the_number_of_dimensions() -> None:
    found = measure_interference(torch.randn(50, 16, generator=torch.Generator().manual_seed(4)))
    assert found.total.mean() == pytest.approx(50 / found.n_dimensions - 1, rel=1e-9)


def test_the_least_possible_interference_is_that_of_a_tight_frame() -> None:
    pentagon = measure_interference(corners_of_shapes()["pentagon"])
    assert pentagon.total.mean() == pytest.approx(pentagon.welch, abs=1e-6)
    assert pentagon.dimensionality.tolist() == pytest.approx([0.4] * 5, abs=1e-6)


def test_a_neighborhood_of_a_planted_triangle_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(64, 2, generator=generator)).Q
    directions = torch.cat([corners_of_shapes()["triangle"] @ plane.T, torch.eye(64)[:20]])
    found = measure_neighborhood(directions, 0, k=2)
    assert sorted(found.neighbors.tolist()) == [1, 2]
    assert [shape.name for shape in found.shapes] == ["triangle"]
    assert found.cosines.tolist() == pytest.approx([-0.5, -0.5], abs=1e-6)
    assert found.dimensions == pytest.approx(1.0, abs=1e-6)
    assert found.baseline_cosine < 0.4


def test_a_random_neighborhood_is_like_its_baseline() -> None:
    directions = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    found = measure_neighborhood(directions, 5, k=10)
    assert abs(float(abs(found.cosines).mean()) - found.baseline_cosine) < 0.08
    assert abs(found.dimensions - found.baseline_dimensions) < 2
