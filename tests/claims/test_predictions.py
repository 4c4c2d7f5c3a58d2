"""Predictions are values that held-out prompts can contradict."""

import math

import pytest

from claim_tables import ToyBehavior
from mechscope.claims.predictions import Prediction, lowers, raises, recovers, spares
from mechscope.records.canonical import from_plain, to_plain
from mechscope.vocabulary.errors import BadClaim

ALL = [
    lowers(0.5),
    lowers(0.5, unit="gap", how="zero"),
    recovers(0.8),
    raises(1, dose=2),
    spares(ToyBehavior("greater-than"), 0.1, how="resample"),
]


@pytest.mark.parametrize("prediction", ALL, ids=str)
def test_a_prediction_goes_through_json_and_back(prediction: Prediction):
    again = Prediction.from_json(from_plain(to_plain(prediction.to_json())))
    assert again == prediction
    assert hash(again) == hash(prediction)


def test_predictions_that_differ_in_any_convention_are_different():
    assert len({*ALL, lowers(0.5, how="zero"), lowers(0.6), raises(1, dose=3)}) == len(ALL) + 3


def test_a_prediction_reads_as_a_sentence():
    assert str(lowers(0.5)) == "ablating it (mean) lowers the metric by at least 0.5"
    assert str(recovers(0.8)) == "restoring it alone recovers at least 80% of the gap"
    assert str(raises(1, dose=2)) == "steering along it (dose 2) raises the metric by at least 1"
    assert str(spares(ToyBehavior("other"), 0.1)) == "ablating it (mean) spares other within 0.1"


@pytest.mark.parametrize("bound", [0, -1, math.nan, math.inf])
def test_a_bound_that_nothing_could_contradict_is_refused(bound: float):
    for build in (lowers, recovers, raises, lambda z: spares(ToyBehavior(), z)):
        with pytest.raises(BadClaim, match="can't be tested"):
            build(bound)


def test_a_percentage_in_place_of_a_fraction_is_refused_with_the_fraction():
    with pytest.raises(BadClaim) as refusal:
        recovers(80)
    assert "80% is 0.8" in str(refusal.value)


def test_unknown_conventions_are_refused_all_at_once():
    with pytest.raises(BadClaim) as refusal:
        lowers(-1, how="magic", unit="percent")
    for part in ("positive", "ablation value", "unit"):
        assert part in refusal.value.because
    with pytest.raises(BadClaim, match="can't be tested"):
        raises(1, dose=0)
    with pytest.raises(BadClaim, match="can't be tested"):
        Prediction("spares", 0.1, how="mean")


def test_a_prediction_with_an_unknown_field_is_refused():
    with pytest.raises(BadClaim, match="other fields"):
        Prediction.from_json({**lowers(1).to_json(), "extra": 1})
