"""Whether a model does it at all: counted by hand, with intervals that cover, and judged honestly."""

import numpy as np
import pytest
import torch

import mechscope as ms
from behaviors.speakers import small_model, speechless_model
from mechscope.behaviors import Baseline, from_tokens, load, measure
from mechscope.behaviors.baseline import _estimate, _state
from mechscope.models.model import Model
from mechscope.vocabulary.errors import NotEnoughEvidence

ROWS = 24


def a_list(*, answers: list[int], wrong: list[int] | None) -> ms.behaviors.Behavior:
    """Two dozen random prompts as a train split."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(0, 37, (ROWS, 6), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 2] = (clean[:, 2] + 5) % 37
    return from_tokens(clean, corrupt, answers=answers, wrong=wrong, splits=["train"] * ROWS)


def top_tokens(model: Model) -> tuple[list[int], list[int]]:
    """The most probable token after each clean prompt, and the second most probable."""
    logits = model.logits(a_list(answers=[0] * ROWS, wrong=None).clean)[:, -1]
    best = logits.topk(2).indices
    return best[:, 0].tolist(), best[:, 1].tolist()


def test_accuracy_metric_and_gap_equal_a_plain_forward() -> None:
    model = speechless_model()
    best, second = top_tokens(model)
    answers = [best[row] if row % 3 else second[row] for row in range(ROWS)]
    wrong = [second[row] if row % 3 else best[row] for row in range(ROWS)]
    own = a_list(answers=answers, wrong=wrong)
    baseline = measure(model, own)
    rows = torch.arange(ROWS)
    by_hand = {}
    for side in ("clean", "corrupt"):
        logits = model.hf(getattr(own, side).ids).logits[:, -1].double()
        by_hand[side] = (logits[rows, answers] - logits[rows, wrong]).mean().item()
        top = (logits.argmax(-1) == torch.tensor(answers)).double().mean().item()
        assert baseline.estimate(f"top_{side}").value == pytest.approx(top)
        assert baseline.estimate(side).value == pytest.approx(by_hand[side], abs=1e-5)
    assert baseline.gap.value == pytest.approx(by_hand["clean"] - by_hand["corrupt"], abs=1e-5)
    assert baseline.accuracy.value == pytest.approx(16 / 24)


def test_the_induction_specimen_does_induction_and_a_random_model_does_not() -> None:
    specimen = ms.load("induction")
    present = measure(specimen, load("induction", specimen, n=120))
    assert present.is_present and present.accuracy.value == 1.0
    assert present.accuracy.low < 1.0  # none of 20 units failed, which is not certainty
    absent = measure(speechless_model(), load("induction", speechless_model(), n=120))
    assert absent.state == "absent" and absent.gap.low <= 0 <= absent.gap.high


def test_measuring_a_behaviour_reads_its_train_split_only() -> None:
    induction = load("induction", speechless_model(), n=30)
    assert measure(speechless_model(), induction).data_sha256 == induction.train.data_hash
    assert measure(speechless_model(), induction.held_out).data_sha256 == induction.held_out.data_hash


def test_a_gap_in_the_wrong_direction_is_reversed_not_absent() -> None:
    specimen = ms.load("induction")
    train = load("induction", specimen, n=120).train
    turned = type(train)(
        **{name: getattr(train, name) for name in train.__dataclass_fields__}
        | {
            "clean": train.corrupt,
            "corrupt": train.clean,
        }
    )
    assert measure(specimen, turned).state == "reversed"


def test_a_bounded_metric_at_its_bound_has_no_room() -> None:
    def state(clean: float) -> str:
        gap = {"value": 0.5, "low": 0.4, "high": 0.6}
        return _state(
            "probability_difference", {"gap": gap, "clean": {"value": clean, "low": 0.0, "high": 0.0}}
        )

    assert state(0.995) == "at ceiling"
    assert state(-0.995) == "at floor"
    assert state(0.5) == "present"


def test_the_interval_counts_units_and_not_prompts() -> None:
    values = np.random.default_rng(0).normal(size=12).repeat(25)
    units = np.arange(12).repeat(25)
    by_unit = _estimate(values, units, key="gap", seed=0)
    by_prompt = _estimate(values, np.arange(300), key="gap", seed=0)
    width = [estimate["high"] - estimate["low"] for estimate in (by_unit, by_prompt)]
    assert width[0] > 3 * width[1]
    error = values.std(ddof=1) / 12**0.5
    assert width[0] == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_a_baseline_survives_saving_and_shows_itself(tmp_path) -> None:
    baseline = measure(speechless_model(), load("induction", speechless_model(), n=30))
    baseline.save(tmp_path / "baseline.json")
    assert Baseline.load(tmp_path / "baseline.json") == baseline
    shown = str(baseline)
    assert "induction on train: " in shown and "gap" in shown and "logits" in shown
    assert "units: the intervals are rough" in shown


def test_only_correct_keeps_what_is_right_and_says_both_accuracies() -> None:
    model = speechless_model()
    best, second = top_tokens(model)
    answers = [best[row] if row % 3 else second[row] for row in range(ROWS)]
    wrong = [second[row] if row % 3 else best[row] for row in range(ROWS)]
    own = a_list(answers=answers, wrong=wrong)
    kept = own.only_correct(model)
    assert kept.sizes["train"] == 16
    assert measure(model, kept).estimate("preferred_clean").value == 1.0
    change = kept.recipe()["changes"][0]
    assert change["splits"]["train"] == {
        "n_before": 24,
        "n_after": 16,
        "accuracy_before": pytest.approx(2 / 3),
        "accuracy_after": 1.0,
    }
    assert change["model"]["weights_sha256"] == model.fingerprint.weights_sha256
    assert "train 16 of 24 (accuracy 0.667 before, 1.000 after)" in str(kept)
    assert own.recipe()["changes"] == []


def test_fresh_prompts_of_a_filtered_behaviour_are_refused_because_no_model_is_held() -> None:
    induction = load("induction", speechless_model(), n=60).only_correct(speechless_model())
    with pytest.raises(NotEnoughEvidence, match="would not be filtered"):
        induction.redraw(1)


def test_a_behaviour_of_which_nothing_is_right_is_not_filtered_to_nothing() -> None:
    model = speechless_model()
    best, second = top_tokens(model)
    with pytest.raises(NotEnoughEvidence, match="no clean prompt"):
        a_list(answers=second, wrong=best).only_correct(model)


def test_padding_changes_no_number() -> None:
    model = small_model()
    tokens = [[1, 4, 7], [1, 5, 8, 9, 11, 3]]
    twins = [[1, 6, 7], [1, 5, 8, 10, 11, 3]]
    both = from_tokens(tokens, twins, answers=[4, 5], wrong=[6, 7])
    alone = [
        from_tokens([one], [two], answers=[a], wrong=[w])
        for one, two, a, w in zip(tokens, twins, [4, 5], [6, 7], strict=True)
    ]
    together = measure(model, both).gap.value
    apart = [measure(model, own).gap.value for own in alone]
    assert together == pytest.approx(sum(apart) / 2, abs=1e-5)
