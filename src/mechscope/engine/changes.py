"""Changes: which tokens each experiment changes, where, and what that makes later layers recompute.

A write is compared with the base run's own values, so a patch that changes nothing is not run, and positions that
a pair of prompts shares are not recomputed. The rule that follows from causality:

    before or at the keys and values of a layer   every later position of that layer changes
    after them                                    only the written positions change, until the next layer
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.engine.base import Base
from mechscope.models.frame import Frame
from mechscope.models.writing import blend, to_token_form, tokens_of
from mechscope.vocabulary.points import POINTS
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

FEEDS_KEYS = frozenset({"resid_pre", "ln1", "attn_in", "k_proj", "k_pre", "k", "v", "v_proj"})
"""Points of a layer whose change reaches its keys or values."""

AFTER_LAYERS = frozenset(row.name for row in POINTS.values() if row.basis == "end")
"""Points behind the last layer; experiments that write them are run from the layer of their first change."""

BEFORE_LAYERS = frozenset(row.name for row in POINTS.values() if row.basis == "start")
"""Points that make the first layer's input; experiments that write them have a base run under that write."""

FIRST_INPUT = Site("resid_pre", 0)

Prepared = list[tuple[Write, list[Site]]]


def is_at_the_entry(sites: Sequence[Site]) -> bool:
    """Whether a write reaches nothing but what enters the first layer, which no replay computes again."""
    return all(site.point in BEFORE_LAYERS or site == FIRST_INPUT for site in sites)


@dataclass(frozen=True)
class Change:
    """One write of one experiment at one site.

    Args:
        write: Ready to apply.
        site: Where.
        selected: Tokens that it writes, [batch, pos] of the block.
        changed: Those whose base value it changes, [batch, pos].
    """

    write: Write
    site: Site
    selected: Tensor
    changed: Tensor

    @property
    def feeds_keys(self) -> bool:
        """True if the layer's keys or values change."""
        return self.site.point in FEEDS_KEYS


@dataclass(frozen=True)
class Selection:
    """Real tokens that a write selects in a block.

    Args:
        mask: [batch, pos].
        rows: Of each token, [n_tokens].
        columns: Likewise.
    """

    mask: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, where: Where, frame: Frame) -> "Selection":
        """The tokens of a frame that `where` means."""
        columns = torch.arange(frame.ids.shape[1])
        real = frame.positions(columns) >= 0
        chosen = frame.selected(where, columns)
        return cls.of_mask(real if chosen is None else chosen & real)

    @classmethod
    def of_mask(cls, mask: Tensor) -> "Selection":
        """The tokens where a mask is true."""
        return cls(mask, *mask.nonzero(as_tuple=True))


class Differences:
    """Where writes change what a block's base run has.

    Those of a sweep are often alike but for their positions: they are compared together, each site at once.

    Args:
        base: The block's base run.
        all_prepared: The writes of every experiment, with their sites.
    """

    def __init__(self, base: Base, all_prepared: Sequence[Prepared]) -> None:
        self._base = base
        self._selections: dict[Where, Selection] = {}
        self._together: dict[tuple[Hashable, Site], Tensor] = {}
        self._wanted: dict[tuple[Hashable, Site], list[Write]] = defaultdict(list)
        for prepared in all_prepared:
            for write, sites in prepared:
                likeness = likeness_of(write)
                if likeness is not None:
                    for site in sites:
                        self._wanted[likeness, site].append(write)

    def changes_of(self, prepared: Prepared) -> list[Change]:
        """What an experiment's writes change."""
        return [
            Change(write, site, self._selection(write.where).mask, self._changed(write, site))
            for write, sites in prepared
            for site in sites
        ]

    def _selection(self, where: Where) -> Selection:
        if where not in self._selections:
            self._selections[where] = Selection.of(where, self._base.frame)
        return self._selections[where]

    def _changed(self, write: Write, site: Site) -> Tensor:
        selection = self._selection(write.where)
        key = likeness_of(write), site
        alike = self._wanted.get(key, ())
        if len(alike) < 2:
            return _changed(write, site, selection, self._base)
        if key not in self._together:
            mask = torch.zeros_like(selection.mask)
            for other in alike:
                mask |= self._selection(other.where).mask
            self._together[key] = _changed(write, site, Selection.of_mask(mask), self._base)
        return self._together[key] & selection.mask


def likeness_of(write: Write) -> Hashable | None:
    """`Intervention.likeness` where a write has one."""
    likeness = getattr(write, "likeness", None)
    return None if likeness is None else likeness()


def _changed(write: Write, site: Site, selection: Selection, base: Base) -> Tensor:
    value = to_token_form(base.values[site], site.row)
    rows, columns = selection.rows, selection.columns
    changed = torch.zeros_like(selection.mask)
    if len(rows) == 0:
        return changed
    old = value[rows.to(value.device), columns.to(value.device)]
    new = blend(write, old, tokens_of(rows, columns, base.frame, site))
    differs = (new != old).flatten(1).any(1) if new.ndim > 1 else new != old
    changed[rows, columns] = differs.to(changed.device)
    return changed


def written_sites(all_prepared: Sequence[Prepared]) -> list[Site]:
    """Every site that some experiment writes."""
    return sorted({site for prepared in all_prepared for _, sites in prepared for site in sites})
