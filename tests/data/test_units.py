"""Which prompts count as one observation."""

import numpy as np
import pytest

from mechscope.data.units import ABSENT, Units, as_units, units_of
from mechscope.vocabulary.errors import BadClaim


def random_pairs(n_names: int, n_prompts: int, seed: int = 0) -> list[tuple[str, ...]]:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, n_names, n_prompts)
    second = (first + rng.integers(1, n_names, n_prompts)) % n_names
    return [(f"n{a}", f"n{b}") for a, b in zip(first, second, strict=True)]


def test_groups_that_share_no_entity_are_the_units():
    entities = [(f"a{i % 24}", f"b{i % 24}") for i in range(240)]
    units = units_of(entities, ["t"] * 240)
    assert units.basis == "components"
    assert units.n_units == 24
    assert units.effective_units == pytest.approx(24)
    assert all(units.levels[0][i] == units.levels[0][i % 24] for i in range(240))


def test_a_name_in_another_role_still_links_two_prompts():
    blocks = [(f"x{i}", f"y{i}") for i in range(40)]
    linked = units_of([*blocks, ("y0", "x1")], ["t"] * 41)
    assert linked.n_units == 39
    assert linked.levels[0][0] == linked.levels[0][1] == linked.levels[0][40]


def test_where_all_prompts_are_linked_the_entities_are_resampled():
    units = units_of(random_pairs(24, 400), ["t"] * 400)
    assert units.basis == "entities"
    assert units.levels.shape == (2, 400)
    assert units.n_units == 24
    assert units.pools == (0, 0)  # one pool: a name is the same name in either role


def test_one_giant_component_with_many_small_ones_is_not_many_units():
    entities = random_pairs(24, 400) + [(f"alone{i}",) for i in range(30)]
    assert units_of(entities, ["t"] * 430).basis == "entities"


def test_a_prompt_without_a_second_entity_has_none_in_that_factor():
    entities = [*random_pairs(24, 400), ("n0",)]
    units = units_of(entities, ["t"] * 401)
    assert units.levels[1, 400] == ABSENT


def test_the_same_entity_twice_counts_once():
    linked = units_of([*random_pairs(24, 400), ("n3", "n3")], ["t"] * 401)
    assert linked.levels[1, 400] == ABSENT


@pytest.mark.parametrize(("n_templates", "basis"), [(25, "templates"), (5, "prompts")])
def test_without_entities_templates_are_units_if_there_are_enough(n_templates: int, basis: str):
    units = units_of([()] * 200, [f"t{i % n_templates}" for i in range(200)])
    assert units.basis == basis
    assert units.n_units == (25 if basis == "templates" else 200)


def test_many_crossed_templates_are_a_factor_of_their_own_and_few_are_held_fixed():
    entities = [(f"a{i % 24}",) for i in range(480)]
    many = units_of(entities, [f"t{i % 25}" for i in range(480)])
    assert many.basis == "components x templates"
    assert many.pools == (0, 1)
    assert many.n_units == 24
    assert units_of(entities, [f"t{i % 5}" for i in range(480)]).basis == "components"


def test_templates_that_belong_to_one_unit_each_are_not_crossed():
    assert (
        units_of([(f"a{i % 24}",) for i in range(480)], [f"t{i}" for i in range(480)]).basis == "components"
    )


def test_unequal_units_weigh_as_fewer_equal_ones():
    labels = np.array([0] * 81 + list(range(1, 20)))
    units = as_units(labels)
    assert units.n_units == 20
    assert units.effective_units == pytest.approx(100**2 / (81**2 + 19))


def test_given_labels_may_be_any_whole_numbers():
    assert as_units(np.array([7, 7, -3, 100])).levels.tolist() == [[1, 1, 0, 2]]
    already = Units(np.zeros((1, 3), dtype=np.int64), (0,), "given")
    assert as_units(already) is already


def test_lists_of_different_length_are_refused():
    with pytest.raises(BadClaim, match="entities and the template"):
        units_of([("a",)], ["t", "t"])
