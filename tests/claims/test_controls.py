"""Control families: disjoint, matched, without replacement, one tree of seeds."""

import math

import numpy as np
import pytest

from mechscope.claims.control_families import best_family, draw_family
from mechscope.claims.controls import ANY_LAYER, draw_selections, n_selections, shuffled_estimates
from mechscope.claims.mechanisms import Components
from mechscope.claims.subspaces import matched_directions, random_subspaces
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import BadClaim, NotEnoughEvidence
from small_models import prompts
from tiny_models import tiny

MECHANISM = {1: (2,), 2: (0, 5)}
UNIVERSE = {layer: tuple(range(12)) for layer in range(4)}


def draw(n: int = 200, seed: int = 0, **changes):
    settings = {"mechanism": MECHANISM, "universe": UNIVERSE, "name": "heads", **changes}
    mechanism, universe = settings.pop("mechanism"), settings.pop("universe")
    return draw_selections(mechanism, universe, n_draws=n, seed=seed, **settings)


def test_controls_have_as_many_per_layer_and_share_nothing_with_the_mechanism():
    universe = {layer: tuple(range(16)) for layer in range(4)}
    family = draw(universe=universe)
    assert family.n_members == 15 * math.comb(14, 2) == 1365
    assert len(family.members) == 200 and not family.is_exhaustive
    for member in family.members:
        assert {layer: len(heads) for layer, heads in member.items()} == {1: 1, 2: 2}
        assert not set(member[1]) & {2} and not set(member[2]) & {0, 5}
        assert len(set(member[2])) == 2


def test_controls_are_drawn_without_replacement():
    universe = {layer: tuple(range(16)) for layer in range(4)}
    members = draw(1300, universe=universe).members
    assert len({str(sorted(member.items())) for member in members}) == 1300


def test_a_family_of_at_most_a_thousand_comes_whole():
    family = draw(5)
    assert family.n_members == 11 * math.comb(10, 2) == 495
    assert family.is_exhaustive
    assert len({str(sorted(member.items())) for member in family.members}) == 495


def test_drawing_more_controls_leaves_the_first_ones_as_they_were():
    universe = {layer: tuple(range(40)) for layer in range(4)}
    few, many = draw(20, universe=universe).members, draw(300, universe=universe).members
    assert many[:20] == few
    assert draw(20, universe=universe, seed=1).members != few
    assert draw(20, universe=universe, name="other").members != few


def test_controls_are_spread_evenly_over_the_free_heads():
    universe = {layer: tuple(range(40)) for layer in range(4)}
    members = draw(2000, universe=universe).members
    counts = np.bincount([member[1][0] for member in members], minlength=40)
    assert counts[2] == 0
    expected = 2000 / 39
    chi2 = ((np.delete(counts, 2) - expected) ** 2 / expected).sum()
    assert chi2 < 70  # 38 degrees of freedom: p about 0.001


def test_a_small_layer_gives_a_small_family_and_all_layers_a_larger_one():
    universe = {layer: tuple(range(4)) for layer in range(4)}
    mechanism = {1: (2,), 2: (0, 3)}
    assert n_selections(mechanism, universe) == 3
    assert n_selections(mechanism, universe, anywhere=True) == math.comb(13, 3) == 286
    family = draw(mechanism=mechanism, universe=universe, anywhere=True)
    assert family.is_exhaustive and len(family.members) == 286
    for member in family.members:
        assert sum(map(len, member.values())) == 3
        assert not any(head in mechanism.get(layer, ()) for layer, heads in member.items() for head in heads)


def test_members_of_all_layers_keep_their_kinds():
    """An MLP is no stand-in for a head: controls mostly of heads would make any MLP stand out."""
    model = wrap(tiny("llama"), check=False)  # 3 layers of 4 heads
    mechanism = Components(heads=((0, 1), (2, 3)), mlps=(1,))
    family = draw_family(model, mechanism, reference=prompts(), family=ANY_LAYER, n_draws=1000, seed=0)
    assert family.n_members == len(family.mechanisms) == math.comb(10, 2) * 2
    for member in family.mechanisms:
        assert (len(member.heads), len(member.mlps)) == (2, 1)
        assert not set(member.heads) & set(mechanism.heads) and 1 not in member.mlps
    assert best_family(model, mechanism) == ANY_LAYER
    universe = {"a.0": (0, 1), "a.1": (0, 1), "b.0": (0, 1)}
    kinds = draw(
        mechanism={"a.0": (0,), "b.0": (1,)}, universe=universe, anywhere=True, kind_of=lambda site: site[0]
    )
    assert [sorted(member) for member in kinds.members] == [["a.0", "b.0"], ["a.1", "b.0"], ["a.1", "b.0"]]


def test_where_no_disjoint_selection_exists_the_family_is_empty():
    family = draw(mechanism={1: (0, 1, 2)}, universe={1: (0, 1, 2, 3)})
    assert (family.n_members, family.members) == (0, ())


