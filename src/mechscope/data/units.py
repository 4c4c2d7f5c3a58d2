"""Which prompts count as one observation: the held-out units that the bootstrap resamples.

Owns `Units` and `units_of`. Two prompts that share a name are not two observations, so the units are
groups of prompts, and what is resampled is the group. Where groups that share nothing exist they are
used (`components`); where every prompt is linked to every other through shared entities, the entities
themselves are resampled and a prompt's weight is the product of its entities' weights (`entities`).
Why, and what that costs: docs/decisions/0006-units.md.
Invariant: units depend on labels only, never on a measured effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from mechscope.vocabulary.errors import BadClaim, ShapeError

MIN_UNITS = 20
"""With fewer levels templates are held fixed, and components make way for entities."""

MAX_ENTITIES = 2
"""Entities of one prompt that are resampled; each further one would widen intervals without end."""

ABSENT = -1
"""Level of a prompt that has no entity in this factor; its weight there is one."""


@dataclass(frozen=True, eq=False)
class Units:
    """What is resampled: `n_factors` labels per prompt, each an index into a pool of levels.

    Args:
        levels: Per factor and prompt, an index into the factor's pool; -1 where the prompt has none.
        pools: Per factor, which pool it draws from. Factors of one pool share their resampled weights.
        basis: "components", "entities", "templates", "prompts" or "given", with "x templates" where crossed.
    """

    levels: Int[np.ndarray, "factor prompt"]
    pools: tuple[int, ...]
    basis: str

    @property
    def n_prompts(self) -> int:
        """Prompts, whatever the units are."""
        return int(self.levels.shape[1])

    @property
    def n_units(self) -> int:
        """Distinct levels of the pool that has fewest: the number that a verdict counts."""
        return min(len(self.sizes(pool)) for pool in set(self.pools))

    @property
    def effective_units(self) -> float:
        """Units of equal size that would weigh as much: (sum n)^2 / sum n^2, in the worst pool."""
        by_pool = (self.sizes(pool).astype(np.float64) for pool in set(self.pools))
        return float(min(sizes.sum() ** 2 / (sizes**2).sum() for sizes in by_pool))

    def sizes(self, pool: int) -> Int[np.ndarray, " level"]:
        """Prompts at each level of one pool that occurs."""
        rows = [index for index, owner in enumerate(self.pools) if owner == pool]
        labels = self.levels[rows].ravel()
        return np.unique(labels[labels != ABSENT], return_counts=True)[1]


def as_units(units: Units | Int[np.ndarray, " prompt"]) -> Units:
    """One label per prompt, taken as the units; a `Units` is returned as it is."""
    if isinstance(units, Units):
        return units
    if units.ndim != 1 or not len(units):
        raise ShapeError(
            "units need one label per prompt", got=units.shape, instead="an array of shape (n_prompts,)"
        )
    labels = np.unique(units, return_inverse=True)[1]
    return Units(labels[None, :].astype(np.int64), pools=(0,), basis="given")


def units_of(entities: Sequence[tuple[str, ...]], templates: Sequence[str]) -> Units:
    """The units of a split, from the entities and the template of every prompt.

    1. No entities: the template is the unit where there are at least 20, else each prompt is.
    2. Groups of prompts that share no entity with any other group are the units, if there are
       effectively at least 20 of them. They are independent given the templates.
    3. Otherwise the entities are: a prompt weighs the product of its first two entities' weights.
    At least 20 templates, each used by several units, are crossed with 2 or 3. Fewer are held fixed:
    the interval is then about these templates, and the effect by template belongs beside it.

    Args:
        entities: Per prompt, its entities in order of importance (the answer first); may be empty.
        templates: Per prompt, the name of its template.

    Raises:
        BadClaim: the two lists differ in length, or there are no prompts.

    Caveat: the entities of a split come from a finite pool and are taken as a sample of a larger one.
    """
    if len(entities) != len(templates) or not entities:
        raise BadClaim(
            "units need the entities and the template of every prompt",
            got=f"{len(entities)} lists of entities, {len(templates)} templates",
            instead="one tuple of entities (it may be empty) and one template name per prompt",
        )
    template = _labels(templates)
    n_templates = int(template.max()) + 1
    if not any(entities):
        if n_templates >= MIN_UNITS:
            return Units(template[None, :], pools=(0,), basis="templates")
        return Units(np.arange(len(entities))[None, :], pools=(0,), basis="prompts")
    named = [tuple(dict.fromkeys(names)) or (f"\0prompt {row}",) for row, names in enumerate(entities)]
    units = Units(_components(named)[None, :], pools=(0,), basis="components")
    if units.effective_units < MIN_UNITS:
        units = _entity_units(named)
    if n_templates >= MIN_UNITS and not _is_nested(template, units.levels[0]):
        levels = np.concatenate([units.levels, template[None, :]])
        return Units(levels, pools=(*units.pools, 1), basis=f"{units.basis} x templates")
    return units


def _labels(names: Sequence[str]) -> Int[np.ndarray, " prompt"]:
    index = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names], dtype=np.int64)


def _entity_units(entities: Sequence[tuple[str, ...]]) -> Units:
    kept = [names[:MAX_ENTITIES] for names in entities]
    index = {
        name: number for number, name in enumerate(dict.fromkeys(name for names in kept for name in names))
    }
    n_factors = max(len(names) for names in kept)
    levels = np.full((n_factors, len(kept)), ABSENT, dtype=np.int64)
    for row, names in enumerate(kept):
        levels[: len(names), row] = [index[name] for name in names]
    return Units(levels, pools=(0,) * n_factors, basis="entities")


def _components(entities: Sequence[tuple[str, ...]]) -> Int[np.ndarray, " prompt"]:
    """Union-find over entities: one label per group of prompts linked through any shared entity."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in entities:
        for other in names[1:]:
            parent[root(other)] = root(names[0])
    return _labels([root(names[0]) for names in entities])


def _is_nested(inner: Int[np.ndarray, " prompt"], outer: Int[np.ndarray, " prompt"]) -> bool:
    pairs = np.unique(np.stack([inner, outer]), axis=1)
    return pairs.shape[1] == len(np.unique(inner))
