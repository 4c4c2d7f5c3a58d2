"""A seed is found by its name, not by its turn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechscope.records.seeds import generator_for, seed_for
from mechscope.vocabulary.errors import NotSerializable

PATHS = st.lists(st.text(max_size=4) | st.integers(-3, 3), max_size=3).map(tuple)


@given(st.integers(0, 3), PATHS, st.integers(0, 3), PATHS)
def test_seeds_are_equal_exactly_if_root_and_path_are(
    root: int, path: tuple[str | int, ...], other_root: int, other: tuple[str | int, ...]
) -> None:
    same = (root, [(type(step), step) for step in path]) == (
        other_root,
        [(type(step), step) for step in other],
    )
    assert (seed_for(root, *path) == seed_for(other_root, *other)) == same


def test_seeds_are_the_same_on_every_machine_and_in_every_version() -> None:
    assert seed_for(0, "a", 1) == 7376671040889259502
    assert seed_for(0, "a", "1") == 950025374938967156


def test_seeds_fit_every_library() -> None:
    seeds = [seed_for(0, i) for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0.4 < np.mean([seed % 2 for seed in seeds]) < 0.6


def test_generators_of_one_name_agree_and_of_two_names_do_not() -> None:
    assert np.array_equal(generator_for(0, "x").normal(size=4), generator_for(0, "x").normal(size=4))
    assert not np.array_equal(generator_for(0, "x").normal(size=4), generator_for(0, "y").normal(size=4))


def test_a_truth_value_is_no_step() -> None:
    with pytest.raises(NotSerializable, match="tree of seeds"):
        seed_for(0, True)