def test_members_may_be_edges_by_pair_of_layers():
    universe = {"0>1": tuple(f"{a}-{b}" for a in range(6) for b in range(6))}
    family = draw(mechanism={"0>1": ("0-0", "3-4")}, universe=universe)
    assert family.n_members == math.comb(34, 2)
    assert all("3-4" not in member["0>1"] for member in family.members)


def test_a_mechanism_outside_its_universe_is_refused():
    for mechanism in ({1: (99,)}, {9: (0,)}, {}, {1: ()}):
        with pytest.raises(BadClaim, match="inside its universe"):
            draw(mechanism=mechanism)


def covariance(d: int = 24, seed: int = 0, steep: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (rotation * np.exp(steep * rng.normal(size=d))) @ rotation.T


def captured(basis: np.ndarray, cov: np.ndarray) -> float:
    frame = np.linalg.qr(basis.T)[0]
    return float(np.trace(frame.T @ cov @ frame))


@pytest.mark.parametrize("dim", [1, 3, 8])
@pytest.mark.parametrize("steep", [0.5, 2.0])
def test_random_subspaces_match_dimension_norm_and_captured_variance(dim: int, steep: float):
    cov = covariance(steep=steep)
    basis = np.random.default_rng(dim).normal(size=(dim, 24)) * np.arange(1, dim + 1)[:, None]
    draws = random_subspaces(basis, cov, n_draws=20, seed=0)
    assert draws.shape == (20, dim, 24)
    for one in draws:
        assert captured(one, cov) == pytest.approx(captured(basis, cov), rel=1e-6)
        assert np.linalg.norm(one, axis=1) == pytest.approx(np.linalg.norm(basis, axis=1))
        gram = one @ one.T
        assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-8 * gram.max()


def test_isotropic_subspaces_would_not_match_the_captured_variance():
    cov = covariance()
    _values, vectors = np.linalg.eigh(cov)
    basis = (vectors[:, -3] + 0.3 * vectors[:, 0])[None, :]
    isotropic = np.random.default_rng(0).normal(size=(200, 1, 24))
    off = [abs(np.log(captured(one, cov) / captured(basis, cov))) for one in isotropic]
    assert np.mean(np.array(off) > 0.5) > 0.5
    ours = random_subspaces(basis, cov, n_draws=1, seed=0)[0]
    assert captured(ours, cov) == pytest.approx(captured(basis, cov))


def test_random_subspaces_differ_from_one_another_and_are_stable_in_number():
    cov = covariance()
    basis = np.random.default_rng(1).normal(size=(2, 24))
    few, many = (random_subspaces(basis, cov, n_draws=n, seed=0) for n in (3, 9))
    assert np.array_equal(few, many[:3])
    units = many[:, 0] / np.linalg.norm(many[:, 0], axis=1, keepdims=True)
    assert np.abs(units @ units.T - np.eye(9)).max() < 0.999


def test_the_subspace_of_most_variance_has_no_random_peers():
    cov = covariance()
    vectors = np.linalg.eigh(cov)[1]
    for extreme in (vectors[:, -2:].T, vectors[:, :2].T):
        with pytest.raises(NotEnoughEvidence, match="as much variance"):
            random_subspaces(extreme, cov, n_draws=1, seed=0)


def test_isotropic_activations_have_subspaces_too():
    draws = random_subspaces(np.eye(2, 16), np.eye(16), n_draws=3, seed=0)
    assert captured(draws[0], np.eye(16)) == pytest.approx(2.0)


def test_matched_directions_are_spread_as_the_activations_and_equal_in_norm():
    cov = np.diag([100.0, 1.0, 0.01])
    draws = matched_directions(cov, norm=3.0, n_draws=500, seed=0)
    assert np.linalg.norm(draws, axis=1) == pytest.approx(3.0)
    assert (np.abs(draws[:, 0]) > np.abs(draws[:, 2])).mean() > 0.95


def test_activations_that_do_not_vary_have_no_controls():
    with pytest.raises(NotEnoughEvidence, match="do not vary"):
        random_subspaces(np.eye(1, 8), np.zeros((8, 8)), n_draws=1, seed=0)


def test_shuffled_labels_keep_their_counts_and_lose_their_meaning():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    points = rng.normal(size=(200, 5)) + 3 * labels[:, None]

    def difference(some: np.ndarray) -> np.ndarray:
        assert some.sum() == 100
        return points[some == 1].mean(axis=0) - points[some == 0].mean(axis=0)

    found = shuffled_estimates(difference, labels, n_draws=30, seed=0)
    assert max(np.linalg.norm(one) for one in found) < 0.5 * np.linalg.norm(difference(labels))
    assert np.array_equal(shuffled_estimates(difference, labels, n_draws=5, seed=0)[4], found[4])
    with pytest.raises(BadClaim, match="equal labels"):
        shuffled_estimates(difference, np.ones(10), n_draws=1, seed=0)
