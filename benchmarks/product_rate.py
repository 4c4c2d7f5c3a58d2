"""Product rate: how fast this machine multiplies matrices of the shape that a transformer's layers do."""

from functools import cache
from time import perf_counter

import torch
from torch import Tensor

ROWS, INNER, COLUMNS = 1024, 768, 3072
"""Tokens x width x MLP width of the GPT-2-small shape."""

FLOPS = 2.0 * ROWS * INNER * COLUMNS


@cache
def _operands() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(ROWS, INNER, generator=generator)
    right = torch.randn(INNER, COLUMNS, generator=generator)
    return left, right, torch.empty(ROWS, COLUMNS)


def n_products(flops: float) -> int:
    """Products that hold about this many operations, at least one."""
    return max(1, round(flops / FLOPS))


def flops_done(flops: float) -> float:
    """What `seconds_of_products` really computes when it is asked for `flops`."""
    return n_products(flops) * FLOPS


def seconds_of_products(flops: float) -> float:
    """Multiply for about `flops` operations in float32; the seconds that it took."""
    left, right, out = _operands()
    start = perf_counter()
    for _ in range(n_products(flops)):
        torch.mm(left, right, out=out)
    return perf_counter() - start
