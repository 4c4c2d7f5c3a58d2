"""Interference between feature directions, and the geometry of a neighbourhood; beside random directions.

Any model: directions are rows of a decoder, columns of an unembedding, neurons' output weights. All cosines are
between unit vectors. The baseline is as many random directions in the same space.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.data.intervals import Interval, Resamples, mean_bootstrap
from mechscope.records.seeds import seed_for
from mechscope.superposition.geometry import Shape, find_shapes
from mechscope.vocabulary.errors import NonFiniteActivations, PositionOutOfRange, ShapeError

if TYPE_CHECKING:
    from mechscope.figures.labelled import LabelledArray

BLOCK = 1024
"""Directions whose cosines with all others are held at once; bounds memory, changes no result."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Interference:
    """How much directions overlap. One entry a direction; intervals are over directions.

    Args:
        total: Sum of squared cosines with all others: variance that they put on it if all had equal variance.
        largest: The largest |cosine| with another.
        dimensionality: Share of a dimension that it has to itself.
        mean_total: Interval of the mean of `total`.
        baseline_total: Mean of `total` of each random draw.
        baseline_largest: Mean of `largest` of each random draw.
        welch: What any directions have at least: n / d - 1 in the mean of `total`, 0 where they fit apart.
        n_dimensions: Participation ratio of the directions' spectrum. Mean interference is n / n_dimensions - 1:
            directions crowd because they lie in few dimensions, or fill all evenly.
    """

    total: Float[np.ndarray, " direction"]
    largest: Float[np.ndarray, " direction"]
    dimensionality: Float[np.ndarray, " direction"]
    mean_total: Interval
    baseline_total: Float[np.ndarray, " draw"]
    baseline_largest: Float[np.ndarray, " draw"]
    welch: float
    n_dimensions: float

    @property
    def ratio(self) -> float:
        """Mean interference over that of random directions: 1 for random ones, below where packed apart."""
        return float(self.total.mean() / self.baseline_total.mean())

    def array(self) -> "LabelledArray":
        """Means of the directions and of their baseline."""
        from mechscope.figures.labelled import LabelledArray

        return LabelledArray(
            np.array([self.total.mean(), self.baseline_total.mean(), self.welch]),
            ("directions",),
            coords={"directions": ("measured", "random", "least possible")},
            unit="sum of squared cosines",
            title="Interference between feature directions",
            low=np.array([self.mean_total.low, self.baseline_total.min(), self.welch]),
            high=np.array([self.mean_total.high, self.baseline_total.max(), self.welch]),
        )

    def plot(self) -> Any:
        """Bars (Plotly)."""
        return self.array().plot("bars")


