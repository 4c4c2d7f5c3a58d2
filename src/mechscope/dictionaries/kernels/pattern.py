"""Pattern: which latents are active for which row, by rows and, when a gradient needs it, by latents."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """Active latents in compressed rows.

    Args:
        latents: Indices, [active]; a row's own lie between its offsets.
        offsets: Where each row begins, [n_rows + 1].
        n_latents: Width of the dictionary.
    """

    latents: Int[Tensor, " active"]
    offsets: Int[Tensor, " rows_and_one"]
    n_latents: int

    @classmethod
    def of_rectangle(cls, latents: Int[Tensor, "row k"], n_latents: int) -> "Pattern":
        """k latents in every row."""
        n, k = latents.shape
        offsets = torch.arange(0, n * k + 1, k, device=latents.device)
        return cls(latents.reshape(-1), offsets, n_latents)

    @classmethod
    def of_entries(
        cls, rows: Int[Tensor, " active"], latents: Int[Tensor, " active"], n_rows: int, n_latents: int
    ) -> "Pattern":
        """From rows and latents, sorted by row."""
        return cls(latents, starts_of(rows, n_rows), n_latents)

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def rows(self) -> Int[Tensor, " active"]:
        """The row of every entry."""
        counts = self.offsets.diff()
        index = torch.arange(self.n_rows, device=counts.device)
        return torch.repeat_interleave(index, counts, output_size=len(self.latents))

    @cached_property
    def by_latent(
        self,
    ) -> tuple[Int[Tensor, " active"], Int[Tensor, " active"], Int[Tensor, " latents_and_one"]]:
        """Order of the entries by latent, their rows in that order, and where each latent begins."""
        order = self.latents.argsort(stable=True)
        return order, self.rows[order], starts_of(self.latents, self.n_latents)

    def sum_by_latent(self, values: Float[Tensor, " active"]) -> Float[Tensor, " latent"]:
        """Values added up for each latent."""
        return values.new_zeros(self.n_latents).index_add(0, self.latents, values)

    def sum_by_row(self, values: Float[Tensor, " active"]) -> Float[Tensor, " row"]:
        """Values added up for each row."""
        return values.new_zeros(self.n_rows).index_add(0, self.rows, values)


def starts_of(index: Int[Tensor, " active"], n: int) -> Int[Tensor, " bins_and_one"]:
    """Where each of `n` bins begins once `index` is sorted. Unlike `bincount`, it never waits for the device."""
    counts = index.new_zeros(n + 1).scatter_add(0, index + 1, torch.ones_like(index))
    return counts.cumsum(0)
