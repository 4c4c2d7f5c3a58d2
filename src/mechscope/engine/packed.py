"""Packed replay: many experiments' changed tokens through the layers as one flat batch, [1, n_tokens, d_model].

A row is one prompt of one experiment. It joins at the layer of its first change with the tokens that change, and
each layer is called directly with the base run's arguments gathered per token, so norms, MLPs and projections see
one large product. The attention desk puts the packed keys and values into the base run's and attends from the
packed queries. In the last layer only the positions that are read go through the output projection and the MLP.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mechscope.engine.base import Base
from mechscope.engine.changes import Change
from mechscope.models.attention import Call, Desk, Tap, attend
from mechscope.models.binding import ATTENTION_POINTS, Binding
from mechscope.models.frame import Frame
from mechscope.models.session import Plan, Stopped, session
from mechscope.models.writing import SelectedTokens, blend, from_token_form, to_token_form
from mechscope.vocabulary.sites import Site

FEEDS_QUERIES = frozenset({"q_proj", "q_pre"})
"""Points of modules whose change reaches the queries of their layer and not its keys."""


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
    """Work done, for `plan.explain()` and tests: token-layers computed, and layer calls."""

    n_token_layers: int = 0
    n_layer_calls: int = 0


@dataclass
class _Tokens:
    """Tokens of a layer call, sorted by row: local row, column, and the row's prompt."""

    rows: Tensor
    columns: Tensor
    prompts: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Replay:
    """The state of one chunk of rows on their way through the layers.

    Args:
        binding: An open model, held by the caller.
        base: The block's base run.
        rows: Rows of this chunk; rows of one experiment are neighbours.
        whole_rows: Row of the whole batch of each prompt of the block, [batch].
        tally: Counts work.
    """

    binding: Binding
    base: Base
    rows: Sequence[Row]
    whole_rows: Tensor
    tally: Tally = field(default_factory=Tally)

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
        packed = self._tokens(tokens)
        desk = _PackedDesk(self, layer, tokens=packed, keys=keys, stored=stored)
        out = self._call(layer, packed, desk, desk.taps_for(self._changes_at(layer)))
        self.residual, self.dirty = out, tokens

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

    def _tokens(self, mask: Tensor) -> _Tokens:
        rows, columns = mask.nonzero(as_tuple=True)
        return _Tokens(rows, columns, self.prompts[rows])

    def _slots(self, mask: Tensor) -> Tensor:
        """Index of each token among the packed ones, -1 where it is not packed, [row, column]."""
        slots = torch.full(mask.shape, -1, dtype=torch.long)
        slots[mask] = torch.arange(int(mask.sum()))
        return slots

    def _arriving(self, layer: int, tokens: _Tokens) -> Tensor:
        """Residual stream of packed tokens at a layer's input: the base run's, or their own where they changed."""
        base = self.base.residuals[layer]
        x = base[tokens.prompts.to(base.device), tokens.columns.to(base.device)]
        if self.residual is not None:
            at = self._slots(self.dirty)[tokens.rows, tokens.columns]
            has = at >= 0
            if bool(has.any()):
                x[has.to(x.device)] = self.residual[0][at[has].to(self.residual.device)].to(x.device)
        return x[None]

    def _keys_and_values(self, layer: int, keys: Tensor) -> tuple[_Tokens, Tensor, Tensor]:
        """Keys and values of tokens whose outputs nobody reads: the layer stopped at its attention."""
        packed = self._tokens(keys)
        desk = _KeepKeys()
        try:
            self._call(
                layer, packed, desk, self._taps(self._changes_at(layer), packed, skip=ATTENTION_POINTS)
            )
        except Stopped:
            pass
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

    def _taps(
        self,
        changes: Mapping[Site, list[tuple[int, int, Change]]],
        tokens: _Tokens,
        *,
        skip: Sequence[str] = (),
    ) -> dict[Site, Tap]:
        return {
            site: self._packed_writer(site, found, tokens)
            for site, found in changes.items()
            if site.point not in skip
        }

    def _packed_writer(self, site: Site, changes: list[tuple[int, int, Change]], tokens: _Tokens) -> Tap:
        def write(value: Tensor) -> Tensor:
            out = value[0].clone()
            for start, stop, change in changes:
                first = int(torch.searchsorted(tokens.rows, start))
                last = int(torch.searchsorted(tokens.rows, stop))
                inside = change.selected[tokens.prompts[first:last], tokens.columns[first:last]]
                at = first + inside.nonzero()[:, 0]
                if len(at):
                    at_value = at.to(out.device)
                    info = self._info(tokens.prompts[at], tokens.columns[at], site)
                    out[at_value] = blend(change.write, out[at_value], info)
            return out[None]

        return write

    def _info(self, prompts: Tensor, columns: Tensor, site: Site) -> SelectedTokens:
        frame: Frame = self.base.frame
        n_pad = frame.n_pad[prompts]
        return SelectedTokens(
            rows=self.whole_rows[prompts],
            positions=columns - n_pad,
            columns=columns,
            site=site,
            n_pad=n_pad,
            n_columns=self.base.shape[1],
        )

    def _call(self, layer: int, tokens: _Tokens, desk: Desk, writers: Mapping[Site, Tap]) -> Tensor:
        args, kwargs = self.base.arguments_for(layer, tokens.prompts, tokens.columns)
        plan = Plan(writers=dict(writers), desk=lambda _layer, _taps: desk, shape=(1, len(tokens)))
        self.tally.n_token_layers += len(tokens)
        self.tally.n_layer_calls += 1
        with torch.no_grad(), session(self.binding, plan):
            out = self.binding.layers[layer](self._arriving(layer, tokens), *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out


class _KeepKeys:
    """A desk that keeps the call and ends the layer there."""

    def __init__(self) -> None:
        self.kept: Call | None = None

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        self.kept = call
        raise Stopped


class _PackedDesk:
    """Attention of packed tokens over the base run's keys and values with the changed ones put in."""

    def __init__(
        self,
        replay: Replay,
        layer: int,
        *,
        tokens: _Tokens,
        keys: Tensor,
        stored: tuple[_Tokens, Tensor, Tensor] | None,
    ) -> None:
        self.replay = replay
        self.layer = layer
        self.tokens = tokens
        self.keys = keys
        self.stored = stored
        # Rows without a token in this call take no part in the attention.
        self.active, self.local = torch.unique_consecutive(tokens.rows, return_inverse=True)
        counts = torch.bincount(self.local, minlength=len(self.active))
        first = counts.cumsum(0) - counts
        self.slot = torch.arange(len(tokens)) - first[self.local]
        self.n_slots = int(counts.max())
        self.taps: dict[str, Tap] = {}
        self.write_mixed: Tap | None = None
        self.reads_scores = True

    def taps_for(self, changes: Mapping[Site, list[tuple[int, int, Change]]]) -> dict[Site, Tap]:
        """Writers for module sites; attention sites are applied inside this desk."""
        for site, found in changes.items():
            if site.point in ATTENTION_POINTS:
                self.taps[site.point] = self._attention_writer(site, found)
            if site.point == "z":
                self.write_mixed = self.replay._packed_writer(site, found, self.tokens)
        self.reads_scores = any(point != "z" for point in self.taps) or any(
            site.point in FEEDS_QUERIES for site in changes
        )
        return self.replay._taps(changes, self.tokens, skip=ATTENTION_POINTS)

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        base = self.replay.base.calls[self.layer]
        if not self.reads_scores and not bool(self.keys.any()):
            return self._as_in_base(), None
        prompts = self.replay.prompts[self.active].to(base.key.device)
        key, value = base.key[prompts], base.value[prompts]
        self._put_changed(key, value, call)
        full = replace(
            base, query=self._unpack(call.query), key=key, value=value, mask=self._mask(base, prompts)
        )
        z, _ = attend(full, self.replay.binding.anatomy.attention, self.taps)
        return z[self.local.to(z.device), self.slot.to(z.device)][None], None

    def _as_in_base(self) -> Tensor:
        """What attention gave in the base run, with writes to `z`: nothing that feeds it has changed."""
        mixed = self.replay.base.mixed[self.layer]
        z = mixed[self.tokens.prompts.to(mixed.device), self.tokens.columns.to(mixed.device)][None]
        return z if self.write_mixed is None else self.write_mixed(z)

    def _put_changed(self, key: Tensor, value: Tensor, call: Call) -> None:
        packed = (self.tokens, call.key, call.value) if self.stored is None else self.stored
        tokens, new_key, new_value = packed
        place = torch.full((len(self.replay.rows),), -1, dtype=torch.long)
        place[self.active] = torch.arange(len(self.active))
        moved = self.keys[tokens.rows, tokens.columns] & (place[tokens.rows] >= 0)
        at, columns = place[tokens.rows[moved]].to(key.device), tokens.columns[moved].to(key.device)
        moved = moved.to(key.device)
        key[at, :, columns] = new_key[0].transpose(0, 1)[moved]
        value[at, :, columns] = new_value[0].transpose(0, 1)[moved]

    def _unpack(self, query: Tensor) -> Tensor:
        """[1, head, n_tokens, d_head] to [row, head, slot, d_head]; unused slots hold zeros."""
        _, n_heads, _, d_head = query.shape
        out = query.new_zeros(len(self.active), self.n_slots, n_heads, d_head)
        out[self.local.to(query.device), self.slot.to(query.device)] = query[0].transpose(0, 1)
        return out.transpose(1, 2)

    def _mask(self, base: Call, prompts: Tensor) -> Tensor | None:
        if base.mask is None:
            return None
        mask = base.mask.expand(self.replay.base.shape[0], -1, -1, -1)
        columns = torch.zeros(len(self.active), self.n_slots, dtype=torch.long)
        columns[self.local, self.slot] = self.tokens.columns
        return mask[prompts[:, None], :, columns.to(mask.device)].transpose(1, 2)

    def _attention_writer(self, site: Site, changes: list[tuple[int, int, Change]]) -> Tap:
        is_keys = site.point in ("k", "v")

        def write(value: Tensor) -> Tensor:
            rows_first = to_token_form(value, site.row).clone()
            for start, stop, change in changes:
                local, slot, prompts, columns = self._selected(start, stop, change, is_keys=is_keys)
                if len(local):
                    at = (local.to(value.device), slot.to(value.device))
                    info = self.replay._info(prompts, columns, site)
                    rows_first[at] = blend(change.write, rows_first[at], info)
            return from_token_form(rows_first, site.row)

        return write

    def _selected(
        self, start: int, stop: int, change: Change, *, is_keys: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Local row, slot (or key column), prompt and column of the tokens that a change writes."""
        if is_keys:
            mine = ((self.active >= start) & (self.active < stop)).nonzero()[:, 0]
            prompts = self.replay.prompts[self.active[mine]]
            which, columns = change.selected[prompts].nonzero(as_tuple=True)
            return mine[which], columns, prompts[which], columns
        first = int(torch.searchsorted(self.tokens.rows, start))
        last = int(torch.searchsorted(self.tokens.rows, stop))
        inside = change.selected[self.tokens.prompts[first:last], self.tokens.columns[first:last]]
        at = first + inside.nonzero()[:, 0]
        return self.local[at], self.slot[at], self.tokens.prompts[at], self.tokens.columns[at]
