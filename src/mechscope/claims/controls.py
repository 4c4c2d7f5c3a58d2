"""Control mechanisms: what should not matter, drawn from one tree of seeds.

Owns the enumerable families (other heads, edges or neurons, as many per layer as the mechanism has and
disjoint from it, without replacement, all of them where there are at most 1,000) and label-shuffled
re-estimates. Continuous families: subspaces.py. Measuring any of them is the engine's.
Refuses to repeat or to pad a small family: it comes out small, and the rule shows it as a rank.
Invariant: control `i` depends on the claim's seed, the family's name and `i`, not on how many are drawn.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import BadClaim

SAME_LAYERS = "other components, same layers"
ANY_LAYER = "other components, any layer"
SUBSPACES = "random subspaces"
DIRECTIONS = "covariance-matched directions"
SHUFFLED = "label-shuffled re-estimates"
RIVALS = "random circuits"
OWN = "the mechanism's own rivals"
POSITIONS = "other positions, same sites"
ANY_SITE = "other positions, any layer"
FAMILIES = (SAME_LAYERS, ANY_LAYER, SUBSPACES, DIRECTIONS, SHUFFLED, RIVALS, OWN, POSITIONS, ANY_SITE)
"""The families as claims name them."""

STRICTEST = "the strictest that can gate"
"""A claim that names no family: which one this is follows from the mechanism and the size of the model, of sites also
from the length of the prompts."""

ENUMERATE_UP_TO = 1_000
Selection = dict[Hashable, tuple[Hashable, ...]]
"""Members per group: heads per layer, edges per pair of layers, neurons per layer."""


@dataclass(frozen=True)
class Family:
    """Control selections of an enumerable family.

    Args:
        name: As claims name it, one of `FAMILIES` or a family of one's own.
        members: The selections drawn, in order of their index.
        n_members: How many there are in all.
    """

    name: str
    members: tuple[Selection, ...]
    n_members: int

    @property
    def is_exhaustive(self) -> bool:
        """True if every member was drawn."""
        return len(self.members) == self.n_members


def _of_one_kind(group: Hashable) -> Hashable:
    return None


def draw_selections(
    mechanism: Mapping[Hashable, Sequence[Hashable]],
    universe: Mapping[Hashable, Sequence[Hashable]],
    *,
    n_draws: int,
    seed: int,
    name: str,
    anywhere: bool = False,
    kind_of: Callable[[Hashable], Hashable] = _of_one_kind,
) -> Family:
    """Selections of the mechanism's size that share nothing with it.

    Args:
        mechanism: Its members per group, e.g. `{2: (1,), 3: (0, 4)}` for heads 2.1, 3.0 and 3.4.
        universe: All members per group.
        n_draws: How many to draw; a family of at most 1,000 is returned whole, whatever this says.
        seed: The claim's.
        name: The family's name; a branch of the tree of seeds.
        anywhere: False keeps the number per group. True keeps only the total and draws from all groups:
            another, larger family, for models in which a layer has too few other heads.
        kind_of: Of a group. With `anywhere` the total of each kind is kept: a head is no stand-in for an MLP.

    Returns:
        The family; empty where the groups hold no disjoint selection of that size.

    Raises:
        BadClaim: the mechanism is empty or holds members that the universe has not.

    Cost: microseconds per draw. Caveat: with `anywhere`, controls may lie in layers that cannot matter.
    """
    free, counts = _free_and_counts(mechanism, universe, kind_of if anywhere else None)
    n_members = _n_members(free, counts)
    if n_members <= ENUMERATE_UP_TO:
        pools = [itertools.combinations(free[g], count) for g, count in counts.items()]
        drawn = [dict(zip(counts, choice, strict=True)) for choice in itertools.product(*pools)]
    else:
        drawn = _draw_distinct(free, counts, min(n_draws, n_members), seed=seed, name=name)
    return Family(name, tuple(_regroup(selection, anywhere) for selection in drawn), n_members)


def n_selections(
    mechanism: Mapping[Hashable, Sequence[Hashable]],
    universe: Mapping[Hashable, Sequence[Hashable]],
    *,
    anywhere: bool = False,
    kind_of: Callable[[Hashable], Hashable] = _of_one_kind,
) -> int:
    """How many members `draw_selections` could draw from: below 39 the family can't gate a claim."""
    return _n_members(*_free_and_counts(mechanism, universe, kind_of if anywhere else None))


