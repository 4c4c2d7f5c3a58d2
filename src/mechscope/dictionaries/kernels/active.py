"""Active: pre-activations of the latents that may fire, sparse where that pays, dense where it does not.

Architectures are written once against these two classes; whether a step touches all latents or a few is decided
here. `Encoder` proposes latents from one full product and gives their pre-activations with gradients.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mechscope.dictionaries.kernels.pattern import Pattern
from mechscope.dictionaries.kernels.rows import decode_rows, dots_of, encode_rows, encode_shifted_rows
from mechscope.dictionaries.kernels.selection import (
    ROUNDING,
    above,
    floor_of_largest,
    largest,
    multiplies_bfloat16,
)

DENSE_SHARE = 0.04
"""With a larger share of latents active, full products are faster than sparse ones."""


@dataclass(frozen=True)
class Active:
    """Pre-activations of some latents.

    Args:
        pre: [active], or [row, latent] where `pattern` is None: every latent of every row.
        pattern: Which they are.
    """

    pre: Tensor
    pattern: Pattern | None

    def at(self, by_latent: Tensor) -> Tensor:
        """A number of each latent, at the entries."""
        return by_latent if self.pattern is None else by_latent.index_select(0, self.pattern.latents)

    def decode(self, values: Tensor, decoder: Tensor) -> Tensor:
        """What `values` at the entries write: [row, d_out]."""
        return values @ decoder if self.pattern is None else decode_rows(values, decoder, self.pattern)

    def total_by_row(self, values: Tensor) -> Tensor:
        """Sum over a row's entries, [row]."""
        return values.sum(1) if self.pattern is None else self.pattern.sum_by_row(values)

    def count_by_latent(self, is_on: Tensor) -> Tensor:
        """How many rows each latent is on in, [latent]."""
        on = is_on.to(torch.float32)
        return on.sum(0) if self.pattern is None else self.pattern.sum_by_latent(on)


