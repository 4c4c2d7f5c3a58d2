"""Labels are kept, written and scored; a right label scores above chance and a wrong one does not."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from features.cases import corpus, dictionary_of, model_of, texts
from mechscope.features import shipped
from mechscope.features.explaining import Explainer, LanguageModel, TokenStatistics, written
from mechscope.features.index import FeatureIndex, open_index
from mechscope.features.labels import Labels
from mechscope.features.page import Example
from mechscope.features.scoring import Material, detect, find_intruders, fuzz, label_latent, score_label
from mechscope.features.shipping import label_busiest
from mechscope.vocabulary.errors import BadFile, EmptyPrompt, NotEnoughEvidence


def test_labels_are_kept_beside_the_index_and_survive_it(index: FeatureIndex) -> None:
    index.label(3, "  water  ")
    found = FeatureIndex(index.folder).labels
    assert found[3].text == "water" and found[3].by == "hand" and list(found) == [3] and 4 not in found
    assert any(one.label == "water" for i in range(24) if i != 3 for one in index.neighbors(i, k=23))
    found.remove(3)
    assert not len(Labels(index.folder / "labels.json"))
    with pytest.raises(EmptyPrompt):
        index.label(3, " ")


def test_labels_of_a_bundled_index_are_changed_in_a_file_of_ones_own_only(tmp_path: Path) -> None:
    shipped = open_index("village")
    latent, before = next(iter(shipped.labels)), shipped.labels.path.read_bytes()
    for change in (lambda: shipped.label(latent, "mine"), lambda: shipped.labels.remove(latent)):
        with pytest.raises(BadFile, match="can't be changed"):
            change()
    own = open_index("village", labels=tmp_path / "mine.json")
    assert own.labels[latent] == shipped.labels[latent]
    own.label(latent, "mine")
    again = open_index("village", labels=tmp_path / "mine.json")
    assert again.labels[latent].text == "mine" and len(again.labels) == len(shipped.labels)
    assert shipped.labels.path.read_bytes() == before and shipped.labels[latent].text != "mine"


@pytest.fixture
def shipped_folder(index: FeatureIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The index as one that ships with a model called tiny, one latent labelled."""
    index.label(3, "water")
    monkeypatch.setattr(shipped, "BUNDLED", tmp_path / "bundled")
    place = tmp_path / "bundled" / "tiny" / "features" / "resid_post.1"
    shutil.copytree(index.folder, place)
    return place


def test_an_index_with_its_model_at_hand_keeps_its_labels(shipped_folder: Path, tmp_path: Path) -> None:
    model, dictionary = model_of(), dictionary_of()
    before = {file: file.read_bytes() for file in shipped_folder.rglob("*") if file.is_file()}
    for name in ("tiny", shipped_folder):
        found = open_index(name).attached(model, dictionary)
        assert found.labels[3].text == "water"
        with pytest.raises(BadFile, match="can't be changed"):
            found.label(4, "written into the package")
    own = open_index("tiny", labels=tmp_path / "mine.json").attached(model, dictionary)
    own.label(4, "mine")
    assert own.labels.path == tmp_path / "mine.json" and {3, 4} <= set(own.labels)
    assert before == {file: file.read_bytes() for file in shipped_folder.rglob("*") if file.is_file()}


def test_text_is_not_added_to_a_bundled_index(shipped_folder: Path, index: FeatureIndex) -> None:
    before = {file: file.read_bytes() for file in shipped_folder.rglob("*") if file.is_file()}
    n_before = index.n_tokens
    with pytest.raises(BadFile, match="can't be added") as refusal:
        open_index("tiny").attached(model_of(), dictionary_of()).add(texts(3, 9))
    assert "ms.features.build" in refusal.value.instead
    assert before == {file: file.read_bytes() for file in shipped_folder.rglob("*") if file.is_file()}
    assert index.add(texts(3, 9)).n_tokens > n_before


def test_added_text_leaves_the_labels_in_the_file_they_are_in(index: FeatureIndex, tmp_path: Path) -> None:
    own = open_index(index.folder, labels=tmp_path / "mine.json").attached(model_of(), dictionary_of())
    own.label(4, "mine")
    assert own.add(texts(3, 9)).labels.path == tmp_path / "mine.json"


def test_a_file_that_is_no_file_of_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"format": "mechscope labels 1", "labels": {"x": 1}}')
    with pytest.raises(BadFile, match="no file of labels"):
        Labels(tmp_path / "labels.json")


def test_negatives_are_silent_and_half_of_them_hold_the_latent_s_own_tokens(index: FeatureIndex) -> None:
    material = Material(index, 11)
    negatives = material.negatives(8, 1)
    assert negatives and all(not any(one.values) for one in negatives)
    assert len({one.row for one in negatives[:4]}) == len(negatives[:4])
    assert all(one.value > 0 for one in material.firing(50, 1))


