"""The bench measures mechanisms as claims mean them, on the specimen whose mechanism is written down."""

import numpy as np
import pytest

import mechscope as ms
from mechscope.claims.bench import EngineBench
from mechscope.claims.control_families import best_family, draw_family
from mechscope.claims.controls import SAME_LAYERS, SUBSPACES
from mechscope.claims.evidence import HeldOut
from mechscope.claims.mechanisms import Components, Direction, complement, mechanism_from_json
from mechscope.claims.predictions import Prediction, lowers, needs, raises, recovers
from mechscope.specimens.induction import truth
from mechscope.vocabulary.errors import BadClaim

TRUE = Components(heads=((0, 5), (1, 11)))


@pytest.fixture(scope="module")
def model() -> ms.Model:
    return ms.load("induction")


@pytest.fixture(scope="module")
def behavior(model: ms.Model):
    return ms.behaviors.load("induction", model, n=120, seed=0)


@pytest.fixture(scope="module")
def bench(model: ms.Model) -> EngineBench:
    return EngineBench(model)


@pytest.fixture(scope="module")
def held_out(bench: EngineBench, behavior) -> HeldOut:
    return bench.open_split(behavior, fresh_seed=None)


def fraction(bench: EngineBench, behavior, held_out: HeldOut, mechanism, prediction: Prediction) -> float:
    """Mean effect as a fraction of the gap."""
    from mechscope.claims.evidence import effect_of

    after = bench.measure([mechanism], prediction, behavior, held_out)[0]
    return float(effect_of(prediction, held_out, after).mean() / held_out.gap.mean())


def test_the_truth_on_record_is_what_is_tested_here() -> None:
    assert (
        {tuple(head) for head in truth.HEADS.values()} == set(TRUE.heads)
        if isinstance(truth.HEADS, dict)
        else True
    )


def test_the_true_mechanism_does_the_behaviour_alone(bench, behavior, held_out) -> None:
    assert fraction(bench, behavior, held_out, TRUE, recovers(0.5)) > 0.95
    assert fraction(bench, behavior, held_out, TRUE, lowers(0.5, unit="gap")) > 0.4
    assert fraction(bench, behavior, held_out, TRUE, needs(0.5)) > 0.9


@pytest.mark.parametrize("head", [(0, 5), (1, 11)])
def test_one_head_of_the_two_recovers_nothing_alone(bench, behavior, held_out, head) -> None:
    """A bottleneck passes when the rest of the model is free to help; alone it does not."""
    assert abs(fraction(bench, behavior, held_out, Components(heads=(head,)), recovers(0.5))) < 0.1


def test_a_diluted_mechanism_has_a_part_that_is_not_needed(bench, behavior, held_out) -> None:
    diluted = Components(heads=(*TRUE.heads, (0, 2), (1, 3)))
    assert fraction(bench, behavior, held_out, diluted, recovers(0.5)) > 0.95
    assert abs(fraction(bench, behavior, held_out, diluted, needs(0.5))) < 0.05


def test_bystanders_do_nothing(bench, behavior, held_out) -> None:
    bystanders = Components(heads=((0, 2), (1, 3)))
    assert abs(fraction(bench, behavior, held_out, bystanders, lowers(0.5, unit="gap"))) < 0.05
    assert abs(fraction(bench, behavior, held_out, bystanders, recovers(0.5))) < 0.05


def test_corrupt_values_of_the_mechanism_lose_the_whole_gap(bench, behavior, held_out) -> None:
    assert fraction(bench, behavior, held_out, TRUE, lowers(0.5, unit="gap", how="corrupt")) > 0.9


def test_controls_share_nothing_with_the_mechanism(model: ms.Model, behavior) -> None:
    drawn = draw_family(model, TRUE, reference=behavior.train.clean, family=SAME_LAYERS, n_draws=10, seed=0)
    assert drawn.n_members == 15 * 15 and len(drawn.mechanisms) == 225
    assert all(
        not set(m.heads) & set(TRUE.heads) and {layer for layer, _ in m.heads} == {0, 1}
        for m in drawn.mechanisms
    )


def test_random_subspaces_have_the_mechanisms_size_and_are_drawn_again_equal(
    model: ms.Model, behavior
) -> None:
    first, again = (
        draw_family(
            model, TRUE, reference=behavior.train.clean, family=SUBSPACES, n_draws=2, seed=1
        ).mechanisms
        for _ in range(2)
    )
    assert [site for site, _ in first[0].bases] == ["z.0", "z.1"]
    assert first[0].bases[0][1].tensor.shape == (model.d_head, model.n_heads * model.d_head)
    assert first[0] == again[0] and first[0] != first[1]


def test_a_single_head_takes_a_family_that_can_gate(model: ms.Model) -> None:
    assert best_family(model, Components(heads=((0, 5),))) != SAME_LAYERS
    assert best_family(model, TRUE) == SAME_LAYERS


def test_heads_cannot_be_steered_along(bench, behavior, held_out) -> None:
    with pytest.raises(BadClaim, match="direction"):
        bench.measure([TRUE], raises(1.0), behavior, held_out)


def test_a_direction_is_measured_by_removing_and_adding_it(model, bench, behavior, held_out) -> None:
    vector = tuple(float(x) for x in model.weights["W_U"][:, 3].detach())
    direction = Direction("resid_post.1", vector)
    up = bench.measure([direction], raises(1.0, dose=0.5), behavior, held_out)
    down = bench.measure([direction], lowers(1.0, how="zero"), behavior, held_out)
    assert np.isfinite(up).all() and np.isfinite(down).all() and not np.allclose(up, down)


def test_mechanisms_come_back_from_their_json() -> None:
    for mechanism in (TRUE, Components(mlps=(1,)), Direction("resid_post.1", (1.0, 2.0), "mood")):
        assert mechanism_from_json(mechanism.to_json()) == mechanism


def test_a_complement_is_what_the_subspace_is_not() -> None:
    import torch

    basis = torch.linalg.qr(
        torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0].T
    rest = complement(basis)
    assert rest.shape == (4, 7)
    assert torch.allclose(basis @ rest.T, torch.zeros(3, 4, dtype=torch.float64), atol=1e-12)


@pytest.mark.slow
def test_the_verdict_supports_the_truth_and_not_its_neighbours(model: ms.Model) -> None:
    behavior = ms.behaviors.load("induction", model, n=240, seed=0)
    predictions = [lowers(0.3, unit="gap"), recovers(0.7), needs(0.3)]

    def outcome(mechanism: Components) -> str:
        claim = ms.Claim(
            "x", behavior=behavior, mechanism=mechanism, predictions=predictions, controls=SAME_LAYERS
        )
        return claim.test(model).outcome

    assert outcome(TRUE) == "supported"
    assert outcome(Components(heads=((0, 5),))) != "supported"
    assert outcome(Components(heads=(*TRUE.heads, (0, 2), (1, 3)))) == "refuted"
    assert outcome(Components(heads=((0, 2), (1, 3)))) == "refuted"
