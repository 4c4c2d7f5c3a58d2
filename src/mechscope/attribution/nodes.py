"""attribute: a first-order effect for every node at a point: attribution patching, RelP, AtP*, integrated gradients.

Owns: which runs each method takes, and the node's own product. Cells are those of `patch_grid`, so that scores can be
held against its effects one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechscope.attribution.blocks import Block, blocks_of, refuse_other_vocabulary
from mechscope.attribution.linearization import Linearization, plain, relp
from mechscope.attribution.node_cells import by_component, cells_of, difference
from mechscope.attribution.node_scores import NodeScores
from mechscope.attribution.passes import Pass, Request, refuse_flat_metric, run_backward, run_plain
from mechscope.attribution.paths import Paths
from mechscope.attribution.query_key import key_effects, query_effects
from mechscope.attribution.settings import Direction, NodeSettings, refuse_unknown
from mechscope.attribution.verification import Verified, verify
from mechscope.engine.cells import GridLayout, lay_out_grid
from mechscope.engine.pairs import Pairs, hash_of_prompts, metric_facts, refuse_unless_pairs
from mechscope.figures.labelled import LabelledArray
from mechscope.models.model import Model
from mechscope.vocabulary.errors import InterventionMismatch, PointUnavailable
from mechscope.vocabulary.sites import Site

METHODS = ("attribution", "atp*", "ig", "relp")
_OF_PATTERNS = ("q_proj", "k_proj", "q_pre", "k_pre", "q", "k", "scores", "sink")

OfGradients = Callable[[dict[Site, Tensor]], Tensor]
"""Gradients by site to cells [component, place, pair]."""


def attribute(
    model: Model,
    behavior: Pairs,
    *,
    site: str = "z",
    method: str = "attribution",
    direction: Direction = "denoising",
    positions: Any = None,
    settings: NodeSettings | None = None,
) -> NodeScores:
    """Predict, for every node at a point at once, how the metric changes if it is patched.

    Args:
        model: An open model.
        behavior: A behavior, one of its splits, or anything with `clean`, `corrupt` and `metric`.
        site: A point or a point at some layers, as in `patch_grid`: "resid_pre", "z", "q", "k", "mlp_post.2-3".
        method: "attribution": the difference of the two runs times the gradient. "relp": the same with the
            linearization `relp()`. "atp*": softmax recomputed for "q" and "k", gradients averaged in magnitude with one
            layer's contribution dropped at a time, the strongest nodes verified by real patches and a bound for the
            rest. "ig": the gradient averaged over values of the point between the two runs, layer by layer.
        direction: "denoising" puts clean values into the corrupt run, "noising" corrupt ones into the clean run.
        positions: As in `patch_grid`.
        settings: Steps, units, what is held, what is verified; `NodeSettings()` by default.

    Returns:
        `scores` [layer, head or unit, position] in the metric's unit; for "atp*" magnitudes, `measured` and `bound`.

    Raises:
        BadPairs, PairLengthMismatch: prompts that do not line up, or of another model's vocabulary.
        AmbiguousSite, PointUnavailable: a site that is several points, or that has no gradient.
        NoGradient: the metric's gradient is zero, such as KL in its own reference run.

    Cost: two forward passes and one backward pass; "atp*": a backward pass a layer more, and the patches; "ig": a
        forward and a backward pass a step and layer, each from that layer on.
    Caveat: a first-order prediction. docs/methods/attribution_patching.md.
    """
    settings = settings or NodeSettings()
    refuse_unless_pairs(behavior)
    refuse_unknown("method of attribution", method, METHODS)
    refuse_unknown("direction", direction, ("denoising", "noising"))
    refuse_other_vocabulary(model, behavior)
    linearization = settings.linearization or (relp() if method == "relp" else plain())
    prompts = (behavior.clean, behavior.corrupt)
    layout = lay_out_grid(model, site, batches=prompts, positions=positions, units=settings.units)
    _refuse_without_gradient(layout.sites[0], linearization)
    found = [
        _Scoring(model, block, layout, settings, linearization, direction == "noising").scores(method)
        for block in blocks_of(model, behavior, layout.places)
    ]
    table = torch.cat(found, dim=-1).double().cpu().numpy()
    verified = None
    if method == "atp*":
        donor, recipient = prompts if direction == "denoising" else prompts[::-1]
        verified = verify(
            model,
            (donor, recipient),
            metric=behavior.metric,
            layout=layout,
            predicted=table.mean(-1),
            settings=settings,
        )
    facts = {"site": site, "method": method, "direction": direction, "linearization": linearization.to_json()}
    facts |= {"steps": settings.steps, "rule": settings.rule} if method == "ig" else {}
    names = ("n_verified", "n_subsets", "seed")
    facts |= {name: getattr(settings, name) for name in names} if method == "atp*" else {}
    return _result(model, behavior, layout, table, facts, verified)


def _refuse_without_gradient(site: Site, linearization: Linearization) -> None:
    if linearization.patterns == "held" and site.point in _OF_PATTERNS:
        raise InterventionMismatch(
            f"{site.point} has no gradient while attention patterns are held.",
            got=str(linearization),
            because="a held pattern does not depend on queries, keys or scores",
            instead='site="pattern", "v" or "z", or method="atp*" for queries and keys',
        )
    if site.point == "expert_choice":
        raise PointUnavailable(
            "A choice of experts has no gradient.", got=str(site), instead="router_logits, expert_weight"
        )


@dataclass
class _Scoring:
    """Scores of one block of pairs."""

    model: Model
    block: Block
    layout: GridLayout
    settings: NodeSettings
    linearization: Linearization
    is_noising: bool

    def __post_init__(self) -> None:
        clean, corrupt = self.block.clean, self.block.corrupt
        self.donor, self.recipient = (corrupt, clean) if self.is_noising else (clean, corrupt)

    def scores(self, method: str) -> Tensor:
        """Cells, [layer, component, place, pair]."""
        by_method = {"ig": self._integrated, "atp*": self._dropped}
        return by_method.get(method, self._first_order)()

    def _first_order(self) -> Tensor:
        sites = self.layout.sites
        given = run_plain(self.model, self.donor, sites)
        found = self._backward(Request(values=sites, at=sites))
        return torch.stack([self._product(site, given, found)(found.gradients) for site in sites])

    def _dropped(self) -> Tensor:
        sites, n_layers = self.layout.sites, self.model.n_layers
        is_query_or_key = sites[0].point in ("q", "k")
        patterns = tuple(Site("pattern", site.layer) for site in sites) if is_query_or_key else ()
        given = run_plain(self.model, self.donor, sites)
        formed = set(self.model.binding.formed)
        groups = [
            tuple(s for s in (Site("attn_out", layer), Site("mlp_out", layer)) if s in formed)
            for layer in range(n_layers)
        ]
        request = Request(
            values=sites, at=patterns or sites, keeps_calls=is_query_or_key, dropped=tuple(groups)
        )
        found = self._backward(request)
        out: list[Tensor] = []
        for site in sites:
            effects = self._product(site, given, found)
            drops = found.dropped if n_layers > 1 else (found.gradients,)
            out.append(sum(effects(g).abs() for g in drops) / max(1, n_layers - 1))  # pyright: ignore
        return torch.stack(out)

    def _product(self, site: Site, given: dict[Site, Tensor], found: Pass) -> OfGradients:
        """From gradients to the cells of one layer."""
        masks = self.block.masks
        pattern = Site("pattern", site.layer) if site.layer is not None else site
        if site.point in ("q", "k") and site.layer in found.calls:
            make = query_effects if site.point == "q" else key_effects
            anatomy = self.model.binding.anatomy.attention
            effects = make(found.calls[site.layer], anatomy, given[site], masks)
            return lambda gradients: effects(gradients[pattern])[[i or 0 for i in self.layout.indices]]
        change = difference(given[site], found.values[site])
        return lambda gradients: cells_of(by_component(change * gradients[site], site), self.layout, masks)

    def _integrated(self) -> Tensor:
        sites = self.layout.sites
        arriving = tuple(Site("resid_pre", site.layer) for site in sites)
        given = run_plain(self.model, self.donor, sites)
        own = run_plain(self.model, self.recipient, (*sites, *arriving))
        corrupt, clean = (own, given) if self.is_noising is False else (given, own)
        passes: list[Pass] = []
        out: list[Tensor] = []
        paths = Paths(
            model=self.model,
            prompts=self.recipient,
            metric=self.block.metric,
            steps=self.settings.steps,
            rule=self.settings.rule,
            linearization=self.linearization,
            n_at_once=self.block.n_at_once,
        )
        for site, start in zip(sites, arriving, strict=True):
            change = difference(given[site], own[site])
            mean, found = paths.gradient(site, (corrupt[site], clean[site]), own[start])
            passes += found
            out.append(cells_of(by_component(change * mean, site), self.layout, self.block.masks))
        refuse_flat_metric(self.block.metric, passes)
        return torch.stack(out)

    def _backward(self, request: Request) -> Pass:
        request = replace(request, linearization=self.linearization)
        found = run_backward(self.model, self.recipient, self.block.metric, request)
        refuse_flat_metric(self.block.metric, [found])
        return found


def _result(
    model: Model,
    behavior: Pairs,
    layout: GridLayout,
    table: np.ndarray,
    facts: dict[str, Any],
    verified: Verified | None,
) -> NodeScores:
    facts |= {
        "positions": layout.places.described,
        "metric": metric_facts(behavior.metric),
        "n_pairs": len(behavior.clean),
        "bos": behavior.clean.bos,
    }
    coords = layout.coords
    shape = [len(labels) for labels in coords.values()]
    conventions = {
        "method": facts["method"],
        "direction": facts["direction"],
        "metric": behavior.metric.kind,
        "positions": layout.places.described,
        "pairs": len(behavior.clean),
    }
    about: dict[str, Any] = {
        "coords": coords,
        "texts": {"pos": layout.places.texts} if layout.places.texts else {},
        "unit": behavior.metric.unit,
        "conventions": conventions,
    }
    title = f"{facts['site']}: predicted effect of a patch"
    per_pair = LabelledArray(
        table.reshape(*shape, -1), (*coords, "pair"), title=f"{title}, pair by pair", **about
    )
    measured = None
    if verified is not None:
        cells = verified.measured.reshape(shape)
        measured = LabelledArray(cells, tuple(coords), title=f"{facts['site']}: measured effect", **about)
    return NodeScores(
        per_pair=per_pair,
        measured=measured,
        bound=None if verified is None else verified.bound,
        settings=facts,
        model=model.fingerprint,
        data_sha256=hash_of_prompts(behavior.clean, behavior.corrupt),
    )
