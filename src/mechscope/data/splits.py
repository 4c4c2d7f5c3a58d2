"""Splits: train to find, validation to choose, held_out to test. They never share an entity.

Owns: how many prompts each split gets, how prompts that share entities are kept together, and the refusal of
splits that overlap. Invariant: an assignment depends on labels and the seed, never on a measured effect.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from mechscope.records.seeds import generator_for, seed_for
from mechscope.vocabulary.errors import BadPairs

Thing = TypeVar("Thing")
SPLITS = ("train", "validation", "held_out")
SHARES = {"train": 1 / 3, "validation": 1 / 6, "held_out": 1 / 2}
MIN_GROUPS = 6
"""With fewer groups of prompts there is nothing to divide: all of them are for looking."""


def sizes_of(n: int) -> dict[str, int]:
    """Prompts of each split when `n` are asked for: a third, a sixth and a half.

    Raises:
        BadPairs: fewer than six.
    """
    if isinstance(n, bool) or n < MIN_GROUPS:
        raise BadPairs(
            "Three splits need at least six prompts.",
            got=f"n={n}",
            because="train, validation and held_out each need some of their own",
            instead="n=600, which gives 200, 100 and 300",
        )
    return {"train": n // 3, "validation": n // 6, "held_out": n - n // 3 - n // 6}


def divide(things: Sequence[Thing], *, key: str) -> dict[str, tuple[Thing, ...]]:
    """Deal things into splits once and for all: the division depends on the key and the list, not on a seed.

    So what is held out stays held out, whichever seed draws prompts from it.
    """
    order = generator_for(0, "splits", key).permutation(len(things))
    shuffled = [things[index] for index in order]
    n_train, n_validation = len(things) // 3, len(things) // 6
    return {
        "train": tuple(shuffled[:n_train]),
        "validation": tuple(shuffled[n_train : n_train + n_validation]),
        "held_out": tuple(shuffled[n_train + n_validation :]),
    }


def groups_of(entities: Sequence[tuple[str, ...]]) -> list[int]:
    """A number per prompt: equal for prompts that are linked through shared entities, in order of appearance.

    A prompt without entities is a group of its own.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(name: Hashable) -> Hashable:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    named: list[tuple[Hashable, ...]] = [names or ((row,),) for row, names in enumerate(entities)]
    for names in named:
        for other in names[1:]:
            parent[root(other)] = root(names[0])
    index: dict[Hashable, int] = {}
    return [index.setdefault(root(names[0]), len(index)) for names in named]


def assign(entities: Sequence[tuple[str, ...]], *, seed: int) -> list[str]:
    """A split for each prompt: groups stay whole, the largest first, each to the split that lacks most.

    With fewer than six groups every prompt is "train".
    """
    groups = groups_of(entities)
    sizes = Counter(groups)
    if len(sizes) < MIN_GROUPS:
        return ["train"] * len(groups)
    order = sorted(sizes, key=lambda group: (-sizes[group], seed_for(seed, "assign", group)))
    given: dict[str, int] = dict.fromkeys(SPLITS, 0)
    chosen: dict[int, str] = {}
    for group in order:
        missing = {name: SHARES[name] * len(groups) - given[name] for name in SPLITS}
        chosen[group] = max(missing, key=lambda name: missing[name])
        given[chosen[group]] += sizes[group]
    return [chosen[group] for group in groups]


def refuse_shared_entities(entities: Mapping[str, Sequence[tuple[str, ...]]], *, of: str) -> None:
    """Refuse splits of which two know the same entity.

    Args:
        entities: Per split, the entities of each prompt.
        of: Name of the behaviour, for the message.

    Raises:
        BadPairs: names the entities and the splits.
    """
    owners: dict[str, list[str]] = {}
    for split, prompts in entities.items():
        for name in {name for names in prompts for name in names}:
            owners.setdefault(name, []).append(split)
    shared = {name: where for name, where in sorted(owners.items()) if len(where) > 1}
    if shared:
        shown = [f"{name!r} in {' and '.join(where)}" for name, where in list(shared.items())[:5]]
        raise BadPairs(
            f'The splits of "{of}" share {len(shared)} {"entity" if len(shared) == 1 else "entities"}.',
            got="; ".join(shown),
            because="what was found on an entity can't be tested on the same entity",
            instead="give all prompts of an entity to one split, or leave the split column out",
        )
