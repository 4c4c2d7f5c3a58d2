"""Cells: the axes of a grid of results, as sites by layer, heads or units, and places.

Owns: which single-point places a name such as "z" or "mlp_post.2-3" means, for patching and for attribution.
Refuses: names of several points, and points that cannot be written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechscope.engine.places import ALL, Places, each_position, places_of
from mechscope.figures.labelled import Label
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import (
    AmbiguousSite,
    InterventionMismatch,
    PointUnavailable,
    PositionOutOfRange,
)
from mechscope.vocabulary.points import POINTS
from mechscope.vocabulary.sites import Site

_HEAD_AXES = ("head", "kv_head")
_UNIT_AXES = ("d_mlp", "expert")


@dataclass(frozen=True, kw_only=True)
class GridLayout:
    """The axes of a grid.

    Args:
        sites: One a layer.
        component: "head", "kv_head" or "unit"; "" where whole vectors are patched.
        indices: Heads or units; (None,) where whole vectors are patched.
        places: Positions.
    """

    sites: tuple[Site, ...]
    component: str
    indices: tuple[int | None, ...]
    places: Places

    @property
    def coords(self) -> dict[str, Sequence[Label]]:
        """Coordinates by axis, in the order of the grid."""
        coords: dict[str, Sequence[Label]] = {"layer": [site.layer or 0 for site in self.sites]}
        if self.component:
            coords[self.component] = [index or 0 for index in self.indices]
        if self.places.labels:
            coords["pos"] = self.places.labels
        return coords


def lay_out_grid(
    model: Model,
    site: str,
    *,
    batches: tuple[TokenBatch, TokenBatch],
    positions: Any,
    units: Sequence[int] | None,
) -> GridLayout:
    """The axes that a site and a choice of positions give."""
    sites = sites_of(model, site)
    row = sites[0].row
    head_axis = next((axis for axis in _HEAD_AXES if axis in row.axes), "")
    component = head_axis or ("unit" if row.axes[-1] in _UNIT_AXES else "")
    if units is not None and component != "unit":
        raise InterventionMismatch(
            f"{sites[0]} has no units to choose from.",
            got=f"units={list(units)[:5]}",
            instead='site="mlp_post"',
        )
    indices: tuple[int | None, ...] = (None,)
    if component:
        size = model.sizes[head_axis or row.axes[-1]]
        indices = tuple(range(size)) if units is None else tuple(units)
        outside = [index for index in indices if index is not None and not 0 <= index < size]
        if outside or not indices:
            raise PositionOutOfRange(
                f"{sites[0]} has no such units.", got=str(outside[:5]), because=f"there are {size} of them"
            )
    default = ALL if component else each_position(batches)
    places = places_of(default if positions is None else positions, model, *batches)
    return GridLayout(sites=sites, component=component, indices=indices, places=places)


def sites_of(model: Model, name: str) -> tuple[Site, ...]:
    """The sites of one writable point that a point, a site or a pattern names, by layer."""
    text = str(name)
    is_point = text in POINTS and POINTS[text].basis == "layer"
    sites = [s for s in model.binding.select(f"{text}.*" if is_point else text) if s.layer is not None]
    points = sorted({s.point for s in sites})
    if len(points) != 1:
        raise AmbiguousSite(
            "A grid has one point a layer.",
            got=f"{text}: {', '.join(points) or 'a point outside the layers'}",
            because="its rows are layers",
            instead='a point such as "resid_pre", or some of its layers: "z.2-5"',
        )
    if not (sites[0].row.is_writable and sites[0].row.is_formed):
        raise PointUnavailable(
            f'"{points[0]}" cannot be patched.',
            got=text,
            because="it is computed from other tensors when it is read",
            instead=", ".join(sites[0].row.nearest),
        )
    return tuple(sites)
