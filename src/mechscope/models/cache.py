"""Cache: the tensors that a run kept, by site, and what can be computed from them.

Formed tensors are kept by reference, not copied. Derived ones (per-head outputs, norm scales, scores and
patterns that nobody asked the model to form) are computed when they are read. The cache never holds the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechscope.models.attention import Call
from mechscope.models.inputs import TokenBatch
from mechscope.models.limits import refuse_normed_stream
from mechscope.models.naming import Names
from mechscope.models.splicing import Link
from mechscope.vocabulary.errors import ShapeError, SiteAfterStop, SiteError, UnknownSite
from mechscope.vocabulary.points import RESIDUAL_POINTS
from mechscope.vocabulary.sites import Site

Name = str | Site | Sequence[str | int]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a cache needs of its model, as plain functions.

    Args:
        names: What names mean in the model.
        derive: A derived site's tensor from a function that reads formed ones.
        map_of: Scores or pattern from an attention call that a run kept.
        direction: Residual direction of a difference of two answers, with the final norm's weight applied:
            ids [n], ids [n] to [n, d_model].
        final_scale: What the final norm divides by, [..., d_model] to [..., 1].
        is_centred: The final norm subtracts the mean.
        source_of: The formed site that a derived one is computed from.
    """

    names: Names
    derive: Callable[[Site, Callable[[Site], Tensor]], Tensor]
    map_of: Callable[[Call, str], Tensor]
    direction: Callable[[Tensor, Tensor | None], Tensor]
    final_scale: Callable[[Tensor], Tensor]
    is_centred: bool
    source_of: Callable[[Site], Site]


