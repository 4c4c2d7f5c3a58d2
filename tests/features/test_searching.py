"""Search finds what fires, what is labelled and what stands where; contrast ranks as scikit-learn's AUROC does."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from features.cases import corpus, dense_codes, dictionary_of, model_of
from mechscope.features.index import FeatureIndex
from mechscope.features.searching import areas_under_curve, peaks, places_of
from mechscope.vocabulary.errors import BadCommand, DictionaryMismatch, EmptyPrompt, PositionOutOfRange


def test_what_fires_on_a_prompt_is_what_the_dictionary_says(index: FeatureIndex) -> None:
    prompt = "w3 w4 w5 w9"
    run = model_of().run(prompt, capture=["resid_post.1"])
    codes = dictionary_of().encode(run["resid_post.1"][0, 1:]).numpy()
    found = index.search(prompt, k=100, over=["fires"], rank="activation")
    wanted = [int(i) for i in np.argsort(-codes.max(0), kind="stable") if codes.max(0)[i] > 0]
    assert found.latents == wanted
    np.testing.assert_allclose([hit.value for hit in found.hits], np.sort(codes.max(0))[::-1][: len(wanted)])
    specific = index.search(prompt, k=100, over=["fires"])
    assert specific.latents.index(6) > found.latents.index(6)  # the one that always fires tells little


def test_a_place_to_search_may_be_named_alone(index: FeatureIndex) -> None:
    assert index.search("w3", over="text").hits == index.search("w3", over=["text"]).hits


def test_a_contrast_leaves_out_what_hardly_fires_on_these(index: FeatureIndex) -> None:
    these, those = ["w3 w4 w5", "w5 w6 w9"], ["w1", "w2 w8"]
    here, own = peaks(index, these)[0].max(0), np.maximum(index.statistics.largest, 1e-12)
    everything = index.contrast(these, those, k=index.n_latents).latents
    some = index.contrast(these, those, k=index.n_latents, least=0.6).latents
    assert some == [one for one in everything if here[one] >= 0.6 * own[one]]
    assert 0 < len(some) < len(everything)


def test_labels_are_searched_by_their_words_and_rankings_are_joined(index: FeatureIndex) -> None:
    index.label(9, "golden bridges")
    index.label(2, "a Golden gate in the west")
    found = index.search("golden gate", over=["labels"])
    assert found.latents == [2, 9] and found[0].score == 1 and "golden" in found[1].why
    joined = index.search("golden w3", k=30, over=["labels", "text"])
    assert {2, 9} <= set(joined.latents) and "2 " in repr(joined) and "<table" in joined._repr_html_()


def test_the_index_s_own_text_is_searched_without_a_model(index: FeatureIndex) -> None:
    ids, dense = corpus().ids.tolist(), dense_codes(corpus())
    alone = FeatureIndex(index.folder)
    wanted = model_of().token("w3")
    places = [i for i, one in enumerate(ids) if one == wanted]
    # words are matched as text, so that "w3" is also found in none but itself: no word begins with another
    assert set(places) <= set(places_of(alone, "w3").tolist())
    found = alone.search("w3", over=["text"], k=100)
    share = (dense[places_of(alone, "w3")] != 0).mean(0)
    assert all(hit.value == pytest.approx(share[hit.latent]) for hit in found.hits) and found.hits


def test_latents_that_are_given_are_reordered_by_a_text(index: FeatureIndex) -> None:
    index.label(9, "golden bridges")
    index.label(2, "a Golden gate in the west")
    found = index.rerank([4, 9, 0, 2, 9], "golden gate", over=["labels"])
    assert found.latents == [2, 9, 4, 0] and [hit.score > 0 for hit in found.hits] == [
        True,
        True,
        False,
        False,
    ]
    everything = index.search("w3 w4", k=index.n_latents, over=["fires"]).latents
    some = everything[::-2]
    assert index.rerank(some, "w3 w4", over=["fires"]).latents == [one for one in everything if one in some]
    with pytest.raises(PositionOutOfRange):
        index.rerank([index.n_latents], "w3")


def test_contrast_ranks_by_the_area_under_the_curve(index: FeatureIndex) -> None:
    these, those = ["w1 w2 w3", "w2 w2 w8", "w3 w1"], ["w9 w4", "w10 w11 w5", "w12 w4", "w4"]
    here, there = peaks(index, these)[0], peaks(index, those)[0]
    area = areas_under_curve(here, there)
    truth = [1] * len(these) + [0] * len(those)
    for latent in range(index.n_latents):
        scores = np.concatenate([here[:, latent], there[:, latent]])
        assert area[latent] == pytest.approx(roc_auc_score(truth, scores))
    found = index.contrast(these, those, k=5)
    fires = here.max(0) > 0
    assert found[0].score == pytest.approx(area[fires].max())
    assert [hit.score for hit in found.hits] == sorted([hit.score for hit in found.hits], reverse=True)


def test_empty_queries_unknown_places_and_missing_models_are_refused(index: FeatureIndex) -> None:
    with pytest.raises(EmptyPrompt):
        index.search("  ")
    with pytest.raises(BadCommand, match="no such place"):
        index.search("w1", over=["dreams"])
    with pytest.raises(DictionaryMismatch, match="no model at hand"):
        FeatureIndex(index.folder).search("w1", over=["fires"])
