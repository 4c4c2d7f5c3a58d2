"""From measurements to verdicts: every outcome, and every reason for having none."""

from dataclasses import replace

import numpy as np
import pytest

from claim_tables import measured, split
from mechscope.claims import rule
from mechscope.claims.evidence import Controls, Evidence, effect_of, stratum_means
from mechscope.claims.judge import judge
from mechscope.claims.predictions import RecordedBehavior, lowers, raises, recovers, spares
from mechscope.claims.verdict import Verdict
from mechscope.records.canonical import from_plain, to_plain
from mechscope.vocabulary.errors import BadClaim, NotEnoughEvidence, ShapeError

OTHER = RecordedBehavior("other", "{}")


def verdict(held_out=None, *evidence, n_resamples: int = 2000) -> Verdict:
    held_out = held_out or split()
    return judge(held_out, evidence, seed=0, n_resamples=n_resamples)


def test_a_large_specific_effect_is_supported():
    data = split()
    found = verdict(data, measured(lowers(1.0), data, 1.5), measured(recovers(0.4), data, 1.8))
    assert found.outcome == "supported"
    assert found.supported
    assert found.reasons == ()
    first, second = found.predictions
    assert first.effect is not None and first.effect.value == pytest.approx(1.5)
    assert second.effect is not None
    assert second.effect.value == pytest.approx(1.8 / data.gap.mean())  # a ratio of means
    assert first.controls is not None and first.controls.rank == "1st of 200"


def test_an_effect_below_its_bound_is_refuted():
    data = split()
    found = verdict(data, measured(lowers(1.0), data, 0.5))
    assert found.outcome == "refuted"
    assert "too small" in found.reasons[0]


def test_an_effect_that_any_control_has_is_refuted_however_large():
    data = split()
    found = verdict(data, measured(lowers(1.0), data, 1.5, control_effect=1.6))
    assert found.predictions[0].outcome == "fails"
    assert found.outcome == "refuted"
    assert "weaker than its controls" in found.reasons[0]


def test_an_effect_among_its_controls_is_undecided():
    data = split()
    found = verdict(data, measured(lowers(1.0), data, 1.5, control_effect=1.43))
    assert found.outcome == "inconclusive"
    assert rule.NOT_SPECIFIC in found.reasons[0]


def test_an_interval_that_includes_the_bound_is_undecided_with_its_ends():
    data = split()
    found = verdict(data, measured(lowers(1.0), data, 1.0))
    assert found.outcome == "inconclusive"
    assert rule.TOO_WIDE in found.reasons[0]


def test_two_predictions_need_a_smaller_p_to_be_refuted():
    data = split()
    weak = measured(lowers(1.0), data, 0.955)
    alone = verdict(data, weak, n_resamples=10_000)
    assert 0.025 < alone.predictions[0].p_failure <= 0.05
    assert alone.outcome == "refuted"
    both = verdict(data, weak, measured(raises(1.0), data, 1.5), n_resamples=10_000)
    assert both.outcome == "inconclusive"
    assert any(rule.UNCORRECTED in reason for reason in both.reasons)


@pytest.mark.parametrize(
    ("change", "outcome"), [(0.0, "holds"), (0.5, "fails"), (-0.5, "fails"), (0.2, "undecided")]
)
def test_sparing_is_judged_by_equivalence_in_both_directions(change: float, outcome: str):
    other = split(seed=5, name="other")
    found = verdict(None, measured(spares(OTHER, 0.2), other, change))
    assert found.predictions[0].outcome == outcome
    assert found.predictions[0].controls is None


def test_sparing_is_judged_by_the_90_percent_interval_and_failure_by_the_95():
    """Two one-sided tests at 5% each: a bound between the ends of the two intervals."""
    other = split(seed=5, name="other")
    probe = verdict(None, measured(spares(OTHER, 5.0), other, 0.3)).predictions[0]
    inner, outer = probe.inner, probe.effect.interval
    assert (inner.level, outer.level) == (0.90, 0.95) and outer.low < inner.low and inner.high < outer.high
    for bound, outcome in (
        ((inner.high + outer.high) / 2, "holds"),
        (inner.high - 0.01 * inner.width, "undecided"),
        ((inner.low + outer.low) / 2, "undecided"),
        (outer.low - 0.01 * outer.width, "fails"),
    ):
        found = verdict(None, measured(spares(OTHER, bound), other, 0.3))
        assert found.predictions[0].outcome == outcome


