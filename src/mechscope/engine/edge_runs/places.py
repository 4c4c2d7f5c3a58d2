"""Places: where writers, readers and edges stand in the flat order of a `Wiring`, and what a circuit needs.

`Work` says which readers and writers a batch of circuits has to compute: those that a difference from the base
circuit reaches, and from which the logits can be reached. All else keeps the base circuit's values.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mechscope.vocabulary.edges import Wiring


@dataclass(frozen=True)
class Places:
    """Indices into a wiring's order of writers and edges.

    Args:
        wiring: Of the model.
        coupled: For each layer, whether one head's inputs reach what another adds.
    """

    wiring: Wiring
    coupled: tuple[bool, ...] = ()

    @property
    def a_layer(self) -> int:
        """Writers of a layer."""
        return self.wiring.n_heads + self.wiring.has_mlps

    @property
    def n_writers(self) -> int:
        return 1 + self.wiring.n_layers * self.a_layer

    @property
    def n_early(self) -> int:
        """Writers before the last layer's."""
        return self.n_writers - self.a_layer

    @property
    def n_readers(self) -> int:
        """Inputs of a layer's attention: q of each head, k and v of each key/value head."""
        return self.wiring.n_heads + 2 * self.wiring.n_kv_heads

    def head(self, layer: int) -> int:
        """The first head of a layer among the writers."""
        return 1 + layer * self.a_layer

    def mlp(self, layer: int) -> int:
        """A layer's MLP among the writers."""
        return self.head(layer) + self.wiring.n_heads

    def n_sources(self, layer: int, *, mlp: bool = False) -> int:
        """Writers that a layer's attention (or MLP) reads."""
        own = self.wiring.n_heads if mlp and not self.wiring.is_parallel else 0
        return self.head(layer) + own

    def attention_edges(self, layer: int) -> slice:
        """Edges into a layer's attention: [reader, source] when cut."""
        start = self._start(layer)
        return slice(start, start + self.n_readers * self.n_sources(layer))

    def mlp_edges(self, layer: int) -> slice:
        """Edges into a layer's MLP."""
        start = self.attention_edges(layer).stop
        return slice(start, start + self.n_sources(layer, mlp=True) * self.wiring.has_mlps)

    @property
    def logits_edges(self) -> slice:
        """Edges into the logits."""
        return slice(self.wiring.n_edges - self.n_writers, self.wiring.n_edges)

    def _start(self, layer: int) -> int:
        return self._starts[layer]

    @cached_property
    def _starts(self) -> list[int]:
        """Where each layer's edges start."""
        found = [0]
        for index in range(self.wiring.n_layers):
            readers = self.n_readers * self.n_sources(index)
            found.append(found[-1] + readers + self.n_sources(index, mlp=True) * self.wiring.has_mlps)
        return found

    def heads_read_by(self, readers: np.ndarray) -> np.ndarray:
        """Heads whose q, k or v is among the readers, as truth values, [head]."""
        n, n_kv = self.wiring.n_heads, self.wiring.n_kv_heads
        shared = readers[n : n + n_kv] | readers[n + n_kv :]
        return readers[:n] | np.repeat(shared, n // n_kv)

    def readers_of(self, heads: np.ndarray) -> np.ndarray:
        """Inputs that these heads are computed from, as truth values, [reader]."""
        n_kv = self.wiring.n_kv_heads
        shared = heads.reshape(n_kv, -1).any(1)
        return np.concatenate([heads, shared, shared])

    def needed(self, edges: np.ndarray) -> np.ndarray:
        """Writers from which the logits can be reached over these edges, [writer]."""
        needed = np.zeros(self.n_writers, dtype=bool)
        needed |= edges[self.logits_edges]
        for layer in reversed(range(self.wiring.n_layers)):
            if self.wiring.has_mlps and needed[self.mlp(layer)]:
                needed[: self.n_sources(layer, mlp=True)] |= edges[self.mlp_edges(layer)]
            first = self.head(layer)
            heads = needed[first : first + self.wiring.n_heads]
            if not heads.any():
                continue
            if self.coupled[layer]:
                heads[:] = True
            block = edges[self.attention_edges(layer)].reshape(self.n_readers, -1)
            needed[: block.shape[1]] |= block[self.readers_of(heads)].any(0)
        return needed


@dataclass
class Work:
    """What a batch of circuits has to compute.

    Args:
        readers: Attention inputs of each layer, indices.
        heads: Heads of each layer, indices.
        mlps: Whether each layer's MLP is run.
        writers: Those computed, ascending indices.
    """

    readers: list[np.ndarray] = field(default_factory=list)
    heads: list[np.ndarray] = field(default_factory=list)
    mlps: list[bool] = field(default_factory=list)
    writers: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def work_of(places: Places, union: np.ndarray, changed: np.ndarray, mlps: np.ndarray | None = None) -> Work:
    """What circuits compute whose edges are within `union` and differ from the base circuit's in `changed`.

    Args:
        places: Indices.
        union: [edge] truth values.
        changed: [edge] truth values.
        mlps: Layers whose MLP differs from the base circuit's by itself, [layer] truth values.
    """
    work, needed = Work(), places.needed(union)
    dirty = np.zeros(places.n_writers, dtype=bool)
    n_heads = places.wiring.n_heads
    for layer in range(places.wiring.n_layers):
        first, at = places.head(layer), places.attention_edges(layer)
        here = needed[first : first + n_heads]
        readers = np.zeros(places.n_readers, dtype=bool)
        if here.any():
            block = union[at].reshape(places.n_readers, -1)
            readers = changed[at].reshape(block.shape).any(1)
            readers |= (block & dirty[: block.shape[1]]).any(1)
            readers &= places.readers_of(here)
        heads = places.heads_read_by(readers)
        if places.coupled[layer] and heads.any():
            heads[:] = True
        heads &= here
        dirty[first : first + n_heads] = heads
        mlp = False
        if places.wiring.has_mlps and needed[places.mlp(layer)]:
            at = places.mlp_edges(layer)
            mlp = bool(changed[at].any() or (union[at] & dirty[: at.stop - at.start]).any())
            mlp |= mlps is not None and bool(mlps[layer])
            dirty[places.mlp(layer)] = mlp
        work.readers.append(np.flatnonzero(readers))
        work.heads.append(np.flatnonzero(heads))
        work.mlps.append(mlp)
    work.writers = np.flatnonzero(dirty)
    return work


def all_work(places: Places) -> Work:
    """Everything is computed."""
    layers = range(places.wiring.n_layers)
    return Work(
        readers=[np.arange(places.n_readers) for _ in layers],
        heads=[np.arange(places.wiring.n_heads) for _ in layers],
        mlps=[places.wiring.has_mlps for _ in layers],
        writers=np.arange(1, places.n_writers),
    )
