"""Sweep: gradients of many targets carried down a frozen model, by an explicit transposed linear operator.

No autograd graph: one pass over the layers for a block of rows, laid out as `flow` says; a row's gradient is kept at
the positions that can reach its target only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.graphs.flow import Flow, Rows, sum_of
from mechscope.graphs.frozen import Frozen, FrozenLayer, FrozenNorm
from mechscope.graphs.stations import (
    ATTN_IN,
    ATTN_OUT,
    ATTN_RAW,
    LN_FINAL,
    MLP_IN,
    MLP_OUT,
    MLP_RAW,
    PER_LAYER,
    RESID_MID,
)

Visit = Callable[[int, Flow, Rows], None]
"""Called at every cut station with the gradient that arrives there, and at station 0."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Cuts:
    """Where paths end because something stands in the place of what was computed there.

    Args:
        written: Stations that dictionaries or constants stand in for.
        skips: By station written, (station read, matrix [d_in, d_out]) of skip connections.
    """

    written: frozenset[int]
    skips: Mapping[int, Sequence[tuple[int, Tensor]]]


class Sweep:
    """The transposed operator for one set of rows.

    Args:
        frozen: The model.
        cuts: Where paths end.
        rows: Which rows.
        visit: What to do with arriving gradients.
        watch: Called at every station that a gradient passes, cut or not.
        finish: Takes the gradient at the first layer's `attn_raw` and accounts for all that lies below it, in place
            of two products of d_model x d_model for each entry. None carries it on like any other.
        floor: Layer at whose input rows stop; `visit` gets what arrives there, at station 0 if it is the first.
    """

    def __init__(
        self,
        frozen: Frozen,
        cuts: Cuts,
        *,
        rows: Rows,
        visit: Visit,
        watch: Visit | None = None,
        finish: Visit | None = None,
        floor: int = 0,
    ) -> None:
        self._frozen = frozen
        self._cuts = cuts
        self._rows = rows
        self._visit = visit
        self._watch = watch
        self._finish = finish
        self._floor = floor
        self._pending: dict[int, Flow] = {}
        self._uncut = -1

    def run(self, start: int, vectors: Float[Tensor, "row d_model"], *, before_cut: bool = False) -> None:
        """Carry rows down that begin at a station, each at its own position.

        Args:
            start: The station read.
            vectors: One a row, in the basis of that station.
            before_cut: The rows read what arrives there, not what a dictionary puts in its place.

        Cost: for each row, position and layer passed, two products of d_model x (heads x d_head).
        """
        frozen = self._frozen
        self._pending[start] = Flow(vectors, True)
        self._uncut = start if before_cut else -1
        top = PER_LAYER * frozen.n_layers
        final = self._take(top + LN_FINAL)
        if final is not None:
            norm = frozen.norm_final
            self._pending[top] = final if norm is None else self._through_norm(final, norm)
        stream = self._at(top, None) if start >= top else None
        for layer in range(min(start // PER_LAYER, frozen.n_layers - 1), self._floor - 1, -1):
            if start % PER_LAYER == 0 and layer == start // PER_LAYER and start < top:
                stream = self._at(start, None)
                continue
            stream = self._layer(layer, stream)
            if stream is None and not self._pending:
                return
        if stream is not None:
            self._visit(PER_LAYER * self._floor, stream, self._rows)

    def _layer(self, index: int, stream: Flow | None) -> Flow | None:
        """From the gradient at a layer's output to that at its input."""
        layer, base, is_parallel = self._frozen.layers[index], PER_LAYER * index, self._frozen.is_parallel
        from_mlp = self._mlp(layer, base, stream) if layer.has_mlp else None
        if not is_parallel:
            stream = self._at(base + RESID_MID, self._sum(stream, from_mlp))
            from_mlp = None
        out = self._at(base + ATTN_OUT, stream)
        raw = self._at(base + ATTN_RAW, self._scaled(out, layer.attn_factor))
        if index == 0 and raw is not None and self._finish is not None:
            self._finish(ATTN_RAW, raw, self._rows)
            raw = None
        stream = self._sum(self._attention(raw, layer, station=base + ATTN_IN, onto=stream), from_mlp)
        return self._at(base, stream) if index else self._sum(stream, self._take(0))

    def _mlp(self, layer: FrozenLayer, base: int, stream: Flow | None) -> Flow | None:
        out = self._at(base + MLP_OUT, stream)
        raw = self._at(base + MLP_RAW, self._scaled(out, layer.mlp_factor))
        inner = None
        if raw is not None and layer.mlp is not None:
            hidden = Flow(raw.values @ layer.mlp.W_out.T, raw.is_narrow).times(layer.mlp.gate, self._rows)
            inner = Flow(hidden.values @ layer.mlp.W_in.T, raw.is_narrow)
        return self._after_norm(self._at(base + MLP_IN, inner), layer.norm2)

    def _at(self, station: int, arriving: Flow | None) -> Flow | None:
        """Pass a station: take up what begins here; end here if the station is cut."""
        flow = self._sum(arriving, self._take(station))
        if flow is not None and self._watch is not None:
            self._watch(station, flow, self._rows)
        if flow is None or station not in self._cuts.written or station == self._uncut:
            return flow
        self._visit(station, flow, self._rows)
        for read, matrix in self._cuts.skips.get(station, ()):
            onward = Flow(flow.values @ matrix.T, flow.is_narrow)
            self._pending[read] = self._sum(self._pending.get(read), onward)  # type: ignore[assignment]
        return None

    def _take(self, station: int) -> Flow | None:
        return self._pending.pop(station, None)

    def _sum(self, a: Flow | None, b: Flow | None) -> Flow | None:
        return sum_of(a, b, self._rows)

    def _scaled(self, flow: Flow | None, factor: Tensor | float | None) -> Flow | None:
        return None if flow is None else flow.times(factor, self._rows)

    def _through_norm(self, flow: Flow, norm: FrozenNorm) -> Flow:
        return Flow(norm.fold(flow.values), flow.is_narrow).times(norm.inverse_scale, self._rows)

    def _after_norm(self, flow: Flow | None, norm: FrozenNorm | None) -> Flow | None:
        return flow if flow is None or norm is None else self._through_norm(flow, norm)

    def _attention(
        self, raw: Flow | None, layer: FrozenLayer, *, station: int, onto: Flow | None
    ) -> Flow | None:
        """Back through attention and the norm before it, onto what passes it by; `station` is what it reads.

        Where nothing happens at that station, the norm is part of pattern and value projection.
        """
        if raw is not None and not self._is_stop(station):
            values = self._values(raw, layer, layer.pattern_to_input)
            if onto is None or onto.is_narrow:
                return self._sum(onto, Flow(values @ layer.input_rows, False))
            return Flow(torch.addmm(onto.values, values, layer.input_rows), False)
        read = raw and Flow(self._values(raw, layer, layer.pattern) @ layer.value_rows, False)
        return self._sum(onto, self._after_norm(self._at(station, read), layer.norm1))

    def _is_stop(self, station: int) -> bool:
        """Whether anybody looks, begins or ends at a station."""
        return self._watch is not None or station in self._pending or station in self._cuts.written

    def _values(self, raw: Flow, layer: FrozenLayer, pattern: Tensor) -> Tensor:
        """Back through the output projection and a held pattern, [entry, kv_head * d_head]."""
        mixed = (raw.values @ layer.output_rows.T).unflatten(-1, layer.W_O.shape[:2])
        through = self._spread if raw.is_narrow else self._mix
        return through(mixed, pattern, layer.W_V.shape[0])

    def _spread(self, mixed: Tensor, pattern: Tensor, kv: int) -> Tensor:
        """Each row's own query position to every key: [row, head, d_head] to [entry, kv_head * d_head]."""
        positions, row_of = self._rows.entries
        weights = pattern[:, self._rows.own[row_of], positions].T  # [entry, head]
        grouped = weights.unflatten(1, (kv, -1))
        own = mixed[row_of].unflatten(1, (kv, -1))
        return torch.einsum("ekg,ekgd->ekd", grouped, own).flatten(1)

    def _mix(self, mixed: Tensor, pattern: Tensor, kv: int) -> Tensor:
        """Queries to keys: [entry, head, d_head] to [entry, kv_head * d_head]."""
        n, n_rows = self._rows.n_positions, len(self._rows.own)
        _, heads, d_head = mixed.shape
        group = heads // kv
        queries = self._rows.to_dense(mixed).reshape(n, n_rows, kv, group, d_head).permute(2, 3, 0, 1, 4)
        queries = queries.reshape(kv, group * n, n_rows * d_head)
        weights = pattern[:, :n, :n].reshape(kv, group * n, n)
        keys = torch.bmm(weights.transpose(1, 2), queries).reshape(kv, n, n_rows, d_head)
        return self._rows.to_flat(keys.permute(1, 2, 0, 3).reshape(n * n_rows, kv * d_head))
