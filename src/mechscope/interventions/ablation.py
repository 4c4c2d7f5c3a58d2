"""Ablation: take a site's information away by a declared value (zero, mean, resample, optimal).

The value is a convention that changes conclusions, so it is always explicit and stored. All but zero need a
reference set and stay unresolved until `resolve` or the engine gives them tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mechscope.interventions.donor import Donor
from mechscope.interventions.intervention import Intervention, Value, register_kind
from mechscope.interventions.subspace import move_inside, orthonormal
from mechscope.interventions.widths import refuse_other_subspace
from mechscope.models.inputs import TokenBatch
from mechscope.vocabulary.errors import InterventionMismatch, UnresolvedIntervention
from mechscope.vocabulary.protocols import Facts, Tokens
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

How = Literal["zero", "mean", "resample", "optimal"]
HOWS = ("zero", "mean", "resample", "optimal")


@register_kind("ablate")
@dataclass(frozen=True, kw_only=True)
class Ablation(Intervention):
    """A site's values replaced by ones that carry no information about the prompt.

    Args:
        how: The convention.
        by_position: Mean over the reference set at each position, instead of over all real tokens, [BOS] included.
        seed: Which reference rows a resample takes.
        reference: Prompts, as text or tuples of ids; empty for zero.
        donor: The values, once resolved.
        subspace: Orthonormal rows; only the component inside their span is ablated.
    """

    how: str = "mean"
    by_position: bool = False
    seed: int = 0
    reference: tuple[Any, ...] = ()
    donor: Donor | None = None
    subspace: Value | None = None

    @property
    def is_resolved(self) -> bool:
        """True once the values are there."""
        return self.how == "zero" or self.donor is not None

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "Ablation":
        """Refuses while unresolved, and values of another width."""
        if not self.is_resolved:
            raise UnresolvedIntervention(
                f"This {self.how} ablation has no values yet.",
                got=f'ms.ablate("{self.at}", how="{self.how}")',
                because="its values come from a reference set of prompts, which has to be run first",
                instead="ms.learn_optimal(model, [...])"
                if self.how == "optimal"
                else "ms.resolve(model, [...]), or give the experiment to the engine",
            )
        for site in sites:
            if self.donor is not None:
                self.donor.refuse_unless_for(site, facts)
            if self.subspace is not None:
                refuse_other_subspace(self.subspace.tensor, site, facts)
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        if self.how == "zero":
            new = torch.zeros_like(value)
        else:
            assert self.donor is not None
            new = self.donor.gather(tokens, value)
        return new if self.subspace is None else move_inside(value, new, self.subspace.tensor)


def ablate(
    at: str | Site,
    how: str = "mean",
    *,
    reference: Any = None,
    positions: Any = None,
    heads: Any = None,
    by_position: bool = False,
    subspace: Tensor | None = None,
) -> Ablation:
    """Take away what a site carries.

    Args:
        at: Site or pattern.
        how: "zero"; "mean" over the reference set; "resample": another reference prompt's values, matched by
            position (row i never gets reference prompt i, so a batch can be its own reference); "optimal": the
            constant that hurts least, learnt on the reference set by `ms.learn_optimal`.
        reference: Prompts: texts, lists of ids, or a token batch. Not needed for zero.
        positions: As in `patch`.
        heads: As in `patch`.
        by_position: Mean at each position apart; reference prompts must have the length of the prompts.
        subspace: As in `patch`.

    Caveat: zero is far from what later layers expect; mean keeps what all prompts share; resample keeps the
        distribution. Published circuits differ because of this choice (docs/methods/interventions.md).
    """
    if how not in HOWS:
        raise InterventionMismatch(f'"{how}" is not a way to ablate.', got=how, instead=", ".join(HOWS))
    if how != "zero" and reference is None:
        raise UnresolvedIntervention(
            f"A {how} ablation needs a reference set.",
            got=f'ms.ablate("{at}", how="{how}")',
            because="its values are measured on prompts",
            instead="reference=prompts, or how='zero'",
        )
    return Ablation(
        at=str(at),
        how=how,
        by_position=by_position,
        reference=reference_rows(reference),
        subspace=None if subspace is None else Value(orthonormal(subspace)),
        where=Where.of(positions, heads=heads),
    )


def reference_rows(reference: Any) -> tuple[Any, ...]:
    """A reference set as a tuple of texts or of tuples of ids."""
    if reference is None:
        return ()
    if isinstance(reference, str):
        return (reference,)
    if isinstance(reference, TokenBatch):
        return tuple(tuple(reference.row(index)) for index in range(len(reference)))
    rows = reference.tolist() if isinstance(reference, Tensor) else list(reference)
    if rows and all(isinstance(item, int) for item in rows):
        return (tuple(rows),)
    return tuple(row if isinstance(row, str) else tuple(row) for row in rows)
