"""Meeting: sources carried up and targets carried down to one layer's input, so that each goes half of the way.

The work of carrying every row down to the tokens grows with the square of the number of layers. Sources below the
meeting layer are carried up once, and whatever lies below it reads them as they pass; targets above it are carried down
to it only and meet the sources there, one product for each position. At half of the layers both together are half of
the work. What waits at the meeting is held: at most `HELD_BYTES`, or targets go all the way.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mechscope.graphs.flow import Flow, Rows
from mechscope.graphs.local import Active, Local
from mechscope.graphs.rise import Rise, Written
from mechscope.graphs.stations import PER_LAYER

HELD_BYTES = 256 << 20
"""Memory of what waits at the meeting."""


@dataclass(frozen=True, eq=False)
class Spring:
    """Sources that begin at one station, sorted by position.

    Args:
        columns: Their columns in the graph's order, [row].
        own: Their positions, rising, [row].
        written: By station, what they write there.
    """

    columns: Tensor
    own: Tensor
    written: dict[int, Written]


class Meeting:
    """Sources below a layer, carried up to its input.

    Args:
        local: The local replacement model.
        layer: Where they wait; at least 1.

    Cost: for each source, position after it and layer between, two products of d_model x (heads x d_head).
    """

    def __init__(self, local: Local, layer: int) -> None:
        self.layer = layer
        self._local = local
        self._readers: dict[int, list[Active]] = {}
        for active in local.actives:
            if self.is_below(active):
                self._readers.setdefault(_read_as(active), []).append(active)
        springs = springs_of(local, PER_LAYER * layer)
        own = torch.cat([spring.own for spring in springs])
        order = torch.argsort(own, stable=True)
        self._columns = torch.cat([spring.columns for spring in springs])[order]
        self._own = own[order]
        places = torch.argsort(order).split([len(spring.own) for spring in springs])
        n_alive = self._rows_of(self._own).n_alive
        d_model = local.tokens.shape[-1]
        self._waiting = [local.tokens.new_zeros(n, d_model) for n in n_alive]
        self._direct = {
            active.first: local.tokens.new_zeros(len(active.latents), len(own))
            for actives in self._readers.values()
            for active in actives
        }
        for spring, place in zip(springs, places, strict=True):
            self._raise(spring, place)

    def is_below(self, active: Active) -> bool:
        """Whether these latents read the sources as they pass, and need not be carried down."""
        return active.part.reads <= PER_LAYER * self.layer

    def add(self, out: Tensor, flow: Flow, rows: Rows) -> None:
        """Add direct effects of the sources that wait here on rows that arrive, in place, [row, source]."""
        met = out.new_zeros(len(out), len(self._columns))
        for position, gradient, window in flow.per_position(rows):
            waiting = self._waiting[position]
            met[window, : len(waiting)].addmm_(gradient, waiting.T)
        out[:, self._columns] += met

    def direct(self, active: Active, which: Tensor) -> Tensor:
        """Direct effects of every source on some latents that read below the meeting, [row, source]."""
        read = self._direct[active.first][which]
        out = read.new_zeros(len(read), self._local.n_sources)
        out[:, self._columns] = read
        return out

    def _rows_of(self, own: Tensor) -> Rows:
        frozen = self._local.frozen
        return Rows.of_sources(own, frozen.n_positions, is_causal=frozen.is_causal)

    def _raise(self, spring: Spring, place: Tensor) -> None:
        rows = self._rows_of(spring.own)

        def look(station: int, flow: Flow) -> None:
            for active in self._readers.get(station, ()):
                vectors = self._reading[active.first]
                for position, values, window in flow.per_position(rows):
                    low, high = active.bounds[position], active.bounds[position + 1]
                    if low < high:
                        block = self._direct[active.first][low:high]
                        block[:, place[window]] = vectors[low:high] @ values.T

        local = self._local
        risen = Rise(local.frozen, local.cuts, rows=rows, written=spring.written, look=look).run(self.layer)
        if risen is not None:
            for position, values, window in risen.per_position(rows):
                self._waiting[position][place[window]] = values

    @cached_property
    def _reading(self) -> dict[int, Tensor]:
        """What each latent below the meeting reads, [n, d_model]: of the stream, where a norm stands before it."""
        frozen, found = self._local.frozen, {}
        for actives in self._readers.values():
            for active in actives:
                vectors = active.part.encoder_rows(active.latents)[0].to(frozen.dtype)
                norm = frozen.norm_before(active.part.reads)
                if norm is not None:
                    vectors = norm.fold(vectors) * norm.inverse_scale[active.positions]
                found[active.first] = vectors
        return found


def springs_of(local: Local, top: int) -> list[Spring]:
    """All sources whose first station written lies below `top` or there, by that station."""
    device, n = local.tokens.device, local.frozen.n_positions
    parts: dict[int, list[tuple[Tensor, Tensor, dict[int, Tensor]]]] = {}
    everywhere = torch.arange(n, device=device)
    parts[0] = [(local.token_column + everywhere, everywhere, {0: local.tokens})]
    for station, column in local.error_columns.items():
        parts.setdefault(station, []).append(
            (column + everywhere, everywhere, {station: local.errors[station]})
        )
    for active in local.actives:
        columns = active.first + torch.arange(len(active.latents), device=device)
        parts.setdefault(min(active.part.writes), []).append((columns, active.positions, active.written))
    return [_joined(parts[station]) for station in sorted(parts) if station <= top]


def _joined(sources: list[tuple[Tensor, Tensor, dict[int, Tensor]]]) -> Spring:
    own = torch.cat([positions for _, positions, _ in sources])
    order = torch.argsort(own, stable=True)
    places = torch.argsort(order).split([len(positions) for _, positions, _ in sources])
    stations = sorted({station for _, _, written in sources for station in written})
    written = {}
    for station in stations:
        mine = [(place, w[station]) for place, (_, _, w) in zip(places, sources, strict=True) if station in w]
        written[station] = Written(torch.cat([p for p, _ in mine]), torch.cat([v for _, v in mine]))
    return Spring(torch.cat([columns for columns, _, _ in sources])[order], own[order], written)


def choose_layer(local: Local) -> int:
    """The layer where meeting costs least within `HELD_BYTES`; 0 is none.

    Cost is counted in products of all of a row's positions. Each attention passed is two, but the first one, which a
    row enters at its own position alone: a target of layer l passes l - top + 1 of them, a source of layer l, which is
    written behind that layer's, top - l - 1. No layer is met between what a skip connection reads and where it writes.
    """
    frozen, tops = local.frozen, range(1, local.frozen.n_layers)
    straddled = {
        layer
        for station, skips in local.cuts.skips.items()
        for read, _ in skips
        for layer in tops
        if read < PER_LAYER * layer <= station
    }
    targets = [(active.part.reads // PER_LAYER, len(active.latents)) for active in local.actives]
    sources = [(min(active.part.writes) // PER_LAYER, len(active.latents)) for active in local.actives]
    sources += [(station // PER_LAYER, frozen.n_positions) for station in (0, *local.errors)]
    reach = frozen.n_positions // 2 + 1 if frozen.is_causal else frozen.n_positions
    n_bytes = reach * local.tokens.shape[-1] * local.tokens.element_size()

    def n_products(top: int) -> int:
        down = sum(n * (2 * (layer - top) + 1) for layer, n in targets if layer >= top)
        return down + sum(n * max(0, 2 * (top - layer) - 3) for layer, n in sources)

    def fits(top: int) -> bool:
        return n_bytes * sum(n for layer, n in sources if layer < top) <= HELD_BYTES

    allowed = [0, *(top for top in tops if top not in straddled and fits(top))]
    return min(allowed, key=n_products)


def _read_as(active: Active) -> int:
    """The station that latents read, as `rise` shows it."""
    start = active.part.reads
    return -start - 1 if start in active.part.writes else start