def measure_interference(
    directions: Float[Tensor, "direction d_model"],
    *,
    n_draws: int = 5,
    seed: int = 0,
) -> Interference:
    """Measure how much the directions overlap, beside random ones.

    Args:
        directions: Of any norm; a zero row is refused.
        n_draws: Random sets.
        seed: Of the draws and of the interval.

    Cost: n_draws + 1 Gram matrices, in blocks.
    """
    unit = unit_rows(directions)
    total, largest = crowding(unit)
    generator = torch.Generator().manual_seed(seed_for(seed, "interference"))
    draws = [crowding(random_like(unit, generator=generator)) for _ in range(n_draws)]
    resamples = Resamples(np.arange(len(unit)), seed=seed, n_resamples=1000)
    return Interference(
        total=total.numpy(),
        largest=largest.numpy(),
        dimensionality=(1 / (1 + total)).numpy(),
        mean_total=mean_bootstrap(resamples, total.numpy()).interval(),
        baseline_total=np.array([float(draw[0].mean()) for draw in draws]),
        baseline_largest=np.array([float(draw[1].mean()) for draw in draws]),
        welch=max(0.0, len(unit) / unit.shape[1] - 1),
        n_dimensions=participation(unit.T @ unit),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighborhood:
    """The directions nearest to one.

    Args:
        center: Its number.
        neighbors: Nearest first, by |cosine|.
        cosines: With the center, signed.
        dimensions: Participation ratio of the neighbours' spectrum, the center's part taken out: how many
            dimensions they spread over.
        shapes: What the center and its neighbours form, where it is one that we know.
        baseline_cosine: Mean |cosine| of as many nearest among random directions.
        baseline_dimensions: Their participation ratio; mean over draws.
    """

    center: int
    neighbors: Int[np.ndarray, " neighbor"]
    cosines: Float[np.ndarray, " neighbor"]
    dimensions: float
    shapes: tuple[Shape, ...]
    baseline_cosine: float
    baseline_dimensions: float


def measure_neighborhood(
    directions: Float[Tensor, "direction d_model"],
    center: int,
    *,
    k: int = 10,
    n_draws: int = 20,
    seed: int = 0,
) -> Neighborhood:
    """Describe the `k` directions nearest to one, beside the same of random directions.

    Cost: 1 + n_draws products of all directions with one.
    """
    unit = unit_rows(directions)
    if not 0 <= center < len(unit) or not 0 < k < len(unit):
        raise PositionOutOfRange(
            "There is no such neighbourhood.",
            got=f"center {center}, k {k}",
            because=f"{len(unit)} directions",
        )
    neighbors, cosines = nearest(unit, center, k)
    generator = torch.Generator().manual_seed(seed_for(seed, "neighborhood"))
    random_cosines, random_dimensions = [], []
    for _ in range(n_draws):
        other = random_like(unit, generator=generator)
        near, values = nearest(other, 0, k)
        random_cosines.append(float(values.abs().mean()))
        random_dimensions.append(spread(other[near], other[0]))
    members = torch.cat([torch.tensor([center]), neighbors])
    return Neighborhood(
        center=center,
        neighbors=neighbors.numpy(),
        cosines=cosines.numpy(),
        dimensions=spread(unit[neighbors], unit[center]),
        shapes=find_shapes(unit[members].float()),
        baseline_cosine=float(np.mean(random_cosines)),
        baseline_dimensions=float(np.mean(random_dimensions)),
    )


def nearest(unit: Tensor, center: int, k: int) -> tuple[Tensor, Tensor]:
    """Numbers and signed cosines of the `k` rows with the largest |cosine| with one."""
    cosines = unit @ unit[center]
    strength = cosines.abs()
    strength[center] = -1
    found = strength.topk(k).indices
    return found, cosines[found]


def spread(neighbors: Tensor, center: Tensor) -> float:
    """Participation ratio of the neighbours without their part along the center; 0 where nothing is left."""
    rest = neighbors - (neighbors @ center)[:, None] * center
    return participation(rest.T @ rest)


def crowding(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squared cosines and largest |cosine| of each row with the others, block by block."""
    totals, largest = [], []
    for start in range(0, len(unit), BLOCK):
        cosines = unit[start : start + BLOCK] @ unit.T
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = 0
        totals.append(cosines.square().sum(1))
        largest.append(cosines.abs().amax(1))
    return torch.cat(totals), torch.cat(largest)


def random_like(unit: Tensor, *, generator: torch.Generator) -> Tensor:
    """As many random unit rows of the same width."""
    drawn = torch.randn(unit.shape, generator=generator, dtype=unit.dtype)
    return drawn / drawn.norm(dim=1, keepdim=True)


def participation(second_moment: Tensor) -> float:
    """(sum of eigenvalues)^2 over the sum of their squares; 0 for a matrix of zeros."""
    trace, squared = float(second_moment.trace()), float(second_moment.square().sum())
    return trace**2 / squared if squared > 1e-24 else 0.0


def unit_rows(directions: Tensor) -> Tensor:
    """Directions in float64 on the CPU, each of norm 1; refused where one has none."""
    if directions.ndim != 2 or len(directions) < 2:
        raise ShapeError(
            "Directions are rows of a matrix, at least two.",
            got=f"shape {list(directions.shape)}",
            instead="[direction, d_model]",
        )
    rows = directions.detach().cpu().double()
    if not bool(torch.isfinite(rows).all()):
        raise NonFiniteActivations(
            "A direction is not finite.",
            got=f"shape {list(rows.shape)}",
            because="its cosines are not numbers",
        )
    norms = rows.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise ShapeError(
            "A direction of norm 0 points nowhere.",
            got=f"{int((norms == 0).sum())} of {len(rows)} rows",
            instead="directions without the dead ones",
        )
    return rows / norms
