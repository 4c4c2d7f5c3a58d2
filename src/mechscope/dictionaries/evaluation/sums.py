"""Sums: what is kept of activations, reconstructions and codes while a text streams by.

One row for each prompt, in double precision whatever the model's dtype, so that results do not depend on the batch
size. FVU is defined here once: squared error over squared distance from the mean, both summed over all tokens;
0 is perfect, 1 is the mean, and worse than the mean is above 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.data.firing import Firing
from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.evaluation.estimates import Estimate, Estimator

COLUMNS: tuple[str, ...] = (
    "n",
    "error",
    "l0",
    "l1",
    "about_pivot",
    "dot",
    "square_in",
    "square_out",
    "cosine",
    "norm_in",
    "norm_out",
    "norm_ratio",
)
"""Per prompt: tokens, squared error, active latents, their sum, squared distance of the target from the pivot,
target x output, squares, cosine, norms and their ratio."""


@dataclass
class Sums:
    """Running sums. `pivot` is a point near the mean, so that variances of shifted data keep their digits.

    Args:
        table: [unit, column], see `COLUMNS`.
        shift: Sum of the target less the pivot, [unit, d].
        firing: Tokens at which each latent is active, by groups of prompts.
        prompts: Prompts in which each latent is active, [n_latents].
        strength: Sum of each latent's codes, [n_latents].
        pivot: [d]; the mean of the first prompt.
    """

    table: Float[np.ndarray, "unit column"]
    shift: Float[np.ndarray, "unit d"]
    firing: Firing
    prompts: Float[np.ndarray, " latent"]
    strength: Float[np.ndarray, " latent"]
    pivot: Float[Tensor, " d"] | None = None

    @classmethod
    def empty(cls, *, n_units: int, d_out: int, n_latents: int) -> "Sums":
        """Nothing counted yet."""
        table, shift = np.zeros((n_units, len(COLUMNS))), np.zeros((n_units, d_out))
        firing = Firing.empty(n_units=n_units, n_latents=n_latents)
        return cls(table, shift, firing, np.zeros(n_latents), np.zeros(n_latents))

    def add(
        self,
        units: Int[Tensor, " token"],
        *,
        target: Float[Tensor, "token d"],
        output: Float[Tensor, "token d"],
        codes: SparseCodes,
    ) -> None:
        """Count tokens; `units` says of which prompt each is. Prompts come whole."""
        target, output = target.to("cpu", torch.float64), output.to("cpu", torch.float64)
        if self.pivot is None:
            self.pivot = target[units == units[0]].mean(0)
        about = target - self.pivot
        values = codes.values.to("cpu", torch.float64)
        per_token = torch.zeros(len(target), dtype=torch.float64).index_add(
            0, codes.tokens.cpu(), values.abs()
        )
        norm_in, norm_out = target.norm(dim=1), output.norm(dim=1)
        tiny = torch.finfo(torch.float64).tiny
        dot = (target * output).sum(1)
        columns = [
            torch.ones_like(norm_in),
            (target - output).square().sum(1),
            codes.counts.cpu().to(torch.float64),
            per_token,
            about.square().sum(1),
            dot,
            norm_in.square(),
            norm_out.square(),
            dot / (norm_in * norm_out).clamp_min(tiny),
            norm_in,
            norm_out,
            norm_out / norm_in.clamp_min(tiny),
        ]
        np.add.at(self.table, units.numpy(), torch.stack(columns, 1).numpy())
        np.add.at(self.shift, units.numpy(), about.numpy())
        latents = codes.latents.cpu().numpy()
        tokens, n = codes.tokens.cpu().numpy(), len(self.strength)
        self.firing.add(units.numpy(), tokens=tokens, latents=latents)
        pairs = np.unique(units.numpy()[tokens].astype(np.int64) * n + latents)
        self.prompts += np.bincount(pairs % n, minlength=n)
        self.strength += np.bincount(latents, weights=values.numpy(), minlength=len(self.strength))

    @property
    def n_tokens(self) -> int:
        return int(self.column("n").sum())

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the target over all tokens."""
        assert self.pivot is not None
        return self.pivot + torch.from_numpy(self.shift.sum(0)) / max(1, self.n_tokens)

    @property
    def variance(self) -> float:
        """Squared distance from the mean, per token, summed over directions."""
        n = max(1, self.n_tokens)
        return float(self.column("about_pivot").sum() / n - np.square(self.shift.sum(0) / n).sum())

    def column(self, name: str) -> Float[np.ndarray, " unit"]:
        """One column by name."""
        return self.table[:, COLUMNS.index(name)]

    def fvu(self, estimator: Estimator) -> Estimate:
        """Fraction of variance unexplained, pooled over tokens and directions."""
        wanted = [self.column(name) for name in ("error", "about_pivot", "n")]
        return estimator.of(np.concatenate([np.stack(wanted, 1), self.shift], 1), fvu_of_sums)

    def figures(self, estimator: Estimator) -> dict[str, Estimate]:
        """Every figure of reconstruction, sparsity and shrinkage."""
        n = self.column("n")
        fvu = self.fvu(estimator)
        return {
            "fvu": fvu,
            "r2": Estimate(1 - fvu.value, 1 - fvu.high, 1 - fvu.low, fvu.method),
            "mse": estimator.ratio(self.column("error"), n),
            "cosine": estimator.ratio(self.column("cosine"), n),
            "l0": estimator.ratio(self.column("l0"), n),
            "l1": estimator.ratio(self.column("l1"), n),
            "norm_in": estimator.ratio(self.column("norm_in"), n),
            "norm_out": estimator.ratio(self.column("norm_out"), n),
            "norm_ratio": estimator.ratio(self.column("norm_ratio"), n),
            "shrinkage": estimator.of(
                np.stack([self.column("square_out"), self.column("dot")], axis=1), shrinkage_of_sums
            ),
        }

    def density(self) -> Float[np.ndarray, " latent"]:
        """Share of tokens at which each latent is active, 0 to 1."""
        return self.firing.density


def fvu_of_sums(sums: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, " draw"]:
    """From columns (squared error, squared distance from a pivot, tokens, sum of distances...)."""
    error, about, n, shift = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:]
    return error / (about - np.square(shift).sum(1) / n)


def shrinkage_of_sums(sums: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, " draw"]:
    """From columns (|output|^2, target x output): 1 is none; an output of nothing is shrunk to 0."""
    square, dot = sums[:, 0], sums[:, 1]
    return np.divide(square, dot, out=np.zeros_like(square), where=square > 0)


def fvu_of(target: Float[Tensor, "token d"], output: Float[Tensor, "token d"]) -> float:
    """FVU of tensors in memory, by the same definition."""
    target, output = target.to(torch.float64), output.to(torch.float64)
    return float((target - output).square().sum() / (target - target.mean(0)).square().sum())