def test_a_wide_interval_around_zero_is_no_evidence_of_sparing():
    other = split(seed=5, name="other")
    found = verdict(None, measured(spares(OTHER, 0.2), other, 0.0, sd=5.0))
    assert found.predictions[0].outcome == "undecided"
    assert found.outcome == "inconclusive"


def test_a_spared_behaviour_that_the_model_lacks_decides_nothing():
    other = split(seed=5, name="other", gap=0.0)
    data = split()
    found = verdict(data, measured(lowers(1.0), data, 1.5), measured(spares(OTHER, 0.2), other, 0.0))
    assert found.outcome == "inconclusive"
    assert any(rule.ABSENT in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_units": 24, "per_unit": 4}, rule.TOO_FEW_PROMPTS),
        ({"n_units": 19, "per_unit": 10}, rule.TOO_FEW_UNITS),
        ({"gap": 0.0}, rule.ABSENT),
        ({"gap": -3.0}, rule.ABSENT),
        ({"bounds": (-8.0, 2.0)}, rule.AT_BOUND),
        ({"bounds": (2.0, 100.0)}, rule.AT_BOUND),
    ],
)
@pytest.mark.parametrize("effect", [1.5, 0.1])
def test_held_out_data_that_show_nothing_make_any_claim_inconclusive(
    changes: dict, reason: str, effect: float
):
    data = split(**changes)
    found = verdict(data, measured(lowers(1.0), data, effect))
    assert found.outcome == "inconclusive"
    assert any(given.startswith(reason) for given in found.reasons)
    assert found.predictions[0].outcome == "undecided"


def test_a_fraction_of_a_gap_that_may_be_zero_is_shown_as_undefined():
    data = split(gap=0.0)
    found = verdict(data, measured(recovers(0.5), data, 1.0))
    assert found.predictions[0].effect is None
    assert "undefined" in str(found)


@pytest.mark.parametrize(
    ("n_controls", "members", "generated", "outcome"),
    [
        (8, 8.0, False, "inconclusive"),
        (50, 50.0, False, "supported"),
        (50, np.inf, False, "inconclusive"),
        (39, np.inf, True, "supported"),
        (0, np.inf, False, "inconclusive"),
    ],
)
def test_controls_without_resolution_support_nothing(
    n_controls: int, members: float, generated: bool, outcome: str
):
    data = split(generated_text=generated)
    evidence = measured(lowers(1.0), data, 1.5, n_controls=n_controls, n_members=members)
    found = verdict(data, evidence)
    assert found.outcome == outcome
    if outcome == "inconclusive":
        assert rule.NO_RESOLUTION in found.reasons[0]
    assert any("generated text" in note for note in found.notes) is (generated and n_controls > 0)


def test_a_small_family_is_shown_as_a_rank_and_has_no_p():
    data = split()
    found = verdict(data, measured(lowers(1.0), data, 1.5, n_controls=8, n_members=8.0))
    controls = found.predictions[0].controls
    assert controls is not None
    assert (controls.rank, controls.p, controls.margin) == ("1st of 9", None, None)


def test_a_family_that_the_claim_does_not_name_is_a_rank_and_changes_nothing_else():
    data = split()
    alone = measured(lowers(1.0), data, 1.5)
    stronger = measured(lowers(1.0), data, 1.5, control_effect=9.0, n_controls=19).controls
    assert stronger is not None
    beside = replace(alone, others=(replace(stronger, family="random subspaces"),))
    without, found = verdict(data, alone), verdict(data, beside)
    (shown,) = found.predictions[0].others
    assert (shown.rank, shown.p, shown.margin) == ("20th of 20", None, None)
    assert replace(found.predictions[0], others=()) == without.predictions[0]
    assert found.outcome == "supported"
    assert any("20th of 20 among random subspaces" in note for note in found.notes)
    assert Verdict.from_json(from_plain(to_plain(found.to_json()))) == found


def test_a_small_family_cannot_refute_by_specificity_but_size_still_can():
    data = split()
    strong = measured(lowers(1.0), data, 1.5, n_controls=8, n_members=8.0, control_effect=9.0)
    assert verdict(data, strong).outcome == "inconclusive"
    small = measured(lowers(1.0), data, 0.5, n_controls=8, n_members=8.0)
    assert verdict(data, small).outcome == "refuted"


