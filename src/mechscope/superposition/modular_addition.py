"""Progress measures of modular addition: which frequencies a model computes with, and how much it owes to them.

Logits of all pairs are a function on the torus of (a, b). The known mechanism writes cos(w_k (a + b - c)) for a few
key frequencies k, so all that matters lies in the directions cos(w_k (a + b)) and sin(w_k (a + b)). A table learnt
by heart has next to nothing there, and random logits 2 / (p^2 - 1) of their variance in each frequency.

Restricted loss keeps the mean and the key frequencies; excluded loss takes the key frequencies out (Nanda et al. 2023).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mechscope.models.native import NativeForCausalLM
from mechscope.specimens.grokking.table import AdditionTable
from mechscope.specimens.grokking.train import answer_logits
from mechscope.vocabulary.errors import ShapeError

KEY_SHARE = 0.02
"""A frequency is key where it holds at least this share of the logits' variance over pairs."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One look at a model. Losses are in nats, shares 0 to 1.

    Args:
        step: Of training; 0 for a model that just lies there.
        train_loss: On the training pairs.
        test_loss: On all others.
        train_accuracy: Share of right answers.
        test_accuracy: Share of right answers.
        restricted_loss: On all pairs, with the key frequencies alone.
        excluded_loss: On the training pairs, without them.
        key_frequencies: Ascending; empty where there are none.
        sum_share: Of the logits' variance that depends on a + b by the key frequencies.
        embedding_gini: Inequality of the embedding's norm over frequencies: 0 is equal, near 1 is few.
        weight_norm: Sum of all squared weights.
    """

    step: int
    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float
    restricted_loss: float
    excluded_loss: float
    key_frequencies: tuple[int, ...]
    sum_share: float
    embedding_gini: float
    weight_norm: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FourierParts:
    """Logits taken apart.

    Args:
        shares: Of the variance over pairs, for frequency 1 to (p - 1) / 2.
        key_frequencies: Those above the threshold.
        key_part: What the key frequencies write.
        mean: Over pairs, for each answer.
    """

    shares: Float[Tensor, " frequency"]
    key_frequencies: tuple[int, ...]
    key_part: Float[Tensor, "pair answer"]
    mean: Float[Tensor, "1 answer"]


def split_frequencies(logits: Float[Tensor, "pair answer"], *, key_share: float = KEY_SHARE) -> FourierParts:
    """Project the logits of all pairs (in the order a * p + b) on cos and sin of w_k (a + b).

    Cost: one product of [p - 1, p^2] with [p^2, p].
    """
    n_pairs, p = logits.shape
    if n_pairs != p * p:
        raise ShapeError(
            "Progress measures need the logits of the whole table.",
            got=f"logits of shape {[n_pairs, p]}",
            instead=f"[{p * p}, {p}]: all pairs in the order a * p + b",
        )
    wide = logits.double()
    mean = wide.mean(0, keepdim=True)
    basis = sum_basis(p, device=logits.device)
    coefficients = torch.einsum("fwp,pc->fwc", basis, wide - mean)
    variance = (wide - mean).square().sum().clamp(min=1e-300)
    shares = coefficients.square().sum((1, 2)) / variance
    # five times what chance puts into one frequency: matters for small p alone
    bound = max(key_share, 5 * 2 / (p * p - 1))
    key = shares >= bound
    part = torch.einsum("fwp,fwc->pc", basis[key], coefficients[key])
    frequencies = tuple((key.nonzero()[:, 0] + 1).tolist())
    return FourierParts(shares=shares, key_frequencies=frequencies, key_part=part, mean=mean)


def sum_basis(modulus: int, *, device: torch.device | str = "cpu") -> Float[Tensor, "frequency 2 pair"]:
    """Orthonormal cos and sin of w_k (a + b), over all pairs, for k = 1 to (p - 1) / 2."""
    pair = torch.arange(modulus * modulus, device=device)
    total = (pair // modulus + pair % modulus) % modulus
    frequency = torch.arange(1, (modulus - 1) // 2 + 1, device=device)
    # reduced before it becomes a float, so that large frequencies lose nothing
    angle = (frequency[:, None] * total % modulus).double() * (2 * torch.pi / modulus)
    return torch.stack([angle.cos(), angle.sin()], dim=1) * (2**0.5 / modulus)


def measure_logits(
    logits: Float[Tensor, "pair answer"],
    answers: Int[Tensor, " pair"],
    is_train: Bool[Tensor, " pair"],
    *,
    key_share: float = KEY_SHARE,
) -> dict[str, float | tuple[int, ...]]:
    """The measures that need no weights."""
    wide = logits.double()
    parts = split_frequencies(wide, key_share=key_share)
    right = wide.argmax(1) == answers
    losses = functional.cross_entropy(wide, answers, reduction="none")
    restricted = functional.cross_entropy(parts.mean + parts.key_part, answers)
    excluded = functional.cross_entropy((wide - parts.key_part)[is_train], answers[is_train])
    return {
        "train_loss": float(losses[is_train].mean()),
        "test_loss": float(losses[~is_train].mean()),
        "train_accuracy": float(right[is_train].double().mean()),
        "test_accuracy": float(right[~is_train].double().mean()),
        "restricted_loss": float(restricted),
        "excluded_loss": float(excluded),
        "key_frequencies": parts.key_frequencies,
        "sum_share": float(parts.shares[[k - 1 for k in parts.key_frequencies]].sum()),
    }


@torch.no_grad()
def measure_progress(
    model: NativeForCausalLM, table: AdditionTable, *, step: int = 0, key_share: float = KEY_SHARE
) -> Progress:
    """Measure a model of modular addition, our own or a published one.

    Cost: one forward pass over the p * p pairs, and the projection.
    """
    found = measure_logits(answer_logits(model, table), table.answers, table.is_train, key_share=key_share)
    spectrum = embedding_spectrum(model.get_parameter("model.embed.weight")[: table.modulus])
    return Progress(
        step=step,
        **found,  # pyright: ignore[reportArgumentType]
        embedding_gini=gini(spectrum),
        weight_norm=float(sum(value.double().square().sum() for value in model.parameters())),
    )


def embedding_spectrum(embedding: Float[Tensor, "number d_model"]) -> Float[Tensor, " frequency"]:
    """Squared norm of the numbers' embedding in each frequency from 1."""
    waves = torch.fft.rfft(embedding.double(), dim=0, norm="ortho")
    return waves[1:].abs().square().sum(1)


def gini(values: Float[Tensor, " value"]) -> float:
    """Gini's inequality of positive values: 0 where all are equal, 1 - 1 / n where one has all."""
    ordered, n = values.sort().values, len(values)
    rank = torch.arange(1, n + 1, device=values.device)
    return float((2 * rank - n - 1).mul(ordered).sum() / (n * ordered.sum().clamp(min=1e-300)))
