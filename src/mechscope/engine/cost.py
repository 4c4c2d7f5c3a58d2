"""Cost: bytes and floating-point operations of a plan's parts, foretold from shapes and declared selections.

Bytes are of activations. Weights, and the tensors that interventions and metrics bring along, are the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from mechscope.engine.changes import FEEDS_KEYS, Prepared
from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import read_columns
from mechscope.interventions.metrics import Reading
from mechscope.models.frame import Frame
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True, kw_only=True)
class ChunkSize:
    """How much a chunk of packed rows may hold.

    Args:
        n_tokens: Most tokens.
        n_bytes: Most bytes; a single row may exceed them.
        per_token: Bytes of a token at its widest.
        per_row: Bytes of a row: its keys and values, and the logits that are read.
        per_slot: Bytes of a query's attention; every row of a chunk has as many slots as the longest.
    """

    n_tokens: int
    n_bytes: int
    per_token: int
    per_row: int
    per_slot: int

    def bytes_of(self, n_tokens: int, n_rows: int, n_slots: int) -> int:
        """Bytes of so many tokens in so many rows, the longest of which has so many slots."""
        return n_tokens * self.per_token + n_rows * (self.per_row + n_slots * self.per_slot)

    def holds(self, n_tokens: int, n_rows: int, n_slots: int) -> bool:
        """Whether so much fits."""
        return n_tokens <= self.n_tokens and self.bytes_of(n_tokens, n_rows, n_slots) <= self.n_bytes


def chunk_size(model: Model, n_columns: int, *, logit_bytes: int, n_tokens: int, n_bytes: int) -> ChunkSize:
    """What a chunk over prompts of so many columns may hold, within a number of tokens and of bytes."""
    size, heads, kv_heads = model.dtype.itemsize, model.n_heads, model.n_kv_heads
    # Grouped keys and values are repeated for each head.
    keys = 2 * model.d_head * (kv_heads + (heads if heads > kv_heads else 0))
    wide = 4 * model.d_model + 3 * _mlp_width(model) + 4 * heads * model.d_head
    return ChunkSize(
        n_tokens=n_tokens,
        n_bytes=n_bytes,
        per_token=wide * size,
        per_row=n_columns * keys * size + logit_bytes,
        per_slot=_attention_width(model, n_columns) * size,
    )


def base_bytes_per_row(model: Model, n_columns: int, written: Sequence[Site]) -> int:
    """Bytes that a base run keeps of a prompt: stream and attention of every layer, and values at written sites."""
    attention = 2 * model.d_head * (model.n_heads + model.n_kv_heads)
    kept = (model.n_layers + 1) * model.d_model + model.n_layers * attention
    kept += sum(_site_width(model, site, n_columns) for site in written)
    return n_columns * kept * model.dtype.itemsize


def forward_bytes_per_row(model: Model, n_columns: int) -> int:
    """Bytes that a prompt takes on its way through a whole layer, at its widest."""
    # Libraries that spell out an activation or a softmax hold up to five copies of the MLP and four of the pattern.
    wide = 6 * model.d_model + 5 * _mlp_width(model) + _attention_width(model, n_columns)
    return n_columns * wide * model.dtype.itemsize


def logit_bytes_per_row(model: Model, reading: Reading) -> int:
    """Bytes of the logits that a metric reads of a prompt, and of what it makes of them."""
    return 3 * len(reading.positions) * _width(reading, model.sizes["d_vocab"]) * model.dtype.itemsize


def late_bytes_per_row(
    model: Model, n_columns: int, *, reading: Reading, reaches_the_end: bool, n_starts: int
) -> int:
    """Bytes that a prompt needs in a forward pass of its own: one layer at its widest, and what is kept beside it.

    Args:
        model: An open model.
        n_columns: Columns of the prompts.
        reading: What the metric reads.
        reaches_the_end: Whether every column is unembedded at every position; else what the metric reads is.
        n_starts: Layers whose input is kept for experiments that start there.
    """
    size = model.dtype.itemsize
    whole = 3 * n_columns * model.sizes["d_vocab"] * size
    logits = whole if reaches_the_end else logit_bytes_per_row(model, reading)
    starts = n_columns * n_starts * model.d_model * size
    return forward_bytes_per_row(model, n_columns) + starts + logits


def _mlp_width(model: Model) -> int:
    return model.sizes.get("d_mlp", 4 * model.d_model)


def _attention_width(model: Model, n_columns: int) -> int:
    return model.n_heads * (4 * n_columns + 3 * model.d_head)


def _site_width(model: Model, site: Site, n_columns: int) -> int:
    """Numbers that a site holds for a token."""
    axes = [axis for axis in site.row.axes if axis not in ("batch", "pos", "query")]
    return prod(n_columns if axis == "key" else model.sizes.get(axis, 1) for axis in axes)


def flops_per_token(model: Model) -> tuple[float, float]:
    """Floating-point operations of one token in one layer, and in the unembedding (products only)."""
    n_parameters = sum(p.numel() for p in model.binding.layers[0].parameters() if p.ndim > 1)
    return 2.0 * n_parameters, 2.0 * model.d_model * model.sizes["d_vocab"]


def head_flops(model: Model, experiment: Experiment, reading: Reading) -> float:
    """Operations of unembedding what a metric reads of an experiment's prompts."""
    n_reads = len(experiment.inputs) * len(reading.positions)
    return 2.0 * n_reads * model.d_model * _width(reading, model.sizes["d_vocab"])


def _width(reading: Reading, d_vocab: int) -> int:
    return d_vocab if reading.columns is None else reading.columns.shape[1]


def token_layers(model: Model, experiment: Experiment, prepared: Prepared, reading: Reading) -> int:
    """Token-layers of an experiment if every write changes everything that it selects."""
    frame = Frame.of(experiment.inputs)
    columns = torch.arange(frame.ids.shape[1])
    real = frame.positions(columns) >= 0
    reads = read_columns(frame, reading.positions)
    is_causal = model.binding.anatomy.is_causal
    reachable = real & (columns[None, :] <= reads.max(1).values[:, None]) if is_causal else real
    dirty = torch.zeros_like(real)
    by_layer = _written_by_layer(prepared, frame, columns, real)
    n_layers, total, n_dirty = model.n_layers, 0, 0
    for layer in range(n_layers):
        # Once nothing more is written, everything that sees a change is dirty, and stays so.
        if layer in by_layer or layer - 1 in by_layer:
            written = torch.zeros_like(dirty)
            for point, chosen in by_layer.get(layer, []):
                if point in FEEDS_KEYS:
                    dirty = dirty | chosen
                else:
                    written |= chosen
            spread = dirty.long().cumsum(1) > 0 if is_causal else dirty.any(1)[:, None]
            dirty = (spread | written) & reachable
            n_dirty = int(dirty.sum())
        if layer == n_layers - 1:
            reading_here = torch.zeros_like(dirty).scatter(1, reads, True)
            total += int((dirty & reading_here).sum()) + n_dirty // 4
        else:
            total += n_dirty
    return total


def _written_by_layer(
    prepared: Prepared, frame: Frame, columns: torch.Tensor, real: torch.Tensor
) -> dict[int, list[tuple[str, torch.Tensor]]]:
    """Points that writes reach and the tokens that they select, by layer."""
    by_layer: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for write, sites in prepared:
        chosen = frame.selected(write.where, columns)
        for site in sites:
            here = real if chosen is None else chosen & real
            by_layer.setdefault(site.layer or 0, []).append((site.point, here))
    return by_layer
