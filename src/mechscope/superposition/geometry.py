"""The geometry of features in superposition: how much of a dimension each has, and the shapes that they form.

Owns: feature dimensionality with its sticky values, and the recognition of digon, triangle, tetrahedron, pentagon
and square antiprism. Shapes that share no direction are found apart: a triangular bipyramid is a triangle
and a digon.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

STICKY = tuple(Fraction(text) for text in ("1", "3/4", "2/3", "1/2", "2/5", "3/8"))
"""Dimensionalities of a feature alone and in tetrahedron, triangle, digon, pentagon, square antiprism."""

TOUCHING = 0.15
"""Two features belong to one shape where their |cosine| is above this."""

TOLERANCE = 0.12
"""Root mean square difference of sorted cosines up to which a shape has its name."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Features that share dimensions.

    Args:
        name: "digon", "triangle" ...; "5 in 3" where it is none that we know.
        features: Their numbers.
        n_dimensions: That they span.
        dimensionality: Dimensions for each, the mean of the measured ones.
    """

    name: str
    features: tuple[int, ...]
    n_dimensions: int
    dimensionality: float


def feature_dimensionality(
    weights: Float[Tensor, "*batch feature hidden"],
) -> Float[Tensor, "*batch feature"]:
    """|W_i|^2 / sum_j (W_i/|W_i| . W_j)^2: the share of a dimension that feature i has to itself.

    Where all features are learnt equally they sum to the number of dimensions. 0 for a feature of zero norm.
    """
    norms = weights.norm(dim=-1)
    unit = weights / norms.clamp(min=1e-12)[..., None]
    crowding = (unit @ weights.transpose(-1, -2)).square().sum(-1)
    return norms.square() / crowding.clamp(min=1e-12)


def nearest_sticky(dimensionality: float, *, within: float = 0.03) -> Fraction | None:
    """The sticky value next to a dimensionality; None where all are further than `within`."""
    nearest = min(STICKY, key=lambda value: abs(float(value) - dimensionality))
    return nearest if abs(float(nearest) - dimensionality) <= within else None


def find_shapes(weights: Float[Tensor, "feature hidden"], *, learnt_above: float = 0.5) -> tuple[Shape, ...]:
    """Group the learnt features (norm above `learnt_above`) into shapes, and name these.

    Cost: one Gram matrix, and an SVD a shape.
    """
    norms = weights.norm(dim=1)
    learnt = (norms > learnt_above).nonzero()[:, 0]
    unit = weights[learnt] / norms[learnt, None]
    dimensionality = feature_dimensionality(weights)
    shapes: list[Shape] = []
    for members in connected(unit):
        features = learnt[members]
        singular = torch.linalg.svdvals(unit[members])
        rank = int((singular > 0.2 * singular[0]).sum())
        shapes.append(
            Shape(
                name=name_shape(unit[members], rank),
                features=tuple(features.tolist()),
                n_dimensions=rank,
                dimensionality=float(dimensionality[features].mean()),
            )
        )
    return tuple(shapes)


def connected(unit: Float[Tensor, "vector hidden"], *, touching: float = TOUCHING) -> list[Tensor]:
    """Indices of vectors linked by |cosine| above `touching`, group by group."""
    reach = (unit @ unit.T).abs() > touching
    reach |= torch.eye(len(unit), dtype=torch.bool)
    for _ in range(max(1, len(unit).bit_length())):  # paths of twice the length each time
        reach = (reach.float() @ reach.float()) > 0
    if not len(unit):
        return []
    labels = reach.int().argmax(1)  # the first member that it reaches
    return [(labels == label).nonzero()[:, 0] for label in labels.unique()]


def name_shape(unit: Float[Tensor, "vector hidden"], n_dimensions: int) -> str:
    """The name of the shape whose cosines these vectors have, or "k in r"."""
    cosines = off_diagonal(unit)
    for name, corners in corners_of_shapes().items():
        same_size = corners.shape == (len(unit), n_dimensions)
        if same_size and _rms(cosines - off_diagonal(corners)) <= TOLERANCE:
            return name
    return f"{len(unit)} in {n_dimensions}"


def corners_of_shapes() -> dict[str, Float[Tensor, "vector hidden"]]:
    """Unit vectors to the corners of each known shape."""
    tetrahedron = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    return {
        "alone": torch.ones(1, 1),
        "digon": torch.tensor([[1.0], [-1.0]]),
        "triangle": _polygon(3),
        "tetrahedron": tetrahedron,
        "pentagon": _polygon(5),
        "square antiprism": square_antiprism(),
    }


def square_antiprism(height: float = 0.5774) -> Float[Tensor, "vector hidden"]:
    """Two squares, one turned by 45 degrees, at +-height on the unit sphere.

    At 1/sqrt(3) the eight corners form a tight frame, so that each has exactly 3/8 of a dimension.
    """
    upper, lower = _polygon(4), _polygon(4, turned=0.5)
    squares = torch.cat([upper, lower]) * (1 - height**2) ** 0.5
    heights = torch.tensor([height] * 4 + [-height] * 4)[:, None]
    return torch.cat([squares, heights], dim=1)


def off_diagonal(unit: Tensor) -> Tensor:
    """The cosines of all pairs, sorted."""
    gram = unit @ unit.T
    row, column = torch.triu_indices(len(unit), len(unit), offset=1)
    return gram[row, column].sort().values


def _polygon(n: int, turned: float = 0.0) -> Tensor:
    angles = (torch.arange(n) + turned) * (2 * torch.pi / n)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0
