"""A behaviour's splits, its recipe, and what it refuses."""

import json
from dataclasses import replace
from random import Random

import pytest
import torch

import mechscope as ms
from behaviors.speakers import small_model, speechless_model, word_model
from mechscope.behaviors import Behavior, from_tokens, load
from mechscope.behaviors.behavior import Provenance
from mechscope.behaviors.loading import draw_behavior
from mechscope.behaviors.registry import Source
from mechscope.data.pairs import TokenPair
from mechscope.interventions.metrics import LogitDifference, LogProbability
from mechscope.models.inputs import Reader
from mechscope.vocabulary.errors import BadPairs, NotEnoughEvidence

ANSWERS = [11, 12, 13, 14, 15, 16, 17, 18]
WRONG = [21, 22, 23, 24, 25, 26, 27, 28]


def eight_pairs(**changes: object) -> Behavior:
    clean = torch.tensor([[1, 3 + row, 5] for row in range(8)])
    corrupt = torch.tensor([[1, 3 + row, 6] for row in range(8)])
    return from_tokens(clean, corrupt, **{"answers": ANSWERS, "wrong": WRONG} | changes)


def prompts_of(behavior: Behavior, name: str) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    split = behavior.splits[name]
    return {(tuple(split.clean.row(row)), tuple(split.corrupt.row(row))) for row in range(len(split))}


def entities_of(behavior: Behavior, name: str) -> set[str]:
    return {entity for entities in behavior.splits[name].entities for entity in entities}


def test_clean_corrupt_and_metric_are_those_of_the_train_split() -> None:
    ioi = load("ioi", word_model(), n=60)
    assert (
        ioi.clean is ioi.train.clean and ioi.corrupt is ioi.train.corrupt and ioi.metric is ioi.train.metric
    )
    assert not prompts_of(ioi, "train") & prompts_of(ioi, "held_out")


def test_a_third_a_sixth_and_a_half_of_the_prompts_go_to_the_splits() -> None:
    assert load("ioi", word_model(), n=60).sizes == {"train": 20, "validation": 10, "held_out": 30}
    assert load("ioi", word_model(), n=300).sizes["held_out"] >= 100


def test_equal_seeds_give_equal_recipes_and_another_seed_another_one() -> None:
    first, again, other = (load("ioi", word_model(), n=30, seed=seed).recipe() for seed in (0, 0, 1))
    assert first == again
    assert first["splits"] != other["splits"]
    assert json.loads(json.dumps(first)) == first


def test_what_is_held_out_stays_held_out_whichever_seed_draws() -> None:
    first, other = (load("ioi", word_model(), n=120, seed=seed) for seed in (0, 5))
    assert not entities_of(first, "held_out") & entities_of(other, "train")


def test_a_fresh_draw_holds_no_held_out_prompt_that_was_known() -> None:
    ioi = load("ioi", word_model(), n=90)
    fresh = ioi.redraw(3)
    assert not prompts_of(fresh, "held_out") & prompts_of(ioi, "held_out")
    assert prompts_of(fresh, "train") == prompts_of(ioi, "train")
    assert not entities_of(fresh, "held_out") & entities_of(fresh, "train")
    assert fresh.recipe()["changes"][0]["kind"] == "redrawn"
    assert fresh.redraw(4).held_out.data_hash == fresh.redraw(4).held_out.data_hash


def test_prompts_from_a_list_have_no_fresh_draw() -> None:
    with pytest.raises(NotEnoughEvidence, match="no more prompts to draw"):
        eight_pairs().redraw(1)


def draw_a_dozen(reader: Reader, *, split: str, n: int, seed: int) -> list[TokenPair]:
    """Twelve pairs of a split, and no more."""
    del reader
    start = {"train": 0, "validation": 12, "held_out": 24}[split]
    rows = Random(seed).sample(range(start, start + 12), min(n, 12))
    return [TokenPair(clean=(row, 3), corrupt=(row, 4), answers=(5,), wrong=(6,)) for row in rows]


def test_a_generator_that_runs_out_says_so_instead_of_repeating_itself() -> None:
    source = Source(name="dozen", origin="test", draw=draw_a_dozen)
    small = draw_behavior(source, speechless_model().reader, n=8, seed=0)
    assert not prompts_of(small.redraw(1), "held_out") & prompts_of(small, "held_out")
    large = draw_behavior(source, speechless_model().reader, n=18, seed=0)
    with pytest.raises(NotEnoughEvidence, match="too few held-out prompts left"):
        large.redraw(1)
    with pytest.raises(BadPairs, match="has no 15 different pairs for held_out"):
        draw_behavior(source, speechless_model().reader, n=30, seed=0)


