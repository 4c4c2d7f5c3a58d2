"""What behaviours refuse in their own words, where the shape checker would have spoken first."""

import pytest
import torch

from mechscope.behaviors import from_tokens
from mechscope.vocabulary.errors import BadPairs, ShapeError


def test_token_tensors_of_another_shape_or_type_are_refused() -> None:
    ids = torch.tensor([[1, 2, 3]])
    for wrong in (ids[0], ids[None], ids.float()):
        with pytest.raises(ShapeError, match="whole-number ids"):
            from_tokens(wrong, ids, answers=[4])


def test_rows_of_something_else_are_refused() -> None:
    with pytest.raises(BadPairs, match="no token id"):
        from_tokens([[1, "two"]], [[1, 3]], answers=[4])
