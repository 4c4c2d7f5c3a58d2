"""The circuits' benchmark compares decisions before it times them: rounding excuses a near tie and what follows it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmarks.circuits import part_without_a_tie

from mechscope.circuits.methods.acdc import Pruned

SEARCH: Any = SimpleNamespace(order=np.array([3, 1, 0, 2]))


def pruned(kept: list[bool], near_ties: list[int]) -> Pruned:
    return Pruned(threshold=0.1, kept=np.array(kept), increases=np.zeros(4), near_ties=near_ties)


@pytest.mark.parametrize(
    ("near_ties", "parts"),
    [([], True), ([1], False), ([0], True), ([0, 2], True), ([0, 1, 2], False)],
)
def test_only_a_near_tie_at_the_first_difference_excuses_what_follows(
    near_ties: list[int], parts: bool
) -> None:
    mine = pruned([True, True, False, True], near_ties)
    other = np.array([False, False, True, True])  # 3 is decided alike, then 1, 0 and 2 are not
    assert part_without_a_tie(SEARCH, mine, other) is parts


def test_equal_decisions_never_part() -> None:
    assert not part_without_a_tie(SEARCH, pruned([True] * 4, []), np.ones(4, dtype=bool))
