"""Seed stability: which latents of one training recur in another, matched one to one (Hungarian) by decoder cosine.

A match means something only beside what random directions of the same number and width give, which is measured with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student
from torch import Tensor

from mechscope.data.intervals import share_interval
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import LEVEL, Estimate, Estimator
from mechscope.records.seeds import seed_for
from mechscope.vocabulary.errors import DictionaryMismatch, NotEnoughEvidence

MOST_LATENTS = 16_384
"""Beyond this a one-to-one matching takes hours; a subset is asked for."""


@dataclass(frozen=True, eq=False)
class Matching:
    """Two dictionaries' latents, one to one.

    Args:
        partners: For each latent of the first, its partner in the second; -1 if there are too few.
        cosines: Of each pair; 0 without a partner.
        chance: Mean cosine that random directions of the same shape are matched with.
        has_bos: Whether the text that each was trained on began with a beginning-of-sequence token; None if unknown.
    """

    partners: Int[np.ndarray, " latent"]
    cosines: Float[np.ndarray, " latent"]
    chance: float
    has_bos: tuple[bool | None, ...] = ()

    @property
    def mean_cosine(self) -> Estimate:
        """Over all latents of the first, which are what its interval resamples; the pairing is held."""
        return Estimator(len(self.cosines)).ratio(self.cosines, np.ones(len(self.cosines)))

    def share_above(self, cosine: float = 0.7) -> Estimate:
        """Fraction of the first's latents whose partner points at least that much the same way, likewise."""
        above = self.cosines >= cosine
        return Estimate.of(float(above.mean()), share_interval(above, seed=0))


@dataclass(frozen=True, eq=False)
class Stability:
    """Matchings of all pairs of seeds.

    Args:
        matchings: By pair of indices.
        mean_cosine: Over pairs. Its interval is over seeds, by the jackknife: pairs share seeds and are not
            independent. Two seeds have none; each matching has one over latents.
        share_matched: Fraction matched at cosine 0.7 and more, likewise.
        has_bos: Of each training, as in `Matching`.
    """

    matchings: dict[tuple[int, int], Matching]
    mean_cosine: Estimate
    share_matched: Estimate
    has_bos: tuple[bool | None, ...] = ()


def match_latents(first: Dictionary, second: Dictionary, *, seed: int = 0) -> Matching:
    """Match latents of two dictionaries by what they write.

    Raises:
        DictionaryMismatch: they write to different widths, or have too many latents to match.

    Cost: the assignment grows with the cube of the number of latents.
    """
    rows = [one.decoder_rows() for one in (first, second)]
    if rows[0].shape[1] != rows[1].shape[1]:
        raise DictionaryMismatch(
            "The two dictionaries write to different widths.",
            got=f"{rows[0].shape[1]} and {rows[1].shape[1]}",
            instead="dictionaries of the same sites of the same model",
        )
    if max(len(one) for one in rows) > MOST_LATENTS:
        raise DictionaryMismatch(
            "There are too many latents for a one-to-one matching.",
            got=f"{len(rows[0])} and {len(rows[1])}",
            because=f"its cost grows with the cube; {MOST_LATENTS} are allowed",
            instead="feature_tree, which takes each latent's nearest",
        )
    partners, cosines = matched(unit_rows(rows[0]) @ unit_rows(rows[1]).T)
    generator = torch.Generator().manual_seed(seed_for(seed, "matching", "chance"))
    drawn = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in rows]
    chance = float(matched(unit_rows(drawn[0]) @ unit_rows(drawn[1]).T)[1].mean())
    return Matching(partners, cosines, chance, _has_bos((first, second)))


def seed_stability(dictionaries: Sequence[Dictionary], *, seed: int = 0) -> Stability:
    """Match every pair of trainings that differ in their seed.

    Raises:
        NotEnoughEvidence: fewer than two.
    """
    if len(dictionaries) < 2:
        raise NotEnoughEvidence(
            "Stability needs at least two seeds.",
            got=f"{len(dictionaries)} dictionaries",
            because="what recurs can't be seen in one training",
        )
    pairs = [(i, j) for i in range(len(dictionaries)) for j in range(i + 1, len(dictionaries))]
    matchings = {(i, j): match_latents(dictionaries[i], dictionaries[j], seed=seed) for i, j in pairs}
    n = len(dictionaries)
    mean = over_pairs({pair: one.mean_cosine.value for pair, one in matchings.items()}, n)
    share = over_pairs({pair: one.share_above().value for pair, one in matchings.items()}, n)
    return Stability(matchings, mean, share, _has_bos(dictionaries))


def over_pairs(values: Mapping[tuple[int, int], float], n_seeds: int) -> Estimate:
    """Mean over pairs of seeds, with Student's interval of the jackknife over seeds."""
    mean = float(np.mean(list(values.values())))
    if n_seeds < 3:
        return Estimate(mean, -np.inf, np.inf)
    without = np.array(
        [np.mean([value for pair, value in values.items() if seed not in pair]) for seed in range(n_seeds)]
    )
    error = float(np.sqrt((n_seeds - 1) / n_seeds * np.square(without - without.mean()).sum()))
    half = float(student.ppf(0.5 + LEVEL / 2, n_seeds - 1)) * error
    return Estimate(mean, mean - half, mean + half, "jackknife")


def _has_bos(dictionaries: Sequence[Dictionary]) -> tuple[bool | None, ...]:
    return tuple(one.settings.source.bos for one in dictionaries)


def matched(cosines: Float[Tensor, "first second"]) -> tuple[np.ndarray, np.ndarray]:
    """Partner and cosine of each row under the one-to-one matching of largest total cosine."""
    table = cosines.to("cpu", torch.float64).numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    partners, found = np.full(len(table), -1), np.zeros(len(table))
    partners[rows], found[rows] = columns, table[rows, columns]
    return partners, found


def unit_rows(rows: Float[Tensor, "latent d"]) -> Float[Tensor, "latent d"]:
    """Rows of norm one in double precision; zeros stay zero."""
    wide = rows.detach().to("cpu", torch.float64)
    return wide / wide.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
