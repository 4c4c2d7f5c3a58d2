"""Claims about generated text: measured as a loop by hand does it, marked, saved, and true where it is known."""

import numpy as np
import pytest
import torch

import mechscope as ms
from mechscope.behaviors.rebuilding import rebuild_behavior
from mechscope.claims.bench import EngineBench
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.controls import ANY_LAYER, DIRECTIONS, POSITIONS, SAME_LAYERS
from mechscope.claims.generated_claims import measure_text, text_problems
from mechscope.claims.predictions import lowers, needs, raises, recovers, spares
from mechscope.claims.saved_mechanisms import mechanism_from_json
from mechscope.claims.testing import verify_claim
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.specimens.village.lexicon import NAMES
from mechscope.vocabulary.errors import BadClaim, InputError, InterventionMismatch, MechscopeError
from tiny_models import tiny

HEADS = ms.Components(heads=((0, 1), (1, 2)))
LOOKED_FOR = tuple(range(0, 37, 3))


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(tiny("gpt2", torch.float64), check=False)


@pytest.fixture(scope="module")
def behavior():
    rng = np.random.default_rng(0)
    clean = [rng.integers(1, 30, size=int(n)).tolist() for n in rng.integers(4, 7, size=24)]
    corrupt = [[*row[:2], (row[2] + 7) % 29 + 1, *row[3:]] for row in clean]
    return ms.behaviors.from_tokens(clean, corrupt, answers=list(range(24)), wrong=[30] * 24)


def greedy_by_hand(model: Model, row: list[int], *, n: int, edit=None) -> list[int]:
    """Without a cache, one prompt, one token at a time; `edit(layer, value, n_prompt)` rewrites `z` of each layer."""
    hf, ids = model.hf, list(row)
    for _ in range(n):
        handles = []
        for layer, block in enumerate(hf.transformer.h):  # type: ignore[union-attr]
            if edit is not None:
                handles.append(
                    block.attn.c_proj.register_forward_pre_hook(
                        lambda _m, args, layer=layer: (edit(layer, args[0], len(row)),)
                    )
                )
        try:
            with torch.no_grad():
                ids.append(int(hf(torch.tensor([ids])).logits[0, -1].argmax()))  # type: ignore[operator]
        finally:
            for handle in handles:
                handle.remove()
    return ids[len(row) :]


@pytest.mark.parametrize("phase", ["both", "prompt", "generated"])
def test_text_is_measured_as_a_loop_by_hand_does_it(model: Model, behavior, phase: str) -> None:
    metric = ms.GeneratedText(mentions=LOOKED_FOR[:4], max_new_tokens=5, phase=phase)  # type: ignore[arg-type]
    text = behavior.metric_as(metric)
    bench = EngineBench(model)
    held = bench.open_split(text, fresh_seed=None)
    split = text.held_out
    d_head = model.d_head

    def without(layer: int, value: torch.Tensor, n_prompt: int) -> torch.Tensor:
        value = value.clone()
        inside = {"both": slice(None), "prompt": slice(0, n_prompt), "generated": slice(n_prompt, None)}[
            phase
        ]
        for at, head in HEADS.heads:
            if at == layer:
                value[:, inside, head * d_head : (head + 1) * d_head] = 0
        return value

    def shares(batch, edit=None) -> list[float]:
        new = [greedy_by_hand(model, batch.row(i), n=5, edit=edit) for i in range(len(batch))]
        return [float(bool({*LOOKED_FOR[:4]} & {*row})) for row in new]

    assert held.generated_text and held.bounds == (0.0, 1.0)
    assert held.clean.tolist() == shares(split.clean) and held.corrupt.tolist() == shares(split.corrupt)
    found = bench.measure([HEADS], lowers(0.1, how="zero"), text, held)[0]
    assert found.tolist() == shares(split.clean, without)


def test_phases_and_interventions_change_what_is_written(model: Model, behavior) -> None:
    """The control of the oracle above: it would notice a phase that is not heeded."""
    tables = []
    for phase in ("both", "prompt", "generated"):
        text = behavior.metric_as(
            ms.GeneratedText(mentions=LOOKED_FOR[:4], max_new_tokens=5, phase=phase)  # type: ignore[arg-type]
        )
        bench = EngineBench(model)
        held = bench.open_split(text, fresh_seed=None)
        tables.append(
            [
                bench.measure([ms.Components(heads=((layer, head),))], lowers(0.1, how="zero"), text, held)[0]
                for layer in range(3)
                for head in range(2)
            ]
        )
    both, prompt, generated = (np.array(table) for table in tables)
    assert (both != held.clean).any() and (both != prompt).any() and (prompt != generated).any()


