"""Planted activations in batches, each found by its number: the same batch whoever asks, in whatever order.

Codes are drawn where they are on and nowhere else (gaps between firings are geometric), so a token costs its
active features and not `n_features`. They are drawn on the CPU: one seed gives one batch on every device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.records.seeds import seed_for
from mechscope.specimens.planted.firings import Firings, sorted_firings
from mechscope.specimens.planted.truth import Truth
from mechscope.vocabulary.errors import PositionOutOfRange


@dataclass(frozen=True, eq=False)
class PlantedBatch:
    """Activations and the codes that made them."""

    activations: Float[Tensor, "token d_model"]
    codes: Firings


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedStream:
    """Batches of planted activations; iterating gives `PlantedBatch`es in order.

    Args:
        truth: What is planted.
        n_tokens: In all.
        batch_tokens: In a batch; the last may be shorter.
        split: Another word gives other tokens of the same truth: "train", "held_out".
        device: Where activations are made. Codes stay on the CPU.
        is_shuffled: The control: every coordinate is permuted over the tokens of its batch, so that each
            keeps its distribution and no direction is left to find. Codes are then of nothing.

    Cost: n_active rows of `d_model` gathered a token.
    """

    truth: Truth
    n_tokens: int
    batch_tokens: int = 4096
    split: str = "train"
    device: str | torch.device = "cpu"
    is_shuffled: bool = False

    def __len__(self) -> int:
        return -(-self.n_tokens // self.batch_tokens)

    def __iter__(self) -> Iterator[PlantedBatch]:
        return (self.batch(index) for index in range(len(self)))

    def batch(self, index: int) -> PlantedBatch:
        """Batch `index`, drawn from its own seed."""
        if not 0 <= index < len(self):
            raise PositionOutOfRange(
                "The stream has no such batch.", got=index, instead=f"0 to {len(self) - 1}"
            )
        n_tokens = min(self.batch_tokens, self.n_tokens - index * self.batch_tokens)
        seed = seed_for(self.truth.settings.seed, "planted", self.split, index)
        generator = torch.Generator().manual_seed(seed)
        codes = draw_codes(self.truth, n_tokens, generator)
        activations = mix_codes(self.truth, codes, device=self.device)
        settings = self.truth.settings
        if settings.noise:
            noise = torch.randn(activations.shape, generator=generator)
            activations = activations + (noise * settings.noise / settings.d_model**0.5).to(self.device)
        if self.is_shuffled:
            activations = shuffle_coordinates(activations, generator)
        return PlantedBatch(activations, codes)


def draw_codes(truth: Truth, n_tokens: int, generator: torch.Generator) -> Firings:
    """Which features are on at each of `n_tokens` tokens, and how strongly, by the truth's rules."""
    settings = truth.settings
    if settings.group_size:
        carriers = truth.rates[:: settings.group_size] / settings.group_probability
        token, group = draw_on(carriers, n_tokens, generator)
        members = torch.arange(settings.group_size)
        on = torch.rand(len(token), settings.group_size, generator=generator) < settings.group_probability
        unit = (group[:, None] * settings.group_size + members)[on]
        token = token[:, None].expand_as(on)[on]
    else:
        n_roots = settings.n_features // (settings.n_children + 1)
        token, unit = draw_on(truth.rates[:n_roots], n_tokens, generator)
    if settings.n_children:
        n_parents = settings.n_features // (settings.n_children + 1)
        steps = torch.arange(1, settings.n_children + 1) * n_parents
        on = torch.rand(len(token), settings.n_children, generator=generator) < settings.child_probability
        children, their_tokens = (unit[:, None] + steps)[on], token[:, None].expand_as(on)[on]
        token, unit = torch.cat([token, their_tokens]), torch.cat([unit, children])
    value = (torch.randn(len(token), generator=generator) * settings.tail).exp()
    return sorted_firings(token=token, unit=unit, value=value, n_tokens=n_tokens, n_units=settings.n_features)


def draw_on(
    rates: Float[Tensor, " unit"], n_tokens: int, generator: torch.Generator
) -> tuple[Int[Tensor, " firing"], Int[Tensor, " firing"]]:
    """(token, unit) of independent Bernoulli draws, one for each token and unit, at the unit's rate.

    Units are drawn octave by octave of their rates: at the largest of an octave, then thinned to each one's.

    Cost: at most two draws a firing, whatever the rates.
    """
    rates = rates.clamp(max=1.0).double()
    octave = (rates.max() / rates.clamp(min=1e-30)).log2().floor().long()
    parts: list[tuple[Tensor, Tensor]] = []
    for number in octave[rates > 0].unique().tolist():
        units = (octave == number).nonzero()[:, 0]
        cells = _bernoulli_cells(float(rates[units].max()), n_tokens * len(units), generator)
        token, unit = cells // len(units), units[cells % len(units)]
        if float(rates[units].min()) < float(rates[units].max()):
            chance = rates[unit] / rates[units].max()
            kept = torch.rand(len(cells), generator=generator, dtype=torch.float64) < chance
            token, unit = token[kept], unit[kept]
        parts.append((token, unit))
    return torch.cat([token for token, _ in parts]), torch.cat([unit for _, unit in parts])


def _bernoulli_cells(rate: float, n_cells: int, generator: torch.Generator) -> Tensor:
    """Numbers below `n_cells`, each there with probability `rate`: sums of geometric gaps."""
    if rate >= 1.0:
        return torch.arange(n_cells)
    expected = n_cells * rate
    n_draws = int(expected + 8 * expected**0.5 + 16)  # rarely too few, and then it goes on: the draw is exact
    cells = torch.tensor([-1])
    while int(cells[-1]) < n_cells:
        gaps = torch.empty(n_draws, dtype=torch.float64).geometric_(rate, generator=generator)
        cells = torch.cat([cells, cells[-1] + gaps.long().cumsum(0)])
    return cells[(cells >= 0) & (cells < n_cells)]


def mix_codes(
    truth: Truth, codes: Firings, *, device: str | torch.device = "cpu"
) -> Float[Tensor, "token d_model"]:
    """Sum of value times direction over what is on at each token: the activations, before noise."""
    counts = torch.bincount(codes.token, minlength=codes.n_tokens)
    starts = counts.cumsum(0) - counts
    return torch.nn.functional.embedding_bag(
        codes.unit.to(device),
        truth.directions.to(device),
        starts.to(device),
        mode="sum",
        per_sample_weights=codes.value.to(device),
    )


def shuffle_coordinates(
    activations: Float[Tensor, "token d_model"], generator: torch.Generator
) -> Float[Tensor, "token d_model"]:
    """Each coordinate permuted over tokens by its own permutation: the same marginals, no feature left."""
    order = torch.rand(activations.shape, generator=generator).argsort(dim=0)
    return activations.gather(0, order.to(activations.device))
