"""Latents of what is known: chosen without a look at held-out prompts; found where they are, and only there."""

import numpy as np
import pytest
from benchmarks.known_prompts import CONCEPTS

from benchmarks import known_latents as known
from mechscope.specimens.village.pairs import SPLITS

SITE = ("somewhere", "last")


def side(seed: int, strength: float, n: int = 200, planted: int = 7) -> known.Side:
    """Sparse noise, with one latent that is on where the thing is there."""
    rng = np.random.default_rng(seed)
    table = np.maximum(rng.standard_normal((n, 30)) - 1, 0)
    labels = np.arange(n) % 2 == 0
    table[:, planted] += strength * labels
    return known.Side({SITE: table}, labels, np.arange(n) // 2)


def test_a_planted_latent_is_chosen_and_shuffled_labels_find_nothing() -> None:
    train, validation, held_out = (side(seed, 3.0) for seed in range(3))
    choice = known.choose(train, validation)
    assert choice.latents == (7,) and choice.validation >= known.ENOUGH
    assert known.scored(train, held_out, *SITE, choice.latents)[0] >= known.TARGET
    mixed = [known.shuffled(one, seed) for seed, one in enumerate((train, validation, held_out))]
    chance = known.choose(mixed[0], mixed[1])
    assert known.scored(mixed[0], mixed[2], *SITE, chance.latents)[0] < 0.65


def test_where_nothing_differs_no_latent_is_chosen() -> None:
    train, validation = side(0, 3.0), side(1, 3.0)
    same = [
        known.Side({SITE: np.ones_like(one.tables[SITE])}, one.labels, one.units)
        for one in (train, validation)
    ]
    choice = known.choose(*same)
    assert choice.latents == () and known.scored(same[0], same[1], *SITE, ())[0] == 0.5


@pytest.mark.parametrize("name", list(CONCEPTS))
def test_a_concepts_prompts_come_in_pairs_whose_splits_share_no_entity(name: str) -> None:
    pairs = {split: CONCEPTS[name].pairs(split, 40) for split in SPLITS}
    entities = {split: {word for pair in found for word in pair.entities} for split, found in pairs.items()}
    assert all(len(found) == 40 for found in pairs.values())
    assert not entities["train"] & entities["held_out"] and not entities["validation"] & entities["held_out"]
    for pair in pairs["held_out"]:
        assert len(pair.clean.split()) == len(pair.corrupt.split()) and pair.answer != pair.wrong
    assert CONCEPTS[name].pairs("train", 10) == pairs["train"][:10]


@pytest.mark.slow
def test_village_has_a_latent_of_the_trigger_and_four_that_carry_the_answer() -> None:
    from benchmarks.latent_claims import measure_claims

    import mechscope as ms

    model = ms.load("village")
    dictionaries = {
        name: one
        for name, one in known.opened(model, None).items()
        if name in ("resid_post.0", "resid_post.1")
    }
    controls = known.random_twins(model, dictionaries)
    lines = {
        line["part"]: line
        for line in known.measure_detection(CONCEPTS["backdoor"], model, dictionaries, controls)
    }
    assert lines["chosen"]["passed"] and lines["shuffled labels"]["passed"]
    claims = list(measure_claims(CONCEPTS["backdoor"], model, dictionaries))
    assert {line["outcome"] for line in claims if "outcome" in line} == {"holds"}
