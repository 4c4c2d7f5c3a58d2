"""Packed replay: many experiments' changed tokens through the layers as one flat batch, [1, n_tokens, d_model].

A row is one prompt of one experiment. It joins at the layer of its first change with the tokens that change, and
each layer is called directly with the base run's arguments gathered per token, so norms, MLPs and projections see
one large product. The attention desk puts the packed keys and values into the base run's and attends from the
packed queries. In the last layer only the positions that are read go through the output projection and the MLP.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechscope.engine.base import Base
from mechscope.engine.changes import Change, likeness_of
from mechscope.engine.fused_activations import fused_activations
from mechscope.engine.idle_projections import idle_projections
from mechscope.engine.packed_attention import FEEDS_QUERIES, KeepKeys, PackedDesk, PackedTokens
from mechscope.models.attention import Desk, Tap
from mechscope.models.binding import ATTENTION_POINTS, Binding
from mechscope.models.session import Plan, Stopped, session
from mechscope.models.writing import blend, tokens_of
from mechscope.vocabulary.sites import Site

FEWEST_QUIET_TOKENS = 64
"""Below this, a layer call of their own costs more than the projections that it saves."""


@dataclass(frozen=True)
class Row:
    """One prompt of one experiment.

    Args:
        changes: The experiment's changes in this block (shared by its rows).
        prompt: Row of the block.
        reads: Columns that the metric reads.
    """

    changes: Sequence[Change]
    prompt: int
    reads: tuple[int, ...]


@dataclass
class Tally:
    """Packed work done: token-layers computed, and layer calls."""

    n_token_layers: int = 0
    n_layer_calls: int = 0


@dataclass
class Replay:
    """The state of one chunk of rows on their way through the layers.

    Args:
        binding: An open model, held by the caller.
        base: The block's base run.
        rows: Rows of this chunk; rows of one experiment are neighbours.
        tally: Counts work.
        hears: Told a mixture's layer, the tokens of a call and the experts that they get, [token, choice].
    """

    binding: Binding
    base: Base
    rows: Sequence[Row]
    tally: Tally = field(default_factory=Tally)
    hears: Callable[[int, PackedTokens, Tensor], None] | None = None

    def __post_init__(self) -> None:
        n_columns = self.base.shape[1]
        self.prompts = torch.tensor([row.prompt for row in self.rows])
        self.read = torch.zeros(len(self.rows), n_columns, dtype=torch.bool)
        for index, row in enumerate(self.rows):
            self.read[index, list(row.reads)] = True
        self.columns = torch.arange(n_columns)
        last_read = torch.where(self.read, self.columns, -1).max(1).values
        self.reachable = self.columns[None, :] <= last_read[:, None]
        if not self.binding.anatomy.is_causal:
            self.reachable = torch.ones_like(self.reachable)
        self.reachable &= self.base.frame.positions(self.columns)[self.prompts] >= 0
        self.residual: Tensor | None = None
        self.dirty = torch.zeros_like(self.read)

    def run(self) -> Tensor:
        """Residual stream at the columns read, after the last layer, [row, read, d_model]."""
        for layer in range(self.binding.n_layers):
            self._layer(layer)
        return self._read_out()

    def _read_out(self) -> Tensor:
        reads = torch.tensor([row.reads for row in self.rows])
        final = self.base.residuals[-1]
        out = final[self.prompts[:, None].to(final.device), reads.to(final.device)].clone()
        if self.residual is not None:
            slots = self._slots(self.dirty)
            at = slots.gather(1, reads)
            has = (at >= 0).to(out.device)
            out[has] = self.residual[0].to(out.device)[at.to(out.device)[has]]
        return out

    def _layer(self, layer: int) -> None:
        feeds, written = self._written(layer)
        keys = (self.dirty | feeds) & self.reachable
        tokens = self._spread(keys) | (written & self.reachable)
        is_last = layer == self.binding.n_layers - 1
        if is_last:
            tokens &= self.read
        if not bool(tokens.any()):
            self.residual, self.dirty = None, torch.zeros_like(self.dirty)
            return
        stored = None
        if is_last and int((keys & ~tokens).sum()) > 0:
            stored = self._keys_and_values(layer, keys & tokens.any(1)[:, None])
        quiet = self._quiet(layer, keys)
        if int(tokens[quiet].sum()) < FEWEST_QUIET_TOKENS:
            quiet = torch.zeros_like(quiet)
        outs = [
            self._advance(layer, tokens & rows[:, None], keys & rows[:, None], stored, is_quiet=is_quiet)
            for rows, is_quiet in ((quiet, True), (~quiet, False))
            if bool((tokens & rows[:, None]).any())
        ]
        self.residual, self.dirty = _in_row_order(outs, quiet[tokens.nonzero()[:, 0]]), tokens

    def _quiet(self, layer: int, keys: Tensor) -> Tensor:
        """Rows whose attention in this layer is the base run's: they change nothing that feeds it, [row]."""
        quiet = ~keys.any(1)
        for site, found in self._changes_at(layer).items():
            if site.point in FEEDS_QUERIES or (site.point in ATTENTION_POINTS and site.point != "z"):
                for start, stop, _ in found:
                    quiet[start:stop] = False
        return quiet

    def _advance(
        self,
        layer: int,
        tokens: Tensor,
        keys: Tensor,
        stored: tuple[PackedTokens, Tensor, Tensor] | None,
        *,
        is_quiet: bool,
    ) -> Tensor:
        """Tokens after a layer, [1, n_tokens, d_model]."""
        packed = self._tokens(tokens)
        desk = PackedDesk(self, layer, tokens=packed, keys=keys, stored=stored)
        writers = desk.taps_for(self._changes_at(layer))
        if not is_quiet:
            return self._call(layer, packed, desk, writers)
        desk.reads_scores = False
        with idle_projections(self.binding, layer):
            return self._call(layer, packed, desk, writers)

    def _spread(self, keys: Tensor) -> Tensor:
        """Tokens whose attention output changes once these tokens' keys or values do."""
        if self.binding.anatomy.is_causal:
            return (keys.long().cumsum(1) > 0) & self.reachable
        return keys.any(1)[:, None] & self.reachable

    def _written(self, layer: int) -> tuple[Tensor, Tensor]:
        """Tokens that this layer's writes change: through keys and values, and directly."""
        feeds, written = torch.zeros_like(self.read), torch.zeros_like(self.read)
        for index, row in enumerate(self.rows):
            for change in row.changes:
                if change.site.layer == layer:
                    target = feeds if change.feeds_keys else written
                    target[index] |= change.changed[row.prompt]
        return feeds, written

    def _tokens(self, mask: Tensor) -> PackedTokens:
        rows, columns = mask.nonzero(as_tuple=True)
        return PackedTokens(rows, columns, self.prompts[rows])

    def _slots(self, mask: Tensor) -> Tensor:
        """Index of each token among the packed ones, -1 where it is not packed, [row, column]."""
        slots = torch.full(mask.shape, -1, dtype=torch.long)
        slots[mask] = torch.arange(int(mask.sum()))
        return slots

    def _arriving(self, layer: int, tokens: PackedTokens) -> Tensor:
        """Residual stream of packed tokens at a layer's input: the base run's, or their own where they changed."""
        base = self.base.residuals[layer]
        at = tokens.flat(base.shape[1]).to(base.device)
        x = base.flatten(0, 1).index_select(0, at)
        if self.residual is not None:
            slots = self._slots(self.dirty)[tokens.rows, tokens.columns]
            own = (slots >= 0).nonzero()[:, 0]
            mine = self.residual[0].index_select(0, slots[own].to(self.residual.device)).to(x.device)
            x.index_copy_(0, own.to(x.device), mine)
        return x[None]

    def _keys_and_values(self, layer: int, keys: Tensor) -> tuple[PackedTokens, Tensor, Tensor]:
        """Keys and values of tokens whose outputs nobody reads: the layer stopped at its attention."""
        packed = self._tokens(keys)
        desk = KeepKeys()
        with suppress(Stopped):
            self._call(layer, packed, desk, self.taps(self._changes_at(layer), packed, skip=ATTENTION_POINTS))
        assert desk.kept is not None
        return packed, desk.kept.key, desk.kept.value

    def _changes_at(self, layer: int) -> dict[Site, list[tuple[int, int, Change]]]:
        """Changes of a layer by site, each with the range of rows that it is for: start, stop, change."""
        found: dict[Site, list[tuple[int, int, Change]]] = defaultdict(list)
        start = 0
        for index, row in enumerate(self.rows):
            is_end = index + 1 == len(self.rows) or self.rows[index + 1].changes is not row.changes
            if is_end:
                for change in row.changes:
                    if change.site.layer == layer:
                        found[change.site].append((start, index + 1, change))
                start = index + 1
        return found

    def taps(
        self,
        changes: Mapping[Site, list[tuple[int, int, Change]]],
        tokens: PackedTokens,
        *,
        skip: Sequence[str] = (),
    ) -> dict[Site, Tap]:
        return {
            site: self.writer_for(site, found, tokens)
            for site, found in changes.items()
            if site.point not in skip
        }

    def writer_for(self, site: Site, changes: list[tuple[int, int, Change]], tokens: PackedTokens) -> Tap:
        def write(value: Tensor) -> Tensor:
            out = value[0].clone()
            for alike in _alike(changes):
                at = self._written_at(alike, tokens)
                if len(at):
                    at_value = at.to(out.device)
                    info = tokens_of(tokens.prompts[at], tokens.columns[at], self.base.frame, site)
                    out[at_value] = blend(alike[0][2].write, out[at_value], info)
            return out[None]

        return write

    def _written_at(self, changes: Sequence[tuple[int, int, Change]], tokens: PackedTokens) -> Tensor:
        """Which packed tokens some changes write, [n]."""
        ends = torch.tensor([end for start, stop, _ in changes for end in (start, stop)])
        bounds = torch.searchsorted(tokens.rows, ends).tolist()
        found: list[Tensor] = []
        for first, last, (_, _, change) in zip(bounds[::2], bounds[1::2], changes, strict=True):
            inside = change.selected[tokens.prompts[first:last], tokens.columns[first:last]]
            found.append(first + inside.nonzero()[:, 0])
        return torch.cat(found)

    def _call(self, layer: int, tokens: PackedTokens, desk: Desk, writers: Mapping[Site, Tap]) -> Tensor:
        args, kwargs = self.base.arguments_for(layer, tokens.prompts, tokens.columns)
        plan = Plan(
            writers=dict(writers),
            readers=self._listeners(layer, tokens),
            desk=lambda _layer, _taps: desk,
            shape=(1, len(tokens)),
        )
        self.tally.n_token_layers += len(tokens)
        self.tally.n_layer_calls += 1
        with torch.no_grad(), session(self.binding, plan), fused_activations(self.binding, layer):
            out = self.binding.layers[layer](self._arriving(layer, tokens), *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def _listeners(self, layer: int, tokens: PackedTokens) -> dict[Site, Callable[[Tensor], None]]:
        hears = self.hears
        if hears is None or layer not in self.binding.experts:
            return {}
        return {Site("expert_choice", layer): lambda choice: hears(layer, tokens, choice[0])}


def _alike(changes: Sequence[tuple[int, int, Change]]) -> list[list[tuple[int, int, Change]]]:
    """Neighbours whose writes one call may serve: alike, and of rows of their own."""
    found: list[list[tuple[int, int, Change]]] = []
    before = None
    for one in changes:
        likeness = likeness_of(one[2].write)
        if found and likeness is not None and likeness == before and one[0] >= found[-1][-1][1]:
            found[-1].append(one)
        else:
            found.append([one])
        before = likeness
    return found


def _in_row_order(outs: list[Tensor], is_first: Tensor) -> Tensor:
    """The outputs of two calls as one, tokens in the order of their rows; `is_first` is [n_tokens]."""
    if len(outs) == 1:
        return outs[0]
    first, second = outs
    out = first.new_empty(1, len(is_first), first.shape[-1])
    is_first = is_first.to(out.device)
    out[0, is_first], out[0, ~is_first] = first[0], second[0]
    return out