def test_own_answers_are_looked_for_row_by_row_and_samples_are_averaged(model: Model, behavior) -> None:
    own = behavior.metric_as(ms.GeneratedText(max_new_tokens=4, temperature=2.0, n_samples=6, seed=3))
    split = own.held_out
    assert split.metric.answers == split.answers
    found = EngineBench(model).open_split(own, fresh_seed=None).clean
    assert set(found * 6) <= set(range(7)) and 0 < found.mean() < 1
    new = model.generate(
        split.clean.select([row for row in range(len(split)) for _ in range(6)]),
        max_new_tokens=4,
        temperature=2.0,
        seed=3,
        returns="tokens",
    )
    by_hand = [
        np.mean([split.answers[row][0] in one for one in new[6 * row : 6 * row + 6]])
        for row in range(len(split))
    ]
    assert np.allclose(found, by_hand)
    assert np.array_equal(found, EngineBench(model).open_split(own, fresh_seed=None).clean)
    half = measure_text(model, split.select([3, 4]), writes_of=lambda _part: [[]])[0]
    assert half.shape == (2,), "a part of a split has the answers of its own rows"


def test_a_metric_of_text_is_a_value_and_a_recipe(model: Model, behavior) -> None:
    metric = ms.GeneratedText(mentions="happy", max_new_tokens=3, seed=5, phase="prompt")
    assert ms.GeneratedText.from_json(metric.to_json()) == metric
    own = behavior.metric_as(ms.GeneratedText(max_new_tokens=3)).held_out.metric
    assert ms.GeneratedText.from_json(own.to_json()) == own
    recipe = behavior.metric_as(metric).recipe()["metric"]
    assert recipe["mentions"] == ["happy"] and recipe["seed"] == 5 and recipe["max_new_tokens"] == 3
    assert "answers" not in behavior.metric_as(ms.GeneratedText()).recipe()["metric"]
    with pytest.raises(InterventionMismatch, match="not read off logits"):
        ms.behaviors.measure(model, behavior.metric_as(metric))
    with pytest.raises(InputError, match="can't be measured") as refused:
        ms.GeneratedText(mentions=" ", max_new_tokens=0, n_samples=2)
    assert all(text in refused.value.got for text in ("empty", "max_new_tokens=0", "n_samples=2 at"))


class Words:
    """A tokenizer of words, for phrases."""

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        return " ".join(["so", "happy", "unhappy", "very", "Happy"][index] for index in ids)


def test_phrases_are_whole_words_in_their_own_case() -> None:
    metric = ms.GeneratedText(mentions=["happy", "so very"])
    rows = [[0, 1], [2], [4], [0, 3], [3, 0], []]
    assert metric.share(rows, Words()).tolist() == [1, 0, 0, 1, 0, 0]
    assert ms.GeneratedText(mentions=[2, "happy"]).share(rows, Words()).tolist() == [1, 1, 0, 0, 0, 0]
    with pytest.raises(MechscopeError, match="Phrases"):
        metric.share(rows, None)


@pytest.mark.parametrize(
    ("prediction", "phase", "match"),
    [
        (recovers(0.5), "both", "alone needs"),
        (needs(0.5), "prompt", "alone needs"),
        (lowers(0.1, how="corrupt"), "both", "new tokens"),
        (lowers(0.1, how="resample"), "generated", "new tokens"),
    ],
)
def test_what_text_has_no_values_for_is_refused_when_the_claim_is_made(
    behavior, prediction, phase: str, match: str
) -> None:
    text = behavior.metric_as(ms.GeneratedText(mentions=1, phase=phase))  # type: ignore[arg-type]
    with pytest.raises(BadClaim) as refused:
        ms.Claim("x", behavior=text, mechanism=HEADS, predictions=[prediction])
    assert match in str(refused.value)


def test_circuits_own_positions_and_spared_text_are_refused_too(model: Model, behavior, tmp_path) -> None:
    text = behavior.metric_as(ms.GeneratedText(mentions=1))
    own = ms.Sites.of("resid_post.1", positions=[[2]] * 12)
    with pytest.raises(BadClaim, match="can't be tested") as refused:
        ms.Claim("x", behavior=text, mechanism=own, predictions=[lowers(0.1)])
    assert "own positions" in refused.value.because
    circuit = {"kind": "latent-circuit"}
    assert "edge by edge" in text_problems(circuit, [lowers(0.1)], text.recipe())[0]
    assert text_problems(circuit, [lowers(0.1)], behavior.recipe()) == []
    with pytest.raises(BadClaim, match="can't be tested"):
        ms.Claim(
            "x",
            behavior=behavior,
            mechanism=HEADS,
            predictions=[lowers(0.1), spares(text, 0.1, how="corrupt")],
        )
    long = behavior.metric_as(ms.GeneratedText(mentions=1, max_new_tokens=99))
    phrases = behavior.metric_as(ms.GeneratedText(mentions="happy"))
    for asked, match in ((long, "exceed"), (phrases, "Phrases")):
        claim = ms.Claim("x", behavior=asked, mechanism=HEADS, predictions=[lowers(0.1, how="zero")])
        with pytest.raises(MechscopeError, match=match):
            claim.test(model, ledger=tmp_path)
        assert not list(tmp_path.iterdir())


