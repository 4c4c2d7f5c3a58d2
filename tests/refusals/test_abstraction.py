"""Unknown words of causal abstraction and of scrubbing are refused by our own error."""

from typing import Any

import pytest

from mechscope.circuits.abstraction.interchange import Interchanging
from mechscope.circuits.scrubbing.scrub import Scrubbing
from mechscope.vocabulary.errors import InterventionMismatch


def test_an_unknown_choice_of_answers_is_refused() -> None:
    unknown: Any = "logits"
    with pytest.raises(InterventionMismatch, match="no choice"):
        Interchanging(choice=unknown)


def test_an_unknown_way_to_resample_is_refused() -> None:
    unknown: Any = "reader"
    with pytest.raises(InterventionMismatch, match="no conventions"):
        Scrubbing(unimportant=unknown)