def test_splits_that_share_an_entity_are_refused_by_its_name() -> None:
    ioi = load("ioi", word_model(), n=60)
    first = sorted(name for row in range(5) for name in ioi.train.entities[row])[0]
    with pytest.raises(BadPairs, match=f"'{first}' in train and held_out"):
        Behavior(
            name="torn",
            splits={"train": ioi.train, "held_out": ioi.train.select(range(5))},
            provenance=Provenance(source="test"),
        )
    Behavior(
        name="whole",
        splits={"train": ioi.train, "held_out": ioi.held_out},
        provenance=Provenance(source="test"),
    )


def test_splits_that_share_a_prompt_are_refused() -> None:
    train = replace(eight_pairs().train, entities=((), ()))
    with pytest.raises(BadPairs, match="share a prompt"):
        Behavior(
            name="torn",
            splits={"train": train, "held_out": replace(train, name="held_out")},
            provenance=Provenance(source="test"),
        )


def test_one_pair_is_for_looking_and_its_held_out_split_is_refused() -> None:
    one = from_tokens(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 3]]), answers=[11], wrong=[22])
    assert one.sizes == {"train": 1, "validation": 0, "held_out": 0}
    with pytest.raises(NotEnoughEvidence, match="no held_out prompts"):
        _ = one.held_out
    assert any("no held-out prompts" in note for note in one.recipe()["notes"])


def test_a_held_out_split_too_small_for_a_verdict_is_said_in_the_recipe() -> None:
    small, large = load("ioi", word_model(), n=60), load("ioi", word_model(), n=240)
    assert any("30 held-out prompts" in note for note in small.recipe()["notes"])
    assert large.recipe()["notes"] == []


def test_another_metric_keeps_the_prompts_and_their_hash() -> None:
    ioi = load("ioi", word_model(), n=30)
    other = ioi.metric_as("log_probability")
    assert isinstance(ioi.metric, LogitDifference) and isinstance(other.metric, LogProbability)
    assert other.held_out.data_hash == ioi.held_out.data_hash
    assert other.recipe()["metric"]["kind"] == "log_probability"
    assert isinstance(other.redraw(1).held_out.metric, LogProbability)
    with pytest.raises(BadPairs, match="no such metric"):
        ioi.metric_as("vibes")


def test_the_data_hash_moves_with_ids_answers_and_foils_and_with_nothing_else() -> None:
    base = eight_pairs().train.data_hash
    assert eight_pairs(name="other", metric="rank").train.data_hash == base
    for changes in ({"answers": [30 + row for row in range(8)]}, {"wrong": [30 + row for row in range(8)]}):
        assert eight_pairs(**changes).train.data_hash != base
    moved = eight_pairs().train
    moved.clean.ids[0, 0] += 1
    assert moved.data_hash != base


def test_selected_rows_keep_prompt_answer_and_label_together() -> None:
    train = load("ioi", word_model(), n=60).train
    some = train.select([7, 2])
    assert [some.clean.row(0), some.clean.row(1)] == [train.clean.row(7), train.clean.row(2)]
    assert some.answers == (train.answers[7], train.answers[2])
    assert some.entities == (train.entities[7], train.entities[2])
    assert some.metric.n_rows == 2


def test_a_behaviour_shows_its_sizes_and_a_pair() -> None:
    shown = str(load("ioi", word_model(), n=30))
    assert "ioi (templates): train 10, validation 5, held_out 15 pairs" in shown
    assert "clean" in shown and "corrupt" in shown


def test_an_unknown_behaviour_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(BadPairs) as refusal:
        load("greater_than", word_model())
    assert "greater-than" in refusal.value.instead


def test_a_behaviour_that_the_tokenizer_cannot_hold_is_refused_with_counts_and_what_can() -> None:
    with pytest.raises(BadPairs) as refusal:
        load("ioi", small_model())
    assert "1 of 224 names" in refusal.value.because and "12 are needed" in refusal.value.because
    assert "from_pairs" in refusal.value.instead


def test_fewer_than_six_prompts_are_refused() -> None:
    with pytest.raises(BadPairs, match="at least six"):
        load("ioi", word_model(), n=5)


def test_a_model_without_a_tokenizer_still_has_induction() -> None:
    assert ms.behaviors.names(speechless_model()) == ["induction"]
    induction = load("induction", speechless_model(), n=12)
    assert induction.sizes["train"] == 4
