"""Walk: a batch of circuits through the layers of one block, computing what differs from a base circuit only.

Circuits are rows: [circuit, tokens] stands for circuit times prompt times column. With weights in place of truth
values the edges can be learned; everything is then computed, and gradients flow to the weights.
"""

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

    def append(self, writers: list[int], values: Tensor) -> None:
        """Add writers' values, [writer, circuit, tokens, d_model]."""
        start = len(self.writers)
        self.writers += writers
        if torch.is_grad_enabled() and values.requires_grad:
            self._parts.append(values)
            return
        if self._buffer is None:
            self._buffer = values.new_empty(self.n, *values.shape[1:])
        self._buffer[start : start + len(writers)] = values

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
        masks: Edges of each circuit, [circuit, edge]: truth values, or weights with gradients.
        everything: Compute all, whatever differs; implied by weights.
    """

    block: Block
    base: State
    masks: np.ndarray | Tensor
    everything: bool = False

    def __post_init__(self) -> None:
        self.places = self.block.places
        self.dtype = self.block.run.embed.dtype
        self.device = self.block.run.embed.device
        self.n = self.masks.shape[0]
        self.projections: dict[int, tuple[np.ndarray, Tensor]] = {}
        if isinstance(self.masks, Tensor) or self.everything:
            self.work: Work = all_work(self.places)
        else:
            union, changed = np.any(self.masks, axis=0), np.any(self.masks != self.base.edges, axis=0)
            self.work = work_of(self.places, np.asarray(union), np.asarray(changed))
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
            projections[readers] = values[:, circuit]
            found.projections[layer] = projections
        return found

    def _attention(self, layer: int) -> None:
        readers, heads = self.work.readers[layer], self.work.heads[layer]
        is_last = layer == self.places.wiring.n_layers - 1
        if len(readers) and len(heads):
            masks = self._edges(self.places.attention_edges(layer), self.places.n_readers)[:, readers]
            streams = self._inputs(masks, self.block.stream(layer, "attention"), is_read=False)
            part = self.block.layers[layer]
            # An index in place of all readers would copy the projections.
            which = None if len(readers) == self.places.n_readers else torch.from_numpy(readers)
            found = part.project(streams, which, self.block.run.constants[layer])
            self.projections[layer] = (readers, found)
            z = self._mix(layer, which, found)
        else:
            z = None
        if is_last:
            self.read = self.early.at(self.block.reads, len(self.work.writers))
            z = None if z is None else z[:, self.block.reads]
        if z is not None:
            self._add_heads(layer, z, heads, is_last)

    def _add_heads(self, layer: int, z: Tensor, heads: np.ndarray, is_last: bool) -> None:
        part = self.block.layers[layer]
        every = len(heads) == self.places.wiring.n_heads
        which = None if every else torch.from_numpy(heads)
        added = part.added_by_heads(z if which is None else z[:, :, which], which)
        self._append([int(h) + self.places.head(layer) for h in heads], added, is_last)

    def _mix(self, layer: int, which: Tensor | None, found: Tensor) -> Tensor:
        """z of all heads, [circuit, tokens, head, d_head]."""
        if which is None:
            every = found.permute(1, 2, 0, 3)
        else:
            kept = self.base.projections[layer].transpose(0, 1)
            every = kept[None].repeat(self.n, 1, 1, 1)
            every[:, :, which] = found.permute(1, 2, 0, 3)
        rows, columns = self.block.shape
        every = every.reshape(self.n * rows, columns, self.places.n_readers, -1)
        n, n_kv = self.places.wiring.n_heads, self.places.wiring.n_kv_heads
        q, k, v = every.split([n, n_kv, n_kv], dim=2)
        z = self.block.attention.mix(layer, q=q, k=k, v=v, arguments=self.block.arguments(layer, self.n))
        return z.reshape(self.n, rows * columns, n, -1)

    def _mlp(self, layer: int) -> None:
        if not self.work.mlps[layer]:
            return
        is_last = layer == self.places.wiring.n_layers - 1
        masks = self._edges(self.places.mlp_edges(layer), 1)
        stream = self._inputs(masks, self.block.stream(layer, "mlp"), is_read=is_last)[0]
        rows = self.n * self.block.shape[0]
        added = self.block.layers[layer].added_by_mlp(stream.reshape(rows, -1, stream.shape[-1]))
        self._append([self.places.mlp(layer)], added.reshape(1, *stream.shape), is_last)

    def _append(self, writers: list[int], added: Tensor, is_last: bool) -> None:
        changes = self.read if is_last else self.early
        assert changes is not None
        values = self.block.ablated.read if is_last else self.block.ablated.early
        own = self.base.own.read if is_last else self.base.own.early
        first, stop = writers[0], writers[-1] + 1
        at = slice(first, stop) if stop - first == len(writers) else writers
        changes.append(writers, added - (values[at] + own[at])[:, None])

    def _edges(self, at: slice, n_readers: int) -> Tensor:
        """Weights of edges, [circuit, reader, source]."""
        cut = self.masks[:, at]
        if not isinstance(cut, Tensor):
            cut = torch.from_numpy(np.ascontiguousarray(cut)).to(self.device, self.dtype)
        return cut.reshape(self.n, n_readers, -1)

    def _inputs(self, masks: Tensor, stream: Tensor, *, is_read: bool) -> Tensor:
        """What readers see, [reader, circuit, tokens, d_model]."""
        n_circuits, n_readers, n_sources = masks.shape
        tokens, width = stream.shape
        changes = self.early if not is_read else self.read
        assert changes is not None
        fixed = np.flatnonzero(self.base.differs[:n_sources])
        total = stream.flatten().expand(n_circuits, n_readers, -1)
        if len(fixed):
            own = self.base.own.first(n_sources, is_read=is_read)
            own = own if len(fixed) == n_sources else own[fixed]
            weights = masks if len(fixed) == n_sources else masks[:, :, fixed]
            flat = weights.reshape(n_circuits * n_readers, -1) @ own.reshape(len(fixed), -1)
            total = total + flat.reshape(n_circuits, n_readers, -1)
        n_changes = int(np.searchsorted(changes.writers, n_sources))
        if n_changes:
            moved = changes.first(n_changes).flatten(2).transpose(0, 1)
            total = torch.baddbmm(total, masks[:, :, changes.writers[:n_changes]], moved)
        return total.reshape(n_circuits, n_readers, tokens, width).transpose(0, 1)
