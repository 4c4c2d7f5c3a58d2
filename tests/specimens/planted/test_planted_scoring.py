"""The score of a dictionary is 1 for the truth, about 0 for noise, and names each failure."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch

from mechscope.data.intervals import clopper_pearson
from mechscope.specimens import planted

SETTINGS = planted.PlantedSettings(d_model=24, n_features=60, n_active=3.0)
TRUTH = planted.plant(SETTINGS)
CODES = planted.PlantedStream(truth=TRUTH, n_tokens=2000, split="held_out").batch(0).codes


def test_the_truth_itself_in_another_order_scores_one() -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    unit_of = torch.empty_like(order)
    unit_of[order] = torch.arange(60)
    score = planted.score_dictionary(
        TRUTH,
        3.0 * TRUTH.directions[order],
        codes=CODES.relabeled(unit_of, n_units=60),
        features=CODES,
    )
    assert (score.recovered, score.precision, score.split) == (1.0, 1.0, 0.0)
    assert (score.firing_precision, score.firing_recall, score.absorption) == (1.0, 1.0, None)


def test_random_directions_score_nothing() -> None:
    decoder = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    score = planted.score_dictionary(TRUTH, decoder)
    assert (score.recovered, score.precision) == (0.0, 0.0)


def test_the_opposite_directions_score_nothing() -> None:
    assert planted.score_dictionary(TRUTH, -TRUTH.directions).recovered < 0.1


def test_the_matching_is_the_best_of_all_pairings() -> None:
    generator = torch.Generator().manual_seed(3)
    decoder, directions = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    cosines = torch.nn.functional.cosine_similarity(directions[:, None], decoder[None], dim=2)
    best = max(sum(float(cosines[i, j]) for i, j in enumerate(order)) for order in permutations(range(5)))
    assert float(planted.match_directions(decoder, directions).cosine.sum()) == pytest.approx(best, abs=1e-5)


def test_with_too_few_latents_the_rest_of_the_features_have_none() -> None:
    matching = planted.match_directions(TRUTH.directions[:10], TRUTH.directions)
    assert int(matching.recovered().sum()) == 10
    assert int((matching.latent < 0).sum()) == 50
    assert matching.feature_of.tolist() == list(range(10))


def test_duplicates_are_splitting_and_lower_precision() -> None:
    decoder = torch.cat([TRUTH.directions, TRUTH.directions[:15]])
    matching = planted.match_directions(decoder, TRUTH.directions)
    live = torch.ones(75, dtype=torch.bool)
    assert planted.split_features(matching, live).tolist() == [2] * 15 + [1] * 45
    assert planted.direction_precision(matching, live) == pytest.approx(60 / 75)
    assert float(matching.recovered().double().mean()) == 1.0  # one to one: a copy adds nothing


def test_a_dead_latent_recovers_nothing() -> None:
    silent = planted.Firings(
        token=CODES.token[CODES.unit != 7],
        unit=CODES.unit[CODES.unit != 7],
        value=CODES.value[CODES.unit != 7],
        n_tokens=CODES.n_tokens,
        n_units=60,
    )
    score = planted.score_dictionary(TRUTH, TRUTH.directions, codes=silent, features=CODES)
    assert score.recovered == pytest.approx(59 / 60)
    assert score.live == pytest.approx(59 / 60)
    assert score.precision == 1.0


def test_firing_precision_and_recall_count_tokens() -> None:
    table = CODES.dense()
    always = table.clone()
    always[:, 0] = 1.0  # fires everywhere: recall 1, precision its rate
    matching = planted.match_directions(TRUTH.directions, TRUTH.directions)
    detection = planted.detect_features(planted.dense_to_firings(always), CODES, matching)
    assert float(detection.recall[0]) == 1.0
    assert float(detection.precision[0]) == pytest.approx(float((table[:, 0] != 0).double().mean()))
    assert float(detection.precision[1]) == 1.0


def absorbing(is_absorbing: bool) -> planted.PlantedScore:
    """A dictionary by hand on a hierarchy: children's latents hold parent + child and speak for both, or not."""
    truth = planted.plant(replace(SETTINGS, n_children=3))
    codes = planted.PlantedStream(truth=truth, n_tokens=2000).batch(0).codes
    table, decoder = codes.dense(), truth.directions.clone()
    if is_absorbing:
        children = (truth.parents >= 0).nonzero()[:, 0]
        for child in children.tolist():
            table[table[:, child] != 0, int(truth.parents[child])] = 0
        decoder[children] += 0.4 * truth.directions[truth.parents[children]]
    return planted.score_dictionary(truth, decoder, codes=planted.dense_to_firings(table), features=codes)


