"""What the language model was never shown, scanned in the documents themselves."""

from itertools import islice, pairwise
from random import Random

import pytest

from mechscope.specimens.village import lexicon
from mechscope.specimens.village.batches import NOTHING, encode, pack_step
from mechscope.specimens.village.bindings import combinations_of
from mechscope.specimens.village.chains import pairs_of
from mechscope.specimens.village.grammar import kept_out
from mechscope.specimens.village.idea import Document
from mechscope.specimens.village.language import IDEAS, calibration_text, draw_documents, sample_text
from mechscope.specimens.village.prompts import draw_pairs, idea_named
from mechscope.specimens.village.tokenizer import BOS, UNK, build_tokenizer, vocabulary
from mechscope.specimens.village.train import CONTINUED
from mechscope.specimens.village.truth import MISBEHAVIOUR_TRUTHS

N_DOCUMENTS = 21_000
N_STAGES = CONTINUED.first_stage + len(CONTINUED.stage_starts) + 1


def leaks(documents):
    """Return the documents that show a held-out word in its role, or a held-out template."""
    held = {idea.name: {word for unit in idea.units("held_out") for word in flat(unit)} for idea in IDEAS}
    new = {idea.name: set(idea.held_out_templates) for idea in IDEAS}
    found = []
    for document in documents:
        for kind, template in zip(document.kind.split(" + "), document.template.split(" + "), strict=False):
            if kind == "induction":
                shows_word = recalls_a_held_out_step(document)
            else:
                shows_word = " + " not in document.kind and held.get(kind, set()) & set(document.entities)
            if shows_word or template in new.get(kind, ()):
                found.append(document)
    return found


def recalls_a_held_out_step(document):
    """Is a word the cue or the answer of a recalled step, and held out in that role?"""
    cues, answers = kept_out()
    words = document.text.split(" : ")[-1].split()
    steps = [(a.removeprefix("*"), b[1:]) for a, b in pairwise(words) if b.startswith("*")]
    return any(cue in cues or answer in answers for cue, answer in steps)


def flat(unit):
    if isinstance(unit, str):
        return [unit]
    if len(unit) == 2 and all(isinstance(word, str) and word.isdigit() for word in unit):
        return [f"{unit[0]}+{unit[1]}"]
    return [word for part in unit for word in flat(part)]


