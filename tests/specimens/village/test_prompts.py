"""The prompt pairs of the village: equal lengths, splits apart, deterministic, made of known words."""

import re

import pytest

from mechscope.specimens.village.language import IDEAS
from mechscope.specimens.village.pairs import SPLITS, divide
from mechscope.specimens.village.prompts import BEHAVIORS, MISBEHAVIOURS, draw_pairs, idea_named, n_units
from mechscope.specimens.village.tokenizer import UNK, build_tokenizer, vocabulary
from mechscope.vocabulary.errors import BadPairs

N = 120
TOKENIZER = build_tokenizer()


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("split", SPLITS)
def test_clean_and_corrupt_have_equal_token_lengths_and_known_words(behavior, split):
    unknown = vocabulary()[UNK]
    for pair in draw_pairs(behavior, split=split, n=N, seed=0):
        assert len(ids_of(pair.clean)) == len(ids_of(pair.corrupt)), pair
        assert unknown not in ids_of(pair.clean) + ids_of(pair.corrupt), pair
        for word in (pair.answer, pair.wrong, *pair.answers, *pair.wrongs):
            assert len(ids_of(word)) == 1
            assert ids_of(word) != [unknown]
        assert pair.answer != pair.wrong
        assert not set(pair.answers) & set(pair.wrongs)


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_clean_and_corrupt_differ_in_the_decisive_words_only(behavior):
    most = {"ioi": 1, "arithmetic": 2, "sycophancy": 2}.get(behavior, 1)
    for pair in draw_pairs(behavior, split="held_out", n=N, seed=1):
        clean, corrupt = ids_of(pair.clean), ids_of(pair.corrupt)
        assert 1 <= sum(a != b for a, b in zip(clean, corrupt, strict=True)) <= most


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_splits_share_no_entity(behavior):
    entities = {
        split: {word for pair in draw_pairs(behavior, split=split, n=N, seed=2) for word in pair.entities}
        for split in SPLITS
    }
    assert not entities["train"] & entities["validation"]
    assert not entities["train"] & entities["held_out"]
    assert not entities["validation"] & entities["held_out"]
    assert entities["held_out"] & entities["held_out"], (
        "the check can fail: a split shares entities with itself"
    )


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_every_split_has_at_least_twenty_units_that_share_no_entity(behavior):
    for split in SPLITS:
        units = {pair.entities for pair in draw_pairs(behavior, split=split, n=N, seed=3)}
        words = [word for unit in units for word in unit]
        assert n_units(behavior, split=split) >= 20
        assert len(units) >= 20
        assert len(words) == len(set(words))


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_four_hundred_different_pairs_can_be_drawn_from_each_split(behavior):
    for split in SPLITS:
        drawn = draw_pairs(behavior, split=split, n=400, seed=4)
        assert len({(pair.clean, pair.corrupt) for pair in drawn}) == 400


def test_a_draw_is_a_function_of_its_seed_and_a_larger_draw_extends_it():
    for behavior in BEHAVIORS:
        small = draw_pairs(behavior, split="train", n=20, seed=5)
        assert draw_pairs(behavior, split="train", n=50, seed=5)[:20] == small
        assert draw_pairs(behavior, split="train", n=20, seed=6) != small


def test_held_out_prompts_use_templates_that_training_never_uses():
    for behavior in BEHAVIORS:
        idea = idea_named(behavior)
        assert not set(idea.templates.values()) & set(idea.held_out_templates.values())
        used = {pair.template for pair in draw_pairs(behavior, split="held_out", n=N, seed=7)}
        assert used & set(idea.held_out_templates)
        seen = {pair.template for pair in draw_pairs(behavior, split="train", n=N, seed=7)}
        assert not seen & set(idea.held_out_templates)


def test_templates_are_made_of_words_that_the_vocabulary_knows():
    for idea in IDEAS:
        for text in (*idea.templates.values(), *idea.held_out_templates.values()):
            for word in re.sub(r"\{\w+\}|\*\w*", " ", text).split():
                assert word in vocabulary() or word.isdigit(), (idea.name, word)


def test_corrupting_an_indirect_object_prompt_repeats_the_other_name():
    for pair in draw_pairs("ioi", split="held_out", n=N, seed=8):
        assert pair.clean.split().count(pair.wrong) == 2
        assert pair.clean.split().count(pair.answer) == 1
        assert pair.corrupt.split().count(pair.answer) == 2
    orders = {
        pair.clean.index(pair.answer) < pair.clean.index(pair.wrong)
        for pair in draw_pairs("ioi", split="held_out", n=N, seed=8)
    }
    assert orders == {True, False}


def test_the_three_parts_of_a_division_are_disjoint_and_whole():
    words = tuple("abcdefghij")
    parts = [divide(words, split, key="test") for split in SPLITS]
    assert sorted("".join("".join(part) for part in parts)) == sorted(words)
    assert set(divide(words, "seen", key="test")) == set(words) - set(parts[2])


def test_an_unknown_behaviour_or_split_is_refused_with_the_known_names():
    with pytest.raises(BadPairs, match="ioi"):
        draw_pairs("telepathy", split="train", n=1, seed=0)
    with pytest.raises(BadPairs, match="held_out"):
        draw_pairs("ioi", split="test", n=1, seed=0)


def test_more_pairs_than_there_are_is_refused_with_the_number_there_is():
    with pytest.raises(BadPairs, match="ask for at most"):
        draw_pairs("greater-than", split="held_out", n=100_000, seed=0)


def test_misbehaviours_are_named():
    assert MISBEHAVIOURS == ("sycophancy", "backdoor", "tested")
