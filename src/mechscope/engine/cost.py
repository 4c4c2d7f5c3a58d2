"""Cost: bytes and floating-point operations of a plan's parts, foretold from shapes and declared selections.

Bytes are of activations. Weights, and the tensors that interventions and metrics bring along, are the caller's.
"""

import torch

from mechscope.engine.changes import FEEDS_KEYS, Prepared
from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import read_columns
from mechscope.interventions.metrics import Reading
from mechscope.models.frame import Frame
from mechscope.models.model import Model


def base_bytes_per_token(model: Model) -> int:
    """Bytes that a base run keeps per token: residual stream, queries, keys and values of every layer."""
    width = model.d_model + model.d_head * (model.n_heads + 2 * model.n_kv_heads)
    return (model.n_layers + 1) * width * model.dtype.itemsize


def chunk_bytes_per_token(model: Model, n_columns: int) -> int:
    """Bytes that a packed token needs at its widest: MLP, keys and values of its row, and its attention weights."""
    wide = 4 * model.d_model + 3 * model.sizes.get("d_mlp", 4 * model.d_model)
    return (wide + model.n_heads * (n_columns + 2 * model.d_head) * 2) * model.dtype.itemsize


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
    # Libraries that spell out an activation or a softmax hold up to five copies of the MLP and four of the pattern.
    wide = (6 + n_starts) * model.d_model + 5 * model.sizes.get("d_mlp", 4 * model.d_model)
    maps = model.n_heads * (4 * n_columns + 3 * model.d_head)
    d_vocab = model.sizes["d_vocab"]
    unembedded = n_columns * d_vocab if reaches_the_end else len(reading.positions) * _width(reading, d_vocab)
    logits = 3 * unembedded
    return (n_columns * (wide + maps) + logits) * model.dtype.itemsize


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
