"""The bench measures mechanisms as claims mean them, on the specimen whose mechanism is written down."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import mechscope as ms
from mechscope.claims import bench as bench_module
from mechscope.claims.bench import EngineBench
from mechscope.claims.control_families import best_family, draw_family, families_for
from mechscope.claims.controls import (
    DIRECTIONS,
    FAMILIES,
    OWN,
    RIVALS,
    SAME_LAYERS,
    SHUFFLED,
    STRICTEST,
    SUBSPACES,
)
from mechscope.claims.evidence import Evidence, HeldOut
from mechscope.claims.judge import judge
from mechscope.claims.mechanisms import Components, Direction
from mechscope.claims.neurons import Neurons
from mechscope.claims.predictions import Prediction, lowers, needs, raises, recorded, recovers, spares
from mechscope.claims.saved_mechanisms import mechanism_from_json
from mechscope.claims.sites import Sites
from mechscope.claims.testing import test_claim as judged_by_bench
from mechscope.claims.testing import verify_claim
from mechscope.engine.naive import measure_logits
from mechscope.specimens.induction import truth
from mechscope.vocabulary.errors import BadClaim, NotEnoughEvidence

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
    assert {tuple(head) for head in truth.HEADS} == set(TRUE.heads)


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


N_CONTEXT, ONE, OTHER = 12, 11, 22
"""Length of the prompts below, and the two tokens that can be next."""


@pytest.fixture(scope="module")
def one_or_other(model: ms.Model):
    """Prompts in which one token followed an earlier appearance of the last one; in the corrupt twin, the other did."""
    rng = np.random.default_rng(0)
    usual = [token for token in range(4, model.d_vocab) if token not in (ONE, OTHER)]
    clean = np.stack([rng.choice(usual, N_CONTEXT, replace=False) for _ in range(240)])
    clean[:, 0], clean[:, -1], clean[:, 5] = model.tokenizer.bos_token_id, clean[:, 4], ONE
    corrupt = clean.copy()
    corrupt[:, 5] = OTHER
    n = len(clean)
    return ms.behaviors.from_tokens(
        clean.tolist(), corrupt.tolist(), answers=[ONE] * n, wrong=[OTHER] * n, name="one or other"
    )


def raised_along(bench: EngineBench, behavior, vector: torch.Tensor):
    """The verdict on: steering along this at the end of the stream raises the metric by at least 0.5."""
    unit = torch.nn.functional.normalize(vector.double(), dim=0)
    mechanism = Direction("resid_post.1", tuple(unit.tolist()))
    claim = ms.Claim("x", behavior=behavior, mechanism=mechanism, predictions=[raises(0.5, dose=1.0)])
    return judged_by_bench(claim, bench).verdict


def test_steering_along_the_answer_raises_it_and_a_random_direction_does_not(model, one_or_other) -> None:
    answer = (model.weights["W_U"][:, ONE] - model.weights["W_U"][:, OTHER]).detach()
    bench = EngineBench(model)
    verdict = raised_along(bench, one_or_other, answer)
    (raised,) = verdict.predictions
    assert (verdict.outcome, raised.controls.family, raised.controls.rank) == (
        "supported",
        DIRECTIONS,
        "1st of 200",
    ), str(verdict)
    twin = torch.randn(len(answer), generator=torch.Generator().manual_seed(0))
    assert raised_along(bench, one_or_other, twin).outcome != "supported"
    assert raised_along(bench, one_or_other, -answer).outcome == "refuted"


def test_what_the_heads_do_not_do_is_spared_and_what_they_do_is_not(model, behavior) -> None:
    """Sparing on a model: of two behaviours of the same prompts, the heads carry one and have no part in the other."""
    rng = np.random.default_rng(1)
    usual = np.arange(4, model.d_vocab)
    plain = np.stack([rng.choice(usual, N_CONTEXT, replace=False) for _ in range(240)])
    plain[:, 0] = model.tokenizer.bos_token_id
    other = plain.copy()
    other[:, -1] = [rng.choice(np.setdiff1d(usual, row)) for row in plain]
    last = ms.behaviors.from_tokens(
        plain.tolist(),
        other.tolist(),
        answers=plain[:, -1].tolist(),
        wrong=other[:, -1].tolist(),
        name="last",
    )
    mine = ms.behaviors.load("induction", model, n=240, seed=0)
    bench = EngineBench(model)
    z = 0.1 * float(bench.open_split(mine, fresh_seed=None).gap.mean())
    outcomes = []
    for spared in (last, mine):
        prediction, split = spares(spared, z), bench.open_split(spared, fresh_seed=None)
        after = bench.measure([TRUE], prediction, spared, split)[0]
        outcomes.append(judge(split, [Evidence(prediction, after, split)], seed=0).predictions[0].outcome)
    assert outcomes == ["holds", "fails"]


def test_a_claim_that_names_no_controls_takes_a_family_that_can_gate(model) -> None:
    """One head of sixteen has 15 others in its layer, too few; the file recomputes to the same choice."""
    behavior = ms.behaviors.load("induction", model, n=12)
    alone = Components(heads=((1, 11),))
    claim = ms.Claim("x", behavior=behavior, mechanism=alone, predictions=[lowers(0.1, unit="gap")])
    record = claim.examine(model)
    (result,) = record.verdict.predictions
    assert claim.controls == STRICTEST
    assert result.controls.family == best_family(model, alone) == SUBSPACES
    assert result.controls.p is not None
    assert verify_claim(record, EngineBench(model, [behavior]), exact=True) == []


def test_what_was_measured_once_is_shared_by_all_claims_on_a_bench(
    model, behavior, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = EngineBench(model)
    split = shared.open_split(behavior, fresh_seed=None)
    rivals = [Components(heads=((0, 2), (1, 3))), Components(heads=((0, 1), (1, 3)))]
    first = shared.measure([TRUE, *rivals], lowers(0.5), behavior, split)
    n_runs = [0]
    run = bench_module.run_experiments

    def counted(*args, **more):
        n_runs[0] += len(args[1])
        return run(*args, **more)

    monkeypatch.setattr(bench_module, "run_experiments", counted)
    again = shared.measure([*rivals, TRUE], lowers(0.2, unit="gap"), behavior, split)
    assert n_runs == [0] and np.array_equal(again, first[[1, 2, 0]])
    shared.measure([TRUE], lowers(0.2, how="zero"), behavior, split)
    assert n_runs == [1], "another ablation value is another measurement"
    reopened = shared.open_split(behavior, fresh_seed=None)
    shared.measure([TRUE], lowers(0.5), behavior, reopened)
    assert n_runs == [1 + 2], "the two baselines, and no control"


def test_controls_do_not_depend_on_what_a_bench_did_before(model, behavior) -> None:
    other = ms.behaviors.load("induction", model, n=120, seed=5)
    draw = {"family": SUBSPACES, "n_draws": 1, "seed": 0}
    used = EngineBench(model)
    used.open_split(other, fresh_seed=None)
    assert other.train.data_hash != behavior.train.data_hash
    again, fresh = (b.draw_controls(TRUE, behavior, **draw).mechanisms for b in (used, EngineBench(model)))
    assert again == fresh
    assert used.draw_controls(TRUE, other, **draw).mechanisms != fresh


def test_another_behaviour_of_the_recorded_name_is_refused_and_the_same_one_is_taken(model, behavior) -> None:
    remembered = recorded(behavior)
    other = ms.behaviors.load("induction", model, n=120, seed=5)
    with pytest.raises(BadClaim, match="another"):
        EngineBench(model, [other]).data_hash(remembered, fresh_seed=None)
    assert EngineBench(model, [other, behavior]).data_hash(remembered, fresh_seed=None) == (
        behavior.held_out.data_hash
    )
    assert EngineBench(model).data_hash(remembered, fresh_seed=None) == behavior.held_out.data_hash


def test_one_set_of_prompts_under_two_metrics_is_two_measurements(model, behavior) -> None:
    both = EngineBench(model)
    accuracy = behavior.metric_as("accuracy")
    splits = [both.open_split(entry, fresh_seed=None) for entry in (behavior, accuracy)]
    assert splits[0].data_hash == splits[1].data_hash
    after = [
        both.measure([TRUE], lowers(0.5, how="zero"), entry, split)[0]
        for entry, split in zip((behavior, accuracy), splits, strict=True)
    ]
    assert set(after[1]) <= {0.0, 1.0} and not set(after[0]) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("kind", "bounds"),
    [
        ("logit_difference", (-np.inf, np.inf)),
        ("log_probability", (-np.inf, 0.0)),
        ("probability_difference", (-1.0, 1.0)),
        ("accuracy", (0.0, 1.0)),
        ("rank", (0.0, np.inf)),
    ],
)
def test_a_splits_bounds_are_its_metrics(model, behavior, kind: str, bounds: tuple[float, float]) -> None:
    split = EngineBench(model).open_split(behavior.metric_as(kind), fresh_seed=None)
    assert split.bounds == bounds
    assert bounds[0] <= split.clean.min() and split.clean.max() <= bounds[1]


@pytest.mark.parametrize(
    ("mechanism", "prediction"),
    [
        (Components(mlps=(0,)), lowers(0.5)),
        (Components(heads=((7, 0),)), lowers(0.5)),
        (Components(heads=((1, 99),)), needs(0.5)),
        (Direction("resid_post.1", (1.0,) * 4), lowers(0.5)),
        (TRUE, raises(1.0)),
        (Direction("resid_post.1", (1.0,) * 4), needs(0.5)),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_split_is_opened(
    model, behavior, tmp_path, mechanism, prediction: Prediction
) -> None:
    claim = ms.Claim(
        "x",
        behavior=behavior,
        mechanism=mechanism,
        predictions=[prediction],
        controls=DIRECTIONS if isinstance(mechanism, Direction) else SAME_LAYERS,
    )
    with pytest.raises(ms.MechscopeError):
        claim.test(model, ledger=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_direction_of_means_is_the_difference_by_hand_and_remembers_its_estimate(model, behavior) -> None:
    direction = Direction.mean_difference(model, behavior, site="resid_post.0")
    sides = [
        model.run(side, capture=["resid_post.0"])["resid_post.0"][:, -1].double().mean(0)
        for side in (behavior.clean, behavior.corrupt)
    ]
    assert np.allclose(direction.vector, (sides[0] - sides[1]).numpy(), atol=1e-6)
    assert direction.to_json()["estimate"] == "mean difference"
    assert "estimate" not in Direction("resid_post.0", (1.0,)).to_json()


def test_a_direction_alone_is_restored_into_the_corrupt_values_of_its_site(
    model, bench, behavior, held_out
) -> None:
    direction = Direction.mean_difference(model, behavior, site="resid_post.1")
    split = behavior.held_out
    clean, corrupt = (
        model.run(side, capture=["resid_post.1"])["resid_post.1"] for side in (split.clean, split.corrupt)
    )
    unit = torch.nn.functional.normalize(direction.tensor.float(), dim=0)
    restored = corrupt + ((clean - corrupt) @ unit)[..., None] * unit
    logits = model.logits(split.clean, interventions=[ms.patch("resid_post.1", restored)])
    by_hand = measure_logits(split.metric, split.clean, logits).double()
    found = bench.measure([direction], recovers(0.1), behavior, held_out)[0]
    assert np.allclose(found, by_hand.numpy(), atol=1e-3)


def test_shuffled_re_estimates_have_its_norm_and_not_its_direction(model, behavior) -> None:
    direction = Direction.mean_difference(model, behavior, site="resid_post.1")
    draws = [
        EngineBench(model).draw_controls(direction, behavior, family=SHUFFLED, n_draws=n, seed=3).mechanisms
        for n in (40, 5)
    ]
    assert draws[0][:5] == draws[1]
    found, truth_ = np.array([m.vector for m in draws[0]]), np.array(direction.vector)
    norms = np.linalg.norm(found, axis=1)
    assert np.allclose(norms, np.linalg.norm(truth_))
    cosines = np.abs(found @ truth_) / norms / np.linalg.norm(truth_)
    assert np.median(cosines) < 0.5
    plain = Direction(direction.site, direction.vector)
    with pytest.raises(BadClaim, match="no controls"):
        EngineBench(model).draw_controls(plain, behavior, family=SHUFFLED, n_draws=5, seed=3)


@dataclass(frozen=True)
class Stream:
    """A mechanism of a user's own: coordinates of the residual stream at each prompt's last token."""

    layer: int
    units: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"coordinates {self.units} of resid_post.{self.layer}"

    @property
    def sites(self) -> tuple[str, ...]:
        return (f"resid_post.{self.layer}",)

    def to_json(self) -> dict:
        return {"kind": "stream", "layer": self.layer, "units": list(self.units)}

    def ablation(self, how: str, reference) -> list:
        return [ms.ablate(self.sites[0], how, reference=reference, positions=-1).only(units=list(self.units))]

    def isolation(self, donor, size) -> list:
        raise AssertionError("no prediction of these tests restores a mechanism alone")

    def without_each(self) -> tuple["Stream", ...]:
        return ()

    def rivals(self, *, n_draws: int, seed: int) -> list["Stream"]:
        rest = [unit for unit in range(40) if unit not in self.units]
        rng = [np.random.default_rng([seed, i]) for i in range(n_draws)]
        return [
            Stream(self.layer, tuple(sorted(r.choice(rest, len(self.units), replace=False).tolist())))
            for r in rng
        ]


def test_a_mechanism_of_ones_own_is_claimed_against_its_own_rivals(model) -> None:
    mine, behavior = Stream(0, (1, 2)), ms.behaviors.load("induction", model, n=12)
    claim = ms.Claim(
        "x", behavior=behavior, mechanism=mine, predictions=[lowers(9.0, how="zero")], controls=OWN
    )
    record = claim.examine(model)
    (result,) = record.verdict.predictions
    assert result.controls is not None and result.effect is not None
    assert (result.controls.n_drawn, result.controls.family, result.controls.p is None) == (199, OWN, False)
    assert verify_claim(record, EngineBench(model, [behavior]), mechanism=mine, exact=True) == []


def test_every_family_that_is_offered_for_a_mechanism_can_be_drawn(model, behavior) -> None:
    sites = Sites.of("resid_post.0", positions=-1)
    kinds = (TRUE, Direction.mean_difference(model, behavior, site="resid_post.1"), sites)
    for mechanism in kinds:
        for family in families_for(mechanism):
            drawn = EngineBench(model).draw_controls(mechanism, behavior, family=family, n_draws=2, seed=0)
            assert len(drawn.mechanisms) >= 2, family
    assert len(FAMILIES) == len(set(FAMILIES))
    assert {family for mechanism in kinds for family in families_for(mechanism)} == {*FAMILIES} - {
        RIVALS,
        OWN,
    }


def test_mechanisms_come_back_from_their_json() -> None:
    for mechanism in (
        TRUE,
        Components(mlps=(1,)),
        Neurons(((0, 3), (1, 17))),
        Direction("resid_post.1", (1.0, 2.0), "mood"),
        Direction("resid_post.1", (1.0, 2.0), "mood", -1),
    ):
        assert mechanism_from_json(mechanism.to_json()) == mechanism


def test_whole_mlps_have_no_random_subspaces_and_the_refusal_says_why(model, behavior) -> None:
    for mechanism in (Components(mlps=(0,)), Components(heads=((0, 5),), mlps=(0,))):
        assert SUBSPACES not in families_for(mechanism)
        with pytest.raises(BadClaim, match="whole MLPs") as refused:
            EngineBench(model).draw_controls(mechanism, behavior, family=SUBSPACES, n_draws=2, seed=0)
        assert "Neurons" in refused.value.instead
    every_head = Components(heads=tuple((0, head) for head in range(model.n_heads)))
    assert best_family(model, every_head) == SAME_LAYERS
    with pytest.raises(NotEnoughEvidence, match="whole site"):
        EngineBench(model).draw_controls(every_head, behavior, family=SUBSPACES, n_draws=2, seed=0)


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
