"""A write that is neither the identity nor a multiple of the old value, the same for hooks and for the oracle."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechscope.vocabulary.points import POINTS
from mechscope.vocabulary.protocols import Facts, Tokens
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

N_EXPERTS_AT_LEAST = 5


def nudged(value: Tensor, n_leading: int) -> Tensor:
    """Another value, made from the old one and the indices of all axes but the first `n_leading`."""
    if not value.is_floating_point():
        return (value + 1) % N_EXPERTS_AT_LEAST
    wave = torch.zeros((), dtype=value.dtype)
    for axis in range(n_leading, value.ndim):
        index = torch.arange(value.shape[axis], dtype=value.dtype)
        wave = wave[..., None] * 1.3 + (axis - n_leading + 1) * 0.7 * index + 0.4
    return value * (1 + 0.3 * torch.sin(wave)) + 0.5 * torch.cos(1.9 * wave)


def nudge_table_axes(site: str, value: Tensor) -> Tensor:
    """The nudge of a site's whole tensor, in the axes of the table of points."""
    axes = POINTS[Site.parse(site).point].axes
    if "query" in axes:  # tokens first: batch, query, then what the point carries for one query
        return nudged(value.transpose(1, 2), 2).transpose(1, 2)
    return nudged(value, 2)


@dataclass(frozen=True)
class Nudge:
    """An intervention for tests; satisfies `Write`."""

    at: str
    where: Where = field(default_factory=Where)

    def prepare(self, facts: Facts, sites: object) -> "Nudge":
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        return nudged(value, 1)
