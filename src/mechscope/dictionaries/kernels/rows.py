"""Products over active latents only, with gradients: decode, encode, and the pieces that both are made of.

Each backward is equal to dense autograd and is gradient-checked in the tests. All outputs carry gradients to the
encoder: a loss on some other set of latents (AuxK) goes through `encode_rows` like the first.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mechscope.dictionaries.kernels.pattern import Pattern


def decode_rows(values: Tensor, decoder: Tensor, pattern: Pattern) -> Tensor:
    """Sum of decoder rows of the active latents, weighted.

    Args:
        values: [active].
        decoder: [n_latents, d_out].
        pattern: Which latents, by row.

    Returns:
        [row, d_out].

    Cost: reads active x d_out numbers, forward; twice that, backward.
    """
    return _DecodeRows.apply(values, decoder, pattern)  # pyright: ignore[reportReturnType]


def encode_rows(
    inputs: Tensor, encoder: Tensor, *, bias: Tensor | None, pattern: Pattern, known: Tensor | None = None
) -> Tensor:
    """Pre-activations of the latents in a pattern.

    Args:
        inputs: What the encoder takes, [row, d_in].
        encoder: One row a latent, [n_latents, d_in].
        bias: [n_latents] or None.
        pattern: Which latents, by row.
        known: The result [active], if a full product has given it already; gradients are the same.

    Returns:
        [active].
    """
    return _EncodeRows.apply(inputs, encoder, bias, pattern, known)  # pyright: ignore[reportReturnType]


def encode_shifted_rows(
    inputs: Tensor,
    encoder: Tensor,
    *,
    shift: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    known: Tensor | None = None,
) -> Tensor:
    """`encode_rows` of `inputs - shift`, with the gradient of one shift [d_in] for all rows.

    The shift's gradient is minus the encoder rows weighted by each latent's summed gradient: one product with a
    vector, where going through `inputs - shift` would need the gradient of every row.
    """
    return _EncodeShiftedRows.apply(  # pyright: ignore[reportReturnType]
        inputs, shift, encoder, bias, pattern, known
    )


def dots_of(rows: Tensor, latents: Tensor, pattern: Pattern) -> Tensor:
    """Dot products of row vectors [row, d] and latent vectors [n_latents, d] where the pattern says, [active]."""
    if len(pattern.latents) == 0:
        return rows.new_zeros(0)
    _hear_of_beta_state_once()
    shape = (pattern.n_rows, pattern.n_latents)
    zeros = torch.zeros(len(pattern.latents), dtype=rows.dtype, device=rows.device)
    at = torch.sparse_csr_tensor(pattern.offsets, pattern.latents, zeros, size=shape, check_invariants=False)
    return torch.sparse.sampled_addmm(at, rows.contiguous(), latents.T, beta=0.0).values()


def sum_rows(values: Tensor, latents: Tensor, pattern: Pattern) -> Tensor:
    """Latent vectors [n_latents, d] added up for each row, weighted by `values` [active]."""
    if len(pattern.latents) == 0:
        return latents.new_zeros(pattern.n_rows, latents.shape[1])
    return F.embedding_bag(
        pattern.latents, latents, pattern.offsets[:-1], mode="sum", per_sample_weights=values
    )


def sum_latents(values: Tensor, rows: Tensor, pattern: Pattern) -> Tensor:
    """Row vectors [row, d] added up for each latent, weighted by `values` [active]: [n_latents, d]."""
    if len(pattern.latents) == 0:
        return rows.new_zeros(pattern.n_latents, rows.shape[1])
    order, at, offsets = pattern.by_latent
    return F.embedding_bag(at, rows, offsets[:-1], mode="sum", per_sample_weights=values[order])


class _DecodeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, decoder)
        ctx.pattern = pattern
        return sum_rows(values, decoder, pattern)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        values, decoder = ctx.saved_tensors
        grad = grad.contiguous()
        of_values = dots_of(grad, decoder, ctx.pattern) if ctx.needs_input_grad[0] else None
        of_decoder = sum_latents(values, grad, ctx.pattern) if ctx.needs_input_grad[1] else None
        return of_values, of_decoder, None


class _EncodeRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, encoder: Tensor, bias: Tensor | None, pattern: Pattern, known: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(inputs, encoder)
        ctx.pattern = pattern
        return _pre(inputs, encoder, bias, pattern) if known is None else known.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        inputs, encoder = ctx.saved_tensors
        pattern, needs = ctx.pattern, ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            sum_rows(grad, encoder, pattern) if needs[0] else None,
            sum_latents(grad, inputs, pattern) if needs[1] else None,
            pattern.sum_by_latent(grad) if needs[2] else None,
            None,
            None,
        )


class _EncodeShiftedRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        shift: Tensor,
        encoder: Tensor,
        bias: Tensor | None,
        pattern: Pattern,
        known: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(inputs, shift, encoder)
        ctx.pattern = pattern
        return _pre(inputs - shift, encoder, bias, pattern) if known is None else known.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        inputs, shift, encoder = ctx.saved_tensors
        pattern, needs = ctx.pattern, ctx.needs_input_grad
        grad = grad.contiguous()
        by_latent = pattern.sum_by_latent(grad) if needs[1] or needs[2] or needs[3] else None
        of_encoder = None
        if needs[2] and by_latent is not None:
            # (inputs - shift) summed by latent, without forming the difference for every row
            of_encoder = sum_latents(grad, inputs, pattern)
            of_encoder.addr_(by_latent, shift, alpha=-1)
        return (
            sum_rows(grad, encoder, pattern) if needs[0] else None,
            -(by_latent @ encoder) if needs[1] and by_latent is not None else None,
            of_encoder,
            by_latent if needs[3] else None,
            None,
            None,
        )


@cache
def _hear_of_beta_state_once() -> None:
    """torch warns once a process that its compressed rows may change; what we use of them is under test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(
            torch.tensor([0, 0]),
            torch.zeros(0, dtype=torch.long),
            torch.zeros(0),
            size=(1, 1),
            check_invariants=False,
        )


def _pre(inputs: Tensor, encoder: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    pre = dots_of(inputs, encoder, pattern)
    return pre if bias is None else pre + bias[pattern.latents]
