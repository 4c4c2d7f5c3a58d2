"""Walk: a batch of circuits through the layers of one block, computing what differs from a base circuit only.

Circuits are rows: [circuit, tokens] stands for circuit times prompt times column. With weights in place of truth
values the edges can be learned; everything is then computed, and gradients flow to the weights. Where edges are kept
span by span of the prompt, each span's tokens see its own edges.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mechscope.engine.edge_runs.block import Block, State
from mechscope.engine.edge_runs.places import Work, all_work, work_of


@dataclass
class _Changes:
    """What writers add less what they add in the base circuit, in the order of writers.

    Args:
        n: How many writers will come at most.
        writers: Indices of those that came.
    """

    n: int
    writers: list[int] = field(default_factory=list)
    _buffer: Tensor | None = None
    _parts: list[Tensor] = field(default_factory=list)

    def append(self, writers: list[int], values: Tensor, less: Tensor | None = None) -> None:
        """Add writers' values, [writer, circuit, tokens, d_model], less those of the base circuit."""
        start = len(self.writers)
        self.writers += writers
        if torch.is_grad_enabled() and values.requires_grad:
            self._parts.append(values if less is None else values - less)
            return
        if self._buffer is None:
            self._buffer = values.new_empty(self.n, *values.shape[1:])
        room = self._buffer[start : start + len(writers)]
        if less is None:
            room.copy_(values)
        else:
            torch.sub(values, less, out=room)

    def first(self, n: int) -> Tensor:
        """The first n that came, [writer, circuit, tokens, d_model]."""
        if self._parts:
            self._parts = [torch.cat(self._parts)] if len(self._parts) > 1 else self._parts
            return self._parts[0][:n]
        assert self._buffer is not None
        return self._buffer[:n]

    def at(self, tokens: Tensor, n: int) -> "_Changes":
        """The same at some tokens only, with room for n writers."""
        found = _Changes(n)
        if self.writers:
            found.append(list(self.writers), self.first(len(self.writers))[:, :, tokens])
        return found


