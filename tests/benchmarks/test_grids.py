"""The grids' two ways give the same numbers, on a shape small enough to check here."""

import numpy as np
import pytest

from benchmarks import grids, shapes


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> str:
    settings = {"n_layer": 2, "n_embd": 24, "n_head": 3, "vocab_size": 61}
    monkeypatch.setitem(shapes.SHAPES, "tiny", settings)
    monkeypatch.setattr(grids, "SHAPE", "tiny")
    monkeypatch.setattr(grids, "N_TOKENS", 8)
    return "tiny"


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_hooks_by_hand_and_the_engine_give_the_same_grid(tiny_shape: str, site: str) -> None:
    grid = grids.Grid(site, 2)
    assert grids.equality(grid) <= grids.CLOSE
    found = grid.packed()
    assert len(found) == len(grid.cells)
    assert np.ptp(found) > 0, "a grid of equal numbers would agree with anything"


def test_a_grid_of_other_numbers_is_refused(tiny_shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grids.Grid("resid_pre", 0)
    right = grid.packed()
    monkeypatch.setattr(grid, "packed", lambda: right + 1e-2 * np.ptp(right))
    with pytest.raises(ArithmeticError, match="differs from one forward per patch"):
        grids.equality(grid)


def test_a_pair_shares_its_first_tokens_and_no_later_one(tiny_shape: str) -> None:
    clean, corrupt = shapes.random_pair(tiny_shape, 8, n_shared=3)
    same = (clean.ids == corrupt.ids)[0].tolist()
    assert same == [True] * 3 + [False] * 5
