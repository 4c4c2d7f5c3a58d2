"""Attention of packed tokens: their keys and values in the place of the base run's, their queries over both.

Owns: the desks that a replay puts at a layer's attention. The pattern of a row is formed only if a write or the
family needs it; rows that change nothing before `z` take the base run's mixed values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechscope.engine.changes import Change
from mechscope.models.attention import Call, Tap, attend
from mechscope.models.binding import ATTENTION_POINTS
from mechscope.models.session import Stopped
from mechscope.models.writing import blend, from_token_form, to_token_form, tokens_of
from mechscope.vocabulary.sites import Site

if TYPE_CHECKING:
    from mechscope.engine.packed import Replay

FEEDS_QUERIES = frozenset({"q_proj", "q_pre"})
"""Points of modules whose change reaches the queries of their layer and not its keys."""


FEW_KEYS = 40
"""Up to so many, forming the pattern is faster on a CPU than the fused kernel, whose tiles they do not fill."""


@dataclass
class PackedTokens:
    """Tokens of a layer call, sorted by row: local row, column, and the row's prompt."""

    rows: Tensor
    columns: Tensor
    prompts: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def flat(self, n_columns: int) -> Tensor:
        """Each token's place among the base run's, prompts and columns flattened, [n_tokens]."""
        return self.prompts * n_columns + self.columns


class KeepKeys:
    """A desk that keeps the call and ends the layer there."""

    def __init__(self) -> None:
        self.kept: Call | None = None

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        self.kept = call
        raise Stopped


class PackedDesk:
    """Attention of packed tokens over the base run's keys and values with the changed ones put in."""

    def __init__(
        self,
        replay: "Replay",
        layer: int,
        *,
        tokens: PackedTokens,
        keys: Tensor,
        stored: tuple[PackedTokens, Tensor, Tensor] | None,
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
        self.place = self.local * self.n_slots + self.slot  # of each token among all rows' slots
        # Not the writers themselves: they know this desk, and a cycle would outlive the chunk with all its tensors.
        self.written: dict[Site, list[tuple[int, int, Change]]] = {}
        self.write_mixed: Tap | None = None
        self.reads_scores = True

    def taps_for(self, changes: Mapping[Site, list[tuple[int, int, Change]]]) -> dict[Site, Tap]:
        """Writers for module sites; attention sites are applied inside this desk."""
        for site, found in changes.items():
            if site.point in ATTENTION_POINTS:
                self.written[site] = found
            if site.point == "z":
                self.write_mixed = self.replay.writer_for(site, found, self.tokens)
        self.reads_scores = any(site.point != "z" for site in self.written) or any(
            site.point in FEEDS_QUERIES for site in changes
        )
        return self.replay.taps(changes, self.tokens, skip=ATTENTION_POINTS)

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        base = self.replay.base.calls[self.layer]
        if not self.reads_scores and not bool(self.keys.any()):
            return self._as_in_base(), None
        prompts = self.replay.prompts[self.active].to(base.key.device)
        key, value = base.key.index_select(0, prompts), base.value.index_select(0, prompts)
        self._put_changed(key, value, call)
        full = replace(
            base, query=self._unpack(call.query), key=key, value=value, mask=self._mask(base, prompts)
        )
        taps = {site.point: self._attention_writer(site, found) for site, found in self.written.items()}
        anatomy, is_small = self.replay.binding.anatomy.attention, _has_few_keys(full)
        z, _ = attend(full, anatomy, taps, forms_pattern=is_small)
        return z.flatten(0, 1).index_select(0, self.place.to(z.device))[None], None

    def _as_in_base(self) -> Tensor:
        """What attention gave in the base run, with writes to `z`: nothing that feeds it has changed."""
        mixed = self.replay.base.mixed[self.layer]
        z = mixed.flatten(0, 1).index_select(0, self.tokens.flat(mixed.shape[1]).to(mixed.device))[None]
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
        out = query.new_zeros(len(self.active) * self.n_slots, n_heads, d_head)
        out.index_copy_(0, self.place.to(query.device), query[0].transpose(0, 1))
        return out.unflatten(0, (-1, self.n_slots)).transpose(1, 2)

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
                    info = tokens_of(prompts, columns, self.replay.base.frame, site)
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


def _has_few_keys(call: Call) -> bool:
    """Whether the pattern is formed for speed; half precision keeps the kernel, which sums in single."""
    is_wide = call.query.dtype in (torch.float32, torch.float64)
    return is_wide and call.query.device.type == "cpu" and call.key.shape[-2] <= FEW_KEYS