@pytest.mark.parametrize("latent", [0, 6, 11])
def test_a_test_sees_no_row_that_a_label_was_written_from(index: FeatureIndex, latent: int) -> None:
    text = corpus()
    row_of = np.repeat(np.arange(text.n_rows), text.lengths.numpy())
    material, rows = Material(index, latent), []
    for half in (0, 1):
        shown = [*material.firing(50, half), *material.negatives(50, half)]
        seen = {int(row_of[one.token]) for one in shown}
        # The window around a token stays in its row, so that no token is shared either.
        assert all(
            {int(row_of[one.token - one.peak + i]) for i in range(len(one.tokens))} <= seen for one in shown
        )
        rows.append(seen)
    assert rows[0] and rows[1] and not rows[0] & rows[1]


def test_the_busiest_latents_are_labelled_and_scored(index: FeatureIndex) -> None:
    label_busiest(index, n=4)
    busiest = np.argsort(-index.statistics.total, kind="stable")[:4].tolist()
    assert set(index.labels) <= set(busiest) and len(index.labels) >= 2
    assert any(index.labels[latent].scores for latent in index.labels)
    before = index.labels.path.read_bytes()
    label_busiest(index, n=4)
    assert index.labels.path.read_bytes() == before


class Oracle:
    """A judge that knows the latent: rates by the activations of the index itself, or the other way round."""

    def __init__(self, index: FeatureIndex, latent: int, sign: int = 1) -> None:
        self.fires = set(index.entries(latent).token.tolist())
        self.sign, self.name = sign, "oracle"

    def explain(self, fires, silent) -> str:
        return f"{len(fires)} texts against {len(silent)}"

    def rate(self, label, texts) -> list[float]:
        found = []
        for one in texts:
            marked = [i for i, v in enumerate(one.values) if v > 0] or range(len(one.tokens))
            hits = [one.token - one.peak + i in self.fires for i in marked]
            found.append(0.5 + self.sign * float(np.mean(hits)) / 2)
        return found

    def pick(self, texts) -> int:
        return int(np.argmin(self.rate("", texts))) if self.sign > 0 else 0


def test_a_judge_that_knows_the_latent_is_always_right_and_its_opposite_always_wrong(
    index: FeatureIndex,
) -> None:
    material = Material(index, 11)
    good, bad = Oracle(index, 11), Oracle(index, 11, -1)
    assert isinstance(good, Explainer)
    for test in (detect, fuzz):
        answers = test(material, "x", good, 10)
        assert answers and set(answers) == {1.0} and set(test(material, "x", bad, 10)) == {0.0}
    assert set(find_intruders(material, good, 5)) <= {1.0}
    label = label_latent(index, 11, explainer=good)
    assert label.text.endswith("against 12") or "texts against" in label.text
    scored = score_label(index, 11, judge=good).scores
    assert scored["detection"].value == 1 and scored["fuzzing"].low == 1 and scored["detection"].chance == 0.5
    assert FeatureIndex(index.folder).labels[11].scores == scored
    assert "detection" in index[11].to_html()


def test_a_judge_that_does_not_look_is_at_chance(index: FeatureIndex) -> None:
    index.label(11, "anything")
    blind = LanguageModel(lambda prompt: "", name="blind")
    score = score_label(index, 11, judge=blind).scores["detection"]
    assert score.value == score.low == score.high == 0.5 and score.judge == "blind"


def test_labels_and_scores_need_firings_and_a_label(index: FeatureIndex) -> None:
    with pytest.raises(NotEnoughEvidence, match="can't be labelled"):
        label_latent(index, 5, explainer=TokenStatistics())
    with pytest.raises(NotEnoughEvidence, match="no label"):
        score_label(index, 11, judge=TokenStatistics())
    index.label(5, "dead")
    with pytest.raises(NotEnoughEvidence, match="can't be scored"):
        score_label(index, 5, judge=TokenStatistics())


def example(text: str, *marked: int) -> Example:
    tokens = tuple(text.split())
    return Example(tokens, tuple(float(i in marked) for i in range(len(tokens))), 0, 0, 0)


def test_token_statistics_name_the_tokens_and_recognise_them() -> None:
    judge = TokenStatistics(n_words=2)
    fires = [example("the red house", 1), example("a red car", 1), example("blue red the", 1)]
    label = judge.explain(fires, [example("the blue house"), example("a the car")])
    assert label == 'on "red"'
    assert judge.rate(label, [example("the red"), example("the blue"), example("red the", 1)]) == [
        1.0,
        0.0,
        0.0,
    ]
    assert judge.rate("red things", [example("so Red")])[0] > 0
    assert judge.pick([example("a b c"), example("a b d"), example("x y z")]) == 2


def test_a_language_model_s_answers_are_read_strictly() -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return (
            "1: 10\n2: nonsense\n3. 4"
            if "rating" in prompt
            else '"colours"\nmore'
            if "marked" in prompt
            else "2"
        )

    model = LanguageModel(answer, name="m")
    texts = [example("the red", 1), example("a b"), example("c d")]
    assert model.explain(texts[:1], texts[1:]) == "colours" and "<<red>>" in asked[-1]
    assert model.rate("colours", texts) == [1.0, 0.5, 0.4]
    assert model.pick(texts) == 1
    assert LanguageModel(lambda _: "none", name="m").pick(texts) == -1
    assert written(texts[0], marks=True) == "the <<red>>"
