"""Naming: which site a name means in one model, and why a point is not there.

Holds what the names need and no module, so a cache can keep it and outlive the model.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mechscope.models.anatomy import Anatomy
from mechscope.vocabulary import foreign_names
from mechscope.vocabulary.errors import PointUnavailable, UnknownSite
from mechscope.vocabulary.points import POINTS
from mechscope.vocabulary.sites import Site

ATTENTION_POINTS = ("q", "k", "v", "scores", "sink", "pattern", "z")
"""Points reached through the attention function."""


@dataclass(frozen=True)
class Names:
    """Names in one model.

    Args:
        anatomy: Its family's anatomy.
        n_layers: Layers.
        readable: Every site that can be read.
    """

    anatomy: Anatomy
    n_layers: int
    readable: tuple[Site, ...]

    def site(self, name: "str | Site | Sequence[str | int]") -> Site:
        """The one readable site that a name means here; foreign names choose the first point that is formed.

        Raises:
            UnknownSite: not in the table, or the layer does not exist.
            PointUnavailable: in the table, but not formed by this architecture; the nearest point is named.
        """
        if not isinstance(name, str):
            wanted = Site.parse(name)
            return self._available(wanted.point, wanted.layer, str(wanted))
        if (translated := foreign_names.translate(name)) is not None:
            candidates, layer = translated
            self._refuse_sum_before_norm(name, candidates[0], layer)
            for point in candidates:
                if point in self._points:
                    found = self._available(point, layer, name)
                    if foreign_names.presumes_folding(name):
                        _say_what_was_folded(name, found)
                    return found
            return self._available(candidates[0], layer, name)
        site = Site.parse(name)
        return self._available(site.point, site.layer, name)

    def _refuse_sum_before_norm(self, name: str, point: str, layer: int | None) -> None:
        """Refuse TransformerLens' names of a stream before its norm, where ours are of the stream behind it."""
        if self.anatomy.is_stream_normed and point in ("resid_mid", "resid_post"):
            raise PointUnavailable(
                f'"{name}" is not formed in reach in {self.anatomy.family}.',
                got=name,
                because="where norms stand on the residual stream, TransformerLens means the sum before the norm",
                instead=f"{point}.{layer}, what the norm returns; what was added to it is "
                f"{'attn_out' if point == 'resid_mid' else 'mlp_out'}.{layer}",
            )

    @cached_property
    def _points(self) -> set[str]:
        return {site.point for site in self.readable}

    def _available(self, point: str, layer: int | None, asked: str) -> Site:
        if layer is not None and not -self.n_layers <= layer < self.n_layers:
            raise UnknownSite(
                f'"{asked}" names a layer that does not exist.',
                got=asked,
                because=f"the model has {self.n_layers} layers",
                instead=f"{point}.0 to {point}.{self.n_layers - 1}",
            )
        if layer is not None and layer < 0:
            layer += self.n_layers
        site = Site(point, layer)
        if site in self._readable_set:
            return site
        raise self._unavailable(site)

    @cached_property
    def _readable_set(self) -> frozenset[Site]:
        return frozenset(self.readable)

    def _unavailable(self, site: Site) -> PointUnavailable:
        norm = self.anatomy.norms.get(site.point.split("_")[0])
        nearest = site.row.nearest
        if norm is not None and norm.is_on_stream:
            nearest = ("resid_mid",) if site.point.startswith("ln1") else ("resid_post",)
        near = [str(Site(n, site.layer if POINTS[n].basis == "layer" else None)) for n in nearest]
        near = [name for name in near if _is_listed(name, self._readable_set)]
        because = self.anatomy.why_missing.get(site.point) or _why_missing(site.point, self.anatomy)
        return PointUnavailable(
            f'"{site.point}" is not formed in reach at {site} of {self.anatomy.family}.',
            got=repr(site),
            because=because,
            instead=", ".join(near) if near else "list(model.sites) shows what there is",
        )


def _is_listed(name: str, sites: frozenset[Site]) -> bool:
    return Site.parse(name) in sites


def _why_missing(point: str, anatomy: Anatomy) -> str:
    if point == "resid_mid" and anatomy.is_parallel:
        return (
            "attention and MLP read the same residual stream in parallel, so there is no stream between them"
        )
    if point.startswith(("ln1", "ln2")) and anatomy.is_stream_normed:
        return "that norm stands on the residual stream: what it returns is the stream itself"
    if point in ("ln_final_scale", "ln_final_normalized") and anatomy.head.transform is not None:
        return "what the final norm divides is made inside the head, and is no point"
    if point in ("q_pre", "k_pre"):
        return "positions are not rotary here, so nothing happens between the projection and the scores"
    if point == "pos_embed":
        return "positions are not learned embeddings in this architecture"
    if point == "sink":
        return "this architecture's softmax has no sink"
    if point in ATTENTION_POINTS:
        return "this family does not call the library's attention interface"
    if point in ("router_logits", "expert_choice", "expert_weight", "expert_out"):
        return "this architecture is not a mixture of experts"
    return "this architecture computes no such tensor, or not as a module's input or output"


def _say_what_was_folded(name: str, site: Site) -> None:
    unfolded = str(site).replace("_normalized", "")
    warnings.warn(
        f'"{name}" is read as {site}: what the norm gives before its weight and bias. TransformerLens means that where '
        f"it folded them away, as it does by default; without folding its LayerNorm means {unfolded}. Nothing is "
        "folded here; either name of ours says which is meant.",
        stacklevel=4,
    )