@dataclass
class Walk:
    """One batch of circuits in one block; `run` gives what the logits read.

    Args:
        block: Prompts.
        base: The circuit whose values hold where nothing changes.
        masks: Edges of each circuit, [circuit, edge] or [circuit, span, edge]: truth values, or weights with
            gradients.
        everything: Compute all, whatever differs; implied by weights.
        units: Units of each MLP that are kept, [circuit, layer, d_mlp] truth values; None keeps all. The base is
            then the circuit without edges.
    """

    block: Block
    base: State
    masks: np.ndarray | Tensor
    everything: bool = False
    units: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.places = self.block.places
        self.dtype = self.block.run.embed.dtype
        self.device = self.block.run.embed.device
        self.n = self.masks.shape[0]
        self.projections: dict[int, tuple[np.ndarray, Tensor]] = {}
        if isinstance(self.masks, Tensor) or self.everything:
            self.work: Work = all_work(self.places)
        else:
            every_one = tuple(range(self.masks.ndim - 1))
            union, changed = self.masks.any(every_one), (self.masks != self.base.edges).any(every_one)
            partial = None if self.units is None else np.any(~self.units, (0, 2))
            self.work = work_of(self.places, np.asarray(union), np.asarray(changed), partial)
        self.early = _Changes(int((self.work.writers < self.places.n_early).sum()))
        self.read: _Changes | None = None

    def run(self) -> Tensor:
        """The residual stream that the logits read, [circuit, reads, d_model]."""
        for layer in range(self.places.wiring.n_layers):
            self._attention(layer)
            self._mlp(layer)
        masks = self._edges(self.places.logits_edges, 1)
        return self._inputs(masks, self.block.stream(self.places.wiring.n_layers, "logits"), is_read=True)[0]

    def state(self, circuit: int, *, in_place: bool = False) -> State:
        """The state of one of the circuits, now that they ran.

        Args:
            circuit: Which one.
            in_place: Change the base circuit's state into it, instead of a copy.
        """
        assert isinstance(self.masks, np.ndarray)
        found = self.base if in_place else self.base.copy()
        found.edges = self.masks[circuit].copy()
        for changes, own in ((self.early, found.own.early), (self.read, found.own.read)):
            if changes is not None and changes.writers:
                own[changes.writers] += changes.first(len(changes.writers))[:, circuit]
        found.differs[self.work.writers] = True
        for layer, (readers, values) in self.projections.items():
            projections = found.projections[layer].clone()
            live = projections.unflatten(1, self.block.shape)[:, :, self.block.first_column :]
            live[readers] = values[:, circuit].unflatten(1, live.shape[1:3])
            found.projections[layer] = projections
        return found

    def _attention(self, layer: int) -> None:
        readers, heads = self.work.readers[layer], self.work.heads[layer]
        is_last = layer == self.places.wiring.n_layers - 1
        if len(readers) and len(heads):
            # An index in place of all readers would copy the projections.
            which = None if len(readers) == self.places.n_readers else torch.from_numpy(readers)
            found = self._projected(layer, readers, which)
            self.projections[layer] = (readers, found)
            z = self._mix(layer, which, found, is_last=is_last)
        else:
            z = None
        if is_last:
            self.read = self.early.at(self.block.live_reads, len(self.work.writers))
        if z is not None:
            self._add_heads(layer, z, heads, is_last)

    def _projected(self, layer: int, readers: np.ndarray, which: Tensor | None) -> Tensor:
        """Projections of some readers, [reader, circuit, tokens, d_head]."""
        masks = self._edges(self.places.attention_edges(layer), self.places.n_readers)[..., readers, :]
        first = self.block.first
        if layer == 0 and first is not None and not (isinstance(self.masks, Tensor) or self.everything):
            # The first layer reads the embedding or what stands for it, and both were projected before.
            is_kept = masks.bool()
            # [span, circuit, reader, 1] to [reader, circuit, tokens, 1]
            spans = self.block.spans
            is_kept = is_kept[None] if spans is None else is_kept[spans.of_live]
            is_kept = is_kept.permute(2, 1, 0, 3)
            kept, removed = (one[:, None] if which is None else one[which, None] for one in first)
            return torch.where(is_kept, kept, removed)
        streams = self._inputs(masks, self.block.stream(layer, "attention"), is_read=False)
        return self.block.layers[layer].project(streams, which, self.block.constant(layer))

    def _add_heads(self, layer: int, z: Tensor, heads: np.ndarray, is_last: bool) -> None:
        part = self.block.layers[layer]
        every = len(heads) == self.places.wiring.n_heads
        which = None if every else torch.from_numpy(heads)
        added = part.added_by_heads(z if which is None else z[:, :, which], which)
        self._append([int(h) + self.places.head(layer) for h in heads], added, is_last)

    def _mix(self, layer: int, which: Tensor | None, found: Tensor, *, is_last: bool) -> Tensor:
        """z of all heads at the live tokens, or at those read, [circuit, tokens, head, d_head]."""
        (rows, columns), first = self.block.shape, self.block.first_column
        if which is None and not first:
            every = found.permute(1, 2, 0, 3)
        else:
            kept = self.base.projections[layer].transpose(0, 1).unflatten(0, (rows, columns))
            every = kept[None].repeat(self.n, 1, 1, 1, 1)
            new = found.permute(1, 2, 0, 3).unflatten(1, (rows, -1))
            every[:, :, first:, slice(None) if which is None else which] = new
        every = every.reshape(self.n * rows, columns, self.places.n_readers, -1)
        n, n_kv = self.places.wiring.n_heads, self.places.wiring.n_kv_heads
        q, k, v = every.split([n, n_kv, n_kv], dim=2)
        z = self.block.attention.mix(layer, q=q, k=k, v=v, arguments=self.block.arguments(layer, self.n))
        z = z.reshape(self.n, rows, columns, n, -1)
        return z.flatten(1, 2)[:, self.block.reads] if is_last else z[:, :, first:].flatten(1, 2)

    def _mlp(self, layer: int) -> None:
        if not self.work.mlps[layer]:
            return
        is_last = layer == self.places.wiring.n_layers - 1
        masks = self._edges(self.places.mlp_edges(layer), 1)
        stream = self._inputs(masks, self.block.stream(layer, "mlp"), is_read=is_last)[0]
        rows = self.n * self.block.shape[0]
        stream_of_rows = stream.reshape(rows, -1, stream.shape[-1])
        added = self.block.layers[layer].added_by_mlp(stream_of_rows, self._units(layer))
        self._append([self.places.mlp(layer)], added.reshape(1, *stream.shape), is_last)

    def _units(self, layer: int) -> Callable[[Tensor], Tensor] | None:
        """Puts the values of removed units in their place; None where all are kept."""
        if self.units is None or self.units[:, layer].all():
            return None
        kept = torch.from_numpy(np.ascontiguousarray(self.units[:, layer])).to(self.device)[:, None]
        removed = self.block.removed_units[layer]

        def mixed(x: Tensor) -> Tensor:
            return torch.where(kept, x.reshape(self.n, *removed.shape), removed).reshape(x.shape)

        return mixed

    def _append(self, writers: list[int], added: Tensor, is_last: bool) -> None:
        changes = self.read if is_last else self.early
        assert changes is not None
        values = self.block.ablated.read if is_last else self.block.ablated.early
        own = self.base.own.read if is_last else self.base.own.early
        first, stop = writers[0], writers[-1] + 1
        at = slice(first, stop) if stop - first == len(writers) else writers
        less = values[at] + own[at]
        if self.block.offsets is not None:
            less = less - (self.block.offsets.read if is_last else self.block.offsets.early)[at]
        changes.append(writers, added, less[:, None])

    def _edges(self, at: slice, n_readers: int) -> Tensor:
        """Weights of edges, [circuit, reader, source]; spans first where there are any."""
        cut = self.masks[..., at]
        if not isinstance(cut, Tensor):
            cut = torch.from_numpy(np.ascontiguousarray(cut)).to(self.device, self.dtype)
        cut = cut.unflatten(-1, (n_readers, -1))
        return cut if cut.ndim == 3 else cut.transpose(0, 1)

    def _inputs(self, masks: Tensor, stream: Tensor, *, is_read: bool) -> Tensor:
        """What readers see, [reader, circuit, tokens, d_model]."""
        if self.block.spans is None:
            return self._inputs_at(None, masks, stream, is_read=is_read)
        n_circuits, n_readers = masks.shape[1:3]
        found = stream.new_zeros(n_readers, n_circuits, *stream.shape)
        for weights, at in zip(masks, self.block.spans.tokens(is_read=is_read), strict=True):
            if len(at):
                found[:, :, at] = self._inputs_at(at, weights, stream[at], is_read=is_read)
        return found

    def _inputs_at(self, at: Tensor | None, masks: Tensor, stream: Tensor, *, is_read: bool) -> Tensor:
        """What readers see at some tokens, None for all, [reader, circuit, tokens, d_model]."""
        n_circuits, n_readers, n_sources = masks.shape
        changes = self.early if not is_read else self.read
        assert changes is not None
        fixed = np.flatnonzero(self.base.differs[:n_sources])
        total = stream.reshape(1, -1).expand(n_readers * n_circuits, -1)
        if len(fixed):
            own = self.base.own.first(n_sources, is_read=is_read)
            own = own if len(fixed) == n_sources else own[fixed]
            own = own if at is None else own[:, at]
            # Reader by reader, as norms and projections want them: another order would be copied twice.
            weights = masks.transpose(0, 1).reshape(n_readers * n_circuits, n_sources)
            weights = weights if len(fixed) == n_sources else weights[:, fixed]
            total = torch.addmm(total, weights, own.reshape(len(fixed), -1))
        n_changes = int(np.searchsorted(changes.writers, n_sources))
        total = total.reshape(n_readers, n_circuits, -1)
        if n_changes:
            total = total if len(fixed) else total.clone(memory_format=torch.contiguous_format)
            moved = changes.first(n_changes)
            moved = (moved if at is None else moved[:, :, at]).flatten(2).transpose(0, 1)
            total.transpose(0, 1).baddbmm_(masks[:, :, changes.writers[:n_changes]], moved)
        return total.reshape(n_readers, n_circuits, *stream.shape)
