"""Interventions along directions: add, project_out, scale and cap.

Doses are in units of the site's reference norm (see `models.calibration`) unless `absolute=` is given.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from mechscope.interventions.intervention import Intervention, Value, register_kind
from mechscope.interventions.subspace import orthonormal
from mechscope.interventions.widths import refuse_other_direction, refuse_unusable_direction
from mechscope.vocabulary.errors import InterventionMismatch, ShapeError
from mechscope.vocabulary.protocols import Facts, Tokens
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

Mode = Literal["add", "norm_preserving", "rotate"]
_MODES = ("add", "norm_preserving", "rotate")


@register_kind("add")
@dataclass(frozen=True, kw_only=True)
class Add(Intervention):
    """A direction added to a site.

    Args:
        direction: [d] over the site's last axis.
        amounts: One amount for all rows, or one a row.
        unit: "reference_norm" (amount x reference norm x unit direction), "raw" (amount x direction),
            or "radian" (rotations).
        mode: "add"; "norm_preserving": add, then restore each token's norm; "rotate": turn each token towards
            the direction by the amount, norm kept.
        norm: The site's reference norm, once prepared; by site.
    """

    direction: Value
    amounts: tuple[float, ...]
    unit: str = "reference_norm"
    mode: str = "add"
    norm: tuple[tuple[str, float], ...] = ()

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "Add":
        """Measures the reference norms; refuses a direction of another width."""
        for site in sites:
            refuse_other_direction(self.direction.tensor, site, facts)
        if len(self.amounts) > 1 and facts.n_rows is not None and len(self.amounts) > facts.n_rows:
            raise _other_number("more", self.at, len(self.amounts), f"{facts.n_rows} rows in the batch")
        if self.unit != "reference_norm" or self.norm:
            return self
        return replace(self, norm=tuple((str(site), facts.reference_norm(site)) for site in sites))

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        direction = self.direction.tensor.to(value)
        amount = self._amount(value, tokens)
        if self.unit != "raw":
            direction = direction / direction.norm()
        if self.mode == "rotate":
            return rotate_towards(value, direction, amount)
        new = value + amount * direction
        if self.mode == "norm_preserving":
            tiny = torch.finfo(new.dtype).tiny
            new = new * (value.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True).clamp_min(tiny))
        return new

    def _amount(self, value: Tensor, tokens: Tokens) -> Tensor:
        amounts = torch.tensor(self.amounts, dtype=value.dtype, device=value.device)
        if self.unit == "reference_norm":
            amounts = amounts * dict(self.norm)[str(tokens.site)]
        rows = tokens.rows.to(value.device)
        if len(amounts) > 1 and len(rows) and int(rows.max()) >= len(amounts):
            raise _other_number("fewer", str(tokens.site), len(amounts), f"row {int(rows.max())} written")
        per_token = amounts if len(amounts) == 1 else amounts[rows]
        return per_token.reshape(-1, *[1] * (value.ndim - 1))


def add(
    at: str | Site,
    direction: Tensor,
    *,
    dose: float | Sequence[float] | Tensor | None = None,
    absolute: float | Sequence[float] | Tensor | None = None,
    mode: str = "add",
    positions: Any = None,
    heads: Any = None,
) -> Add:
    """Steer a site along a direction.

    Args:
        at: Site or pattern whose last axis has the direction's width.
        direction: [d]; its length matters only with `absolute`.
        dose: Length of what is added, in reference norms of the site: 1 is as long as a typical activation (of one
            head, where the site has heads). A list gives each row of the batch its own. With mode="rotate", the
            angle in radians.
        absolute: Instead of dose: the factor on the direction as it is given.
        mode: "add", "norm_preserving" or "rotate".
        positions: As in `patch`.
        heads: As in `patch`.

    `.only(phase="generated")` limits it to generated tokens, `.only(rows=[...])` to some rows.
    """
    if (dose is None) == (absolute is None):
        raise InterventionMismatch(
            "Give either dose= or absolute=.",
            got=f"dose={dose}, absolute={absolute}",
            instead="dose=0.4 adds 0.4 of the site's typical norm",
        )
    if mode not in _MODES:
        raise InterventionMismatch(f'"{mode}" is not a way to add.', got=mode, instead=", ".join(_MODES))
    amounts = _amounts(dose if dose is not None else absolute)
    if absolute is None or mode == "rotate":
        refuse_unusable_direction(direction, str(at))
    unit = "radian" if mode == "rotate" else "reference_norm" if dose is not None else "raw"
    where = Where.of(positions, heads=heads)
    return Add(at=str(at), direction=Value(direction), amounts=amounts, unit=unit, mode=mode, where=where)


def _amounts(given: Any) -> tuple[float, ...]:
    """One amount, or one a row; arrays as lists.

    Raises:
        InterventionMismatch: no amount, or none that is a number.
    """
    plain = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    items = list(plain) if isinstance(plain, Sequence) and not isinstance(plain, str) else [plain]
    if not items or any(isinstance(x, bool) or not isinstance(x, SupportsFloat) for x in items):
        raise InterventionMismatch(
            "A dose is a number, or one number for each row.",
            got=repr(given)[:80],
            instead="dose=0.4, or dose=[0.1, 0.2] for two prompts",
        )
    return tuple(float(x) for x in items)


def _other_number(how_many: str, at: str, n_doses: int, rows: str) -> ShapeError:
    return ShapeError(
        f"There are {how_many} doses than rows at {at}.",
        got=f"{n_doses} doses, {rows}",
        because="a list of doses gives each row of the batch its own",
        instead="one dose a row, or a single one for all",
    )


def rotate_towards(value: Tensor, direction: Tensor, angle: Tensor) -> Tensor:
    """Turn vectors by `angle` radians in the plane that they span with a unit direction; norms are kept.

    A vector along the direction spans no plane with it and stays as it is.
    """
    norm = value.norm(dim=-1, keepdim=True)
    unit = value / norm.clamp_min(torch.finfo(value.dtype).tiny)
    across = direction - (unit * direction).sum(-1, keepdim=True) * unit
    width = across.norm(dim=-1, keepdim=True)
    is_plane = width > 8 * torch.finfo(value.dtype).eps
    across = across / torch.where(is_plane, width, torch.ones_like(width))
    turned = norm * (torch.cos(angle) * unit + torch.sin(angle) * across)
    return torch.where(is_plane, turned, value)


@register_kind("project_out")
@dataclass(frozen=True, kw_only=True)
class ProjectOut(Intervention):
    """A direction (or subspace) removed from a site.

    Args:
        directions: [d] or [n, d]; made orthonormal here.
        fraction: 1 removes the component, 2 reflects it, 0 does nothing.
    """

    directions: Value
    fraction: float = 1.0

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "ProjectOut":
        """Refuses a direction of another width."""
        for site in sites:
            refuse_other_direction(self.directions.tensor, site, facts)
        return self

    @cached_property
    def _basis(self) -> Tensor:
        return orthonormal(self.directions.tensor)

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        basis = self._basis.to(value)
        return value - self.fraction * (value @ basis.T) @ basis


def project_out(
    at: str | Site, directions: Tensor, *, fraction: float = 1.0, positions: Any = None, heads: Any = None
) -> ProjectOut:
    """Remove a direction [d] or a subspace [n, d] from a site. Doing it twice changes nothing more."""
    refuse_unusable_direction(directions, str(at))
    where = Where.of(positions, heads=heads)
    return ProjectOut(at=str(at), directions=Value(directions), fraction=fraction, where=where)


@register_kind("scale")
@dataclass(frozen=True, kw_only=True)
class Scale(Intervention):
    """A site multiplied by a factor."""

    factor: float

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "Scale":
        """Warns where a later norm undoes the scaling."""
        # A norm acts token by token; a token's value reaches others through the pattern, so `v` must be scaled whole.
        undone = {"z", "attn_raw", "mlp_post", "mlp_raw"} | ({"v"} if self.where.positions is None else set())
        whole = self.where.heads is None and self.where.units is None
        if facts.is_undone_by_post_norm and whole and any(site.point in undone for site in sites):
            warnings.warn(
                f"Scaling all of {self.at} has no effect here: a norm after the block divides the factor away. "
                "Scale attn_out or mlp_out instead.",
                stacklevel=2,
            )
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        return value * self.factor


def scale(
    at: str | Site, factor: float, *, positions: Any = None, heads: Any = None, units: Any = None
) -> Scale:
    """Multiply a site by a factor; 1 changes nothing."""
    return Scale(at=str(at), factor=float(factor), where=Where.of(positions, heads=heads, units=units))


@register_kind("cap")
@dataclass(frozen=True, kw_only=True)
class Cap(Intervention):
    """The component along a direction kept within limits; everything across it unchanged.

    Args:
        direction: [d].
        at_most: Largest component along the unit direction, in raw units; None for no limit.
        at_least: Smallest component; None for no limit.
    """

    direction: Value
    at_most: float | None = None
    at_least: float | None = None

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "Cap":
        """Refuses a direction of another width."""
        for site in sites:
            refuse_other_direction(self.direction.tensor, site, facts)
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        direction = self.direction.tensor.to(value)
        direction = direction / direction.norm()
        component = (value * direction).sum(-1, keepdim=True)
        return value + (component.clamp(min=self.at_least, max=self.at_most) - component) * direction


def cap(
    at: str | Site,
    direction: Tensor,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    positions: Any = None,
) -> Cap:
    """Keep a site's component along a direction within limits, in the site's raw units."""
    if at_most is None and at_least is None:
        raise InterventionMismatch(
            "A cap needs a limit.", got="at_most=None, at_least=None", instead="at_most=3.0"
        )
    if at_most is not None and at_least is not None and at_least > at_most:
        raise InterventionMismatch(
            "A cap's limits leave nothing between them.",
            got=f"at_most={at_most}, at_least={at_least}",
            instead="at_least below at_most",
        )
    refuse_unusable_direction(direction, str(at))
    return Cap(
        at=str(at), direction=Value(direction), at_most=at_most, at_least=at_least, where=Where.of(positions)
    )
