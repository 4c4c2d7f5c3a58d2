"""Seed stability and feature splitting: what was permuted is found, what was split hangs together."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mechscope.data.intervals import Resamples, mean_bootstrap
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import spread_of
from mechscope.dictionaries.evaluation.splitting import feature_tree
from mechscope.dictionaries.evaluation.stability import match_latents, over_pairs, seed_stability
from mechscope.dictionaries.settings import Gate, Source, sae_settings
from mechscope.vocabulary.errors import DictionaryMismatch, NotEnoughEvidence

D, F = 24, 30


def with_rows(rows: Tensor, bos: bool | None = None) -> Dictionary:
    n, d = rows.shape
    source = Source(bos=bos)
    settings = sae_settings("resid_post.1", width=d, n_latents=n, gate=Gate(rule="relu"), source=source)
    tensors = {
        "W_enc": rows.T.clone(),
        "b_enc": torch.zeros(n).to(rows),
        "W_dec": rows,
        "b_dec": torch.zeros(d).to(rows),
    }
    return Dictionary(settings, tensors)


def random_rows(n: int = F, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_permuted_and_scaled_copy_is_matched_to_itself() -> None:
    rows = random_rows()
    order = torch.randperm(F, generator=torch.Generator().manual_seed(2))
    found = match_latents(with_rows(rows), with_rows(3 * rows[order]))
    assert np.array_equal(order.numpy()[found.partners], np.arange(F))
    assert found.mean_cosine.value == pytest.approx(1)
    assert found.share_above().value == 1


def test_unrelated_dictionaries_match_no_better_than_chance() -> None:
    found = match_latents(with_rows(random_rows()), with_rows(random_rows(seed=1)))
    assert found.share_above().value < 0.1
    assert found.mean_cosine.value == pytest.approx(found.chance, abs=0.08)


def test_the_matching_is_one_to_one_where_the_nearest_is_not() -> None:
    rows = random_rows()
    rows[1] = rows[0] + 0.01 * rows[2]
    found = match_latents(with_rows(rows), with_rows(random_rows()))
    partners = found.partners[found.partners >= 0]
    assert len(set(partners.tolist())) == len(partners)


def test_latents_without_a_partner_count_as_unmatched() -> None:
    rows = random_rows()
    found = match_latents(with_rows(rows), with_rows(rows[:20]))
    assert (found.partners == -1).sum() == 10
    assert found.share_above().value == pytest.approx(20 / 30)
    assert found.share_above().low < 20 / 30 < found.share_above().high


def test_stability_over_seeds_has_a_spread() -> None:
    rows = random_rows()
    noisy = [with_rows(rows + 0.3 * random_rows(seed=seed)) for seed in (5, 6, 7)]
    found = seed_stability(noisy)
    assert len(found.matchings) == 3
    assert found.mean_cosine.low < found.mean_cosine.value < found.mean_cosine.high
    assert found.share_matched.value > 0.9
    with pytest.raises(NotEnoughEvidence):
        seed_stability(noisy[:1])


def test_dictionaries_of_other_widths_are_refused() -> None:
    with pytest.raises(DictionaryMismatch, match="different widths"):
        match_latents(with_rows(random_rows()), with_rows(torch.randn(F, D + 1, dtype=torch.float64)))


def test_split_kept_lost_and_new_latents_are_told_apart() -> None:
    narrow = random_rows(6)
    new = random_rows(2, seed=9)
    small = 0.2 * random_rows(3, seed=4)
    wide = torch.cat([narrow[0] + small, narrow[1:5], new])  # 0 splits into three, 5 is lost, two are new
    tree = feature_tree([with_rows(wide), with_rows(narrow)], least_cosine=0.8)
    assert tree.widths == (6, 9)
    assert tree.children(0, 0) == [0, 1, 2]
    assert tree.n_children(0).tolist() == [3, 1, 1, 1, 1, 0]
    assert tree.parents[0].tolist() == [0, 0, 0, 1, 2, 3, 4, -1, -1]
    shares = tree.shares(0)
    assert shares["split"].value == pytest.approx(1 / 6)
    assert shares["lost"].value == pytest.approx(1 / 6)
    assert shares["new"].value == pytest.approx(2 / 9)
    assert all(one.low < one.value < one.high for one in shares.values())


def test_comparisons_say_which_trainings_saw_a_first_token() -> None:
    narrow, wide = with_rows(random_rows(6), bos=False), with_rows(random_rows(8), bos=True)
    unknown = with_rows(random_rows(7))
    assert match_latents(wide, narrow).has_bos == (True, False)
    assert seed_stability([wide, unknown, narrow]).has_bos == (True, None, False)
    assert feature_tree([wide, unknown, narrow]).has_bos == (False, None, True), "narrowest first"


def test_random_dictionaries_have_no_tree() -> None:
    tree = feature_tree([with_rows(random_rows(10)), with_rows(random_rows(40, seed=3))], least_cosine=0.0)
    assert tree.shares(0)["new"].value > 0.9
    assert tree.chance[0] > 0.3


def test_shares_of_latents_have_the_bootstraps_interval_and_the_exact_one_where_all_are_alike() -> None:
    rows = random_rows()
    found = match_latents(with_rows(rows), with_rows(rows[:20]))
    again = Resamples(np.arange(30), seed=0, n_resamples=1000)
    wanted = mean_bootstrap(again, (found.cosines >= 0.7).astype(float)).interval()
    assert (found.share_above().low, found.share_above().high) == (wanted.low, wanted.high)
    alike = match_latents(with_rows(rows), with_rows(rows)).share_above()
    assert (alike.method, alike.high) == ("clopper-pearson", 1.0)
    assert 0.85 < alike.low < 0.9


def test_pairs_that_share_seeds_are_not_counted_as_independent() -> None:
    """Where a pair's number is the sum of its seeds' own, the interval is twice the seeds' Student interval.

    Twin: taking pairs as independent gives half of it for three seeds.
    """
    own = (0.1, 0.25, 0.3)
    pairs = {(i, j): own[i] + own[j] for i in range(3) for j in range(i + 1, 3)}
    found, wanted = over_pairs(pairs, 3), spread_of(own)
    assert (found.low, found.high) == pytest.approx((2 * wanted.low, 2 * wanted.high))
    naive = spread_of(list(pairs.values()))
    assert naive.high - naive.low == pytest.approx((found.high - found.low) / 2)


def test_two_seeds_have_no_spread() -> None:
    found = seed_stability([with_rows(random_rows()), with_rows(random_rows())])
    assert np.isinf(found.mean_cosine.high)
    assert found.matchings[0, 1].mean_cosine.value == pytest.approx(1)
