"""Subspace: an orthonormal basis of the span of some directions, and what it means to write only inside it."""

import torch
from torch import Tensor

from mechscope.vocabulary.errors import ShapeError


def orthonormal(directions: Tensor) -> Tensor:
    """An orthonormal basis of the span, [n, d], in float64."""
    rows = directions.reshape(-1, directions.shape[-1]).double()
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[sizes > sizes.max() * 1e-10]


def move_inside(value: Tensor, towards: Tensor, basis: Tensor) -> Tensor:
    """`value` with its component in the span of orthonormal rows replaced by that of `towards`.

    Raises:
        ShapeError: the rows are as wide as neither the last axis nor all that a token carries.
    """
    flat = value.flatten(1) if basis.shape[-1] != value.shape[-1] else value
    if basis.shape[-1] != flat.shape[-1]:
        raise ShapeError(
            "The subspace does not fit the site.",
            got=f"width {basis.shape[-1]}",
            because=f"a token carries {list(value.shape[1:])} there",
            instead=f"rows of width {value.shape[-1]} or {value[0].numel()}",
        )
    rows = basis.to(flat)
    moved = flat + (towards.reshape(flat.shape) - flat) @ rows.T @ rows
    return moved.reshape(value.shape)
