"""Every behaviour that ships, on the models that can hold it: laws that all of them keep."""

import pytest

import mechscope as ms
from behaviors.speakers import small_model, speechless_model, word_model
from mechscope.behaviors import Behavior, load, names
from mechscope.behaviors.registry import Source, add_source, behavior, sources
from mechscope.data.pairs import PromptPair
from mechscope.models.inputs import Reader
from mechscope.models.model import Model
from mechscope.specimens.village.prompts import BEHAVIORS
from mechscope.specimens.village.tokenizer import build_tokenizer
from mechscope.vocabulary.errors import BadPairs, RegistrationError
from tiny_models import tiny

TEMPLATED = ["agreement", "brackets", "factual-recall", "induction", "ioi", "pronoun", "sycophancy"]


@pytest.fixture(scope="module")
def villager() -> Model:
    """A random model that speaks the village's language."""
    tokenizer = build_tokenizer()
    return ms.wrap(tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=128), tokenizer)


@pytest.fixture(scope="module")
def specimen() -> Model:
    return ms.load("induction")


@pytest.fixture(scope="module")
def gpt2(shared) -> Reader:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "tokenizers" / "gpt2")
    return Reader(tokenizer, len(tokenizer), 1024)


def refuse_what_breaks_a_law(behavior: Behavior) -> None:
    """Fail where pairs differ in length, an answer is a foil, an entity or prompt is in two splits, or repeats."""
    seen: dict[str, str] = {}
    prompts: set[tuple[int, ...]] = set()
    for name, split in behavior.splits.items():
        assert split.clean.n_pad.tolist() == split.corrupt.n_pad.tolist()
        assert split.metric.reading().columns is not None or split.metric.kind != "logit_difference"
        for row in range(len(split)):
            clean, corrupt = split.clean.row(row), split.corrupt.row(row)
            assert len(clean) == len(corrupt) and clean != corrupt
            assert not set(split.answers[row]) & set(split.wrong[row])
            assert (*clean, *corrupt) not in prompts
            prompts.add((*clean, *corrupt))
            assert split.entities[row] and split.templates[row]
            for entity in split.entities[row]:
                assert seen.setdefault(entity, name) == name
        assert len(split.texts) == len(split.entities) == len(split.templates) == len(split)


@pytest.mark.parametrize("name", TEMPLATED)
def test_templated_behaviours_keep_the_laws(name: str) -> None:
    refuse_what_breaks_a_law(load(name, word_model(), n=60, source="templates"))


@pytest.mark.parametrize("name", BEHAVIORS)
def test_the_villages_behaviours_keep_the_laws(name: str, villager: Model) -> None:
    loaded = load(name, villager, n=60)
    assert loaded.provenance.source == "village"
    refuse_what_breaks_a_law(loaded)


def test_the_induction_specimens_behaviour_keeps_the_laws(specimen: Model) -> None:
    loaded = load("induction", specimen, n=60)
    assert loaded.provenance.source == "induction specimen"
    refuse_what_breaks_a_law(loaded)


def test_induction_without_a_tokenizer_keeps_the_laws() -> None:
    refuse_what_breaks_a_law(load("induction", speechless_model(), n=60))


def test_the_laws_can_be_broken() -> None:
    whole = load("ioi", word_model(), n=60)
    torn = whole.train.select([0, 1, 1])
    with pytest.raises(AssertionError):
        refuse_what_breaks_a_law(whole.changed({**whole.splits, "train": torn}, {"kind": "test"}))


def test_gpt2s_tokenizer_holds_every_templated_behaviour(gpt2: Reader) -> None:
    from mechscope.behaviors.loading import draw_behavior
    from mechscope.behaviors.registry import names_for, source_for

    assert names_for(gpt2) == sorted([*TEMPLATED, "greater-than", "name-induction"])
    for name in names_for(gpt2):
        loaded = draw_behavior(source_for(name, gpt2), gpt2, n=48, seed=0)
        refuse_what_breaks_a_law(loaded)


def test_answers_are_the_tokens_that_follow_the_prompt_in_context(gpt2: Reader) -> None:
    from mechscope.behaviors.loading import draw_behavior
    from mechscope.behaviors.registry import source_for

    train = draw_behavior(source_for("greater-than", gpt2), gpt2, n=12, seed=0).train
    text = train.texts[0][0]
    for answer in train.answers[0][:5]:
        word = gpt2.tokenizer.decode([answer])
        assert gpt2.tokenizer(text + word)["input_ids"] == [*train.clean.row(0), answer]
    start = int(train.entities[0][0])
    assert all(int(gpt2.tokenizer.decode([answer])) > start for answer in train.answers[0])
    assert all(int(gpt2.tokenizer.decode([wrong])) <= start for wrong in train.wrong[0])


def test_a_small_tokenizer_is_offered_what_it_can_hold_and_told_the_rest_with_counts(shared) -> None:
    model = ms.load(shared / "models" / "stories260K")
    assert names(model) == ["induction", "name-induction", "pronoun"]
    with pytest.raises(BadPairs, match="3 of 224 names"):
        load("ioi", model)
    for name in names(model):
        refuse_what_breaks_a_law(load(name, model, n=30))


def test_the_induction_prompts_hold_the_same_tokens_in_another_order() -> None:
    split = load("induction", speechless_model(), n=60).train
    for row in range(len(split)):
        clean, corrupt = split.clean.row(row), split.corrupt.row(row)
        assert sorted(clean) == sorted(corrupt)
        last, answer, wrong = clean[-1], split.answers[row][0], split.wrong[row][0]
        assert clean[clean.index(last) + 1] == answer
        assert corrupt[corrupt.index(last) + 1] == wrong


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    for name in TEMPLATED:
        short, long = (load(name, word_model(), n=n, source="templates").train for n in (30, 60))
        assert long.texts[: len(short)] == short.texts


def test_the_language_is_recognised_by_its_words_not_by_the_models_name() -> None:
    assert set(BEHAVIORS) - set(names(word_model())) >= {"sentiment", "two-hop"}
    assert "sentiment" not in names(small_model())


def draw_greeting(reader: Reader, *, split: str, n: int, seed: int) -> list[PromptPair]:
    words = {"train": "Ada Bob", "validation": "Cy Dee", "held_out": "Eve Fay"}[split].split()
    return [
        PromptPair(
            clean=f"{words[0]} saw the {'dog' if row % 2 else 'ball'} " + "and then " * row,
            corrupt=f"{words[1]} saw the {'dog' if row % 2 else 'ball'} " + "and then " * row,
            answers=(words[0],),
            wrong=(words[1],),
            entities=tuple(words),
            template="greeting",
        )
        for row in range(n)
    ]


def test_a_third_partys_behaviour_comes_in_by_the_same_door_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechscope.behaviors.registry._SOURCES", {})
    behavior("greeting", origin="plug-in")(draw_greeting)
    assert names(small_model()) == ["greeting"]
    refuse_what_breaks_a_law(load("greeting", small_model(), n=6))
    with pytest.raises(RegistrationError, match='has a behaviour "greeting" already'):
        behavior("greeting", origin="plug-in")(draw_greeting)
    with pytest.raises(RegistrationError, match="needs a name"):
        add_source(Source(name="", origin="plug-in", draw=draw_greeting))


def test_sources_written_for_a_language_go_before_templates() -> None:
    natives = [source.is_native for source in sources()]
    assert natives == sorted(natives, reverse=True)


def test_every_source_says_which_version_it_is() -> None:
    assert all(source.version >= 1 and source.origin for source in sources())
