"""Build: the attribution graph of one prompt, from dictionaries to nodes and direct effects.

Rows are computed for blocks of targets that read one site, last positions first, and cut at once to the sources that
can reach them; where all rows are wanted, sources come half of the way (`meeting`). A finished block is kept as what
is not zero, if that is smaller. What is held at a time does not grow with the number of targets; only the result does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechscope.graphs.adjacency import Adjacency
from mechscope.graphs.budget import Budget
from mechscope.graphs.frozen import linearization_of
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.influence import node_influence
from mechscope.graphs.local import Active, Local, open_local
from mechscope.graphs.meeting import Meeting, choose_layer
from mechscope.graphs.nodes import Nodes
from mechscope.graphs.replacement import described, replacements_of
from mechscope.graphs.row_blocks import Block, RowBlock, keep_strongest, packed
from mechscope.graphs.stations import LN_FINAL, PER_LAYER, layer_of, site_of
from mechscope.graphs.targets import Target, choose_targets, final_site, target_vectors
from mechscope.models.inputs import Inputs, TokenBatch
from mechscope.models.model import Model
from mechscope.records.fingerprint import hash_tensors
from mechscope.vocabulary.errors import EmptyPrompt, PositionOutOfRange
from mechscope.vocabulary.sites import Site

ENTRIES = 4096
"""Rows times positions that are swept at a time."""

REFRESH_ROWS = 1024
"""Latents that are computed before the rest is ranked again, where not all are."""


def attribution_graph(
    model: Model,
    transcoders: Any,
    prompt: Inputs,
    *,
    targets: Any = None,
    max_latents: int | Budget | None = None,
    mlps: str = "constant",
    left_out: Sequence[int] | None = None,
) -> AttributionGraph:
    """Trace which latents, errors and tokens make a model say what it says next, by direct effects between them.

    Attention patterns, norm denominators and what dictionaries stand in for are held at this prompt's values, so that
    every effect is exact for that frozen model: A[t, s] is what t reads of s, and a row's sum plus its bias is what t
    reads in all.

    Args:
        model: An open model.
        transcoders: A dictionary (cross-layer transcoder), or one for each layer: transcoders, skip transcoders, SAEs.
        prompt: One text, or its token ids.
        targets: Tokens to explain (text or id), pairs (a, b) for a minus b, or None: the likeliest tokens that
            together have 95%, at most ten.
        max_latents: Compute rows for so many of the most influential latents only; None for all. A `graphs.Budget`
            also says how much of each row is kept.
        mlps: What becomes of MLPs without a dictionary: "constant" (an error node each) or "gates" (their linear path
            with gates held).
        left_out: Positions without latents and errors; None leaves out a beginning-of-sequence token.

    Raises:
        DictionaryMismatch, PositionOutOfRange: a dictionary of another width or layer.
        PointUnavailable: this model forms no attention pattern in reach, or a site that a dictionary needs.
        ShapeError: several prompts.
        EmptyPrompt: no text.

    Cost: one forward pass; for each latent, two products of d_model x d_model at each position and layer that it is
        carried through, half of those before it where sources fit in memory: docs/methods/attribution_graphs.md.
    Caveat: true of the frozen model. What changes patterns is not in it: measure with `graphs.intervene`.
    """
    parts = replacements_of(model, transcoders)
    batch = model.tokens(prompt)
    places = _left_out(model, batch, left_out)
    budget = Budget.of(max_latents)
    with torch.no_grad():
        local = open_local(model, parts, batch=batch, mlps=mlps, left_out=places)
        final = local.frozen.value(Site("resid_post", model.n_layers - 1))[-1]
        chosen = choose_targets(model, targets, final)
        rows = _Rows(model, local, targets=chosen, row_share=budget.row_share)
        selected = rows.compute(budget.max_latents)
        graph = rows.graph(selected)
    settings = {
        "targets": [asdict(target) for target in chosen],
        **asdict(budget),
        "mlps": mlps,
        "linearization": linearization_of(mlps).to_json(),
        "left_out": list(places),
        "dictionaries": described(parts),
        "tokens": batch.row(0),
        "bos": batch.bos,
        "d_vocab": model.sizes["d_vocab"],
    }
    return AttributionGraph(
        **graph,
        targets=tuple(chosen),
        settings=settings,
        model=model.fingerprint,
        data_sha256=hash_tensors({"0": torch.tensor(batch.row(0))}),
    )


class _Rows:
    """Blocks of rows as they are computed, and what they are made of."""

    def __init__(self, model: Model, local: Local, *, targets: Sequence[Target], row_share: float) -> None:
        self._model = model
        self._local = local
        self._targets = targets
        self._row_share = row_share
        self._blocks: list[tuple[int, Block]] = []
        self._meeting: Meeting | None = None
        n = local.n_sources + len(targets)
        self._totals, self._biases, self._remainders = np.zeros(n), np.zeros(n), np.zeros(n)

    def compute(self, max_latents: int | None) -> np.ndarray:
        """Compute the targets' rows and those of (the most influential) latents; returns which latents, [n]."""
        n = self._local.n_latents
        if max_latents is None or max_latents >= n:
            self._all()
            return np.arange(n)
        self._logits()
        done = np.zeros(n, bool)
        while (left := max_latents - int(done.sum())) > 0:
            ranking = node_influence(self._adjacency(), self._weights())[:n]
            ranking[done] = -1.0
            best = np.argsort(-ranking, kind="stable")[: min(left, REFRESH_ROWS)]
            done[best] = True
            for active in self._local.actives:
                mine = (
                    best[(best >= active.first) & (best < active.first + len(active.latents))] - active.first
                )
                if len(mine):
                    self._latents(active, torch.from_numpy(np.sort(mine)))
        return np.flatnonzero(done)

    def _all(self) -> None:
        """Every row: those of layers above the meeting come down to it only."""
        layer = choose_layer(self._local)
        self._meeting = Meeting(self._local, layer) if layer else None
        self._logits()
        for active in self._local.actives:
            self._latents(active, torch.arange(len(active.latents)))

    def graph(self, selected: np.ndarray) -> dict[str, Any]:
        """Fields of the graph of the latents selected."""
        local, adjacency = self._local, self._adjacency()
        nodes, weights = self._nodes(), self._weights()
        kept = np.concatenate([selected, np.arange(local.n_latents, len(nodes))])
        remainder = self._remainders.copy()
        if len(kept) < len(nodes):
            unselected = np.ones(len(nodes), bool)
            unselected[kept] = False
            for block in adjacency.blocks:
                remainder[block.targets] += block.values[:, unselected[block.sources]].sum(1)
            adjacency = adjacency.take(kept)
        return {
            "nodes": nodes.take(kept),
            "adjacency": adjacency,
            "weights": weights[kept],
            "totals": self._totals[kept],
            "biases": self._biases[kept],
            "remainders": remainder[kept],
            "n_active": local.n_latents,
        }

    def _adjacency(self) -> Adjacency:
        ordered = sorted(self._blocks, key=lambda item: -item[0])
        return Adjacency(len(self._totals), [block for _, block in ordered])

    def _weights(self) -> np.ndarray:
        weights = np.zeros(len(self._totals))
        weights[self._local.n_sources :] = [target.weight for target in self._targets]
        return weights

    def _logits(self) -> None:
        local, frozen = self._local, self._local.frozen
        vectors, biases = target_vectors(self._model, self._targets, frozen.dtype)
        has_norm = frozen.norm_final is not None
        start = PER_LAYER * frozen.n_layers + (LN_FINAL if has_norm else 0)
        last = torch.full((len(vectors),), frozen.n_positions - 1, device=vectors.device)
        nodes = local.n_sources + np.arange(len(vectors))
        self._emit(start, nodes, last, self._down(start, last, vectors, before_cut=False), before_cut=False)
        read = frozen.value(final_site(self._model))[-1]
        self._totals[nodes] = (vectors @ read + biases).cpu()
        self._biases[nodes] = (vectors @ local.arriving_constants[start][-1] + biases).cpu()

    def _latents(self, active: Active, which: Tensor) -> None:
        """Rows of some latents of one replacement."""
        local, start = self._local, active.part.reads
        before_cut = start in active.part.writes
        which = which.to(active.positions.device)
        order = which[torch.argsort(active.positions[which], descending=True, stable=True)]
        constants = local.arriving_constants[-start - 1 if before_cut else start]
        for chosen in _batches(order, active.positions, local.frozen.n_positions, local.frozen.is_causal):
            positions = active.positions[chosen]
            vectors, biases = active.part.encoder_rows(active.latents[chosen])
            vectors = vectors.to(local.frozen.dtype)
            nodes = (active.first + chosen).cpu().numpy()
            if self._meeting is not None and self._meeting.is_below(active):
                rows = self._meeting.direct(active, chosen)
            else:
                rows = self._down(start, positions, vectors, before_cut=before_cut)
            self._emit(start, nodes, positions, rows, before_cut=before_cut)
            self._totals[nodes] = active.values[chosen].cpu()
            self._biases[nodes] = ((constants[positions] * vectors).sum(-1) + biases).cpu()

    def _down(self, start: int, positions: Tensor, vectors: Tensor, *, before_cut: bool) -> Tensor:
        meeting = self._meeting
        if meeting is None:
            return self._local.rows(start, positions, vectors=vectors, before_cut=before_cut)
        return self._local.rows(
            start,
            positions,
            vectors=vectors,
            before_cut=before_cut,
            floor=meeting.layer,
            meet=meeting.add,
        )

    def _emit(
        self, start: int, nodes: np.ndarray, positions: Tensor, rows: Tensor, *, before_cut: bool
    ) -> None:
        """Keep rows, [row, source], cut by position to the sources that can reach them."""
        own, counts = torch.unique_consecutive(positions, return_counts=True)
        first = 0
        for position, n in zip(own.tolist(), counts.tolist(), strict=True):
            window = slice(first, first + n)
            spans = list(self._reachable(start, position, before_cut=before_cut))
            values = torch.cat([rows[window, low:high] for low, high in spans], dim=1)
            sources = np.concatenate([np.arange(low, high, dtype=np.int32) for low, high in spans])
            block = RowBlock(nodes[window], sources, values.cpu().numpy())
            block, self._remainders[nodes[window]] = keep_strongest(block, self._row_share)
            self._blocks.append((start, packed(block)))
            first += n

    def _reachable(self, start: int, position: int, *, before_cut: bool) -> Iterable[tuple[int, int]]:
        """Spans of columns that paths may connect to a target there."""
        local = self._local
        n = position + 1 if local.frozen.is_causal else local.frozen.n_positions
        last = start - 1 if before_cut else start
        for active in local.actives:
            if min(active.part.writes) <= last:
                yield active.first, active.first + active.bounds[n]
        for station, column in local.error_columns.items():
            if station <= last:
                yield column, column + n
        yield local.token_column, local.token_column + n

    def _nodes(self) -> Nodes:
        local, model = self._local, self._model
        n_layers, n = local.frozen.n_layers, local.frozen.n_positions
        stations = sorted({active.part.reads for active in local.actives} | set(local.errors))
        place = {station: index for index, station in enumerate(stations)}
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}

        def add(kind: int, layer: int, positions: Any, numbers: Any, activations: Any, site: int) -> None:
            positions = np.asarray(positions, dtype=np.int64)
            for name, value in zip(
                _COLUMNS, (kind, layer, positions, numbers, activations, site), strict=True
            ):
                dtype = np.float64 if name == "activations" else np.int64
                columns[name].append(np.broadcast_to(np.asarray(value, dtype=dtype), positions.shape))

        for active in local.actives:
            part = active.part
            numbers = (active.latents + part.first_latent).cpu()
            layer = layer_of(part.reads, n_layers)
            add(0, layer, active.positions.cpu(), numbers, active.values.double().cpu(), place[part.reads])
        for station in local.errors:
            add(1, layer_of(station, n_layers), np.arange(n), -1, np.nan, place[station])
        ids = local.frozen.tokens.row(0)
        add(2, -1, np.arange(n), ids, np.nan, -1)
        count = len(self._targets)
        add(3, n_layers, np.full(count, n - 1), np.arange(count), np.nan, -1)
        return Nodes(
            **{name: np.concatenate(parts) for name, parts in columns.items()},
            site_names=tuple(str(site_of(station, n_layers)) for station in stations),
            tokens=tuple(model.reader.strings(ids)),
            token_ids=tuple(ids),
            logits=tuple(target.label for target in self._targets),
        )


