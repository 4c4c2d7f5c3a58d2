"""Site: a point at a layer, the one canonical address of a tensor, and the patterns that name several.

Canonical text is `point.layer` ("resid_post.6") or just the point where it exists once ("embed").
Foreign names are translated by `foreign_names`; what a model forms is decided by the model, not here.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import total_ordering

from mechscope.vocabulary import foreign_names
from mechscope.vocabulary.errors import AmbiguousSite, UnknownSite
from mechscope.vocabulary.points import POINTS, ROUTING, Point

_BASES = {"start": -1, "end": 1_000_000}


@total_ordering
@dataclass(frozen=True)
class Site:
    """A point at a layer; `layer` is None for points that exist once a model.

    Sites sort in the order of the forward pass.

    >>> str(Site("resid_post", 6))
    'resid_post.6'
    >>> Site.parse("blocks.6.hook_resid_post")
    Site('resid_post', 6)
    """

    point: str
    layer: int | None = None

    def __post_init__(self) -> None:
        row = POINTS.get(self.point)
        if row is None:
            raise unknown_site(self.point)
        if (row.basis == "layer") != (self.layer is not None):
            raise UnknownSite(
                f'"{self.point}" {"needs a layer" if row.basis == "layer" else "exists once and takes no layer"}.',
                got=f"Site({self.point!r}, layer={self.layer})",
                because=f"the table of points lists it with basis {row.basis!r}",
                instead=f"Site({self.point!r}, layer=0)" if row.basis == "layer" else f"Site({self.point!r})",
            )

    @classmethod
    def parse(cls, name: "str | Site | Sequence[str | int]") -> "Site":
        """A site from "z.9", ("z", 9), a foreign name or a site. Refuses patterns.

        Raises:
            UnknownSite: no such point; the message lists the nearest names.
            AmbiguousSite: the name is a pattern.
        """
        if isinstance(name, Site):
            return name
        if not isinstance(name, str):
            point, layer = name
            return cls(str(point), int(layer))
        if is_pattern(name):
            raise AmbiguousSite(
                f'"{name}" is a pattern, and one site is needed here.',
                got=name,
                because="a pattern may match several sites",
                instead='name one, e.g. "resid_post.3"',
            )
        point, layer = split_name(name)
        return cls(point, layer)

    @property
    def row(self) -> Point:
        """This site's row in the table of points."""
        return POINTS[self.point]

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: the order of the forward pass."""
        row = self.row
        return (self.layer if self.layer is not None else _BASES[row.basis], row.stage)

    def __lt__(self, other: "Site") -> bool:
        return self.order < other.order

    def __str__(self) -> str:
        return self.point if self.layer is None else f"{self.point}.{self.layer}"

    def __repr__(self) -> str:
        return f"Site({self.point!r})" if self.layer is None else f"Site({self.point!r}, {self.layer})"


def split_name(name: str) -> tuple[str, int | None]:
    """Point and layer of a single-site name, ours or foreign ("z.9", "z.-1", "blocks.9.attn.hook_z")."""
    if (translated := foreign_names.translate(name)) is not None:
        return translated[0][0], translated[1]
    point, dot, layer = name.partition(".")
    if point not in POINTS or (dot and not re.fullmatch(r"-?\d+", layer)):
        raise unknown_site(name)
    return point, int(layer) if dot else None


def is_pattern(name: str) -> bool:
    """True for names that may match several sites: "*", "z.*", "mlp_*.3", "resid_pre.2-5", "mlp_in.1,mlp_out.1"."""
    return "*" in name or "," in name or re.search(r"\.\d+-\d+$", name) is not None


def select_sites(wanted: str | Site | Iterable[str | Site], formed: Sequence[Site]) -> list[Site]:
    """The sites of `formed` that `wanted` names, in the order of the forward pass.

    Args:
        wanted: A site, a pattern, or several. "*" in the layer part or in the point part; "2-5" includes 5; commas
            join several in one text. A negative layer counts from the end.
        formed: What the model offers.

    Raises:
        UnknownSite: a name that matches nothing; the message lists the nearest names.
    """
    names = [wanted] if isinstance(wanted, str | Site) else list(wanted)
    n_layers = 1 + max((site.layer for site in formed if site.layer is not None), default=-1)
    found: set[Site] = set()
    for name in [part for one in names for part in _parts(one)]:
        hits = [site for site in formed if _matches(name, site, n_layers)]
        if not hits:
            raise unknown_site(str(name), formed)
        found.update(hits)
    return sorted(found)


def routing_at(at: str | Site) -> str:
    """What a write does to the experts' choice: "recomputed", "frozen", both, or "" where no routing is written.

    >>> routing_at("router_logits.3"), routing_at("expert_choice.*"), routing_at("resid_post.3")
    ('recomputed', 'frozen', '')
    """
    points = [str(part).partition(".")[0].replace("*", ".*") for part in _parts(str(at))]
    said = {ROUTING[name] for name in ROUTING for point in points if re.fullmatch(point, name)}
    return ", ".join(sorted(said))


def _parts(name: str | Site) -> list[str | Site]:
    return [name] if isinstance(name, Site) else [part.strip() for part in name.split(",")]


def _matches(name: str | Site, site: Site, n_layers: int) -> bool:
    if isinstance(name, Site):
        return name == site
    if not is_pattern(name):
        point, layer = split_name(name)
        if layer is not None and layer < 0:
            layer += n_layers
        return site.point == point and site.layer == layer
    point, _, layers = name.partition(".")
    if not re.fullmatch(point.replace("*", ".*"), site.point):
        return False
    if not layers:
        return point == "*" or site.layer is None
    if site.layer is None:
        return False
    if "-" in layers:
        first, last = layers.split("-")
        return int(first) <= site.layer <= int(last)
    return layers == "*" or layers == str(site.layer)


def unknown_site(name: str, formed: Sequence[Site] = ()) -> UnknownSite:
    """The refusal for a name that matches nothing, with the nearest names."""
    names = [str(site) for site in formed] or [
        f"{row.name}.0" if row.basis == "layer" else row.name for row in POINTS.values()
    ]
    near = difflib.get_close_matches(name if "." in name else f"{name}.0", names, n=4, cutoff=0.3)
    return UnknownSite(
        f'"{name}" names no site.',
        got=name,
        because="it is not in the table of points" if not formed else "this model forms no such site",
        instead=", ".join(near) if near else "see docs/methods/points.md",
    )
