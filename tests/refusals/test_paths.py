"""Conventions of path patching that do not exist are refused, all problems at once."""

import pytest

from mechscope.patching.path_settings import PathConvention
from mechscope.vocabulary.errors import InterventionMismatch


def test_unknown_words_of_a_convention_are_refused_together():
    with pytest.raises(InterventionMismatch) as refusal:
        PathConvention(frozen=("neurons",), norm="none")
    assert "neurons" in str(refusal.value)
    assert "norm='none'" in str(refusal.value)