_COLUMNS = ("kinds", "layers", "positions", "numbers", "activations", "sites")


def _batches(order: Tensor, positions: Tensor, n_positions: int, is_causal: bool) -> Iterable[Tensor]:
    """Rows in their order, in pieces of about `ENTRIES` entries."""
    entries = positions[order] + 1 if is_causal else torch.full_like(order, n_positions)
    pieces = (entries.cumsum(0) - 1) // ENTRIES
    for piece in torch.unique_consecutive(pieces).tolist():
        yield order[pieces == piece]


def _left_out(model: Model, batch: TokenBatch, given: Sequence[int] | None) -> tuple[int, ...]:
    n = batch.shape[1]
    if given is None:
        begin = None if model.tokenizer is None else model.tokenizer.bos_token_id
        begins = begin is not None and int(batch.ids[0, 0]) == begin
        if begins and n == 1:
            raise EmptyPrompt(
                "The prompt has nothing in it but the token that begins it.",
                got="no text",
                because="that token is left out, so nothing is left to trace",
                instead="a text; left_out=() to trace the token alone",
            )
        return (0,) if begins else ()
    outside = [index for index in given if not -n <= index < n]
    if outside:
        raise PositionOutOfRange(
            "A position to leave out does not exist.",
            got=str(outside),
            because=f"the prompt has {n} tokens",
            instead="positions from 0, or from the end with -1",
        )
    return tuple(sorted({index % n for index in given}))