def test_the_same_evidence_and_seed_give_the_same_verdict():
    data = split()
    evidence = [measured(lowers(1.0), data, 1.5), measured(recovers(0.4), data, 1.8)]
    assert judge(data, evidence, seed=3) == judge(data, evidence, seed=3)
    assert judge(data, evidence, seed=3) != judge(data, evidence, seed=4)


def test_the_order_of_predictions_changes_no_number():
    data = split()
    one, two = measured(lowers(1.0), data, 1.5), measured(raises(1.0), data, 1.2)
    forth, back = verdict(data, one, two), verdict(data, two, one)
    assert forth.predictions[0] == back.predictions[1]
    assert forth.predictions[1] == back.predictions[0]


def test_the_margin_over_controls_is_effect_minus_their_95th_percentile():
    data = split()
    evidence = measured(lowers(1.0), data, 1.5)
    found = verdict(data, evidence).predictions[0]
    strengths = np.sort(evidence.control_effects.mean(axis=1))
    assert found.controls is not None and found.controls.margin is not None
    assert found.controls.quantile == pytest.approx(strengths[189])
    assert found.controls.margin.value == pytest.approx(1.5 - strengths[189])


def test_effects_are_signed_so_that_stronger_is_larger():
    data = split()
    after = data.clean - 1.0
    assert effect_of(lowers(1.0), data, after) == pytest.approx(1.0)
    assert effect_of(raises(1.0), data, after) == pytest.approx(-1.0)
    assert data.corrupt is not None
    assert effect_of(recovers(0.5), data, data.corrupt + 2.0) == pytest.approx(2.0)


def test_effects_are_shown_for_each_template_and_held_fixed_templates_are_noted():
    data = split(strata=tuple("ab"[i % 2] for i in range(120)))
    evidence = measured(lowers(1.0), data, 1.5)
    found = verdict(data, evidence)
    assert found.predictions[0].by_stratum == stratum_means(evidence)
    assert dict(stratum_means(evidence))["a"] == pytest.approx(evidence.effect[::2].mean())
    assert any("templates are held fixed" in note for note in found.notes)


def test_a_behaviour_without_corrupt_prompts_says_so_and_has_no_fractions():
    data = split(corrupt=None)
    found = verdict(data, measured(raises(1.0), data, 1.5))
    assert found.outcome == "supported"
    assert any("no corrupt prompts" in note for note in found.notes)
    with pytest.raises(BadClaim, match="needs corrupt prompts"):
        verdict(data, Evidence(recovers(0.5), data.clean, data))


def test_a_verdict_goes_through_json_and_back():
    data = split()
    evidence = [
        measured(lowers(1.0), data, 1.5),
        measured(spares(OTHER, 0.2), split(seed=5, name="other"), 0.0),
        measured(recovers(0.4), data, 1.8, n_controls=8, n_members=8.0),
    ]
    found = replace(verdict(data, *evidence), statement="it does", claim_id="1" * 64)
    assert Verdict.from_json(found.to_json()) == found
    assert Verdict.from_json(from_plain(to_plain(found.to_json()))) == found


def test_a_verdict_reads_as_a_table_and_escapes_what_people_wrote():
    data = split()
    found = replace(verdict(data, measured(lowers(1.0), data, 1.5)), statement="<b>bold</b>")
    text = str(found)
    assert text.startswith("SUPPORTED: <b>bold</b>")
    assert "ablating it (mean) lowers the metric by at least 1" in text
    assert "1st of 200" in text
    assert "120 held-out prompts in 24 units" in text
    assert "&lt;b&gt;" in found._repr_html_() and "<b>" not in found._repr_html_()


def test_measurements_that_do_not_fit_are_refused():
    data = split()
    with pytest.raises(ShapeError, match="another split"):
        Evidence(lowers(1.0), np.zeros(7), data)
    with pytest.raises(ShapeError, match="another split"):
        Evidence(lowers(1.0), data.clean, data, Controls("f", np.zeros((3, 7))))
    with pytest.raises(ShapeError, match="disagree in length"):
        split(strata=("a",))
    with pytest.raises(BadClaim, match="without predictions"):
        judge(data, [], seed=0)
    broken = data.clean.copy()
    broken[3] = np.nan
    with pytest.raises(NotEnoughEvidence, match="not a number"):
        verdict(data, Evidence(lowers(1.0), broken, data))
