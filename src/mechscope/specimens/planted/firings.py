"""Firings: which unit was on at which token, and how strongly. The one form of codes, planted or encoded."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.vocabulary.errors import PositionOutOfRange


@dataclass(frozen=True, kw_only=True, eq=False)
class Firings:
    """Non-zero entries of codes [token, unit], sorted by token, then unit.

    Args:
        token: Row of each firing.
        unit: Column of each firing: a planted feature or a latent of a dictionary.
        value: Its magnitude.
        n_tokens: Rows in all, silent ones included.
        n_units: Columns in all.
    """

    token: Int[Tensor, " firing"]
    unit: Int[Tensor, " firing"]
    value: Float[Tensor, " firing"]
    n_tokens: int
    n_units: int

    @property
    def cells(self) -> Int[Tensor, " firing"]:
        """token * n_units + unit: one number for each firing, ascending."""
        return self.token * self.n_units + self.unit

    @property
    def counts(self) -> Int[Tensor, " unit"]:
        """How often each unit fired."""
        return torch.bincount(self.unit, minlength=self.n_units)

    def dense(self) -> Float[Tensor, "token unit"]:
        """The codes as a table. Cost: n_tokens * n_units numbers."""
        table = self.value.new_zeros(self.n_tokens * self.n_units)
        table[self.cells] = self.value
        return table.view(self.n_tokens, self.n_units)

    def relabeled(self, unit_of: Int[Tensor, " unit"], *, n_units: int) -> "Firings":
        """The same firings under other unit numbers; units that map to -1 are left out."""
        unit = unit_of[self.unit]
        kept = unit >= 0
        return sorted_firings(
            token=self.token[kept],
            unit=unit[kept],
            value=self.value[kept],
            n_tokens=self.n_tokens,
            n_units=n_units,
        )


def dense_to_firings(codes: Float[Tensor, "token unit"]) -> Firings:
    """The non-zero entries of a table of codes."""
    token, unit = codes.nonzero(as_tuple=True)
    return Firings(
        token=token, unit=unit, value=codes[token, unit], n_tokens=codes.shape[0], n_units=codes.shape[1]
    )


def topk_to_firings(
    values: Float[Tensor, "token k"], units: Int[Tensor, "token k"], *, n_units: int
) -> Firings:
    """What a TopK encoder returns: k values and their units a token. Zeros are no firings."""
    if units.numel() and not 0 <= int(units.min()) <= int(units.max()) < n_units:
        raise PositionOutOfRange(
            "A unit that does not exist fired.",
            got=f"units {int(units.min())} to {int(units.max())}",
            instead=f"0 to {n_units - 1}",
        )
    token = torch.arange(len(values), device=values.device)[:, None].expand_as(units)
    kept = values != 0
    return sorted_firings(
        token=token[kept], unit=units[kept], value=values[kept], n_tokens=len(values), n_units=n_units
    )


def sorted_firings(*, token: Tensor, unit: Tensor, value: Tensor, n_tokens: int, n_units: int) -> Firings:
    """Firings in any order, put in order."""
    order = (token * n_units + unit).argsort()
    return Firings(
        token=token[order], unit=unit[order], value=value[order], n_tokens=n_tokens, n_units=n_units
    )
