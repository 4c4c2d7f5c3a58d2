"""Planted data refuse what can't be, with what was given and what to do instead."""

import pytest
import torch

from mechscope.specimens import planted
from mechscope.vocabulary.errors import InputError, NonFiniteActivations, PositionOutOfRange, ShapeError

TRUTH = planted.plant(planted.PlantedSettings(d_model=8, n_features=12, n_active=2.0))


def test_contradicting_settings_are_told_all_at_once() -> None:
    with pytest.raises(InputError) as refused:
        planted.PlantedSettings(n_features=10, n_active=20, n_children=2, group_size=4, noise=-1)
    assert all(word in str(refused.value) for word in ("n_active", "multiple", "not both", "noise"))


def test_a_decoder_of_another_width_is_refused_with_both() -> None:
    with pytest.raises(ShapeError, match=r"decoder \[12, 9\], directions \[12, 8\]"):
        planted.match_directions(torch.ones(12, 9), TRUTH.directions)


def test_a_decoder_with_nan_is_refused() -> None:
    with pytest.raises(NonFiniteActivations, match="1 of 12 rows"):
        planted.match_directions(
            torch.where(torch.arange(12)[:, None] == 3, torch.nan, 1.0).expand(12, 8), TRUTH.directions
        )


def test_codes_of_other_tokens_are_refused() -> None:
    codes = planted.PlantedStream(truth=TRUTH, n_tokens=20).batch(0).codes
    other = planted.PlantedStream(truth=TRUTH, n_tokens=30).batch(0).codes
    with pytest.raises(ShapeError, match="30 tokens"):
        planted.score_dictionary(TRUTH, TRUTH.directions, codes=other, features=codes)


def test_a_batch_beyond_the_stream_is_refused() -> None:
    with pytest.raises(PositionOutOfRange, match="0 to 1"):
        planted.PlantedStream(truth=TRUTH, n_tokens=20, batch_tokens=10).batch(2)
