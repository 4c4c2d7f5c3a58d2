"""A claim is frozen: its contents are its id."""

import json
from pathlib import Path

import pytest

from claim_tables import ToyBehavior, ToyMechanism, toy_claim
from mechscope.claims.claim import Claim
from mechscope.claims.predictions import Prediction, lowers, recovers, spares
from mechscope.vocabulary.errors import BadClaim, BadFile, ClaimEdited, UnsafeFile


def test_equal_claims_have_equal_ids_and_any_edit_makes_another_claim():
    claim = toy_claim(lowers(1.0), recovers(0.5))
    assert toy_claim(lowers(1.0), recovers(0.5)).id == claim.id
    assert toy_claim(lowers(1.0), recovers(0.5)) == claim
    others = [
        toy_claim(lowers(1.1), recovers(0.5)),
        toy_claim(recovers(0.5), lowers(1.0)),
        toy_claim(lowers(1.0), recovers(0.5), seed=1),
        toy_claim(lowers(1.0), recovers(0.5), controls="random subspaces"),
        toy_claim(lowers(1.0), recovers(0.5), behavior=ToyBehavior(settings={"n": 121, "seed": 0})),
        toy_claim(lowers(1.0), recovers(0.5), mechanism=ToyMechanism(((1, (3,)),))),
        toy_claim(lowers(1.0), recovers(0.5), software={"mechscope": "0"}),
        Claim("Another sentence", ToyBehavior(), ToyMechanism(), [lowers(1.0), recovers(0.5)], "f"),
    ]
    assert len({claim.id, *(other.id for other in others)}) == len(others) + 1


@pytest.mark.parametrize("metric", ["rank", "kl"])
@pytest.mark.parametrize("prediction", [lowers(1.0), recovers(0.5)])
def test_a_metric_that_falls_where_the_behaviour_grows_is_refused(metric: str, prediction: Prediction):
    """Fewer ranks are better: "lowers" would call an improvement a loss, and the gap would look like none."""
    behavior = ToyBehavior(settings={"metric": {"kind": metric}})
    with pytest.raises(BadClaim, match=f"{metric} falls where the behaviour grows"):
        toy_claim(prediction, behavior=behavior)


def test_a_metric_that_grows_with_the_behaviour_is_not_refused_nor_is_sparing_by_rank():
    toy_claim(behavior=ToyBehavior(settings={"metric": {"kind": "accuracy"}}))
    toy_claim(lowers(1.0), spares(ToyBehavior("other", settings={"metric": {"kind": "rank"}}), 0.2))


def test_what_happens_to_the_objects_later_does_not_change_the_claim():
    behavior = ToyBehavior()
    predictions = [lowers(1.0)]
    claim = toy_claim(behavior=behavior, predictions=predictions)
    before = claim.id
    behavior.settings["n"] = 7
    predictions.append(recovers(0.5))
    assert claim.id == before
    assert len(claim.predictions) == 1


def test_a_claim_goes_through_a_file_and_back(tmp_path: Path):
    claim = toy_claim(lowers(1.0), spares(ToyBehavior("other"), 0.2))
    claim.save(tmp_path / "claim.json")
    again = Claim.load(tmp_path / "claim.json")
    assert again == claim
    assert again.id == claim.id
    assert again.predictions == claim.predictions
    assert again.mechanism.to_json() == claim.mechanism.to_json()
    assert again.behavior.recipe() == claim.behavior.recipe()


def test_a_claim_made_with_other_software_keeps_its_id_when_loaded(tmp_path: Path):
    claim = toy_claim(software={"mechscope": "0.0.1", "torch": None})
    claim.save(tmp_path / "claim.json")
    assert Claim.load(tmp_path / "claim.json").id == claim.id


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("statement",), "Heads 1.2 and 2.0 carry the object"),
        (("predictions", 0, "bound"), 0.1),
        (("controls",), "another family"),
        (("seed",), 1),
        (("mechanism", "json", "kind"), "edges"),
        (("behavior", "recipe", "n"), 1000),
        (("software", "numpy"), "0"),
        (("id",), "0" * 64),
    ],
)
def test_an_edited_claim_file_is_refused(tmp_path: Path, path: tuple, value: object):
    file = tmp_path / "claim.json"
    toy_claim().save(file)
    plain = json.loads(file.read_text())
    inner = plain
    for step in path[:-1]:
        inner = inner[step]
    assert inner[path[-1]] != value
    inner[path[-1]] = value
    file.write_text(json.dumps(plain))
    with pytest.raises(ClaimEdited, match="do not give its id"):
        Claim.load(file)


def test_reformatting_a_claim_file_is_no_edit(tmp_path: Path):
    file = tmp_path / "claim.json"
    toy_claim().save(file)
    file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items()))))
    assert Claim.load(file) == toy_claim()


def test_files_that_are_no_claims_are_refused(tmp_path: Path):
    file = tmp_path / "claim.json"
    toy_claim().save(file)
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(BadFile):
        Claim.load(file)
    file.write_text("[]")
    with pytest.raises(BadFile):
        Claim.load(file)
    file.write_text("{}")
    with pytest.raises(BadFile, match="not a claim"):
        Claim.load(file)
    with pytest.raises(BadFile):
        Claim.load(tmp_path / "absent.json")
    file.write_bytes(b"\x80\x04N.")
    with pytest.raises(UnsafeFile):
        Claim.load(file)


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"predictions": []}, "predicts nothing"),
        ({"predictions": [spares(ToyBehavior("other"), 0.2)]}, "sparing only"),
        ({"predictions": [lowers(1.0), lowers(1.0)]}, "the same twice"),
        ({"predictions": [lowers(1.0), spares(ToyBehavior(), 0.2)]}, "spares its own behaviour"),
        ({"controls": " "}, "no control family"),
        ({"seed": -1}, "seed"),
    ],
)
def test_claims_that_cannot_be_tested_are_refused(changes: dict, because: str):
    with pytest.raises(BadClaim) as refusal:
        toy_claim(**changes)
    assert because in refusal.value.because


def test_all_problems_of_a_claim_are_told_at_once():
    with pytest.raises(BadClaim) as refusal:
        Claim("", behavior=ToyBehavior(), mechanism=ToyMechanism(), predictions=[], controls="")
    assert len(refusal.value.because.split("; ")) == 3


def test_a_claim_reads_as_text():
    text = str(toy_claim(lowers(1.0)))
    assert "Heads 1.2 and 2.0 carry the name" in text
    assert "lowers the metric by at least 1" in text
    assert toy_claim(lowers(1.0)).id[:12] in text