class Cache(Mapping[Site, Tensor]):
    """A run's activations: `cache["resid_post", 6]`, `cache["resid_post.6"]`, or a foreign name.

    Shapes are those of the table of points, with positions as columns of the left-padded batch, so
    `cache["resid_post", 6][0, -1]` is the last real token of the first prompt. `cache["latents", dictionary]` are the
    codes [batch, pos, n_latents] of a dictionary that was spliced into the run.
    """

    def __init__(
        self,
        tensors: dict[Site, Tensor],
        tokens: TokenBatch,
        resources: Resources,
        *,
        calls: Mapping[int, Call] | None = None,
    ) -> None:
        self._tensors = tensors
        self._resources = resources
        self._calls = dict(calls or {})
        self.tokens = tokens
        self.latents: dict[int, Link] = {}

    def __getitem__(self, name: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if isinstance(name, tuple) and len(name) == 2 and name[0] == "latents":
            return self._latents_of(name[1])
        return self._read(self._resources.names.site(name))

    def _latents_of(self, codec: Any) -> Tensor:
        if id(codec) not in self.latents:
            raise SiteAfterStop(
                "This dictionary was not spliced into the run.",
                got=str(codec),
                because="a run keeps the codes of the dictionaries it is given",
                instead="model.run(..., splice=[dictionary])",
            )
        return self.latents[id(codec)].latents(self.tokens.shape)

    def site(self, name: Name) -> Site:
        """The site that a name means in the model of this cache."""
        return self._resources.names.site(name)

    @property
    def readable(self) -> list[Site]:
        """Every site that can be read here: what was kept, maps that can be formed, and what is derived."""
        return [site for site in self._resources.names.readable if self._can_read(site)]

    def __contains__(self, name: object) -> bool:
        try:
            return self._can_read(self._resources.names.site(name))  # pyright: ignore[reportArgumentType]
        except SiteError:
            return False

    def __iter__(self) -> Iterator[Site]:
        return iter(sorted(self._tensors))

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        size = sum(t.numel() * t.element_size() for t in self._tensors.values())
        points = sorted({site.point for site in self._tensors})
        return f"<Cache of {len(self)} tensors, {size / 2**20:.1f} MiB, {self.tokens.shape} tokens: {' '.join(points)}>"

    def call(self, layer: int) -> Call:
        """The attention call of a layer: queries, keys and values as the scores see them, mask and scaling.

        Raises:
            SiteAfterStop: the run captured neither "q" nor "k", so no calls were kept.
        """
        if layer not in self._calls:
            raise SiteAfterStop(
                f"The attention call of layer {layer} was not kept.",
                got=f"calls of layers {sorted(self._calls)}",
                because="calls are kept by runs that capture queries or keys, up to where they stop",
                instead=f'model.run(..., capture=["q.{layer}", "k.{layer}"])',
            )
        return self._calls[layer]

    def decompose(self, name: Name) -> tuple[list[str], Tensor]:
        """Cut a residual-stream site into what wrote it: embeddings, and each attention and MLP before it.

        Returns:
            Labels, and their contributions [component, batch, pos, d_model]; the sum over components is the
            site's tensor, to rounding.

        Raises:
            SiteAfterStop: a component was not captured.
            UnknownSite: not a site of the residual stream.
            PointUnavailable: norms stand on the residual stream, so that it is no sum.

        Caveat: what an intervention wrote into the residual stream itself is nobody's component, so under one the
            sum falls short of the site by what was written.
        """
        refuse_normed_stream(
            self._resources.names.anatomy,
            "Components",
            instead='cache["attn_out", layer] and cache["mlp_out", layer] are what was added before each norm',
        )
        site = self.site(name)
        if site.point not in RESIDUAL_POINTS or site.layer is None:
            raise UnknownSite(
                "Only a site of the residual stream can be cut into components.",
                got=str(site),
                instead=f"resid_pre.{site.layer or 0}, resid_mid.{site.layer or 0} or resid_post.{site.layer or 0}",
            )
        formed = set(self._resources.names.readable)
        names = [Site("resid_pre", 0)]
        for layer in range(site.layer + 1):
            for point, upto in (("attn_out", "resid_mid"), ("mlp_out", "resid_post")):
                if Site(upto, layer) <= site and Site(point, layer) in formed:
                    names.append(Site(point, layer))
        labels = ["embed" if s.point == "resid_pre" else str(s) for s in names]
        return labels, torch.stack([self[s].to(self[names[0]].device) for s in names])

    def logit_effects(
        self, answers: Tensor | Sequence[int], wrong: Tensor | Sequence[int] | None = None
    ) -> tuple[list[str], Tensor]:
        """Direct effect of every component on the answers' logits, at each row's last position.

        The final norm's scale is the run's own, so effects add up to the logit (difference), less what the
        final norm's and the unembedding's biases add, and before a final soft-cap.

        Args:
            answers: One token id a row, or one for all rows.
            wrong: Foils likewise; None gives the answers' logits themselves.

        Returns:
            Labels, and effects in logits, [component, batch].
        """
        last = self._resources.names.n_layers - 1
        labels, parts = self.decompose(Site("resid_post", last))
        parts = parts[:, :, -1]
        if self._resources.is_centred:
            parts = parts - parts.mean(-1, keepdim=True)
        scale = self._resources.final_scale(self[Site("resid_post", last)][:, -1]).to(parts.device)
        foils = None if wrong is None else self._one_a_row(wrong)
        toward = self._resources.direction(self._one_a_row(answers), foils).to(parts.device)
        return labels, torch.einsum("cbd,bd->cb", parts / scale, toward)

    def to(self, device: str | torch.device) -> "Cache":
        """The same cache with its tensors on another device."""
        moved = {site: tensor.to(device) for site, tensor in self._tensors.items()}
        calls = {layer: call.to(device) for layer, call in self._calls.items()}
        return Cache(moved, self.tokens, self._resources, calls=calls)

    def save(self, path: str | Path) -> None:
        """Write the tensors as one safetensors file, atomically, named by canonical site.

        `Model.open_cache` reads it. Maps that nobody captured are not in it: capture "pattern.*" to save them.
        """
        from mechscope.records.files import save_tensors

        tensors = {str(site): tensor.detach().contiguous().cpu() for site, tensor in self._tensors.items()}
        tokens = {"tokens": self.tokens.ids, "n_pad": self.tokens.n_pad}
        save_tensors(Path(path), tensors | tokens, {"bos": self.tokens.bos})

    def _one_a_row(self, ids: Tensor | Sequence[int]) -> Tensor:
        found = torch.as_tensor(ids).reshape(-1)
        if len(found) not in (1, len(self.tokens)):
            raise ShapeError(
                "There must be one token id a row.",
                got=f"{len(found)} ids",
                because=f"the run had {len(self.tokens)} rows",
                instead="one id for all rows, or one each",
            )
        return found.expand(len(self.tokens))

    def _read(self, site: Site) -> Tensor:
        if site in self._tensors:
            return self._tensors[site]
        if self._is_map_of_call(site):
            assert site.layer is not None
            return self._resources.map_of(self._calls[site.layer], site.point)
        return self._formed(site) if site.row.is_formed else self._resources.derive(site, self._formed)

    def _can_read(self, site: Site) -> bool:
        if site in self._tensors or self._is_map_of_call(site):
            return True
        return not site.row.is_formed and self._resources.source_of(site) in self._tensors

    def _is_map_of_call(self, site: Site) -> bool:
        return site.point in ("scores", "pattern") and site.layer in self._calls

    def _formed(self, site: Site) -> Tensor:
        if site in self._tensors:
            return self._tensors[site]
        raise SiteAfterStop(
            f"{site} was not captured by this run.",
            got=f"captured: {', '.join(str(s) for s in list(self)[:8])}{' ...' if len(self) > 8 else ''}",
            because="a run keeps what it is asked for, and stops where it is told to",
            instead=f'model.run(..., capture=["{site}"])',
        )
