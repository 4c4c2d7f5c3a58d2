"""Sparse codes: what fired, token by token, without the zeros."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.vocabulary.errors import ShapeError


@dataclass(frozen=True)
class SparseCodes:
    """Codes in compressed rows: token n's are `latents[offsets[n]:offsets[n + 1]]`, values likewise.

    Args:
        values: Of every active latent, [active].
        latents: Their indices, [active].
        offsets: Where each token begins, [n_tokens + 1].
        n_latents: Width of the dictionary.
        shape: Leading shape of the values that were encoded; its product is the number of tokens.
    """

    values: Float[Tensor, " active"]
    latents: Int[Tensor, " active"]
    offsets: Int[Tensor, " tokens_and_one"]
    n_latents: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, codes: Tensor) -> "SparseCodes":
        """The non-zero entries of dense codes [..., n_latents]."""
        flat = codes.reshape(-1, codes.shape[-1])
        rows, latents = flat.nonzero(as_tuple=True)
        return cls(
            flat[rows, latents],
            latents,
            offsets_of(rows, len(flat)),
            codes.shape[-1],
            tuple(codes.shape[:-1]),
        )

    @classmethod
    def of_rectangle(cls, values: Tensor, latents: Tensor, n_latents: int) -> "SparseCodes":
        """From k entries a token [..., k]; entries of value zero are left out."""
        k, shape = values.shape[-1], tuple(values.shape[:-1])
        flat, flat_latents = values.reshape(-1, k), latents.reshape(-1, k)
        is_on = flat != 0
        counts = is_on.sum(1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(flat[is_on], flat_latents[is_on], offsets, n_latents, shape)

    @property
    def n_tokens(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> Int[Tensor, " active"]:
        """The token of every active latent, counted over the flattened leading shape."""
        return torch.repeat_interleave(
            torch.arange(self.n_tokens, device=self.offsets.device), self.offsets.diff()
        )

    @property
    def counts(self) -> Int[Tensor, " tokens"]:
        """Active latents of each token."""
        return self.offsets.diff()

    def to_dense(self) -> Float[Tensor, "..."]:
        """[*shape, n_latents], zeros included."""
        dense = self.values.new_zeros(self.n_tokens, self.n_latents)
        dense = dense.index_put((self.tokens, self.latents), self.values)
        return dense.reshape(*self.shape, self.n_latents)

    def with_values(self, values: Float[Tensor, " active"]) -> "SparseCodes":
        """The same latents with other values."""
        if values.shape != self.values.shape:
            raise ShapeError(
                "There is one value for each active latent.",
                got=f"shape {list(values.shape)}",
                because=f"{len(self.values)} latents are active",
            )
        return replace(self, values=values)

    def to(self, device: str | torch.device) -> "SparseCodes":
        """The same codes on another device."""
        return replace(
            self,
            values=self.values.to(device),
            latents=self.latents.to(device),
            offsets=self.offsets.to(device),
        )


def offsets_of(rows: Int[Tensor, " active"], n_rows: int) -> Int[Tensor, " rows_and_one"]:
    """Where each row begins in a sorted list of row numbers."""
    counts = torch.bincount(rows, minlength=n_rows)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
