"""Rise: what many sources write, carried up a frozen model: the operator itself, of which `sweep` is the transpose.

Laid out as `flow` says; a row's values are kept at the positions that its source can reach only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.graphs.flow import Flow, Rows, sum_of
from mechscope.graphs.frozen import Frozen, FrozenLayer, FrozenNorm
from mechscope.graphs.stations import (
    ATTN_IN,
    ATTN_OUT,
    ATTN_RAW,
    MLP_IN,
    MLP_OUT,
    MLP_RAW,
    PER_LAYER,
    RESID_MID,
)
from mechscope.graphs.sweep import Cuts

Look = Callable[[int, Flow], None]
"""Called with what a station has; what is read behind a norm (ATTN_IN, MLP_IN) is shown before the norm. What arrives
before a cut stands under -station - 1."""


@dataclass(frozen=True, eq=False)
class Written:
    """What some of the rows write to one station, each at its own position.

    Args:
        rows: Which rows, [n].
        vectors: [n, d_model].
    """

    rows: Int[Tensor, " n"]
    vectors: Float[Tensor, "n d_model"]


class Rise:
    """The operator for one set of sources.

    Args:
        frozen: The model.
        cuts: Where paths end.
        rows: Which sources.
        written: By station, what they write there.
        look: Called at every station with what is there.
    """

    def __init__(
        self, frozen: Frozen, cuts: Cuts, *, rows: Rows, written: Mapping[int, Written], look: Look
    ) -> None:
        self._frozen = frozen
        self._cuts = cuts
        self._rows = rows
        self._written = written
        self._look = look
        self._skipping: dict[int, Flow] = {}
        self._skipped_from = {read for skips in cuts.skips.values() for read, _ in skips}

    def run(self, top: int) -> Flow | None:
        """Carry all up to the input of layer `top`; returns what passes into it, None if nothing does.

        Cost: for each row, position and layer passed, two products of d_model x (heads x d_head).
        """
        first = min(self._written) // PER_LAYER
        stream = self._at(PER_LAYER * first, None)
        for index in range(first, top):
            stream = self._layer(index, stream)
        return None if PER_LAYER * top in self._cuts.written else stream

    def _layer(self, index: int, stream: Flow | None) -> Flow | None:
        layer, base = self._frozen.layers[index], PER_LAYER * index
        raw = self._at(base + ATTN_RAW, self._attention(layer, base, stream))
        out = self._at(base + ATTN_OUT, self._scaled(raw, layer.attn_factor))
        if layer.has_mlp and self._frozen.is_parallel:
            added = self._mlp(layer, base, stream)
            return self._at(base + PER_LAYER, self._sum(self._sum(stream, out), added))
        stream = self._at(base + RESID_MID, self._sum(stream, out))
        if layer.has_mlp:
            stream = self._sum(stream, self._mlp(layer, base, stream))
        return self._at(base + PER_LAYER, stream)

    def _mlp(self, layer: FrozenLayer, base: int, stream: Flow | None) -> Flow | None:
        self._pass_norm(base + MLP_IN, stream, layer.norm2)
        result = None
        if stream is not None and layer.mlp is not None:
            inner = self._normed(stream, layer.norm2)
            hidden = Flow(inner.values @ layer.mlp.W_in, inner.is_narrow).times(layer.mlp.gate, self._rows)
            result = Flow(hidden.values @ layer.mlp.W_out, inner.is_narrow)
        raw = self._at(base + MLP_RAW, result)
        return self._at(base + MLP_OUT, self._scaled(raw, layer.mlp_factor))

    def _pass_norm(self, station: int, stream: Flow | None, norm: FrozenNorm | None) -> None:
        """Show a station behind a norm; nothing is ever written there."""
        if stream is None:
            return
        self._look(station, stream)
        if station in self._skipped_from:
            self._skipping[station] = self._normed(stream, norm)

    def _normed(self, stream: Flow, norm: FrozenNorm | None) -> Flow:
        if norm is None:
            return stream
        return Flow(norm.directions(stream.values), stream.is_narrow).times(norm.inverse_scale, self._rows)

    def _at(self, station: int, arriving: Flow | None) -> Flow | None:
        """Pass a station: end here if it is cut, but for skip connections; take up what is written here."""
        flow = arriving
        if station in self._cuts.written:
            if arriving is not None:
                self._look(-station - 1, arriving)
            flow = None
            for read, matrix in self._cuts.skips.get(station, ()):
                skipping = self._skipping.get(read)
                if skipping is not None:
                    flow = self._sum(flow, Flow(skipping.values @ matrix, skipping.is_narrow))
        written = self._written.get(station)
        if written is not None:
            width = written.vectors.shape[-1]
            values = written.vectors.new_zeros(len(self._rows.own), width)
            flow = self._sum(flow, Flow(values.index_copy(0, written.rows, written.vectors), True))
        if flow is not None:
            self._look(station, flow)
            if station in self._skipped_from:
                self._skipping[station] = flow
        return flow

    def _sum(self, a: Flow | None, b: Flow | None) -> Flow | None:
        return sum_of(a, b, self._rows)

    def _scaled(self, flow: Flow | None, factor: Tensor | float | None) -> Flow | None:
        return None if flow is None else flow.times(factor, self._rows)

    def _attention(self, layer: FrozenLayer, base: int, stream: Flow | None) -> Flow | None:
        """Through the norm before attention, the values and the held pattern, and the output projection."""
        self._pass_norm(base + ATTN_IN, stream, layer.norm1)
        if stream is None:
            return None
        values = (stream.values @ layer.input_rows.T).unflatten(-1, (layer.W_V.shape[0], -1))
        through = self._spread if stream.is_narrow else self._mix
        mixed = through(values, layer.pattern_to_input)
        return Flow(mixed @ layer.output_rows, False)

    def _spread(self, values: Tensor, pattern: Tensor) -> Tensor:
        """Each row's own key position to every query: [row, kv_head, d_head] to [entry, head * d_head]."""
        positions, row_of = self._rows.entries
        weights = pattern[:, positions, self._rows.own[row_of]].T  # [entry, head]
        grouped = weights.unflatten(1, (values.shape[1], -1))
        return torch.einsum("ekg,ekd->ekgd", grouped, values[row_of]).flatten(1)

    def _mix(self, values: Tensor, pattern: Tensor) -> Tensor:
        """Keys to queries: [entry, kv_head, d_head] to [entry, head * d_head]."""
        n, n_rows = self._rows.n_positions, len(self._rows.own)
        _, kv, d_head = values.shape
        heads = len(pattern)
        keys = self._rows.to_dense(values).reshape(n, n_rows, kv, d_head).permute(2, 0, 1, 3)
        weights = pattern.reshape(kv, heads // kv * n, n)
        queries = torch.bmm(weights, keys.reshape(kv, n, n_rows * d_head))
        queries = queries.reshape(heads, n, n_rows, d_head).permute(1, 2, 0, 3)
        return self._rows.to_flat(queries.reshape(n * n_rows, heads * d_head))
