"""A block of prompts made ready for edge runs, the values that removed edges carry, and a circuit's own state.

What a reader sees is the ablated stream (all its edges removed) plus, over the edges kept, what each writer adds in
this circuit less what it adds when removed. The last layer's writers are kept at the positions read only, and no
column is computed before the first in which prompts and their twins differ: nothing there depends on the circuit.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mechscope.engine.edge_runs.layer_parts import Attention, LayerParts
from mechscope.engine.edge_runs.places import Places
from mechscope.engine.edge_runs.recording import Arguments, Recorded, repeated


@dataclass
class Values:
    """What writers add, or differences of it.

    Args:
        early: Writers before the last layer's, [writer, live tokens, d_model].
        read: All writers at the positions read, [writer, reads, d_model].
    """

    early: Tensor
    read: Tensor

    def first(self, n: int, *, is_read: bool) -> Tensor:
        """The first n writers, at all tokens or at the positions read."""
        return (self.read if is_read else self.early)[:n]

    def negated(self) -> "Values":
        """The same with the other sign."""
        return Values(-self.early, -self.read)

    def clone(self) -> "Values":
        """A copy of its own."""
        return Values(self.early.clone(), self.read.clone())


@dataclass
class State:
    """What a circuit computes in a block.

    Args:
        edges: Its edges, [edge] or [span, edge] truth values.
        own: What each writer adds in it less what it adds when removed; writers that the logits can't be reached
            from may hold another circuit's.
        differs: Writers for which that is not zero.
        projections: Queries, keys and values of each layer, [reader, tokens, d_head].
    """

    edges: np.ndarray
    own: Values
    differs: np.ndarray
    projections: list[Tensor]

    def copy(self) -> "State":
        """A state that can change without this one."""
        return State(self.edges.copy(), self.own.clone(), self.differs.copy(), list(self.projections))


@dataclass(frozen=True)
class TokenSpans:
    """Parts of prompts, token by token.

    Args:
        n: How many; one of them may have no token.
        of_tokens: The span of each token, [row, column], from 0 on; padding is in one too.
    """

    n: int
    of_tokens: Tensor


@dataclass(frozen=True)
class Spans:
    """Parts of the prompts in which edges are kept or removed apart.

    Args:
        n: How many.
        of_live: The span of each live token, [live tokens].
        of_reads: The span of each token that the metric reads, [reads].
    """

    n: int
    of_live: Tensor
    of_reads: Tensor

    def tokens(self, *, is_read: bool) -> list[Tensor]:
        """Indices of each span's tokens, among the live ones or among those read."""
        of = self.of_reads if is_read else self.of_live
        return [(of == span).nonzero()[:, 0] for span in range(self.n)]


@dataclass
class _Made:
    """What a block has made once.

    Args:
        first: Projections of the first layer with its edges kept and removed, [reader, live tokens, d_head] each.
    """

    streams: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    arguments: dict[tuple[int, int], Arguments] = field(default_factory=dict)
    constants: dict[int, Tensor] = field(default_factory=dict)
    first: tuple[Tensor, Tensor] | None = None


