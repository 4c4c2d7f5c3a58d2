"""A user's own pairs: read, grouped, divided, and refused with everything that is wrong."""

import json
from pathlib import Path

import pytest
import torch

from behaviors.speakers import NAMES, small_model, speechless_model
from mechscope.behaviors import from_pairs, from_tokens
from mechscope.interventions.metrics import Accuracy, LogitDifference, LogProbability, ProbabilityDifference
from mechscope.vocabulary.errors import (
    BadFile,
    BadPairs,
    MissingTokenizer,
    PairLengthMismatch,
    UnsafeFile,
)


def row(one: str, two: str, **more: object) -> dict[str, object]:
    return {
        "clean": f"{one} gave the ball to {two}. Then",
        "corrupt": f"{two} gave the ball to {one}. Then",
        "answer": one,
        "wrong": two,
    } | more


def couples() -> list[tuple[str, str]]:
    return list(zip(NAMES[0::2], NAMES[1::2], strict=True))


def save(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(item) for item in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Each couple both ways round, with its names as entities."""
    rows = [row(a, b, entities=[a, b]) for a, b in couples()] + [
        row(b, a, entities=[a, b]) for a, b in couples()
    ]
    return save(tmp_path / "gifts.jsonl", rows)


def test_pairs_of_one_entity_stay_in_one_split(pairs: Path) -> None:
    gifts = from_pairs(pairs, small_model())
    assert gifts.name == "gifts" and gifts.sizes == {"train": 4, "validation": 2, "held_out": 6}
    assert isinstance(gifts.metric, LogitDifference)
    owners = {}
    for name, split in gifts.splits.items():
        for entities in split.entities:
            for entity in entities:
                assert owners.setdefault(entity, name) == name


def test_the_assignment_depends_on_the_seed_and_on_nothing_else(pairs: Path) -> None:
    first, again, other = (from_pairs(pairs, small_model(), seed=seed).recipe() for seed in (0, 0, 7))
    assert first == again and first["splits"] != other["splits"]
    assert first["settings"]["file"] == "gifts.jsonl" and len(first["settings"]["file_sha256"]) == 64
    assert str(pairs.parent) not in json.dumps(first)


def test_json_lines_json_and_csv_say_the_same(pairs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    (tmp_path / "gifts.json").write_text(json.dumps(rows))
    lines = ["clean,corrupted,answers,wrong,entity"]
    lines += [
        f'"{r["clean"]}","{r["corrupt"]}",{r["answer"]},{r["wrong"]},{"|".join(r["entities"])}' for r in rows
    ]
    (tmp_path / "gifts.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n")
    read = [from_pairs(tmp_path / f"gifts.{ending}", small_model()) for ending in ("jsonl", "json", "csv")]
    assert len({loaded.held_out.data_hash for loaded in read}) == 1
    assert len({loaded.held_out.labels_hash for loaded in read}) == 1


def test_a_split_column_is_followed_and_an_overlap_refused(tmp_path: Path) -> None:
    names = ["train", "train", "validation", "held_out", "held_out", "held_out"]
    rows = [row(a, b, entities=[a, b], split=name) for (a, b), name in zip(couples(), names, strict=True)]
    assert from_pairs(save(tmp_path / "a.jsonl", rows), small_model()).sizes == {
        "train": 2,
        "validation": 1,
        "held_out": 3,
    }
    rows.append(row(*reversed(couples()[0]), entities=list(couples()[0]), split="held_out"))
    with pytest.raises(BadPairs, match="'Ada' in train and held_out"):
        from_pairs(save(tmp_path / "b.jsonl", rows), small_model())


def test_without_entities_pairs_are_grouped_by_answers_and_the_recipe_says_so(tmp_path: Path) -> None:
    rows = [row(a, b) for a, b in couples()] + [row(b, a) for a, b in couples()]
    gifts = from_pairs(save(tmp_path / "gifts.jsonl", rows), small_model())
    assert gifts.recipe()["settings"]["grouped_by"] == "answer word"
    assert any("pairs of one answer word" in note for note in gifts.notes)
    few = [
        row("Ada", "Bob") | {"clean": f"{n} saw Ada. Then", "corrupt": f"{n} saw Bob. Then"}
        for n in NAMES[2:]
    ]
    loaded = from_pairs(save(tmp_path / "few.jsonl", few), small_model())
    assert loaded.recipe()["settings"]["grouped_by"] == "prompt"


def test_too_few_pairs_for_three_splits_are_all_for_looking(tmp_path: Path) -> None:
    rows = [row(a, b) for a, b in couples()[:3]]
    small = from_pairs(save(tmp_path / "small.jsonl", rows), small_model())
    assert small.sizes == {"train": 3, "validation": 0, "held_out": 0}
    assert any("no held-out prompts" in note for note in small.recipe()["notes"])


def test_without_foils_the_metric_is_the_log_probability(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row(a, b).items() if key != "wrong"} for a, b in couples()]
    path = save(tmp_path / "gifts.jsonl", rows)
    assert isinstance(from_pairs(path, small_model()).metric, LogProbability)
    with pytest.raises(BadPairs, match="needs a wrong answer for every pair"):
        from_pairs(path, small_model(), metric="logit_difference")


def test_sets_of_answers_are_measured_by_probability_difference(tmp_path: Path) -> None:
    rows = [row(a, b, answer=[a, "dog"], wrong=[b]) for a, b in couples()]
    gifts = from_pairs(save(tmp_path / "gifts.jsonl", rows), small_model())
    assert isinstance(gifts.metric, ProbabilityDifference) and len(gifts.train.answers[0]) == 2


def test_different_token_lengths_are_refused_with_both_tokenisations_and_the_line(tmp_path: Path) -> None:
    rows = [row(a, b) for a, b in couples()]
    rows[1]["corrupt"] = "Then Cy gave the dog to Dee. Then"
    with pytest.raises(PairLengthMismatch) as refusal:
        from_pairs(save(tmp_path / "gifts.jsonl", rows), small_model())
    assert "line 2: clean has 9 tokens ['[BOS]', 'Cy', 'gave'" in refusal.value.got
    assert "corrupt 10 ['[BOS]', 'Then', 'Cy'" in refusal.value.got


def test_every_bad_row_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(
        "clean,corrupt,answer,wrong\n"
        "Ada saw,,Ada,Bob\n"
        "Ada saw the,Bob saw,Ada,Bob\n"
        "Ada saw,Bob saw,elephant,Bob\n"
        "Ada saw,Bob saw,NaN,Bob\n"
        "Ada saw,Bob saw,Ada,Ada\n"
        "Ada saw,Ada saw,Ada,Bob\n"
        "Ada saw,Bob saw,Ada,Bob,extra\n"
        "Cy saw,Dee saw,Cy,Dee\n"
    )
    with pytest.raises(BadPairs, match="7 of 8 pairs") as refusal:
        from_pairs(tmp_path / "bad.csv", small_model())
    told = [line.strip() for line in refusal.value.got.splitlines()]
    assert [line.split(":")[0] for line in told] == [f"line {number}" for number in range(2, 9)]
    for line, text in zip(
        told, ("corrupt is empty", "tokens", "'elephant' is not one token", "answer"), strict=False
    ):
        assert text in line
    assert "also wrong" in told[4] and "same tokens" in told[5] and "more cells" in told[6]


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path: Path) -> None:
    rows = [row("Ada", "Bob", answer="") for _ in range(20)]
    with pytest.raises(BadPairs) as refusal:
        from_pairs(save(tmp_path / "bad.jsonl", rows), small_model())
    assert "and 12 more" in refusal.value.got


@pytest.mark.parametrize(
    ("name", "content", "error", "text"),
    [
        ("empty.csv", "", BadFile, "no pairs"),
        ("header.csv", "clean,corrupt,answer\n", BadFile, "no pairs"),
        ("columns.csv", "good,bad\na,b\n", BadPairs, "lacks 'clean' and 'corrupt' and 'answer'"),
        ("twice.csv", "clean,clean,corrupt,answer\na,b,c,d\n", BadPairs, "a column twice"),
        (
            "alias.jsonl",
            '{"clean": "Ada", "corrupt": "Bob", "answer": "Cy", "answers": "Dee"}\n',
            BadPairs,
            "can't be used",
        ),
        ("torn.csv", 'clean,corrupt,answer\n"Ada,Bob,Cy\n', BadFile, "not a whole table"),
        ("torn.jsonl", '{"clean": "Ada"', BadPairs, "can't be used"),
        ("list.jsonl", "[1, 2]\n", BadPairs, "can't be used"),
        ("nan.jsonl", '{"clean": NaN, "corrupt": "Bob", "answer": "Cy"}\n', BadPairs, "can't be used"),
        ("object.json", '{"clean": "Ada"}', BadFile, "no list of pairs"),
        ("deep.jsonl", "[" * 100_000 + "\n", BadPairs, "can't be used"),
        ("pairs.txt", "Ada", BadFile, "no file of pairs"),
        ("split.csv", "clean,corrupt,answer,split\nAda,Bob,Cy,test\n", BadPairs, "can't be used"),
        ("pairs.pkl", "x", UnsafeFile, "pickle"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, name: str, content: str, error: type, text: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=text):
        from_pairs(tmp_path / name, small_model())


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("clean,corrupt,answer\nété,hiver,x\n".encode("latin-1"))
    with pytest.raises(BadFile, match="not UTF-8"):
        from_pairs(tmp_path / "latin.csv", small_model())


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="not a file"):
        from_pairs(tmp_path / "nothing.csv", small_model())


def test_a_prompt_longer_than_the_context_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [row(a, b) for a, b in couples()]
    rows[3]["clean"] = "Ada " * 60
    with pytest.raises(BadPairs) as refusal:
        from_pairs(save(tmp_path / "long.jsonl", rows), small_model())
    assert "line 4: " in refusal.value.got and "context" in refusal.value.got


def test_columns_that_mean_nothing_here_and_unknown_words_are_said(tmp_path: Path) -> None:
    rows = [row(a, b, comment="x") for a, b in couples()]
    rows[0] |= {"clean": "Ada kicked Bob. Then", "corrupt": "Bob kicked Ada. Then"}
    loaded = from_pairs(save(tmp_path / "gifts.jsonl", rows), small_model())
    assert loaded.recipe()["settings"]["ignored_columns"] == ["comment"]
    assert "1 of 6 pairs hold words that the tokenizer does not know" in loaded.notes


def test_a_file_needs_a_tokenizer(pairs: Path) -> None:
    with pytest.raises(MissingTokenizer):
        from_pairs(pairs, speechless_model())


def test_an_answer_without_a_space_before_it(tmp_path: Path) -> None:
    rows = [
        {"clean": f"{a} saw ( the dog", "corrupt": f"{a} saw [ the dog", "answer": ")", "wrong": "]"}
        for a in NAMES
    ]
    path = save(tmp_path / "brackets.jsonl", rows)
    loaded = from_pairs(path, small_model(), space=False)
    assert loaded.train.answers[0] == (small_model().token(")"),)
    assert loaded.recipe()["settings"]["space"] is False


def test_token_pairs_come_as_tensors_lists_or_rows_of_different_length() -> None:
    clean, corrupt = [[1, 2, 3], [1, 2, 3, 4]], [[1, 5, 3], [1, 6, 3, 4]]
    own = from_tokens(clean, corrupt, answers=[11, 12], wrong=[21, 22])
    assert [own.clean.row(0), own.clean.row(1)] == clean
    sets = from_tokens(clean, corrupt, answers=[[11, 13], [12]], wrong=[[21], [22]])
    assert sets.train.answers == ((11, 13), (12,))
    same = from_tokens(
        torch.tensor(clean[:1]),
        torch.tensor(corrupt[:1]),
        answers=torch.tensor([11]),
        wrong=torch.tensor([21]),
    )
    assert (
        same.train.data_hash == from_tokens(clean[:1], corrupt[:1], answers=[11], wrong=[21]).train.data_hash
    )


def test_rows_are_dealt_out_or_go_where_the_caller_says() -> None:
    clean = torch.arange(36).reshape(12, 3)
    dealt = from_tokens(clean, clean.flip(1), answers=[40] * 12, wrong=[41] * 12)
    assert dealt.sizes == {"train": 4, "validation": 2, "held_out": 6}
    chosen = ["train"] * 10 + ["held_out"] * 2
    told = from_tokens(clean, clean.flip(1), answers=[40] * 12, wrong=[41] * 12, splits=chosen)
    assert told.held_out.clean.ids.tolist() == clean[10:].tolist()
    with pytest.raises(BadPairs, match="name of a split"):
        from_tokens(clean, clean.flip(1), answers=[40] * 12, wrong=[41] * 12, splits=["test"] * 12)


def test_token_rows_that_share_a_prompt_go_to_one_split() -> None:
    clean = torch.arange(36).reshape(12, 3).repeat(2, 1)
    corrupt = torch.cat([clean[:12].flip(1), clean[12:].roll(1, 1)])
    own = from_tokens(clean, corrupt, answers=[40] * 24, wrong=[41] * 24)
    for split in own.splits.values():
        rows = [tuple(ids) for ids in split.clean.ids.tolist()]
        assert all(rows.count(ids) == 2 for ids in rows)
        assert split.n_units == len(split) // 2


def test_token_pairs_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(PairLengthMismatch, match="differ in number"):
        from_tokens([[1, 2]], [[1, 3]], answers=[4, 5])
    with pytest.raises(PairLengthMismatch, match="different token lengths"):
        from_tokens([[1, 2]], [[1, 2, 3]], answers=[4])
    with pytest.raises(PairLengthMismatch, match="There are no pairs"):
        from_tokens([], [], answers=[])
    with pytest.raises(BadPairs, match="can't be used"):
        from_tokens([[1, 2]], [[1, 3]], answers=[4], wrong=[4])
    with pytest.raises(BadPairs, match="can't be used"):
        from_tokens([[1, 2]], [[1, 2]], answers=[4], wrong=[5])


def test_accuracy_is_against_every_token_where_some_pair_has_no_foil() -> None:
    """Of a pair without a foil, an accuracy against foils would be 1 whatever the model says."""
    mixed = from_tokens(
        [[1, 2], [3, 4]], [[1, 5], [3, 6]], answers=[7, 8], wrong=[[9], []], metric="accuracy"
    )
    assert mixed.metric == Accuracy(answers=((7,), (8,)))
    logits = torch.zeros(2, 1, 20)
    logits[:, 0, 11] = 1.0
    assert mixed.metric.measure(logits).tolist() == [0.0, 0.0]
    both = from_tokens([[1, 2], [3, 4]], [[1, 5], [3, 6]], answers=[7, 8], wrong=[9, 10], metric="accuracy")
    assert both.metric == Accuracy(answers=((7,), (8,)), wrong=((9,), (10,)))
