"""Interventions that put other values in place: patch, freeze and edit."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mechscope.interventions.donor import Donor
from mechscope.interventions.intervention import Intervention, Value, register_kind
from mechscope.interventions.subspace import move_inside, orthonormal
from mechscope.interventions.widths import refuse_other_subspace
from mechscope.models.cache import Cache
from mechscope.models.run import Run
from mechscope.vocabulary.errors import InterventionMismatch, NotSerializable, UnresolvedIntervention
from mechscope.vocabulary.protocols import Facts, Tokens
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Phase, Where

_BETWEEN = (__name__, "jaxtyping", "beartype")


@register_kind("patch")
@dataclass(frozen=True, kw_only=True)
class Patch(Intervention):
    """Values of a donor in place of the run's own.

    Args:
        donor: Where the values come from.
        subspace: Orthonormal rows; only the component inside their span is replaced. Their width is the site's
            last axis, or all that the site carries at a position (heads and their width together).
        outside: With a subspace: the component inside is kept, and all others are replaced.
    """

    donor: Donor
    subspace: Value | None = None
    outside: bool = False

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "Patch":
        """Refuses a site that the donor has no value for, or one of another width."""
        for site in sites:
            self.donor.refuse_unless_for(site, facts)
            if self.subspace is not None:
                refuse_other_subspace(self.subspace.tensor, site, facts)
        return self

    def outside_subspace(self) -> "Patch":
        """The same patch of everything but the subspace: what lies inside keeps its own value.

        Raises:
            InterventionMismatch: it has no subspace.
        """
        if self.subspace is None:
            raise InterventionMismatch(
                "This patch has no subspace to stay out of.",
                got=f'ms.patch("{self.at}", ...)',
                because="all of the site is replaced",
                instead="ms.patch(site, donor, subspace=rows).outside_subspace()",
            )
        return replace(self, outside=True)

    def likeness(self) -> Hashable:
        subspace = None if self.subspace is None else self.subspace.memory
        return type(self), self.donor.memory, subspace, self.outside, self.where.heads, self.where.units

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        new = self.donor.gather(tokens, value)
        if self.subspace is None:
            return new
        here, there = (new, value) if self.outside else (value, new)
        return move_inside(here, there, self.subspace.tensor)

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """As of any intervention; `outside` only where it is asked for."""
        saved = super().to_json(tensors)
        return saved if self.outside else {key: saved[key] for key in saved if key != "outside"}


def patch(
    at: str | Site,
    donor: Tensor | Run | Cache | Donor,
    *,
    positions: Any = None,
    heads: Any = None,
    units: Any = None,
    subspace: Tensor | None = None,
    phase: Phase = "both",
) -> Patch:
    """Replace a site's values by a donor's; patching a run with itself changes nothing.

    Args:
        at: Site or pattern.
        donor: A run or cache (matched by position), or a tensor [batch, pos, *site], [batch, *site] or [*site].
        positions: Index, list, slice, words, or a list of lists (own positions a row). None is all.
        heads: Heads as the point counts them.
        units: Indices on the last axis.
        subspace: Rows [n, d]; only the component in their span is replaced (an interchange intervention);
            with `.outside_subspace()` everything but that.
        phase: While generating: "prompt", "generated" or "both".
    """
    where = Where.of(positions, heads=heads, units=units, phase=phase)
    basis = None if subspace is None else Value(orthonormal(subspace))
    return Patch(at=str(at), donor=Donor.of(donor, at), where=where, subspace=basis)


@register_kind("freeze")
@dataclass(frozen=True, kw_only=True)
class Freeze(Intervention):
    """Values held to another run's, or to this batch's own without the other interventions."""

    donor: Donor | None = None

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "Freeze":
        """With "own", runs the batch once without interventions."""
        if self.donor is None:
            return replace(self, donor=Donor.of(facts.clean_run(sites), self.at))
        for site in sites:
            self.donor.refuse_unless_for(site, facts)
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        if self.donor is None:
            raise UnresolvedIntervention(
                "freeze(to='own') has no values yet.",
                got=self.at,
                because="the batch's own run comes first; `Model.run` and the engine see to it",
            )
        return self.donor.gather(tokens, value)


def freeze(
    at: str | Site,
    to: str | Tensor | Run | Cache = "own",
    *,
    positions: Any = None,
    heads: Any = None,
    rows: Any = None,
) -> Freeze:
    """Hold a site to another run's values, or with "own" to this batch's without the other interventions.

    Cost: with "own", one more forward pass.
    """
    if isinstance(to, str) and to != "own":
        raise InterventionMismatch(
            "freeze needs a run, a tensor or the word 'own'.", got=repr(to), instead="to='own'"
        )
    donor = None if isinstance(to, str) else Donor.of(to, at)
    return Freeze(at=str(at), donor=donor, where=Where.of(positions, heads=heads, rows=rows))


@register_kind("edit")
@dataclass(frozen=True, kw_only=True)
class Edit(Intervention):
    """Any function of the value: the escape hatch. Works everywhere, cannot be saved."""

    function: Callable[[Tensor], Tensor]
    written_at: str = ""

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        new = self.function(value)
        if not isinstance(new, Tensor) or new.shape != value.shape:
            raise InterventionMismatch(
                f"The function of ms.edit at {tokens.site} must return a tensor of the same shape.",
                got=f"{list(new.shape) if isinstance(new, Tensor) else type(new).__name__} from {self.written_at}",
                because=f"it was given {list(value.shape)}: one row per selected token",
                instead="return a new tensor of that shape",
            )
        return new

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        raise NotSerializable(
            "ms.edit holds a function, which cannot be saved or claimed.",
            got=f"ms.edit written at {self.written_at}",
            because="a claim must be re-run by somebody who does not have your code",
            instead="ms.patch, ms.ablate, ms.add, ms.project_out, ms.scale or ms.cap",
        )

    def __repr__(self) -> str:
        return f"Edit(at={self.at!r}, written at {self.written_at})"


def edit(
    at: str | Site, function: Callable[[Tensor], Tensor], *, positions: Any = None, heads: Any = None
) -> Edit:
    """Apply any function from value to value, in token form [n_tokens, *site].

    Caveat: the function is given any of the selected tokens, and must judge each by itself. It cannot go into a claim;
        its representation prints where it was written.
    """
    where = Where.of(positions, heads=heads)
    return Edit(at=str(at), function=function, written_at=_callers_line(), where=where)


def _callers_line() -> str:
    """File and line of the nearest caller outside this module; runtime shape checks put frames between."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_BETWEEN):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"
