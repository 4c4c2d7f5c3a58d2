"""A claim file carries everything, and what counts as the same result."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from claim_tables import FINGERPRINT, ToyBehavior, ToyBench, ToyMechanism, toy_claim
from mechscope.claims import rule
from mechscope.claims.claim_file import ClaimRecord, refuse_unless_consistent
from mechscope.claims.evidence import HeldOut
from mechscope.claims.ledger import Ledger
from mechscope.claims.predictions import lowers, raises, recovers, spares
from mechscope.claims.testing import test_claim as run_claim
from mechscope.claims.testing import verify_claim
from mechscope.claims.verdict import Estimate
from mechscope.claims.verification import compare_records, refuse_unless_reproduced
from mechscope.data.intervals import Interval
from mechscope.records.canonical import hash_json
from mechscope.records.files import open_json, save_json
from mechscope.vocabulary.errors import BadClaim, BadFile, ClaimEdited, NotReproduced, UnsafeFile


@pytest.fixture(scope="module")
def record() -> ClaimRecord:
    claim = toy_claim(lowers(1.0), recovers(0.4), spares(ToyBehavior("other"), 0.2))
    return run_claim(claim, ToyBench())


def test_a_true_mechanism_is_supported_and_the_verdict_names_its_claim(record: ClaimRecord):
    assert record.verdict.outcome == "supported", str(record.verdict)
    assert record.verdict.claim_id == record.claim.id
    controls = record.verdict.predictions[0].controls
    assert controls is not None
    assert (controls.n_drawn, controls.n_members, controls.rank) == (91, 91, "1st of 92")


def test_half_the_mechanism_and_a_wrong_one_are_not_supported():
    half = run_claim(toy_claim(lowers(1.0), mechanism=ToyMechanism(((1, (2,)),))), ToyBench())
    assert half.verdict.outcome != "supported"
    wrong = run_claim(toy_claim(lowers(1.0), mechanism=ToyMechanism(((0, (0,)), (3, (1,))))), ToyBench())
    assert wrong.verdict.outcome == "refuted"


def test_a_claim_file_comes_back_bit_for_bit(record: ClaimRecord, tmp_path: Path):
    record.save(tmp_path / "a.claim.json")
    again = ClaimRecord.load(tmp_path / "a.claim.json")
    assert again.claim == record.claim
    assert again.verdict == record.verdict
    assert again.model == record.model
    assert compare_records(record, again, exact=True) == []
    assert again.rejudged() == record.verdict
    again.save(tmp_path / "b.claim.json")
    assert (tmp_path / "a.claim.json").read_bytes() == (tmp_path / "b.claim.json").read_bytes()


def test_single_precision_and_unbounded_values_survive_the_file(record: ClaimRecord, tmp_path: Path):
    evidence = tuple(replace(entry, after=entry.after.astype(np.float32)) for entry in record.evidence)
    replace(record, evidence=evidence).save(tmp_path / "a.json")
    again = ClaimRecord.load(tmp_path / "a.json")
    assert again.evidence[0].after.dtype == np.float32
    assert (again.evidence[0].after == evidence[0].after).all()
    assert again.held_out.bounds == (-np.inf, np.inf)


def edit(path: Path, *steps: object, value: object, forge: bool = False) -> None:
    """Change one entry of a claim file; a forger also mends the checksum."""
    body = open_json(path)
    inner = body
    for step in steps[:-1]:
        inner = inner[step]
    assert inner[steps[-1]] != value
    inner[steps[-1]] = value
    if forge:
        body["sha256"] = hash_json({key: item for key, item in body.items() if key != "sha256"})
    save_json(path, body)


@pytest.mark.parametrize(
    "steps",
    [
        ("verdict", "outcome"),
        ("verdict", "predictions", 0, "effect", "value"),
        ("claim", "statement"),
        ("model", "weights_sha256"),
        ("splits", 0, "clean", 3),
        ("evidence", 0, "after", 3),
        ("evidence", 0, "controls", "after", "base64"),
        ("created",),
    ],
)
def test_an_edited_claim_file_is_refused(record: ClaimRecord, tmp_path: Path, steps: tuple):
    path = tmp_path / "a.json"
    record.save(path)
    edit(path, *steps, value="edited")
    with pytest.raises(ClaimEdited, match="changed after it was saved"):
        ClaimRecord.load(path)


def test_a_forged_checksum_does_not_hide_an_edited_claim(record: ClaimRecord, tmp_path: Path):
    path = tmp_path / "a.json"
    record.save(path)
    edit(path, "claim", "predictions", 0, "bound", value=0.1, forge=True)
    with pytest.raises(ClaimEdited, match="do not give its id"):
        ClaimRecord.load(path)


def test_a_forged_checksum_does_not_hide_an_edited_verdict(tmp_path: Path):
    refuted = run_claim(toy_claim(lowers(9.0)), ToyBench())
    assert refuted.verdict.outcome == "refuted"
    path = tmp_path / "a.json"
    refuted.save(path)
    edit(path, "verdict", "outcome", value="supported", forge=True)
    with pytest.raises(ClaimEdited, match="does not follow"):
        refuse_unless_consistent(ClaimRecord.load(path))
    with pytest.raises(ClaimEdited, match="does not follow"):
        verify_claim(ClaimRecord.load(path), ToyBench())
    refuse_unless_consistent(refuted)


def test_files_that_are_no_claim_files_are_refused(record: ClaimRecord, tmp_path: Path):
    path = tmp_path / "a.json"
    record.save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"[]", b"{}", json.dumps(record.claim.to_json()).encode()):
        path.write_bytes(content)
        with pytest.raises(BadFile):
            ClaimRecord.load(path)
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(UnsafeFile):
        ClaimRecord.load(path)
    record.save(path)
    edit(path, "splits", value=[], forge=True)
    with pytest.raises(BadFile, match="not whole"):
        ClaimRecord.load(path)


def test_the_ledger_is_written_before_the_split_is_read_and_repeats_are_noted(tmp_path: Path):
    ledger = Ledger(tmp_path)

    class Watching(ToyBench):
        def open_split(self, behavior, *, fresh_seed) -> HeldOut:
            assert ledger.openings(self.data_hash(behavior, fresh_seed=fresh_seed)) >= 1
            return super().open_split(behavior, fresh_seed=fresh_seed)

    first = run_claim(toy_claim(lowers(1.0)), Watching(), ledger=ledger)
    assert first.verdict.held_out.openings == 1
    assert not any("opened" in note for note in first.verdict.notes)
    second = run_claim(toy_claim(lowers(1.1)), Watching(), ledger=ledger)
    assert second.verdict.held_out.openings == 2
    assert any("opened 2 times" in note for note in second.verdict.notes)
    fresh = run_claim(toy_claim(lowers(1.1)), Watching(), ledger=ledger, fresh_seed=7)
    assert fresh.verdict.held_out.openings == 1
    assert any("drawn anew" in note for note in fresh.verdict.notes)
    assert [entry.purpose for entry in ledger.entries()] == ["test", "test", "fresh"]


def test_each_split_is_opened_once_however_many_predictions_read_it():
    bench = ToyBench()
    other = ToyBehavior("other")
    run_claim(toy_claim(lowers(1.0), recovers(0.4), spares(other, 0.2), spares(other, 0.3)), bench)
    assert [entry for entry in bench.log if entry.startswith("open")] == ["open toy-ioi", "open other"]


def test_controls_are_drawn_before_anything_held_out_is_read():
    bench = ToyBench()
    run_claim(toy_claim(lowers(1.0), recovers(0.4), spares(ToyBehavior("other"), 0.2)), bench)
    steps = [entry.split()[0] for entry in bench.log]
    assert steps == sorted(steps) and set(steps) == {"draw", "open"}
    assert steps.count("draw") == 1, "all predictions are held against the same controls"


@pytest.mark.parametrize(
    "claim",
    [toy_claim(controls="random subspaces"), toy_claim(lowers(1.0), raises(1.0))],
    ids=["family", "kind"],
)
def test_a_claim_that_cannot_be_measured_costs_no_opening(claim, tmp_path: Path):
    bench, ledger = ToyBench(), Ledger(tmp_path)
    with pytest.raises(BadClaim):
        run_claim(claim, bench, ledger=ledger)
    assert not any(entry.startswith("open") for entry in bench.log) and ledger.entries() == []


def test_two_behaviours_of_one_name_are_two_splits():
    bench = ToyBench()
    run_claim(toy_claim(lowers(1.0), spares(ToyBehavior(settings={"n": 120, "seed": 9}), 0.2)), bench)
    assert bench.log.count("open toy-ioi") == 2


def test_other_families_are_shown_as_ranks_kept_in_the_file_and_verified(tmp_path: Path):
    bench = ToyBench()
    bench.shown = ("random subspaces",)
    found = run_claim(toy_claim(lowers(1.0)), bench)
    (shown,) = found.verdict.predictions[0].others
    assert (shown.family, shown.rank, shown.p) == ("random subspaces", "1st of 20", None)
    assert shown.shortfall == rule.NOT_NAMED
    assert any("1st of 20 among random subspaces" in note for note in found.verdict.notes)
    found.save(tmp_path / "a.json")
    again = ClaimRecord.load(tmp_path / "a.json")
    assert again.verdict == found.verdict and again.rejudged() == found.verdict
    assert verify_claim(again, bench, exact=True) == []
    differences = verify_claim(again, ToyBench())
    assert any("other families" in difference.what for difference in differences)


def test_without_a_ledger_the_verdict_says_that_nobody_counts(record: ClaimRecord, tmp_path: Path):
    assert any("no ledger was kept" in note for note in record.verdict.notes)
    counted = run_claim(toy_claim(lowers(1.0)), ToyBench(), ledger=Ledger(tmp_path))
    assert not any("no ledger" in note for note in counted.verdict.notes)


def test_exactness_is_asked_of_corrupt_prompts_too(record: ClaimRecord):
    assert record.held_out.corrupt is not None
    moved = replace(record.held_out, corrupt=record.held_out.corrupt + 1e-13)
    evidence = tuple(
        replace(entry, held_out=moved) if entry.held_out is record.held_out else entry
        for entry in record.evidence
    )
    found = compare_records(record, replace(record, held_out=moved, evidence=evidence), exact=True)
    assert any("corrupt" in difference.what for difference in found)


def test_a_claim_file_verifies_and_verifying_does_not_count(record: ClaimRecord, tmp_path: Path):
    record.save(tmp_path / "a.json")
    ledger = Ledger(tmp_path)
    loaded = ClaimRecord.load(tmp_path / "a.json")
    assert verify_claim(loaded, ToyBench(), ledger=ledger) == []
    assert verify_claim(loaded, ToyBench(), exact=True) == []
    assert ledger.openings("toy-ioi None") == 0


def test_a_fresh_test_is_verified_on_the_same_fresh_prompts():
    fresh = run_claim(toy_claim(lowers(1.0)), ToyBench(), fresh_seed=7)
    assert verify_claim(fresh, ToyBench(), exact=True) == []


def test_a_small_drift_is_within_tolerance_but_not_equal_in_bits(record: ClaimRecord):
    drifted = run_claim(record.claim, ToyBench(drift=1e-5))
    assert compare_records(record, drifted) == []
    found = compare_records(record, drifted, exact=True)
    assert any("bits" in difference.what for difference in found)


def test_another_effect_is_a_difference_with_both_numbers(record: ClaimRecord):
    other = run_claim(record.claim, ToyBench({(1, 2): 0.8, (2, 0): 0.9}))
    found = compare_records(record, other)
    assert any("effect" in difference.what for difference in found)
    with pytest.raises(NotReproduced) as refusal:
        refuse_unless_reproduced(record, other)
    assert "on record" in refusal.value.got
    refuse_unless_reproduced(record, record)


def test_another_model_or_other_data_are_told_first(record: ClaimRecord):
    edited = replace(record, model=FINGERPRINT.model_copy(update={"weights_sha256": "c" * 64}))
    assert [difference.what for difference in compare_records(record, edited)] == ["model's weights_sha256"]
    renamed = replace(record, model=FINGERPRINT.model_copy(update={"name": "a copy of the toy"}))
    assert compare_records(record, renamed) == []
    data = replace(record, held_out=replace(record.held_out, data_hash="other"))
    assert any("data" in difference.what for difference in compare_records(record, data))


def changed(record: ClaimRecord, **changes: object) -> ClaimRecord:
    """The record with its first prediction's result changed."""
    first = replace(record.verdict.predictions[0], **changes)
    results = (first, *record.verdict.predictions[1:])
    return replace(record, verdict=replace(record.verdict, predictions=results))


