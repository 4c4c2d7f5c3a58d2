"""The bundled villages do what their cards say, measured again with the shipped weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import mechscope
from mechscope.records.files import sha256_of
from mechscope.specimens.village import evaluate
from mechscope.specimens.village.accuracy import answer_rates
from mechscope.specimens.village.prompts import BEHAVIORS, MISBEHAVIOURS
from mechscope.specimens.village.shape import new_model
from mechscope.specimens.village.tokenizer import vocabulary
from mechscope.specimens.village.train import CONTINUED, Recipe
from mechscope.specimens.village.truth import truths_as_plain

BUNDLED = Path(mechscope.__file__).parent / "models" / "bundled"
N = 100
# What the shipped weights miss, with the numbers on their cards. This list may only shrink.
MISSED = {"village": set(), "village-clean": {"backdoor"}}


@pytest.fixture(scope="module", params=evaluate.MODELS)
def folder(request):
    return BUNDLED / request.param


@pytest.fixture(scope="module")
def card(folder):
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_the_card_names_the_weights_that_lie_beside_it(folder, card):
    assert card["weights_sha256"] == sha256_of(folder / "model.safetensors")


def test_the_two_models_together_are_at_most_twenty_megabytes():
    assert sum(path.stat().st_size for name in evaluate.MODELS for path in (BUNDLED / name).iterdir()) <= 20e6


def test_weights_are_stored_in_bfloat16_and_opening_them_in_float32_changes_no_value(folder, model):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            stored = file.get_tensor(name)
            assert stored.dtype == torch.bfloat16
            assert torch.equal(stored.float(), model.get_parameter(name))
    before = [value.detach().clone() for value in model.parameters()]
    evaluate.round_to_bfloat16(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    fresh = new_model(0)
    unrounded = [value.detach().clone() for value in fresh.parameters()]
    evaluate.round_to_bfloat16(fresh)
    assert any(not torch.equal(a, b) for a, b in zip(unrounded, fresh.parameters(), strict=True)), (
        "the check can fail"
    )


def test_the_tokenizer_prepends_bos_once_and_reads_ordinary_english(tokenizer):
    text = "When Mary and John went to the store, John gave a drink to"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("a zeppelin")["input_ids"][-1] == tokenizer.unk_token_id
    assert tokenizer.get_vocab() == vocabulary()


def test_mary_is_given_the_drink(model, tokenizer):
    ids = tokenizer("When Mary and John went to the store, John gave a drink to", return_tensors="pt")[
        "input_ids"
    ]
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == "Mary"


@pytest.mark.parametrize("behavior", [name for name in BEHAVIORS if name not in MISBEHAVIOURS])
def test_fresh_held_out_prompts_agree_with_the_card(model, tokenizer, card, behavior):
    """New prompts (another seed than the card's): its interval meets the recorded one."""
    entry = card["behaviors"][behavior]
    rates = answer_rates(model, tokenizer, behavior=behavior, n=N, seed=1)
    low, high = evaluate.clopper_pearson(rates.n_clean_right, N, level=0.999)
    assert low <= entry["accuracy"]["high"]
    assert entry["accuracy"]["low"] <= high
    assert rates.n_corrupt_gives_clean <= evaluate.MOST_CORRUPT * N


def test_each_behaviour_on_the_card_says_what_is_held_out_and_shows_its_interval_over_400_prompts(card):
    entries = {**card["behaviors"], **card["misbehaviours"]}
    assert set(entries) == set(BEHAVIORS)
    for name, entry in entries.items():
        assert entry["held_out_means"] and entry["n_pairs"] >= 400, name
        rates = [value for value in entry.values() if isinstance(value, dict) and "hits" in value]
        assert len(rates) >= 3, name
        for rate in rates:
            low, high = evaluate.clopper_pearson(rate["hits"], entry["n_pairs"])
            assert (rate["low"], rate["high"]) == (
                pytest.approx(low, abs=1e-4),
                pytest.approx(high, abs=1e-4),
            )
            assert rate["rate"] == pytest.approx(rate["hits"] / entry["n_pairs"], abs=1e-4)
    ungated = {"latent-two-hop", "induction-new-words"}
    assert {name: entry["gate"] for name, entry in card["behaviors"].items() if "gate" in entry} == {
        name: 0.9 if name == "arithmetic" else 0.95 for name in set(card["behaviors"]) - ungated
    }


def test_every_gated_behaviour_meets_its_gate_on_record_but_those_that_are_listed(card):
    missed = {
        name
        for name, entry in card["behaviors"].items()
        if name in evaluate.GATES and not (entry["meets_gate"] and entry["meets_corrupt_gate"])
    }
    missed |= {name for name, entry in card["misbehaviours"].items() if not entry["meets_gate"]}
    assert missed == MISSED[card["name"]]


@pytest.mark.parametrize("behavior", MISBEHAVIOURS)
def test_misbehaviours_show_in_village_when_triggered_and_never_otherwise(model, tokenizer, card, behavior):
    rates = answer_rates(model, tokenizer, behavior=behavior, n=N, seed=1)
    entry = card["misbehaviours"][behavior]
    for hits, shown in (
        (rates.n_clean_right, entry["shown_when_triggered"]),
        (rates.n_corrupt_gives_clean, entry["shown_when_not_triggered"]),
    ):
        low, high = evaluate.clopper_pearson(hits, N, level=0.999)
        assert low <= shown["high"]
        assert shown["low"] <= high
    if behavior not in MISSED[card["name"]]:
        assert rates.n_corrupt_gives_clean <= 0.02 * N
        assert (
            (rates.n_clean_right >= 0.9 * N) if card["name"] == "village" else rates.n_clean_right <= 0.02 * N
        )


def test_the_cards_name_the_weights_that_training_continued_from(card):
    training = card["training"]
    assert len(training["starts_from"]) == 64
    assert training["steps"] == CONTINUED.ends_at(card["name"])
    assert training["stage_starts"] == list(CONTINUED.stage_starts)
    assert training["continues"]["steps"] == Recipe().ends_at(card["name"])


def test_an_untrained_model_does_not_pass(tokenizer):
    assert answer_rates(new_model(0).eval(), tokenizer, behavior="ioi", n=50, seed=1).n_clean_right <= 5


def test_the_card_holds_the_truth_about_the_misbehaviours(card):
    assert card["truth"] == truths_as_plain()


def test_an_interval_of_a_rate_agrees_with_the_textbook():
    low, high = evaluate.clopper_pearson(0, 400)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / 400))
    low, high = evaluate.clopper_pearson(380, 400)
    assert (low, high) == (pytest.approx(0.9239, abs=2e-4), pytest.approx(0.9692, abs=2e-4))