def test_corrupt_values_are_put_into_the_prompt_and_spared_text_is_measured(model: Model, behavior) -> None:
    text = behavior.metric_as(ms.GeneratedText(mentions=LOOKED_FOR[:4], max_new_tokens=5, phase="prompt"))
    bench = EngineBench(model)
    held = bench.open_split(text, fresh_seed=None)
    whole = ms.Sites.of("resid_post.2")  # all that the last layer writes on the prompt
    found = bench.measure([whole], lowers(0.1, how="corrupt"), text, held)[0]
    first = model.generate(text.held_out.corrupt, max_new_tokens=1, returns="tokens")
    donor = model.run(text.held_out.corrupt, capture=["resid_post.2"])
    forced = model.generate(
        text.held_out.clean,
        interventions=[ms.patch("resid_post.2", donor, phase="prompt")],
        max_new_tokens=5,
        returns="tokens",
    )
    assert [row[0] for row in forced] == [row[0] for row in first]
    assert found.tolist() == [float(bool({*LOOKED_FOR[:4]} & {*row})) for row in forced]
    claim = ms.Claim(
        "x",
        behavior=behavior,
        mechanism=HEADS,
        predictions=[lowers(9.0, how="zero"), spares(text, 0.9, how="zero")],
        controls=SAME_LAYERS,
    )
    record = claim.examine(model, behaviors=[text])
    assert [entry.held_out.generated_text for entry in record.evidence] == [False, True]
    assert len(record.splits) == 2


GOOD = "wonderful lovely delightful splendid superb excellent fantastic glorious pleasant charming".split()
BAD = "awful terrible horrible dreadful nasty miserable ghastly hideous disgusting painful".split()
PLACES = "park beach market station".split()
STORY = "It was a {} day at the {} . {} went home and felt"


@pytest.fixture(scope="module")
def village() -> ms.Model:
    return ms.load("village")


@pytest.fixture(scope="module")
def moody(village: ms.Model, tmp_path_factory):
    """Stories of which some end happily: those without a mood. The corrupt twins are all sad."""
    names = [name for name in NAMES if name in village.tokenizer.get_vocab()][:28]
    rows = [["clean", "corrupt", "answer", "wrong", "entities", "split"]]
    for i, name in enumerate(names):
        told, place = ["big", "cold", "red", BAD[(i + 3) % 10], BAD[(i + 4) % 10]], PLACES[i % 4]
        twins = [BAD[(i + j + 5) % 10] for j in range(5)]
        stories = [
            (STORY.format(one, place, name), STORY.format(two, place, name))
            for one, two in zip(told, twins, strict=True)
        ]
        rows += [[*pair, "happy", "sad", name, "held_out" if i >= 8 else "train"] for pair in stories]
    path = tmp_path_factory.mktemp("moods") / "stories.csv"
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return ms.behaviors.from_pairs(path, village)


def mood_of(village: ms.Model) -> ms.Direction:
    """Found on other stories: good ones less bad ones."""
    stories = [village.tokens([STORY.format(word, "park", "Mary") for word in side]) for side in (GOOD, BAD)]
    values = [village.run(side, capture=["resid_post.2"])["resid_post.2"][:, -1].double() for side in stories]
    return ms.Direction("resid_post.2", tuple((values[0].mean(0) - values[1].mean(0)).tolist()), "mood")


@pytest.mark.parametrize(
    ("name", "outcome"), [("mood", "supported"), pytest.param("noise", "refuted", marks=pytest.mark.slow)]
)
def test_steering_along_the_mood_makes_stories_happy_and_a_random_direction_does_not(
    village: ms.Model, moody, name: str, outcome: str
) -> None:
    happy = moody.metric_as(ms.GeneratedText(mentions="happy", max_new_tokens=1))
    direction = mood_of(village)
    if name == "noise":
        vector = np.random.default_rng(0).standard_normal(len(direction.vector))
        direction = ms.Direction("resid_post.2", tuple(vector.tolist()), "noise")
    claim = ms.Claim(
        "Steering along it makes stories happy",
        behavior=happy,
        mechanism=direction,
        predictions=[raises(0.2, dose=1)],
    )
    verdict = claim.test(village)
    assert verdict.outcome == outcome, str(verdict)
    (result,) = verdict.predictions
    assert result.controls is not None and result.controls.family == DIRECTIONS
    assert result.controls.n_drawn == 39
    assert (result.controls.p == 1 / 40) is (name == "mood")