@pytest.mark.parametrize(("of_width", "agrees"), [(0.0, True), (0.049, True), (0.051, False), (-0.049, True)])
def test_ends_agree_within_5_percent_of_the_width(record: ClaimRecord, of_width: float, agrees: bool):
    old = record.verdict.predictions[0].effect
    assert old is not None
    moved = replace(old.interval, low=old.interval.low + of_width * old.interval.width)
    found = compare_records(record, changed(record, effect=Estimate(old.value, moved)))
    assert (found == []) is agrees


@pytest.mark.parametrize(("relative", "agrees"), [(0.9e-4, True), (1.1e-4, False)])
def test_a_certain_effect_agrees_within_a_ten_thousandth(record: ClaimRecord, relative: float, agrees: bool):
    point = Estimate(2.0, Interval(2.0, 2.0, 0.95, "constant"))
    moved = Estimate(2.0 * (1 + relative), point.interval)
    assert (compare_records(changed(record, effect=point), changed(record, effect=moved)) == []) is agrees


@pytest.mark.parametrize(("ranks", "agrees"), [(0, True), (1, True), (2, False)])
def test_a_rank_may_move_by_one(record: ClaimRecord, ranks: int, agrees: bool):
    controls = record.verdict.predictions[0].controls
    assert controls is not None
    other = changed(record, controls=replace(controls, n_strong=controls.n_strong + ranks))
    assert (compare_records(record, other) == []) is agrees


def test_an_effect_that_became_undefined_or_infinite_is_a_difference(record: ClaimRecord):
    old = record.verdict.predictions[0].effect
    assert old is not None
    for effect in (None, Estimate(float("nan"), old.interval), Estimate(float("inf"), old.interval)):
        assert compare_records(record, changed(record, effect=effect)) != []


def test_another_outcome_is_a_difference(record: ClaimRecord):
    assert compare_records(record, changed(record, outcome="undecided")) != []
    assert compare_records(record, replace(record, verdict=replace(record.verdict, outcome="refuted"))) != []
