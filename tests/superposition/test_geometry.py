"""Shapes are recognised and named, dimensionality is what it should be, and random directions have no shape."""

from fractions import Fraction

import pytest
import torch

from mechscope.superposition.geometry import (
    STICKY,
    corners_of_shapes,
    feature_dimensionality,
    find_shapes,
    nearest_sticky,
)
from mechscope.superposition.shapes_toy import CASES, train_shape

EXACT = {
    "alone": Fraction(1),
    "digon": Fraction(1, 2),
    "triangle": Fraction(2, 3),
    "tetrahedron": Fraction(3, 4),
    "pentagon": Fraction(2, 5),
    "square antiprism": Fraction(3, 8),
}


def turned(weights: torch.Tensor, d_model: int, seed: int = 0) -> torch.Tensor:
    """The same vectors in another basis of a larger space."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d_model, weights.shape[1], generator=generator)).Q
    return weights @ basis.T


@pytest.mark.parametrize("name", EXACT)
def test_each_shape_has_its_name_and_dimensionality_in_any_basis(name: str) -> None:
    weights = turned(corners_of_shapes()[name], 7)
    (shape,) = find_shapes(weights)
    assert shape.name == name
    assert shape.dimensionality == pytest.approx(float(EXACT[name]), abs=1e-4)
    assert nearest_sticky(shape.dimensionality) == EXACT[name]
    assert EXACT[name] in STICKY


def test_shapes_in_orthogonal_subspaces_are_found_apart() -> None:
    corners = corners_of_shapes()
    weights = torch.block_diag(corners["triangle"], corners["digon"], corners["pentagon"])
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(1))
    shapes = find_shapes(turned(weights, 9)[order])
    assert sorted(shape.name for shape in shapes) == ["digon", "pentagon", "triangle"]
    assert sum(len(shape.features) for shape in shapes) == 10


def test_features_that_were_not_learnt_belong_to_no_shape() -> None:
    weights = torch.cat([corners_of_shapes()["digon"], torch.tensor([[0.1]])])
    assert [shape.features for shape in find_shapes(weights)] == [(0, 1)]
    assert find_shapes(0.1 * weights) == ()


def test_random_directions_are_no_known_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, d in ((3, 2), (4, 3), (5, 2), (8, 3)):
        names = {
            shape.name for seed in range(5) for shape in find_shapes(torch.randn(n, d, generator=generator))
        }
        assert not names & {"tetrahedron", "pentagon", "square antiprism"}


def test_dimensionality_sums_to_the_dimensions_of_a_tight_frame() -> None:
    assert float(feature_dimensionality(corners_of_shapes()["pentagon"]).sum()) == pytest.approx(
        2.0, abs=1e-5
    )
    by_hand = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert feature_dimensionality(by_hand).tolist() == [1.0, 1.0]
    assert float(feature_dimensionality(torch.zeros(2, 2)).max()) == 0.0


def test_nothing_sticky_is_far_from_all() -> None:
    assert nearest_sticky(0.85) is None


@pytest.mark.parametrize("name", ["digon", "triangle", "pentagon"])
def test_a_trained_model_ends_in_its_shape(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    (shape,) = find_shapes(train_shape(case, n_restarts=4, n_steps=300).weights)
    assert shape.name == name
    assert nearest_sticky(shape.dimensionality) == EXACT[name]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_ends_in_its_shape(case) -> None:
    (shape,) = find_shapes(train_shape(case).weights)
    assert shape.name == case.name
