"""attribute_edges: a first-order effect for every edge, exactly, from ordinary runs.

Owns: which runs each method takes. Refuses families whose attention is out of reach and metrics without a gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mechscope.attribution.blocks import Block, blocks_of, refuse_other_vocabulary
from mechscope.attribution.contraction import Offsets, contract, readers_without_gradient
from mechscope.attribution.edge_scores import EdgeScores
from mechscope.attribution.passes import Pass, Request, refuse_flat_metric, run_backward, run_plain
from mechscope.attribution.readers import Readers, reader_sites
from mechscope.attribution.settings import Direction, EdgeSettings, refuse_unknown, steps_of
from mechscope.attribution.writers import EMBEDDED, Writers, writer_sites
from mechscope.engine.edge_runs.layer_parts import LayerParts
from mechscope.engine.pairs import Pairs, hash_of_prompts, metric_facts, refuse_unless_pairs
from mechscope.engine.places import Places, places_of
from mechscope.models.model import Model
from mechscope.models.wiring import wiring_of
from mechscope.vocabulary.errors import PointUnavailable
from mechscope.vocabulary.sites import Site

METHODS = ("eap", "eap-ig", "eap-ig-activations", "eap-clean-corrupted")
_STEPS_HELD = 8
"""Steps whose normalised inputs are held before their scores are taken."""

Values = dict[Site, Tensor]


def attribute_edges(
    model: Model,
    behavior: Pairs,
    *,
    method: str = "eap",
    direction: Direction = "noising",
    positions: Any = "all",
    settings: EdgeSettings | None = None,
) -> EdgeScores:
    """Predict, for every edge at once, how the metric changes if that edge carries the other run's value.

    Equal to gradients at inputs that were split for every reader, which are never formed.

    Args:
        model: An open model.
        behavior: A behavior, one of its splits, or anything with `clean`, `corrupt` and `metric`.
        method: "eap": gradients of the recipient run. "eap-ig": averaged over inputs between corrupt and clean.
            "eap-ig-activations": averaged over one node's output between corrupt and clean, node by node.
            "eap-clean-corrupted": averaged over the two runs.
        direction: "noising" puts corrupt values into the clean run, "denoising" clean ones into the corrupt run.
        positions: "all" together; "each", "from-end" or a mapping of names to positions also gives `by_place`.
        settings: Steps, their rule, what is held; `EdgeSettings()` by default.

    Returns:
        Scores in the order of `Wiring.edges`, in the metric's unit, mean over pairs.

    Raises:
        BadPairs, PairLengthMismatch: prompts that do not line up, or of another model's vocabulary.
        PointUnavailable: the family's attention is out of reach.
        NoGradient: the metric's gradient is zero, such as KL in its own reference run.

    Cost: "eap": two forward passes and one backward pass, and one product a layer. "eap-ig": two forward passes, and
        a forward and a backward pass a step. Activations: these for each layer's attention and MLP.
    Caveat: first order. Saturated attention has no gradient: such edges are marked, not found.
        docs/methods/edge_attribution.md.
    """
    settings = settings or EdgeSettings()
    refuse_unless_pairs(behavior)
    refuse_unknown("method of edge attribution", method, METHODS)
    refuse_unknown("direction", direction, ("denoising", "noising"))
    refuse_other_vocabulary(model, behavior)
    refuse_out_of_reach(model)
    places = places_of(positions, model, behavior.clean, behavior.corrupt)
    found = [
        _Scoring(model, block, settings, is_noising=direction == "noising").scores(method)
        for block in blocks_of(model, behavior, places)
    ]
    return _result(model, behavior, found, places, settings, method=method, direction=direction)


def refuse_out_of_reach(model: Model) -> None:
    """Refuse a family that does not form queries, keys, values and z in reach.

    Raises:
        PointUnavailable
    """
    formed = set(model.binding.formed)
    missing = [point for point in ("q_proj", "k_proj", "v", "z") if Site(point, 0) not in formed]
    if missing:
        raise PointUnavailable(
            f"Edges of {model.identity.name} can't be attributed.",
            got=f"{model.binding.anatomy.family}, no {', '.join(missing)}",
            because=model.binding.anatomy.why_missing.get(missing[0], "its attention is out of reach"),
            instead='attribute(model, behavior, site="mlp_out"), or a family whose attention is in reach',
        )


@dataclass
class _Scoring:
    """Scores of one block of pairs."""

    model: Model
    block: Block
    settings: EdgeSettings
    is_noising: bool
    passes: list[Pass] = field(default_factory=list)
    out: Tensor | None = None
    silent: Tensor | None = None

    def __post_init__(self) -> None:
        self.wiring = wiring_of(self.model)
        self.layers = [LayerParts(self.model.binding, layer) for layer in range(self.model.n_layers)]
        holds_norms = self.settings.linearization.norms == "held"
        self.readers = Readers(self.model, self.layers, holds_norms)
        self.values, self.at = reader_sites(self.model, self.layers)

    def scores(self, method: str) -> tuple[Tensor, Tensor]:
        """Scores [place, pair, edge], and readers without gradient."""
        runs: dict[str, Callable[[], None]] = {
            "eap": self._plain,
            "eap-ig": self._along_inputs,
            "eap-ig-activations": self._along_activations,
            "eap-clean-corrupted": self._at_both_ends,
        }
        runs[method]()
        refuse_flat_metric(self.block.metric, self.passes)
        assert self.out is not None and self.silent is not None
        return self.out, self.silent

    def _plain(self) -> None:
        sites = writer_sites(self.model)
        donor, recipient = self._ordered(self.block.clean, self.block.corrupt)
        given = run_plain(self.model, donor, sites)
        found = self._backward(recipient, Request(values=(*self.values, *sites)))
        self.readers.add(found, weights=torch.ones(1))
        self._flush(Writers.between(self.layers, self.wiring, given, found.values))

    def _at_both_ends(self) -> None:
        sites = writer_sites(self.model)
        found = [
            self._backward(batch, Request(values=(*self.values, *sites)))
            for batch in (self.block.clean, self.block.corrupt)
        ]
        for one in found:
            self.readers.add(one, weights=torch.full((1,), 0.5))
        donor, recipient = self._ordered(*(one.values for one in found))
        self._flush(Writers.between(self.layers, self.wiring, donor, recipient))

    def _along_inputs(self) -> None:
        clean, corrupt = self._both_runs()
        donor, recipient = self._ordered(clean, corrupt)
        writers = Writers.between(self.layers, self.wiring, donor, recipient)
        ends = corrupt[EMBEDDED], clean[EMBEDDED]
        for places, weights in self._steps("eap-ig"):
            request = Request(
                values=self.values, writers={EMBEDDED: _between(*ends, places)}, n_copies=len(places)
            )
            self.readers.add(self._backward(self.block.clean, request), weights=weights)
            self._flush_if_many(writers)
        self._flush(writers)

    def _along_activations(self) -> None:
        clean, corrupt = self._both_runs()
        donor, recipient = self._ordered(clean, corrupt)
        writers = Writers.between(self.layers, self.wiring, donor, recipient)
        _, batch = self._ordered(self.block.clean, self.block.corrupt)
        nodes = list(self._branches())
        compat = self.settings.reference_compat
        for site, sources in nodes:
            layer = 0 if compat or site.layer is None else site.layer
            start = recipient[Site("resid_pre", layer)] if layer else None
            for places, weights in self._steps("eap-ig-activations"):
                request = Request(
                    values=tuple(s for s in self.values if s.layer is None or s.layer >= layer),
                    at=tuple(s for s in self.at if s.layer is None or s.layer >= layer),
                    writers={site: _between(corrupt[site], clean[site], places)},
                    start=None if start is None else (layer, _leaf(start, len(places))),
                    n_copies=len(places),
                )
                found = self._backward(batch, request)
                share = weights / len(nodes) if compat else weights
                self.readers.add(found, weights=share, first_layer=layer)
                if compat:
                    self._flush_if_many(writers)
            if not compat:
                self._flush(writers, sources)
        if compat:
            self._flush(writers)

    def _ordered(self, clean: Any, corrupt: Any) -> tuple[Any, Any]:
        """Donor and recipient."""
        return (corrupt, clean) if self.is_noising else (clean, corrupt)

    def _both_runs(self) -> tuple[Values, Values]:
        sites = {*writer_sites(self.model)}
        sites |= {Site("attn_out", layer) for layer in range(self.model.n_layers)}
        sites |= {Site("resid_pre", layer) for layer in range(self.model.n_layers)}
        clean, corrupt = (
            run_plain(self.model, b, tuple(sites)) for b in (self.block.clean, self.block.corrupt)
        )
        return clean, corrupt

    def _branches(self) -> Iterator[tuple[Site, tuple[int, int]]]:
        """Whole nodes: where each adds to the stream, and which writers it is made of."""
        yield EMBEDDED, (0, 1)
        place = 1
        for part in self.layers:
            yield Site("attn_out", part.index), (place, place + self.wiring.n_heads)
            place += self.wiring.n_heads
            if self.wiring.has_mlps:
                yield Site("mlp_out", part.index), (place, place + 1)
                place += 1

    def _steps(self, method: str) -> Iterator[tuple[Tensor, Tensor]]:
        places, weights = steps_of(self.settings.steps, self.settings.rule_for(method))
        n = max(1, min(_STEPS_HELD, self.block.n_at_once // len(self.block.clean)))
        yield from zip(places.split(n), weights.split(n), strict=True)

    def _backward(self, batch: Any, request: Request) -> Pass:
        request = replace(request, at=request.at or self.at, linearization=self.settings.linearization)
        found = run_backward(self.model, batch, self.block.metric, request)
        self.passes.append(Pass({}, {}, found.final, found.columns, found.measured, {}))
        return found

    def _flush_if_many(self, writers: Writers) -> None:
        if len(self.readers.heads[-1].along) >= _STEPS_HELD:
            self._flush(writers)

    def _flush(self, writers: Writers, sources: tuple[int, int] | None = None) -> None:
        """Add the scores of the gradients so far, and start anew."""
        if self.readers.logits is None:
            return
        found = torch.stack(
            [contract(writers, self.readers, mask, sources=sources) for mask in self.block.masks]
        )
        silent = readers_without_gradient(self.readers, self.wiring)
        self.out = found if self.out is None else self.out + found
        self.silent = silent if self.silent is None else self.silent & silent
        self.readers.clear()


def _between(corrupt: Tensor, clean: Tensor, places: Tensor) -> Callable[[Tensor], Tensor]:
    """A writer of values between two runs, one copy a place; gradients stop at it, and can be taken there."""
    steps = places.to(corrupt).reshape(-1, *[1] * corrupt.ndim)
    value = (corrupt + steps * (clean - corrupt)).flatten(0, 1).requires_grad_()
    return lambda _old: value


def _leaf(value: Tensor, n: int) -> Tensor:
    return value.repeat(n, *[1] * (value.ndim - 1)).requires_grad_()


def _result(
    model: Model,
    behavior: Pairs,
    found: list[tuple[Tensor, Tensor]],
    places: Places,
    settings: EdgeSettings,
    *,
    method: str,
    direction: str,
) -> EdgeScores:
    wiring = wiring_of(model)
    table = torch.cat([scores for scores, _ in found], dim=1)
    silent = torch.stack([readers for _, readers in found]).all(0)
    counts = torch.tensor(Offsets.of(wiring).n_sources, device=silent.device)
    pairs = table.sum(0).cpu()
    said = settings.to_json(method) | {
        "method": method,
        "direction": direction,
        "positions": places.described,
        "metric": metric_facts(behavior.metric),
        "n_pairs": len(behavior.clean),
        "bos": behavior.clean.bos,
    }
    return EdgeScores(
        scores=pairs.mean(0),
        wiring=wiring,
        has_no_gradient=silent.repeat_interleave(counts).cpu(),
        pairs=pairs if settings.keeps_pairs else None,
        by_place=table.mean(1).cpu() if places.labels else None,
        places=places.labels,
        settings=said,
        unit=behavior.metric.unit,
        model=model.fingerprint,
        data_sha256=hash_of_prompts(behavior.clean, behavior.corrupt),
    )
