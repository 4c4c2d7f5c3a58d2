"""Capture: what it costs to keep every formed point, against the same model's plain forward pass."""

import torch

from benchmarks.lines import Line, line_of
from benchmarks.pairing import time_pairs
from benchmarks.shapes import opened, random_ids, random_model

N_ROWS, N_COLUMNS = 8, 128


def capture_everything(shape: str, limit_ratio: float, *, n_pairs: int) -> Line:
    """`run_with_cache` (every formed point but scores and patterns) against the plain forward with SDPA."""
    model, hf, ids = opened(shape), random_model(shape), random_ids(shape, N_ROWS, N_COLUMNS)
    batch = model.tokens(ids)

    def plain() -> None:
        with torch.no_grad():
            hf(ids, use_cache=False)

    _, cache = model.run_with_cache(batch)
    kept = [cache[site] for site in cache]
    pairs = time_pairs(lambda: model.run_with_cache(batch), plain, n_pairs=n_pairs)
    return line_of(
        f"capture {shape}",
        pairs,
        limit_ratio=limit_ratio,
        n_tensors=len(kept),
        kept_mb=distinct_bytes(kept) / 2**20,
    )


def capture_patterns(shape: str, limit_ratio: float, *, n_pairs: int) -> Line:
    """Every formed point and every pattern, against the model's own eager forward that returns attentions."""
    model, eager = opened(shape), random_model(shape, "eager")
    ids = random_ids(shape, N_ROWS, N_COLUMNS)
    batch = model.tokens(ids)

    def plain() -> None:
        with torch.no_grad():
            eager(ids, use_cache=False, output_attentions=True)

    pairs = time_pairs(
        lambda: model.run_with_cache(batch, capture=["*", "pattern.*"]), plain, n_pairs=n_pairs
    )
    return line_of(f"capture with patterns {shape}", pairs, limit_ratio=limit_ratio)


def distinct_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors: what keeping them by reference costs."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
