"""How prompts are divided: shares, groups that stay whole, and overlaps that are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechscope.data.splits import SPLITS, assign, divide, groups_of, refuse_shared_entities, sizes_of
from mechscope.vocabulary.errors import BadPairs


@given(st.integers(6, 5000))
def test_sizes_add_up_and_none_is_empty(n: int) -> None:
    sizes = sizes_of(n)
    assert sum(sizes.values()) == n and min(sizes.values()) >= 1
    assert sizes["held_out"] >= sizes["train"] >= sizes["validation"]


@pytest.mark.parametrize("n", [5, 0, -3])
def test_less_than_six_is_refused(n: int) -> None:
    with pytest.raises(BadPairs, match="at least six"):
        sizes_of(n)


def test_a_division_depends_on_its_key_and_loses_nothing() -> None:
    words = [f"word {index}" for index in range(40)]
    first, again, other = divide(words, key="a"), divide(words, key="a"), divide(words, key="b")
    assert first == again and first != other
    assert sorted(word for name in SPLITS for word in first[name]) == sorted(words)


entities = st.lists(
    st.lists(st.sampled_from("abcdefghijklmnop"), max_size=3).map(tuple), min_size=1, max_size=60
)


@given(entities, st.integers(0, 3))
@settings(deadline=None)
def test_assigned_splits_never_share_an_entity(prompts: list[tuple[str, ...]], seed: int) -> None:
    chosen = assign(prompts, seed=seed)
    assert chosen == assign(prompts, seed=seed)
    by_split = {
        name: [p for p, where in zip(prompts, chosen, strict=True) if where == name] for name in SPLITS
    }
    refuse_shared_entities(by_split, of="test")


def test_assignment_by_prompt_would_be_refused() -> None:
    prompts = [("a", "b"), ("b", "c"), ("d",)]
    with pytest.raises(BadPairs, match="'b' in train and held_out"):
        refuse_shared_entities({"train": prompts[:1], "held_out": prompts[1:]}, of="test")


def test_linked_prompts_are_one_group_and_nameless_ones_are_alone() -> None:
    assert groups_of([("a", "b"), ("c",), ("b", "d"), (), ("d", "c"), ()]) == [0, 0, 0, 1, 0, 2]


def test_shares_are_met_where_groups_are_small() -> None:
    chosen = assign([(str(index),) for index in range(60)], seed=0)
    assert [chosen.count(name) for name in SPLITS] == [20, 10, 30]


def test_prompts_that_all_hang_together_are_all_for_looking() -> None:
    assert set(assign([("hub", str(index)) for index in range(60)], seed=0)) == {"train"}
