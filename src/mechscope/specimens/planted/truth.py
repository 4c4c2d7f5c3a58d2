"""The truth about planted activations: directions, rates, parents, groups; made from settings, saved as a record.

Invariant: equal settings give equal truths, bit for bit on one software; batches are drawn from a truth alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.records.record import Record
from mechscope.records.seeds import generator_for
from mechscope.specimens.planted.settings import PlantedSettings


class PlantedTruthRecord(Record):
    """A truth on disk."""

    kind: ClassVar[str] = "planted-truth"


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of the planted features.

    Args:
        settings: What it was made from.
        directions: Unit norm, one row a feature.
        rates: How often each feature is on: a fraction of tokens.
        parents: The feature that must be on for this one to be; -1 for none.
        groups: The group that it fires with; -1 for none.
    """

    settings: PlantedSettings
    directions: Float[Tensor, "feature d_model"]
    rates: Float[Tensor, " feature"]
    parents: Int[Tensor, " feature"]
    groups: Int[Tensor, " feature"]

    @property
    def coherence(self) -> float:
        """The largest |cosine| between two planted directions."""
        gram = (self.directions @ self.directions.T).abs()
        return float(gram.fill_diagonal_(0).max())

    def correlation(self, first: int, second: int) -> float:
        """The correlation of two features being on, by the rule they are drawn with; 0 if independent."""
        p, q = float(self.rates[first]), float(self.rates[second])
        return (self._both_on(first, second) - p * q) / (p * (1 - p) * q * (1 - q)) ** 0.5

    def _both_on(self, first: int, second: int) -> float:
        p, q = float(self.rates[first]), float(self.rates[second])
        up, down = int(self.parents[first]), int(self.parents[second])
        if first == second:
            return p
        if down == first or up == second:  # a child is on only with its parent
            return min(p, q)
        if up >= 0 and up == down:  # siblings: on by themselves, given the parent
            return p * q / float(self.rates[up])
        if int(self.groups[first]) >= 0 and self.groups[first] == self.groups[second]:
            return p * self.settings.group_probability
        return p * q

    def save(self, path: str | Path) -> None:
        """Write the truth as a record, its tensors beside it."""
        tensors = {"directions": self.directions, "rates": self.rates, "parents": self.parents}
        arrays = {name: value.cpu().numpy() for name, value in (tensors | {"groups": self.groups}).items()}
        PlantedTruthRecord(settings=asdict(self.settings), seed=self.settings.seed, arrays=arrays).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "Truth":
        """Read what `save` wrote."""
        record = PlantedTruthRecord.load(path)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in record.arrays.items()}
        return cls(settings=PlantedSettings(**record.settings), **tensors)


def plant(settings: PlantedSettings) -> Truth:
    """Make the truth of these settings: directions from the seed, rates, parents and groups by rule.

    With a hierarchy, features 0 to n_parents - 1 are the parents; the children of parent i are
    n_parents + i, 2 n_parents + i and so on. Group i is features i * group_size onwards. Rates are such
    that `n_active` features are on at a token on average.
    """
    rng = generator_for(settings.seed, "planted", "directions")
    directions = torch.from_numpy(rng.standard_normal((settings.n_features, settings.d_model)))
    directions = directions / directions.norm(dim=1, keepdim=True)
    feature = torch.arange(settings.n_features)
    none = torch.full_like(feature, -1)
    if settings.n_children:
        n_parents = settings.n_features // (settings.n_children + 1)
        parents = torch.where(feature < n_parents, none, feature % n_parents)
    else:
        parents = none
    groups = feature // settings.group_size if settings.group_size else none
    return Truth(settings, directions.float(), _rates(settings, parents), parents, groups)


def _rates(settings: PlantedSettings, parents: Tensor) -> Tensor:
    """Rates in the proportions asked for, scaled to `n_active` in all; none above one half where possible."""
    n_roots = int((parents < 0).sum())
    size = settings.group_size or 1
    rank = torch.arange(n_roots // size, dtype=torch.float64).repeat_interleave(size)
    weights = (rank + 1) ** -settings.rate_exponent
    # a child's rate is its parent's times child_probability, so a family is on for this many features
    family = 1 + settings.n_children * settings.child_probability
    roots = capped_rates(weights, settings.n_active / family)
    if not settings.n_children:
        return roots
    return torch.cat([roots] + [roots * settings.child_probability] * settings.n_children)


def capped_rates(weights: Float[Tensor, " root"], total: float, most: float = 0.5) -> Float[Tensor, " root"]:
    """Rates proportional to `weights` that sum to `total`, those above `most` cut and the rest raised."""
    most = max(most, total / len(weights))
    low, high = 0.0, total / float(weights.min()) + 1.0
    for _ in range(100):  # the sum grows with the factor: bisection to double precision
        middle = (low + high) / 2
        is_short = float((weights * middle).clamp(max=most).sum()) < total
        low, high = (middle, high) if is_short else (low, middle)
    return (weights * high).clamp(max=most)


def truth_facts(truth: Truth) -> Mapping[str, Any]:
    """The truth in few numbers, for a card."""
    return {
        "n_features": truth.settings.n_features,
        "d_model": truth.settings.d_model,
        "n_active": float(truth.rates.sum()),
        "coherence": truth.coherence,
        "rarest": float(truth.rates.min()),
        "n_parents": int((truth.parents < 0).sum()) if truth.settings.n_children else 0,
    }