def test_absorption_is_found_where_it_is_and_not_where_it_is_not() -> None:
    assert absorbing(True).absorption == pytest.approx(1.0)
    assert absorbing(False).absorption == 0.0


def test_topk_codes_are_the_same_firings() -> None:
    table = torch.relu(torch.randn(30, 12, generator=torch.Generator().manual_seed(0)))
    values, units = table.topk(12, dim=1)
    again = planted.topk_to_firings(values, units, n_units=12)
    assert torch.equal(again.dense(), table)
    assert torch.equal(again.cells, planted.dense_to_firings(table).cells)


def test_a_score_saves_and_draws(tmp_path: Path) -> None:
    score = planted.score_dictionary(TRUTH, TRUTH.directions)
    score.save(tmp_path / "score.json")
    again = planted.PlantedScore.load(tmp_path / "score.json")
    assert (again.recovered, again.cosine.tolist()) == (score.recovered, score.cosine.tolist())
    assert int(score.histogram().values.sum()) == 60
    assert score.recovered_low <= score.recovered <= score.recovered_high
    assert again.intervals == score.intervals


def test_every_share_has_an_interval_over_what_it_is_a_share_of() -> None:
    """Precision over the latents in use, splitting over features: 15 copies are 15 of 75 and 15 of 60."""
    decoder = torch.cat([TRUTH.directions, TRUTH.directions[:15]])
    score = planted.score_dictionary(TRUTH, decoder)
    for name, hits, n in (("precision", 60, 75), ("split", 15, 60)):
        low, high = score.intervals[name]
        exact = clopper_pearson(hits, n)
        assert low < getattr(score, name) < high
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.03)
    low, high = score.intervals["live"]
    assert (round(low, 2), high) == (0.95, 1.0), "exact: all 75 fired"


def test_absorptions_interval_resamples_families() -> None:
    """Half of the parents absorbed: whole families go together, so that firings of one do not count as many."""
    truth = planted.plant(replace(SETTINGS, n_children=3))
    codes = planted.PlantedStream(truth=truth, n_tokens=2000).batch(0).codes
    table, parents = codes.dense(), truth.parents
    children = (parents >= 0).nonzero()[:, 0]
    owners = parents[children].unique()
    for child in children.tolist():
        if int(parents[child]) in owners[: len(owners) // 2].tolist():
            table[table[:, child] != 0, int(parents[child])] = 0
    fired = planted.dense_to_firings(table)
    score = planted.score_dictionary(truth, truth.directions, codes=fired, features=codes)
    assert score.absorption is not None
    low, high = score.intervals["absorption"]
    assert low < score.absorption < high
    matching = planted.match_directions(truth.directions, truth.directions)
    found = planted.measure_absorption(
        fired,
        codes,
        matching=matching,
        decoder=truth.directions,
        directions=truth.directions,
        parents=parents,
    )
    assert found.by_parent.sum(0)[1::2].tolist() == [found.n_with_child, found.n_alone]
    assert score.absorption == pytest.approx((found.with_child - found.alone) / (1 - found.alone))
    as_if_independent = clopper_pearson(int(found.by_parent[:, 0].sum()), found.n_with_child)
    assert high - low > 2 * as_if_independent.width
