"""Stores, dictionaries, cards and indexes say what was done about the beginning of sequence; old files open."""

import json
from pathlib import Path
from typing import Any

import pytest

import mechscope as ms
from features.cases import SMALL, dictionary_of, model_of, texts
from mechscope.dictionaries.evaluation.card import card
from mechscope.dictionaries.evaluation.result import Evaluation
from mechscope.dictionaries.evaluation.run import evaluate
from mechscope.engine.harvest.blocks import ModelBlocks
from mechscope.engine.harvest.corpus import TokenCorpus, corpus_of
from mechscope.engine.harvest.store import ActivationStore, save_activations
from mechscope.features.building import build
from mechscope.features.cards import save_card
from mechscope.features.index import FeatureIndex, open_index
from mechscope.features.shipped import bundled_indexes
from mechscope.vocabulary.sites import Site

Says = dict[str, tuple[Any, str]]


def ways() -> Says:
    """Texts in every way that they can come, and what the record is to say."""
    model = model_of()
    with_bos = model.tokens(texts(12))
    without = model.tokens(texts(12), bos=False)
    return {
        "text": (texts(12), "tokenizer"),
        "mappings": ([{"text": one} for one in texts(12)], "tokenizer"),
        "ids": ([with_bos.row(i) for i in range(12)], "given"),
        "removed": (without, "removed"),
        "added": (model.tokens([without.row(i) for i in range(12)], bos=True), "added"),
    }


def edited(path: Path, drop: str, *keys: str | int) -> None:
    """A JSON file as it was before a field was noted: the field taken out at a place."""
    whole = json.loads(path.read_text())
    part = whole
    for key in keys:
        part = part[key]
    del part[drop]
    path.write_text(json.dumps(whole))


def blocks(corpus: TokenCorpus) -> ModelBlocks:
    return ModelBlocks(model=model_of(), corpus=corpus, sites=(Site("resid_post", 1),), rows_per_block=5)


@pytest.mark.parametrize("way", ways())
def test_a_corpus_says_it_and_so_does_all_that_is_made_of_it(way: str, tmp_path: Path) -> None:
    model, (text, said) = model_of(), ways()[way]
    corpus = corpus_of(model, text)
    assert corpus.bos == said and corpus.has_bos == (said != "removed")
    assert corpus.shuffled(3).bos == said and corpus.batch([0, 1])[0].bos == said
    store = save_activations(blocks(corpus), tmp_path / "store")
    assert store.manifest.bos == ActivationStore(tmp_path / "store").manifest.bos == said
    index = build(model, dictionary_of(), text, folder=tmp_path / "index", settings=SMALL)
    assert [one.bos for one in index.manifest.texts] == [said]
    assert [one.bos for one in FeatureIndex(tmp_path / "index").manifest.texts] == [said]


def test_the_same_tokens_are_the_same_harvest_and_the_first_note_stands(tmp_path: Path) -> None:
    model = model_of()
    said, given = (corpus_of(model, ways()[way][0]) for way in ("text", "ids"))
    assert said.data_sha256 == given.data_sha256
    save_activations(blocks(said), tmp_path, stop_after=1)
    whole = save_activations(blocks(given), tmp_path)
    assert whole.manifest.is_complete and whole.manifest.bos == "tokenizer"


def test_a_store_that_did_not_note_it_opens_and_is_gone_on_with(tmp_path: Path) -> None:
    corpus = corpus_of(model_of(), texts(12))
    save_activations(blocks(corpus), tmp_path, stop_after=1)
    edited(tmp_path / "manifest.json", "bos")
    assert ActivationStore(tmp_path).manifest.bos is None
    whole = save_activations(blocks(corpus), tmp_path)
    assert whole.manifest.is_complete and whole.manifest.bos is None


def test_an_index_that_did_not_note_it_opens_and_takes_more_text(tmp_path: Path) -> None:
    model = model_of()
    build(model, dictionary_of(), texts(12), folder=tmp_path, settings=SMALL)
    edited(tmp_path / "manifest.json", "bos", "texts", 0)
    index = FeatureIndex(tmp_path)
    assert [one.bos for one in index.manifest.texts] == [None] and index[0].activity.n_tokens
    more = index.attached(model, dictionary_of()).add(texts(5, seed=9))
    assert [one.bos for one in more.manifest.texts] == [None, "tokenizer"]


def test_the_indexes_that_ship_open_whatever_they_note() -> None:
    folders = bundled_indexes("village")
    assert folders
    for site in folders:
        index = open_index(f"village/{site}")
        assert {one.bos for one in index.manifest.texts} <= {None, "tokenizer"}
        assert index.dictionary().settings.source.bos is True


TRAINING = ms.dictionaries.Training(batch=32, n_tokens=96)
CONFIG = ms.dictionaries.TopK(width=32, k=3)


@pytest.mark.parametrize("way", ["text", "ids", "removed"])
def test_a_trained_dictionary_says_it_also_when_it_is_opened_again(way: str, tmp_path: Path) -> None:
    text, said = ways()[way]
    sae = ms.dictionaries.train(
        model_of(), site="resid_post.1", text=text, config=CONFIG, training=TRAINING, folder=tmp_path / "run"
    )
    source = sae.settings.source
    assert source.bos_handling == said and source.bos == (said != "removed")
    sae.save(tmp_path / "again")
    for place in (tmp_path / "run" / "dictionary", tmp_path / "again"):
        assert ms.dictionaries.open(place).settings == sae.settings
    edited(tmp_path / "again" / "dictionary.json", "bos", "settings", "source", "notes")
    assert ms.dictionaries.open(tmp_path / "again").settings.source.bos_handling is None


def test_a_dictionary_trained_from_a_store_says_what_the_store_says(tmp_path: Path) -> None:
    corpus = corpus_of(model_of(), texts(30))
    store = save_activations(blocks(corpus), tmp_path)
    job = ms.dictionaries.job_at("resid_post.1", CONFIG)
    (found,) = ms.dictionaries.train_from(store, [job], training=TRAINING)
    assert found.settings.source.bos_handling == "tokenizer"
    (found,) = ms.dictionaries.train_from(blocks(corpus), [job], training=TRAINING)
    assert found.settings.source.bos_handling is None  # bare activations do not say


@pytest.mark.parametrize("way", ["text", "ids", "removed", "added"])
def test_figures_of_a_dictionary_say_it_of_their_text(way: str, tmp_path: Path) -> None:
    text, said = ways()[way]
    model, dictionary = model_of(), dictionary_of("topk")
    shown = card(dictionary, model, text)
    assert shown.bos == shown.to_json()["bos"] == said
    found = evaluate(dictionary, model, text)
    assert found.settings["bos"] == said
    found.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json").settings["bos"] == said
    assert save_card(tmp_path, dictionary, found, text={"seed": 0})["conventions"]["bos"] == said
