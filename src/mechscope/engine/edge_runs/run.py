"""Edge runs of prompts: any number of circuits, each reader seeing the edges kept and other values of the rest.

Oracle: a slow forward pass in plain arithmetic with an input of its own for each reader (tests/engine/edges_by_hand).
Invariant: with every edge kept it is the model's own run; with none, the run that the removed edges' values are from.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechscope.engine.edge_runs.ablations import Constant, EdgeAblation, Resampled, Restored
from mechscope.engine.edge_runs.batching import cut_batches
from mechscope.engine.edge_runs.block import (
    Block,
    Spans,
    State,
    TokenSpans,
    Values,
    constant_values,
    values_of,
)
from mechscope.engine.edge_runs.layer_parts import Attention, LayerParts
from mechscope.engine.edge_runs.measuring import Measuring
from mechscope.engine.edge_runs.places import Places
from mechscope.engine.edge_runs.recording import Recorded, record_run
from mechscope.engine.edge_runs.refusals import (
    refuse_other_lengths,
    refuse_other_tokens,
    refuse_out_of_reach,
    refuse_without_units,
)
from mechscope.engine.edge_runs.walk import Walk
from mechscope.engine.naive import read_columns
from mechscope.interventions.metrics import Metric
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.models.wiring import wiring_of
from mechscope.vocabulary.errors import ShapeError

DEFAULT_MEMORY = {"cpu": 2**25, "cuda": 2**30}
"""Bytes of one batch by device. On a CPU larger batches leave the cache; fresh pages cost more than the products."""
_BLOCK = 2
"""Budgets that a block's rows fill: a circuit of few edges computes little in a row, and each call has its price."""

Edges = np.ndarray
"""Which edges a circuit keeps, [edge] truth values in the order of `Wiring.edges`; with spans [span, edge]."""


@dataclass
class Walked:
    """Circuits that ran over all blocks: what they gave, and their states if wanted.

    Args:
        values: The metric, [circuit, row], float64 on the CPU.
        walks: One a block.
        residuals: What the logits read in each block, [circuit, reads, d_model].
    """

    values: Tensor
    walks: list[Walk]
    residuals: list[Tensor]

    def state(self, circuit: int, *, in_place: bool = False) -> list[State]:
        """One circuit's state in every block; in place, the base circuit's state becomes it."""
        return [walk.state(circuit, in_place=in_place) for walk in self.walks]