@dataclass
class Block:
    """Prompts ready for edge runs.

    Args:
        attention: The model's attention modules.
        layers: Its layers.
        places: Indices.
        shape: (rows, columns) of the prompts.
        reads: Tokens that the metric reads, flat indices, [reads].
        run: The prompts' own run.
        ablated: What removed edges carry.
        first_column: Columns before it are alike in every circuit; tokens from it on are *live*.
        spans: Where edges are kept apart; None for all tokens alike.
        removed_units: Activations that removed units carry, a layer, [live tokens, d_mlp]; of the last layer
            [reads, d_mlp]. Empty where runs are without units.
        offsets: Added to what writers compute, where edges start from constants (`Restored`); None elsewhere.
    """

    attention: Attention
    layers: list[LayerParts]
    places: Places
    shape: tuple[int, int]
    reads: Tensor
    run: Recorded
    ablated: Values
    first_column: int = 0
    spans: Spans | None = None
    removed_units: list[Tensor] = field(default_factory=list)
    offsets: Values | None = None
    _made: _Made = field(default_factory=_Made)

    @property
    def n_tokens(self) -> int:
        """Live tokens."""
        return self.shape[0] * (self.shape[1] - self.first_column)

    @property
    def live_reads(self) -> Tensor:
        """`reads` among the live tokens."""
        rows = self.reads // self.shape[1]
        return self.reads - (rows + 1) * self.first_column

    @property
    def first(self) -> tuple[Tensor, Tensor] | None:
        """Projections of the first layer with its edges kept and removed, [reader, live tokens, d_head] each."""
        return self._made.first

    def know_first(self, kept: Tensor, removed: Tensor) -> None:
        """Take the first layer's projections as known; see `first`."""
        self._made.first = (kept, removed)

    def live(self, values: Tensor) -> Tensor:
        """Values at the live tokens, [..., tokens, width] to [..., live tokens, width]."""
        return live_of(values, self.shape, self.first_column)

    def constant(self, layer: int) -> Tensor:
        """What a layer's projections add beside their matrices, [reader, live tokens, d_head]."""
        if layer not in self._made.constants:
            self._made.constants[layer] = self.live(self.run.constants[layer])
        return self._made.constants[layer]

    def stream(self, layer: int, which: str) -> Tensor:
        """What a reader sees with all its edges removed, [tokens or reads, d_model].

        Args:
            layer: Which layer; the number of layers for the logits.
            which: "attention", "mlp" or "logits".
        """
        if (layer, which) not in self._made.streams:
            self._made.streams[layer, which] = self._stream(layer, which)
        return self._made.streams[layer, which]

    def _stream(self, layer: int, which: str) -> Tensor:
        is_last = layer >= self.places.wiring.n_layers - 1 and which != "attention"
        above = which == "mlp" and not self.places.wiring.is_parallel
        rest = self.run.rest[: layer + above]
        n = self.places.n_writers if which == "logits" else self.places.n_sources(layer, mlp=which == "mlp")
        stream = self.ablated.first(n, is_read=is_last).sum(0)
        for one in rest:
            stream = stream + one
        return stream

    def arguments(self, layer: int, times: int) -> Arguments:
        """What a layer's attention is called with for copies of the prompts."""
        if (layer, times) not in self._made.arguments:
            if len(self._made.arguments) > 64 * len(self.layers):
                self._made.arguments.clear()
            self._made.arguments[layer, times] = repeated(self.run.arguments[layer], self.shape[0], times)
        return self._made.arguments[layer, times]

    def with_ablated(self, ablated: Values) -> "Block":
        """The same prompts with other values on removed edges, at every token alike."""
        return Block(
            self.attention,
            self.layers,
            self.places,
            self.shape,
            self.reads,
            self.run,
            ablated,
        )

    def start(self, projections: list[Tensor]) -> State:
        """The state in which every writer but the embedding adds what it adds when removed.

        Args:
            projections: Of the run that the removed edges' values are from. Where they are from no run (means,
                zeros) the projections are never read, since everything is computed anew from this state.
        """
        own = Values(torch.zeros_like(self.ablated.early), torch.zeros_like(self.ablated.read))
        own.early[0] = self.live(self.run.embed) - self.ablated.early[0]
        own.read[0] = self.run.embed[self.reads] - self.ablated.read[0]
        differs = np.zeros(self.places.n_writers, dtype=bool)
        differs[0] = True
        n_edges = self.places.wiring.n_edges
        edges = np.zeros(n_edges if self.spans is None else (self.spans.n, n_edges), dtype=bool)
        return State(edges, own, differs, list(projections))


def live_of(values: Tensor, shape: tuple[int, int], first_column: int) -> Tensor:
    """Values from a column on, [..., tokens, width] to [..., live tokens, width]."""
    if not first_column:
        return values
    return values.unflatten(-2, shape)[..., first_column:, :].flatten(-3, -2)


def values_of(run: Recorded, reads: Tensor, shape: tuple[int, int], first_column: int) -> Values:
    """A run's writers as values."""
    writers: list[Tensor] = [run.embed[None]]
    for layer in range(len(run.heads) - 1):
        writers.append(run.heads[layer])
        writers += [run.mlps[layer][None]] if run.mlps else []
    early = torch.cat(writers)
    late = [run.heads[-1][:, reads]] + ([run.mlps[-1][None, reads]] if run.mlps else [])
    return Values(live_of(early, shape, first_column), torch.cat([early[:, reads], *late]))


def constant_values(constants: Tensor, places: Places, n_tokens: int, n_reads: int) -> Values:
    """Values that are the same at every token, from [writer, d_model]."""
    early = constants[: places.n_early, None].expand(-1, n_tokens, -1)
    return Values(early, constants[:, None].expand(-1, n_reads, -1))