def _free_and_counts(
    mechanism: Mapping[Hashable, Sequence[Hashable]],
    universe: Mapping[Hashable, Sequence[Hashable]],
    pooled_by: Callable[[Hashable], Hashable] | None,
) -> tuple[dict[Hashable, list[Hashable]], dict[Hashable, int]]:
    _refuse_unless_inside(mechanism, universe)
    own = {g: set(mechanism.get(g, ())) for g in universe}
    free: dict[Hashable, list[Hashable]] = {
        g: [m for m in members if m not in own[g]] for g, members in universe.items()
    }
    counts: dict[Hashable, int] = {g: len(set(members)) for g, members in mechanism.items() if members}
    if pooled_by is None:
        return free, counts
    totals: dict[Hashable, int] = {}
    for g, count in counts.items():
        totals[pooled_by(g)] = totals.get(pooled_by(g), 0) + count
    pools: dict[Hashable, list[Hashable]] = {kind: [] for kind in totals}
    for g, members in free.items():
        pools.get(pooled_by(g), []).extend((g, m) for m in members)
    return pools, totals


def _n_members(free: Mapping[Hashable, Sequence[Hashable]], counts: Mapping[Hashable, int]) -> int:
    return math.prod(math.comb(len(free[g]), count) for g, count in counts.items())


def _draw_distinct(
    free: Mapping[Hashable, Sequence[Hashable]],
    counts: Mapping[Hashable, int],
    n_draws: int,
    *,
    seed: int,
    name: str,
) -> list[Selection]:
    """Without replacement: a draw that repeats an earlier one is drawn again, from its own seeds."""
    seen: set[tuple[tuple[int, ...], ...]] = set()
    drawn = []
    for index in range(n_draws):
        rng = generator_for(seed, "controls", name, index)
        while True:
            chosen = tuple(
                tuple(sorted(rng.choice(len(free[g]), size=count, replace=False).tolist()))
                for g, count in counts.items()
            )
            if chosen not in seen:
                break
        seen.add(chosen)
        drawn.append({g: tuple(free[g][i] for i in part) for g, part in zip(counts, chosen, strict=True)})
    return drawn


def _regroup(selection: Selection, anywhere: bool) -> Selection:
    if not anywhere:
        return selection
    grouped: dict[Hashable, tuple[Hashable, ...]] = {}
    for pool in selection.values():
        for group, member in pool:  # pyright: ignore[reportGeneralTypeIssues]
            grouped[group] = (*grouped.get(group, ()), member)
    return grouped


def _refuse_unless_inside(
    mechanism: Mapping[Hashable, Sequence[Hashable]], universe: Mapping[Hashable, Sequence[Hashable]]
) -> None:
    known = {g: set(universe.get(g, ())) for g in mechanism}
    strange = [(g, m) for g, members in mechanism.items() for m in members if m not in known[g]]
    if strange or not any(mechanism.values()):
        raise BadClaim(
            "controls need a mechanism inside its universe",
            got=strange or "an empty mechanism",
            because="controls have as many members per group as the mechanism, and none of its own",
            instead="members that the universe lists",
        )


def shuffled_estimates(
    estimate: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    *,
    n_draws: int,
    seed: int,
    name: str = SHUFFLED,
) -> list[np.ndarray]:
    """What the same estimation finds where there is nothing to find: `estimate(labels in another order)`.

    Args:
        estimate: From labels to a direction or subspace; run on train prompts, never on held-out ones.
        labels: One per train prompt.

    Raises:
        BadClaim: all labels are equal, so that every order is the same.

    Cost: `n_draws` estimations.
    """
    if len(np.unique(labels)) < 2:
        raise BadClaim(
            "equal labels can't be shuffled",
            got=f"{len(labels)} times {labels[:1]}",
            because="every order gives the same estimate, so these controls would equal the mechanism",
        )
    return [
        estimate(generator_for(seed, "controls", name, index).permutation(labels)) for index in range(n_draws)
    ]
