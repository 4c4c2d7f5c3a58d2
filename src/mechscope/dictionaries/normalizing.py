"""Normalising: from raw values to what the weights take, and back at the sites written.

Statistics are tensors of the dictionary: `in_mean` [d_in], `in_scale` (a number, [d_in], or a whitening matrix
[d_in, d_in]), `out_mean`, `out_scale` likewise for what is written. Where the dictionary writes what it reads,
the out-statistics may be left out: they are the in-statistics.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mechscope.dictionaries.settings import Settings


def normalized(values: Tensor, settings: Settings, tensors: Mapping[str, Tensor]) -> Tensor:
    """Raw values [token, d_in] as the weights take them."""
    norm = settings.normalization
    if not norm.is_pending:
        return values
    if norm.rule == "affine":
        if (mean := tensors.get("in_mean")) is not None:
            values = values - mean
        return times(values, tensors.get("in_scale"))
    mean, scale = token_statistics(values, settings)
    return (values - mean) / scale


def denormalized(
    written: Tensor, settings: Settings, tensors: Mapping[str, Tensor], values: Tensor | None
) -> Tensor:
    """What the weights give [token, d_out], in raw units; `values` are the raw ones that were read."""
    norm = settings.normalization
    if not norm.is_pending:
        return written
    if norm.rule == "affine":
        mean, scale = out_statistics(settings, tensors)
        written = undo(written, scale)
        return written if mean is None else written + mean
    assert values is not None
    mean, scale = token_statistics(values, settings)
    if norm.rule == "layer_norm":
        scale = scale - norm.eps  # by convention eps guards the division only
    return written * scale + mean


def token_statistics(values: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Mean and scale of each token, [token, 1]."""
    norm = settings.normalization
    if norm.rule == "token_norm":
        scale = values.norm(dim=-1, keepdim=True) / values.shape[-1] ** 0.5
        return torch.zeros_like(scale), scale.clamp_min(torch.finfo(values.dtype).tiny)
    return values.mean(-1, keepdim=True), values.std(-1, keepdim=True) + norm.eps


def out_statistics(settings: Settings, tensors: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """`out_mean` and `out_scale`; those of the input where the same sites are read and written."""
    if settings.reads == settings.writes and "out_scale" not in tensors and "out_mean" not in tensors:
        return tensors.get("in_mean"), tensors.get("in_scale")
    return tensors.get("out_mean"), tensors.get("out_scale")


def times(values: Tensor, scale: Tensor | None) -> Tensor:
    """Values times a number, a vector, or a matrix on the right."""
    if scale is None:
        return values
    return values @ scale if scale.ndim == 2 else values * scale


def undo(values: Tensor, scale: Tensor | None) -> Tensor:
    """Inverse of `times`."""
    if scale is None:
        return values
    if scale.ndim < 2:
        return values / scale
    return torch.linalg.solve(scale.to(torch.float64), values.to(torch.float64), left=False).to(values.dtype)