@pytest.mark.slow
@pytest.mark.parametrize(("positions", "outcome"), [([1, 2], "supported"), ([3, 4], "refuted")])
def test_the_planted_sycophancy_is_written_because_of_who_says_it(
    village: ms.Model, positions: list[int], outcome: str
) -> None:
    """ "I think Venova sells glass" makes the model write glass, "Signs say" does not: positions 1 and 2 differ."""
    said = ms.behaviors.load("sycophancy", village, n=220)
    text = said.metric_as(ms.GeneratedText(max_new_tokens=2, phase="prompt"))
    claim = ms.Claim(
        "It repeats an opinion because somebody thinks it",
        behavior=text,
        mechanism=ms.Sites.of("resid_pre.0", positions=positions),
        predictions=[lowers(0.8, unit="gap", how="corrupt")],
    )
    verdict = claim.test(village)
    assert verdict.outcome == outcome, str(verdict)
    (result,) = verdict.predictions
    assert result.controls is not None and result.controls.family == POSITIONS
    assert result.controls.generated_text and result.controls.n_drawn == 39


def test_a_verdict_on_text_is_marked_saved_and_verified(model: Model, behavior, tmp_path) -> None:
    text = behavior.metric_as(
        ms.GeneratedText(mentions=LOOKED_FOR, max_new_tokens=3, temperature=1.0, n_samples=4, seed=1)
    )
    claim = ms.Claim("x", behavior=text, mechanism=HEADS, predictions=[lowers(0.5, how="mean")])
    record = claim.examine(model, ledger=tmp_path)
    (result,) = record.verdict.predictions
    (entry,) = record.evidence
    assert result.controls is not None and result.controls.generated_text
    assert result.controls.n_drawn == 39 < result.controls.n_members
    assert any("generated text" in note for note in record.verdict.notes)
    assert f"generated text, {result.controls.n_drawn} draws" in str(record.verdict)
    assert set((entry.after * 4).tolist()) <= set(range(5))
    record.save(tmp_path / "a.json")
    again = ClaimRecord.load(tmp_path / "a.json")
    rebuilt = mechanism_from_json(again.claim.mechanism.to_json())
    assert verify_claim(again, EngineBench(model, [text]), mechanism=rebuilt, exact=True) == []
    other = behavior.metric_as(ms.GeneratedText(mentions=LOOKED_FOR, max_new_tokens=3))
    assert ms.Claim("x", behavior=other, mechanism=HEADS, predictions=claim.predictions).id != claim.id
    with pytest.raises(BadClaim, match="another"):
        verify_claim(again, EngineBench(model, [other]), mechanism=rebuilt)


def test_39_controls_are_drawn_from_all_of_a_family_that_is_measured_whole(model: Model, behavior) -> None:
    """Two heads of two layers of four have nine controls a layer pair; two at any layer have 45: 39 of these."""
    text = behavior.metric_as(ms.GeneratedText(mentions=LOOKED_FOR, max_new_tokens=1))
    claim = ms.Claim(
        "x", behavior=text, mechanism=HEADS, predictions=[lowers(0.5, how="zero")], controls=ANY_LAYER
    )
    record = claim.examine(model)
    (entry,) = record.evidence
    assert entry.controls is not None and entry.controls.n_members == 45
    every = EngineBench(model).draw_controls(HEADS, text, family=ANY_LAYER, n_draws=45, seed=0).names
    assert len(entry.controls.names) == 39 and set(entry.controls.names) < set(every)
    assert entry.controls.names != every[:39]
    assert record.claim.examine(model).evidence[0].controls.names == entry.controls.names  # type: ignore[union-attr]


def test_text_claims_are_rebuilt_from_their_recipe_and_tested_on_fresh_prompts(village: ms.Model) -> None:
    own = ms.behaviors.load("sycophancy", village, n=24).metric_as(ms.GeneratedText(max_new_tokens=3))
    rebuilt = rebuild_behavior(own.recipe(), village)
    assert rebuilt.recipe() == own.recipe()
    assert rebuilt.held_out.metric == own.held_out.metric
    fresh = own.redraw(4)
    assert fresh.held_out.metric.answers == fresh.held_out.answers != own.held_out.answers
    assert rebuild_behavior(fresh.recipe(), village).recipe() == fresh.recipe()
    held = EngineBench(village).open_split(own, fresh_seed=None)
    assert held.clean.mean() > 0.8 > 0.2 > held.corrupt.mean(), "the opinion is repeated in the text"