@dataclass
class Encoder:
    """One block's encoder in one step.

    Args:
        inputs: Normalised values, [row, d_in].
        weight: One row a latent, [latent, d_in].
        bias: [latent] or None.
        shift: Subtracted from the inputs, [d_in], or None.
        uses_bfloat16: The full product proposes candidates in bfloat16; they are rescored in the weights' precision.
        is_sparse: False computes everything with full products: the slow oracle.
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    shift: Tensor | None = None
    uses_bfloat16: bool = False
    is_sparse: bool = True
    _product: tuple[Tensor, Tensor | None] | None = field(default=None, repr=False)

    @property
    def n_rows(self) -> int:
        return len(self.inputs)

    @property
    def n_latents(self) -> int:
        return len(self.weight)

    def everything(self) -> Active:
        """All latents of all rows, by a full product with gradients."""
        inputs = self.inputs if self.shift is None else self.inputs - self.shift
        pre = inputs @ self.weight.T
        return Active(pre if self.bias is None else pre + self.bias, None)

    def at(self, pattern: Pattern, known: Tensor | None = None) -> Active:
        """The latents of a pattern."""
        if not self.is_sparse:
            return self._masked(pattern)
        if self.shift is None:
            pre = encode_rows(self.inputs, self.weight, bias=self.bias, pattern=pattern, known=known)
        else:
            pre = encode_shifted_rows(
                self.inputs, self.weight, shift=self.shift, bias=self.bias, pattern=pattern, known=known
            )
        return Active(pre, pattern)

    def top(self, k: int) -> Active:
        """The k largest of each row."""
        if not self.is_sparse:
            return self._masked(
                Pattern.of_rectangle(self.everything().pre.topk(k, dim=1).indices, self.n_latents)
            )
        with torch.no_grad():
            latents, known = self._largest(k)
        return self.at(self._rectangle(latents), known)

    def top_of_batch(self, n: int, sizes: Tensor | None = None) -> Active:
        """The n largest entries of the whole batch, and perhaps a few that are as large; zeros of none.

        Args:
            n: Entries.
            sizes: Entries are ranked by pre-activation x these, [latent]; None: by pre-activation.
        """
        ranking = self if sizes is None else self._scaled(sizes)
        with torch.no_grad():
            if not self.is_sparse:
                pre = ranking.everything().pre
                floor = pre.reshape(-1).topk(n, sorted=True).values[-1]
                rows, latents = (pre >= floor).nonzero(as_tuple=True)
                pattern = Pattern.of_entries(rows, latents, self.n_rows, self.n_latents)
                exact = None
            else:
                pattern, exact = ranking._largest_of_batch(n)
        return self.at(pattern, exact if sizes is None else None)

    def _scaled(self, sizes: Tensor) -> "Encoder":
        """The encoder whose pre-activations are these ones x `sizes`, without gradients."""
        weight = self.weight.detach() * sizes[:, None]
        bias = None if self.bias is None else self.bias.detach() * sizes
        shift = None if self.shift is None else self.shift.detach()
        return replace(self, weight=weight, bias=bias, shift=shift, _product=None)

    def _largest(self, k: int) -> tuple[Tensor, Tensor]:
        product = self.product()
        if not self.uses_bfloat16:
            chosen = largest(product, k)
            return chosen, product.gather(1, chosen).reshape(-1)
        chosen = largest(product, min(k + max(8, k // 4), self.n_latents))
        exact = self.exactly(self._rectangle(chosen)).view(chosen.shape)
        known, best = exact.topk(k, dim=1, sorted=False)
        return chosen.gather(1, best), known.reshape(-1)

    def _largest_of_batch(self, n: int) -> tuple[Pattern, Tensor]:
        product = self.product()
        if product.device.type == "cuda":  # n entries exactly, so that nobody waits for their number
            flat = product.reshape(-1).topk(n, sorted=False).indices.sort().values
            pattern = Pattern.of_entries(
                flat // self.n_latents, flat % self.n_latents, self.n_rows, self.n_latents
            )
            return pattern, self.exactly(pattern)
        wanted = n + n // 4 if self.uses_bfloat16 else n
        pattern = above(product, floor_of_largest(product, min(wanted, product.numel() - 1)))
        exact = self.exactly(pattern)
        if len(exact) > n:
            floor = exact.topk(n, sorted=True).values[-1]
            pattern, exact = kept(pattern, exact, exact >= floor)
        return pattern, exact

    def above(self, floor: Tensor | None) -> Active:
        """Every latent whose pre-activation exceeds its floor [latent] (None: zero); all latents where many do."""
        if (
            not self.is_sparse or self.inputs.device.type == "cuda"
        ):  # how many there are, only a wait would tell
            return self.everything()
        with torch.no_grad():
            found = self._entries_above(floor)
        return self.everything() if found is None else self.at(*found)

    def _entries_above(self, floor: Tensor | None) -> tuple[Pattern, Tensor] | None:
        product = self.product(floor)
        margin = self._margin(floor) if self.uses_bfloat16 else 0.0
        rough = above(product, -margin)
        if len(rough.latents) > DENSE_SHARE * product.numel():
            return None
        exact = self.exactly(rough)
        return kept(rough, exact, exact > (0.0 if floor is None else floor[rough.latents]))

    def among(self, latents: Tensor, k: int, n_rows: int) -> Active:
        """The k largest among some latents, for the first rows only."""
        first = replace(self, inputs=self.inputs[:n_rows], _product=None)
        with torch.no_grad():
            if self._product is None:
                self.product()
            assert self._product is not None
            product, floor = self._product
            part = product[:n_rows].index_select(1, latents)
            if floor is not None:
                part = part + floor[latents]
            chosen = latents[part.topk(k, dim=1, sorted=False).indices]
        pattern = Pattern.of_rectangle(chosen, self.n_latents)
        return first.at(pattern)

    def exactly(self, pattern: Pattern) -> Tensor:
        """Pre-activations in the weights' own precision, without gradients."""
        inputs = self.inputs if self.shift is None else self.inputs - self.shift
        pre = dots_of(inputs, self.weight, pattern)
        return pre if self.bias is None else pre + self.bias[pattern.latents]

    def product(self, floor: Tensor | None = None) -> Tensor:
        """The full product less `floor`, without gradients, perhaps in bfloat16; kept for `among`."""
        bias = self.weight.new_zeros(self.n_latents) if self.bias is None else self.bias
        if self.shift is not None:
            bias = bias - self.weight @ self.shift
        if floor is not None:
            bias = bias - floor
        inputs, weight = self.inputs, self.weight
        if self.uses_bfloat16:
            inputs, weight, bias = inputs.bfloat16(), weight.bfloat16(), bias.bfloat16()
        product = torch.addmm(bias, inputs, weight.T)
        self._product = (product, floor)
        return product

    def _masked(self, pattern: Pattern) -> Active:
        """The dense oracle of `at`: a full product with gradients, zero outside the pattern."""
        mask = torch.zeros(self.n_rows, self.n_latents, dtype=torch.bool, device=self.inputs.device)
        mask[pattern.rows, pattern.latents] = True
        return Active(torch.where(mask, self.everything().pre, 0.0), None)

    def _margin(self, floor: Tensor | None) -> Tensor:
        """How far below a floor a bfloat16 product may put an entry that lies above it: four typical errors."""
        inputs = self.inputs if self.shift is None else self.inputs - self.shift
        width = inputs.shape[1]
        typical = inputs.norm(dim=1).amax() * self.weight.norm(dim=1).mean() / width**0.5
        offset = 0.0 if floor is None else floor.abs().amax()
        return 4 * ROUNDING * typical + ROUNDING * offset

    def _rectangle(self, latents: Tensor) -> Pattern:
        return Pattern.of_rectangle(latents, self.n_latents)


def kept(pattern: Pattern, values: Tensor, is_kept: Tensor) -> tuple[Pattern, Tensor]:
    """A pattern and its values without the entries that are not kept."""
    smaller = Pattern.of_entries(
        pattern.rows[is_kept], pattern.latents[is_kept], pattern.n_rows, pattern.n_latents
    )
    return smaller, values[is_kept]


def wants_bfloat16(precision: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the full product is to run in bfloat16: "auto" means where the machine multiplies it faster."""
    if precision == "auto":
        return dtype == torch.float32 and multiplies_bfloat16(device.type)
    return precision == "bfloat16"
