"""Feature splitting: the tree of latents over dictionaries of growing width.

Each latent of a wider dictionary hangs under the latent of the next narrower one whose decoder it resembles most, if
it does so beyond what random directions would; the others are new. A latent with several children has split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int

from mechscope.data.intervals import share_interval
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import Estimate
from mechscope.dictionaries.evaluation.stability import unit_rows
from mechscope.records.seeds import seed_for
from mechscope.vocabulary.errors import DictionaryMismatch

NEW = -1
_AT_ONCE, _N_RANDOM = 2_048, 1_000


@dataclass(frozen=True, eq=False)
class FeatureTree:
    """Which latents come from which.

    Args:
        widths: Latents of each dictionary, narrowest first.
        parents: For each dictionary but the first, the parent of each latent in the one before; -1 if it is new.
        cosines: Decoder cosine with the nearest latent of the one before, parent or not.
        least_cosine: From which cosine on the nearest is taken to be the parent.
        chance: Cosine that the nearest of as many random directions exceeds once in a hundred times, for each step.
        has_bos: Whether the text that each was trained on began with a beginning-of-sequence token; None if unknown.
    """

    widths: tuple[int, ...]
    parents: tuple[Int[np.ndarray, " _latent"], ...]  # of each dictionary its own number of latents
    cosines: tuple[Float[np.ndarray, " _latent"], ...]
    least_cosine: float
    chance: tuple[float, ...]
    has_bos: tuple[bool | None, ...] = ()

    def children(self, level: int, latent: int) -> list[int]:
        """Latents of the next wider dictionary that hang under one of dictionary `level`."""
        return np.flatnonzero(self.parents[level] == latent).tolist()

    def n_children(self, level: int) -> Int[np.ndarray, " latent"]:
        """Children of every latent of a dictionary: 0 lost, 1 kept, more split."""
        found = self.parents[level]
        return np.bincount(found[found != NEW], minlength=self.widths[level])

    def shares(self, level: int) -> dict[str, Estimate]:
        """Of dictionary `level`: latents lost, kept and split in the next; of the next: latents that are new.

        Intervals resample the latents that the share is of; they say nothing of another training.
        """
        counts = self.n_children(level)
        is_so = {
            "lost": counts == 0,
            "kept": counts == 1,
            "split": counts > 1,
            "new": self.parents[level] == NEW,
        }
        return {name: Estimate.of(float(so.mean()), share_interval(so, seed=0)) for name, so in is_so.items()}


def feature_tree(
    dictionaries: Sequence[Dictionary], *, least_cosine: float = 0.5, seed: int = 0
) -> FeatureTree:
    """The tree over dictionaries of the same site, in order of width.

    Args:
        dictionaries: At least two.
        least_cosine: Below it a latent is new; it is raised to the chance level where that is higher.
        seed: Of the random directions.

    Raises:
        DictionaryMismatch: fewer than two, or different widths written.
    """
    if len(dictionaries) < 2 or len({one.settings.d_out for one in dictionaries}) > 1:
        raise DictionaryMismatch(
            "A tree needs at least two dictionaries of one width.",
            got=f"{len(dictionaries)} dictionaries, widths {sorted({one.settings.d_out for one in dictionaries})}",
            instead="dictionaries of the same sites of the same model",
        )
    ordered = sorted(dictionaries, key=lambda one: one.n_latents)
    # its own stream: a dictionary may have been drawn from the plain seed
    generator = torch.Generator().manual_seed(seed_for(seed, "feature tree", "chance"))
    parents: list[np.ndarray] = []
    cosines: list[np.ndarray] = []
    chances: list[float] = []
    for narrow, wide in pairwise(ordered):
        above, below = unit_rows(narrow.decoder_rows()), unit_rows(wide.decoder_rows())
        random = unit_rows(torch.randn(_N_RANDOM, above.shape[1], generator=generator, dtype=torch.float64))
        chance = float(np.quantile(_nearest(random, above)[1], 0.99))
        nearest, cosine = _nearest(below, above)
        parents.append(np.where(cosine >= max(least_cosine, chance), nearest, NEW))
        cosines.append(cosine)
        chances.append(chance)
    widths = tuple(one.n_latents for one in ordered)
    has_bos = tuple(one.settings.source.bos for one in ordered)
    return FeatureTree(widths, tuple(parents), tuple(cosines), least_cosine, tuple(chances), has_bos)


def _nearest(rows: torch.Tensor, among: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    best = [(part @ among.T).max(1) for part in rows.split(_AT_ONCE)]
    return torch.cat([one.indices for one in best]).numpy(), torch.cat([one.values for one in best]).numpy()
