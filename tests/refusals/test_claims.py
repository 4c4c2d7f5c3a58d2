"""What claims refuse in their own words, where the shape checker would have spoken first."""

import numpy as np
import pytest

from mechscope.claims.claim import Claim
from mechscope.claims.mechanisms import Components, Direction
from mechscope.claims.predictions import lowers, raises, recorded
from mechscope.claims.subspaces import random_subspaces
from mechscope.data.units import as_units
from mechscope.vocabulary.errors import BadClaim, ShapeError


class Named:
    """A behaviour and a mechanism by name only."""

    name = "toy"

    def recipe(self) -> dict[str, int]:
        return {"n": 1}

    def to_json(self) -> dict[str, str]:
        return {"kind": "toy"}


def test_something_that_is_no_behaviour_is_refused():
    with pytest.raises(BadClaim, match="without a name and a recipe"):
        recorded("ioi")
    with pytest.raises(BadClaim, match="without a name and a recipe"):
        Claim("It does", behavior="ioi", mechanism=Named(), predictions=[lowers(1)], controls="f")


def test_something_that_is_no_mechanism_is_refused():
    with pytest.raises(BadClaim) as refusal:
        Claim("It does", behavior=Named(), mechanism=[1, 2], predictions=[lowers(1)], controls="f")
    assert "a list has no name and to_json" in refusal.value.because


def test_a_bound_that_is_no_number_is_refused():
    for wrong in (True, "a", None):
        with pytest.raises(BadClaim, match="can't be tested"):
            lowers(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadClaim, match="dose that is not zero"):
        raises(1.0, dose="much")  # type: ignore[arg-type]


def test_heads_that_are_no_numbers_and_directions_without_length_are_refused():
    for wrong in ({"heads": ((1.5, 2),)}, {"heads": (3,)}, {"mlps": ("2",)}):
        with pytest.raises(BadClaim, match="no heads and MLPs"):
            Components(**wrong)
    for vector in ((0.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(BadClaim, match="no direction"):
            Direction("resid_post.1", vector)


def test_a_covariance_of_another_width_is_refused_with_both_widths():
    with pytest.raises(ShapeError, match="another width") as refusal:
        random_subspaces(np.eye(1, 8), np.eye(9), n_draws=1, seed=0)
    assert "(9, 9)" in refusal.value.got and "(8, 8)" in refusal.value.instead


def test_units_with_more_than_one_label_per_prompt_are_refused():
    with pytest.raises(ShapeError, match="one label per prompt"):
        as_units(np.zeros((2, 3), dtype=np.int64))