class EdgeRuns:
    """Prompts ready to be run under circuits.

    Args:
        model: An open model.
        tokens: Prompts; what writers add themselves is computed from them.
        metric: What is read, one answer a prompt.
        ablation: What removed edges carry.
        spans: Parts of the prompts in which edges are kept or removed apart; None keeps or removes them at every
            token.
        with_units: Whether circuits may keep some units of an MLP and remove the others.
        memory: Budget in bytes for one batch of circuits, twice that for a block of prompts; None suits the device.

    Raises:
        PointUnavailable: the family's attention is out of reach.
        PairLengthMismatch: the prompts that removed edges' values are from are of other lengths.

    Cost: two forward passes; then one for each circuit, less what it shares with its base circuit.
    """

    def __init__(
        self,
        model: Model,
        tokens: TokenBatch,
        *,
        metric: Metric,
        ablation: EdgeAblation,
        spans: TokenSpans | None = None,
        with_units: bool = False,
        memory: int | None = None,
    ) -> None:
        refuse_out_of_reach(model)
        refuse_other_tokens(tokens, spans)
        if with_units:
            refuse_without_units(model, ablation)
        self.with_units = with_units
        self.spans = spans
        self.model, self.tokens, self.metric, self.ablation = model, tokens, metric, ablation
        self.wiring = wiring_of(model)
        self.memory = memory or DEFAULT_MEMORY.get(model.device.type, DEFAULT_MEMORY["cuda"])
        self._attention = Attention(model.binding)
        self._layers = [LayerParts(model.binding, layer) for layer in range(model.n_layers)]
        self._places = Places(self.wiring, tuple(part.heads_are_coupled for part in self._layers))
        self._is_open = False
        self.n_walked = 0
        self.blocks: list[Block] = []
        self.rows: list[Tensor] = []
        self._starts: list[State] = []
        self._plain_starts: list[State] = []
        self._measuring: list[Measuring] = []
        with model.ready():
            for rows in self._cut():
                self._prepare(rows)
        if isinstance(ablation, Restored):
            self._start_from(ablation.constants)
        self._plain_starts = list(self._starts)
        if isinstance(ablation, Constant):
            self._starts = [
                walk.state(0) for walk in self._walk(self.none[None], None, everything=True).walks
            ]
        for block, start in zip(self.blocks, self._starts, strict=True):
            if block.first is None:
                block.know_first(block.live(block.run.projections[0]), block.live(start.projections[0]))

    @property
    def n_rows(self) -> int:
        """Prompts."""
        return len(self.tokens)

    @property
    def every(self) -> Edges:
        """All edges."""
        return np.ones(self._shape, dtype=bool)

    @property
    def none(self) -> Edges:
        """No edge."""
        return np.zeros(self._shape, dtype=bool)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.wiring.n_edges,) if self.spans is None else (self.spans.n, self.wiring.n_edges)

    @property
    def start(self) -> list[State]:
        """The state of the circuit without edges, a block."""
        return self._starts

    def needed(self, edges: Edges) -> np.ndarray:
        """Writers from which the logits can be reached over some edges, [writer] truth values."""
        return self._places.needed(edges)

    @contextmanager
    def open(self) -> Generator[None]:
        """Hold the model for a series of runs; each run does so by itself otherwise."""
        if self._is_open:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(self.model.ready())
            stack.enter_context(self._attention.standing())
            self._is_open = True
            try:
                yield
            finally:
                self._is_open = False

    def measure(
        self,
        circuits: Sequence[Edges] | np.ndarray,
        units: np.ndarray | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """The metric under circuits, [circuit, row], float64 on the CPU.

        Args:
            circuits: Edges of each.
            units: Units of each MLP that each circuit keeps, [circuit, layer, d_mlp] truth values; None keeps all. A
                removed unit's activation is that of the run that removed edges' values are from, or zero.
            progress: Told circuits done and circuits in all.
        """
        circuits = self._as_masks(circuits)
        units = None if units is None else self._as_units(units, len(circuits))
        anywhere = circuits if self.spans is None else np.any(circuits, 1)
        cuts = cut_batches(self._places, anywhere, most=self.batch_size)
        parts = []
        for at in cuts:
            some = None if units is None else units[at]
            parts.append(self._walk(circuits[at], None, everything=False, units=some).values)
            if progress is not None:
                progress(at.stop, len(circuits))
        return torch.cat(parts)

    def walk(self, circuits: np.ndarray, base: list[State] | None = None) -> Walked:
        """Circuits as differences from a base circuit that ran; the caller keeps to `batch_size`."""
        return self._walk(circuits, base, everything=False)

    def state(self, edges: Edges) -> list[State]:
        """The state of a circuit in every block."""
        return self.walk(edges[None]).state(0)

    def measure_weighted(self, weights: Tensor, *, constants: Tensor | None = None) -> Tensor:
        """The metric with edges kept in part, [circuit, edge] to [circuit, row]; gradients flow to the weights.

        Args:
            weights: 1 keeps an edge, 0 removes it.
            constants: Values that removed edges carry, [writer, d_model], in place of the ablation's; gradients
                flow to them too.
        """
        with torch.enable_grad():
            return torch.cat(
                [m.of(r) for m, r in zip(self._measuring, self._weighted(weights, constants), strict=True)],
                dim=1,
            )

    def logits_weighted(self, weights: Tensor, *, constants: Tensor | None = None) -> Tensor:
        """As `measure_weighted`, but all logits at the positions read, [circuit, row, read, d_vocab]."""
        with torch.enable_grad():
            residuals = self._weighted(weights, constants)
            return torch.cat([m.logits(r) for m, r in zip(self._measuring, residuals, strict=True)], dim=1)

    def logits(self, circuits: Sequence[Edges] | np.ndarray) -> Tensor:
        """All logits at the positions read, [circuit, row, read, d_vocab]."""
        with torch.no_grad():
            walked = self._walk(self._as_masks(circuits), None, everything=False)
            parts = zip(self._measuring, walked.residuals, strict=True)
            return torch.cat([m.logits(r) for m, r in parts], dim=1)

    @property
    def batch_size(self) -> int:
        """Most circuits at once under the memory budget."""
        wiring, block = self.wiring, max(self.blocks, key=lambda b: b.n_tokens)
        vectors = self._places.n_writers + 3 * self._places.n_readers + 8
        per_circuit = block.n_tokens * vectors * self.model.d_model * self.model.dtype.itemsize
        per_circuit += wiring.n_heads * block.n_tokens * block.shape[1] * self.model.dtype.itemsize
        return max(1, self.memory // per_circuit)

    def _as_masks(self, circuits: Sequence[Edges] | np.ndarray) -> np.ndarray:
        masks = np.asarray(circuits, dtype=bool)
        if masks.shape[1:] != self._shape:
            spans = "" if self.spans is None else f", and there are {self.spans.n} spans"
            raise ShapeError(
                "These are not circuits of this model.",
                got=f"edges of shape {list(masks.shape)}",
                because=f"the model has {self.wiring.n_edges} edges{spans}",
                instead=f"[circuit, {'edge' if self.spans is None else 'span, edge'}] truth values in the order "
                "of Wiring.edges()",
            )
        return masks

    def _as_units(self, units: np.ndarray, n_circuits: int) -> np.ndarray:
        wanted = (n_circuits, self.wiring.n_layers, *(t.shape[1] for t in self.blocks[0].removed_units[:1]))
        if not self.with_units or units.shape != wanted:
            raise ShapeError(
                "These are not units of these circuits.",
                got=f"shape {list(units.shape)}",
                because=f"there are {n_circuits} circuits and {self.wiring.n_layers} layers"
                if self.with_units
                else "these runs are without units",
                instead="[circuit, layer, d_mlp] truth values, and EdgeRuns(..., with_units=True)",
            )
        return units.astype(bool)

    def _walk(
        self,
        circuits: np.ndarray,
        base: list[State] | None,
        *,
        everything: bool,
        units: np.ndarray | None = None,
    ) -> Walked:
        starts = self._starts if base is None else base
        walks, values, residuals = [], [], []
        with torch.no_grad(), self.open():
            for block, state, measuring in zip(self.blocks, starts, self._measuring, strict=True):
                walk = Walk(block, state, circuits, everything, units)
                residual = walk.run()
                values.append(measuring.of(residual).double().cpu())
                walks.append(walk)
                residuals.append(residual)
        self.n_walked += len(circuits)
        return Walked(torch.cat(values, dim=1), walks, residuals)

    def _weighted(self, weights: Tensor, constants: Tensor | None) -> list[Tensor]:
        found = []
        with torch.inference_mode(False), torch.enable_grad(), self.open():
            for block, state in zip(self.blocks, self._plain_starts, strict=True):
                if constants is not None:
                    n_tokens, reads = len(block.run.embed), len(block.reads)
                    block = block.with_ablated(constant_values(constants, self._places, n_tokens, reads))
                    state = block.start(state.projections)
                found.append(Walk(block, state, weights).run())
        return found

    def _cut(self) -> list[Tensor]:
        """Rows of each block: as many as leave room for a few circuits at once."""
        vectors = 3 * self._places.n_writers + 4 * self._places.n_readers
        per_row = self.tokens.shape[1] * vectors * self.model.d_model * self.model.dtype.itemsize
        size = max(1, _BLOCK * self.memory // per_row)
        return list(torch.arange(self.n_rows).tensor_split(-(-self.n_rows // size)))

    def _prepare(self, rows: Tensor) -> None:
        binding = self.model.binding
        frame = Frame.of(self.tokens.select(rows.tolist()))
        is_zero = self.with_units and isinstance(self.ablation, Constant)
        run = record_run(binding, self._layers, frame=frame, units=is_zero)
        columns = read_columns(frame, self.metric.reading().positions)
        width = frame.ids.shape[1]
        reads = (torch.arange(len(rows))[:, None] * width + columns).flatten().to(run.embed.device)
        shape, first = (len(rows), width), self._first_column(rows, int(columns.min()))
        ablated, projections, units = self._ablated(rows, run, (reads, shape, first))
        block = Block(
            self._attention,
            self._layers,
            self._places,
            shape,
            reads,
            run,
            ablated,
            first,
            self._spans_of(rows, reads, (width, first)),
        )
        if units:
            block.removed_units = [*(block.live(one) for one in units[:-1]), units[-1][reads]]
        run.heads, run.mlps = [], []  # only what the block needs is kept
        self.blocks.append(block)
        self.rows.append(rows)
        self._starts.append(block.start(projections))
        metric = self.metric.select(rows.tolist())
        self._measuring.append(Measuring(metric, len(rows), head_of(binding)))

    def _start_from(self, constants: Constant) -> None:
        """Make the start the prompts' own run, and writers add what they do beyond the run of constants alone."""
        base = EdgeRuns(self.model, self.tokens, metric=self.metric, ablation=constants, memory=self.memory)
        for block, start, other, begun in zip(
            self.blocks, self._starts, base.blocks, base.start, strict=True
        ):
            block.offsets = begun.own.negated()
            start.own, start.differs = block.offsets.clone(), np.ones_like(start.differs)
            assert other.first is not None
            own, constant = other.first
            block.know_first(kept=constant, removed=own)

    def _first_column(self, rows: Tensor, first_read: int) -> int:
        """The first column that can depend on a circuit: prompts and twins are alike before it."""
        if not isinstance(self.ablation, Resampled) or not self.model.binding.anatomy.is_causal:
            return 0
        refuse_other_lengths(self.tokens, self.ablation)
        # A block of short prompts is narrower than the batch, so columns are those of the block.
        own, other = (batch.select(rows.tolist()).ids for batch in (self.tokens, self.ablation.prompts))
        differs = own.ne(other).any(0).cpu()
        return min(first_read, int(differs.int().argmax())) if differs.any() else first_read

    def _spans_of(self, rows: Tensor, reads: Tensor, columns: tuple[int, int]) -> Spans | None:
        if self.spans is None:
            return None
        width, first_column = columns
        spans = self.spans.of_tokens[rows, -width:].to(reads.device)
        return Spans(self.spans.n, spans[:, first_column:].flatten(), spans.flatten()[reads])

    def _ablated(
        self, rows: Tensor, run: Recorded, at: tuple[Tensor, tuple[int, int], int]
    ) -> tuple[Values, list[Tensor], list[Tensor]]:
        """Values of removed edges, the projections of the run that they are from, and its units' activations."""
        if isinstance(self.ablation, Constant):
            values = self.ablation.values.tensor.to(run.embed)
            values = constant_values(values, self._places, len(run.embed), len(at[0]))
            return values, run.projections, [torch.zeros_like(one) for one in run.units]
        if isinstance(self.ablation, Restored):
            return values_of(run, *at), run.projections, []
        frame = Frame.of(self.ablation.prompts.select(rows.tolist()))
        binding = self.model.binding
        other = record_run(binding, self._layers, frame=frame, constants=False, units=self.with_units)
        return values_of(other, *at), other.projections, other.units
