"""Latents of what is known: chosen without a look at held-out prompts; found where they are, and only there."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.known_prompts import CONCEPTS
from benchmarks.latent_bench import OTHERS, LatentBench, sized
from benchmarks.latent_holds import Usual, n_held

from benchmarks import known_latents as known
from features.cases import dictionary_of, model_of
from mechscope.claims.evidence import HeldOut
from mechscope.claims.predictions import lowers
from mechscope.data.units import as_units
from mechscope.features.latents import Latents
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


def prompts(rows: list[list[int]]) -> SimpleNamespace:
    """Left-padded with 0, as a batch of tokens is."""
    n = max(map(len, rows))
    ids = torch.tensor([[0] * (n - len(row)) + row for row in rows])
    return SimpleNamespace(ids=ids, n_real=torch.tensor([len(row) for row in rows]))


def test_what_is_held_is_where_all_pairs_have_the_same_words() -> None:
    clean = prompts([[1, 5, 6, 7, 8, 9], [1, 5, 7, 8, 9]])
    corrupt = prompts([[1, 4, 6, 7, 8, 9], [1, 3, 4, 8, 9]])
    assert n_held(clean, corrupt) == 2
    assert n_held(clean, prompts([[1, 4, 6, 7, 8, 2], [1, 5, 7, 8, 9]])) == 4, (
        "the shortest, without its first"
    )


def test_latents_are_held_at_the_other_prompts_means_and_beyond_but_not_below_zero() -> None:
    usual = Usual((-2, -1), np.array([[1.0, 0, 3], [0, 2, 3]]), np.array([[0.5, 1, 3], [0, 1, 3]]))
    assert usual.held((0, 1), 1.0, is_on=True) == ((-2, (1.0, 0.0)), (-1, (0.0, 2.0)))
    assert usual.held((0, 1), 2.0, is_on=True) == ((-2, (1.5, 0.0)), (-1, (0.0, 3.0)))
    assert usual.held((0, 2), 1.0, is_on=False) == ((-2, (0.5, 3.0)), (-1, (0.0, 3.0)))


def test_controls_of_held_latents_are_others_moved_by_as_much_at_the_same_positions() -> None:
    dictionary = dictionary_of()
    rng = np.random.default_rng(0)
    usual = rng.random((2, dictionary.n_latents))
    held = Latents(dictionary, (6, 2), held=((-3, (1.5, 0.5)), (-1, (0.0, 2.0))))
    share = {held.site: np.ones(dictionary.n_latents)}
    bench = LatentBench(model_of(), share, usual=usual)
    drawn = bench.draw_controls(held, None, family=OTHERS, n_draws=20, seed=0).mechanisms
    assert len(drawn) == len({one.latents for one in drawn}) == 20
    for one in drawn:
        assert not {6, 2} & set(one.latents)
        for row, ((position, values), (at, wanted)) in enumerate(zip(one.held, held.held, strict=True)):
            assert position == at
            moved = np.array(values) - usual[row, list(one.latents)]
            assert moved == pytest.approx(np.array(wanted) - usual[row, [6, 2]])


def test_what_is_predicted_is_below_what_validation_shows_and_nothing_of_nothing() -> None:
    split = HeldOut(
        data_hash="", clean=np.full(40, 4.0), corrupt=np.full(40, -4.0), units=as_units(np.arange(40))
    )

    class Bench:
        def __init__(self, moved: float) -> None:
            noise = np.random.default_rng(1).normal(scale=0.5, size=40)
            self.after = split.clean - moved * split.gap + noise

        def open_split(self, behavior, *, fresh_seed):
            return split

        def measure(self, mechanisms, prediction, behavior, held_out):
            return self.after[None]

    probe = lowers(1.0, unit="gap", how="mean")
    found = sized(Bench(0.5), None, probe, None)
    assert 0.3 < found.bound <= 0.8 * 0.5
    assert sized(Bench(0.02), None, probe, None) is None


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