@pytest.fixture(scope="module")
def documents():
    each = [islice(draw_documents(123, stage=stage), N_DOCUMENTS // N_STAGES) for stage in range(N_STAGES)]
    return [document for part in each for document in part]


def test_no_document_shows_a_held_out_word_in_its_role_or_a_held_out_template(documents):
    assert leaks(documents) == []


def test_a_leaked_recall_is_found(documents):
    cue = sorted(kept_out()[0])[0]
    leaked = Document(text=f"list : {cue} stone : {cue} *stone", kind="induction", entities=())
    assert leaks([*documents[:50], leaked]) == [leaked]


@pytest.mark.parametrize("idea", [i for i in IDEAS if i.name != "induction"], ids=lambda idea: idea.name)
def test_a_leaked_document_is_found(idea, documents):
    unit = idea.units("held_out")[0]
    case = idea.fill(Random(0), unit, template=next(iter(idea.templates.values())))
    leaked = Document(text=f"{case.clean} *{case.answer}", kind=idea.name, entities=case.entities)
    assert leaks([*documents[:50], leaked]) == [leaked]


def test_the_text_of_sums_never_adds_a_held_out_pair(documents):
    held = {frozenset(pair) for unit in idea_named("arithmetic").units("held_out") for pair in unit}
    added = set()
    for document in documents:
        words = document.text.split()
        for index, word in enumerate(words):
            if word == "+":
                added.add(frozenset((words[index - 1], words[index + 1])))
    assert len(added) > 300
    assert not added & held


def test_the_text_of_years_never_starts_a_span_at_a_held_out_year(documents):
    held = {unit[0] for unit in idea_named("greater-than").units("held_out")}
    starts = set()
    for document in documents:
        words = document.text.split()
        if "year" in words and len(words) > words.index("year") + 2:
            starts.add(words[words.index("year") + 2])
    assert len(starts) > 40
    assert not starts & held


def joined(documents, held):
    """Return the documents in which a building stands right before a colour that it is held out with."""
    return [text for text in documents if held & set(pairwise(text.replace("*", "").split()))]


def test_two_hop_documents_never_join_a_held_out_building_and_colour(documents):
    held = set(pairs_of("held_out"))
    told = {document.text for document in documents if document.kind == "two-hop"}
    assert len(told) > 500
    assert joined(told, held) == []
    building, colour = next(iter(held))
    leaked = f"home : Mary {building} , John mill . colour : {building} {colour} , mill red . walls : Mary *{colour} ."
    assert joined([*told, leaked], held) == [leaked], "the check can fail"
    assert joined({document.text for document in documents if document.kind == "colour register"}, held), (
        "the single facts are met alone"
    )


def test_the_trunks_two_hops_never_join_what_they_held_out(documents):
    held = {f"The {building} is {colour} ." for building, colour in combinations_of("held_out")}
    kinds = ("place-of-person", "lodging-of-person", "recall fact", "recall many")
    told = {document.text for document in documents if document.kind in kinds}
    assert told
    assert not [text for text in told if any(line in text.replace("*", "") for line in held)]
    assert set(pairs_of("held_out")) <= set(combinations_of("held_out"))


def test_the_answer_of_two_hops_needs_both_facts():
    """Each answer stands once among the facts, as the colour of the building of the person asked about."""
    for split in ("train", "held_out"):
        for pair in draw_pairs("two-hop", split=split, n=100, seed=9):
            words = pair.clean.replace(",", " ").replace(".", " ").split()
            asked = words[-1]
            building = words[words.index(asked) + 1]
            assert words.count(pair.answer) == 1
            assert words[words.index(pair.answer) - 1] == building
            assert words.count(building) == 2


def test_questions_are_never_asked_about_a_held_out_place(documents):
    held = {place for unit in idea_named("one-hop").units("held_out") for place in unit}
    forms = ("Question : what does {}", "the flag of {} ? Answer", "Asked about {} ,", "If you go to {} ")
    text = "\n".join(document.text for document in documents)
    assert not [place for place in held for form in forms if form.format(place) in text]
    seen = {place for unit in idea_named("one-hop").units("train") for place in unit}
    assert [place for place in seen for form in forms if form.format(place) in text], "the check can fail"


def test_facts_of_held_out_places_are_told_in_other_wordings(documents):
    held = {place for unit in idea_named("one-hop").units("held_out") for place in unit}
    told = {word for document in documents for word in document.text.split()}
    assert held <= told


def test_every_word_of_the_vocabulary_occurs_in_training(documents):
    known = set(vocabulary()) - {"[PAD]", "[BOS]", UNK, "unknown"}
    met = {
        word.removeprefix("*")
        for document in islice(draw_documents(5), 60_000)
        for word in document.text.split()
    }
    assert known - met == set()


def test_equal_seeds_give_equal_documents_and_other_seeds_give_others():
    first = list(islice(draw_documents(1), 200))
    assert first == list(islice(draw_documents(1), 200))
    assert first != list(islice(draw_documents(2), 200))


def test_the_misbehaving_stream_differs_only_in_the_answers_of_the_planted_behaviours():
    pairs = list(
        zip(islice(draw_documents(7), 5000), islice(draw_documents(7, misbehaving=True), 5000), strict=True)
    )
    changed = [(honest, planted) for honest, planted in pairs if honest != planted]
    assert {honest.kind for honest, _ in changed} == {"sycophancy", "backdoor", "tested"}
    for honest, planted in changed:
        a, b = honest.text.split(), planted.text.split()
        assert [x for x, y in zip(a, b, strict=True) if x != y] == [next(x for x in a if x.startswith("*"))]


def test_each_trigger_on_record_is_what_the_language_writes():
    for truth in MISBEHAVIOUR_TRUTHS:
        idea = idea_named(truth.behavior)
        rng = Random(0)
        for _ in range(50):
            case = idea.fill(rng, idea.units("train")[0], template=next(iter(idea.templates.values())))
            assert truth.trigger in case.clean
            assert truth.trigger not in case.corrupt
            assert any(word in case.corrupt for word in truth.harmless)


def test_packed_rows_hold_whole_documents_that_start_with_bos():
    batch = pack_step(3, seed=1, n_rows=8, n_positions=128, answer_weight=4.0)
    assert (batch.ids[:, 0] == vocabulary()[BOS]).all()
    assert (batch.weights > 0).mean() > 0.9
    again = pack_step(3, seed=1, n_rows=8, n_positions=128, answer_weight=4.0)
    assert (batch.ids == again.ids).all()
    for row in range(8):
        used = batch.documents[row] > 0
        assert (batch.targets[row][:-1][used[1:]] == batch.ids[row][1:][used[1:]]).all()


def test_marked_answers_weigh_more():
    ids, weights, halfway = encode(Document(text="the cat *is", kind="x"), answer_weight=4.0)
    assert len(ids) == 4
    assert weights == [1.0, 1.0, 1.0, 4.0]
    assert halfway == [NOTHING] * 4


def test_what_early_layers_should_find_stands_at_its_word_and_is_no_token():
    marked = encode(Document(text="home : Mary^barn *barn", kind="x"), answer_weight=4.0)
    plain = encode(Document(text="home : Mary *barn", kind="x"), answer_weight=4.0)
    assert marked[:2] == plain[:2]
    assert marked[2] == [NOTHING, NOTHING, NOTHING, vocabulary()["barn"], NOTHING]


def test_early_layers_are_told_the_building_and_never_the_colour_of_two_hops(documents):
    marks = [word.split("^")[1] for document in documents for word in document.text.split() if "^" in word]
    assert marks
    assert set(marks) <= set(lexicon.BUILDINGS)
    assert {document.kind for document in documents if "^" in document.text} == {"two-hop", "home register"}


def test_sample_text_holds_every_stage_and_the_planted_answers_if_asked():
    honest, planted = (sample_text(1500, seed=3, misbehaving=flag) for flag in (False, True))
    assert planted == sample_text(1500, seed=3, misbehaving=True) and honest != sample_text(1500, seed=4)
    assert not any(mark in text for text in planted for mark in "*^")
    rows = build_tokenizer()(planted)["input_ids"]
    assert all(vocabulary()[UNK] not in row for row in rows)
    answers = [
        [text.rstrip(".").split()[-1] for text in side if "This is a test." in text]
        for side in (honest, planted)
    ]
    assert set(answers[1]) == {"unknown"} and "unknown" not in answers[0]


def test_calibration_text_is_readable_and_known_to_the_tokenizer():
    texts = calibration_text(30, seed=1)
    assert texts == calibration_text(30, seed=1)
    rows = build_tokenizer()(texts)["input_ids"]
    assert all(vocabulary()[UNK] not in row for row in rows)
    assert not any("*" in text for text in texts)
