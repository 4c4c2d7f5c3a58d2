"""Claims about circuits: the true one is supported, a random one of its size is refuted, files reproduce."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import mechscope as ms
from mechscope.circuits.statistics.checks import CheckSettings
from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.circuits.statistics.significance import TestSettings
from mechscope.circuits.statistics.significance_result import CircuitTest, corrected
from mechscope.claims.circuit_claims import measure_circuits
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.verdict import HeldOutSummary, Verdict
from mechscope.investigations.reproducing import verify_record
from mechscope.vocabulary.errors import BadClaim


@pytest.fixture(scope="module")
def found() -> tuple[ms.Model, "ms.circuits.Circuit"]:
    model = ms.load("induction")
    behavior = ms.behaviors.load("induction", model, n=240)
    return model, ms.discover(model, behavior, method="eap", n_edges=3)


FEW = CheckSettings(
    tests=TestSettings(n_rivals=60, n_inflated=60), n_controls=1, n_parts=60, n_search=8, n_tested=40
)


@pytest.fixture(scope="module")
def compiled() -> tuple[ms.Model, "ms.circuits.Circuit"]:
    model = ms.load("compiled/reverse")
    behavior = ms.behaviors.load("compiled/reverse", model, n=240)
    return model, ms.discover(model, behavior, method="eap", n_edges=5)


@pytest.mark.slow
def test_a_circuit_that_was_found_is_supported_and_its_file_verifies(found, tmp_path: Path) -> None:
    model, circuit = found
    record = ms.Claim.about(circuit).examine(model, checks=False)
    assert record.verdict.outcome == "supported", str(record.verdict)
    record.save(tmp_path / "claim.json")
    again = ClaimRecord.load(tmp_path / "claim.json")
    assert again.claim.mechanism.to_json() == circuit.to_json()
    assert verify_record(again, model) == []


@pytest.mark.slow
def test_what_stands_beside_is_verified_too(compiled, tmp_path: Path) -> None:
    model, circuit = compiled
    record = ms.Claim.about(circuit).examine(model, checks=FEW)
    record.save(tmp_path / "claim.json")
    again = ClaimRecord.load(tmp_path / "claim.json")
    assert again.verdict == record.verdict and again.verdict.checks is not None
    assert verify_record(again, model) == []
    edited = replace(again.verdict.checks.tests[0], estimate=0.123, interval=None)
    checks = replace(again.verdict.checks, tests=(edited, *again.verdict.checks.tests[1:]))
    (difference,) = verify_record(replace(again, verdict=replace(again.verdict, checks=checks)), model)
    assert "beside the claim" in difference.what


@pytest.mark.slow
def test_a_random_circuit_of_its_size_is_refuted(found) -> None:
    model, circuit = found
    rival = random_circuits(circuit, 1, seed=2, avoiding=True)[0]
    behavior = ms.behaviors.load("induction", model, n=240)
    assert ms.Claim.about(rival, behavior=behavior).test(model, checks=False).outcome == "refuted"


@pytest.mark.slow
def test_a_refuted_circuit_fails_beside_too(compiled) -> None:
    model, circuit = compiled
    rival = random_circuits(circuit, 1, seed=2, avoiding=True)[0]
    behavior = ms.behaviors.load("compiled/reverse", model, n=240)
    verdict = ms.Claim.about(rival, behavior=behavior).test(model, checks=FEW)
    assert verdict.outcome == "refuted" and verdict.checks["sufficiency"].outcome == "not shown"


@pytest.mark.slow
def test_what_stands_beside_a_verdict_does_not_change_it(compiled) -> None:
    model, circuit = compiled
    bare, full = (ms.Claim.about(circuit).test(model, checks=checks) for checks in (False, FEW))
    assert bare.checks is None and full.checks is not None
    assert replace(full, checks=None) == bare
    assert "search with redrawn weights" in full.checks.outcomes, "the circuit remembers how it was found"
    assert "beside it, shown only" in str(full) and "sufficiency: holds" in str(full)
    assert "Beside it, shown only" in full._repr_html_()


def test_a_verdict_with_something_beside_it_is_whole_after_json() -> None:
    test = CircuitTest(name="sufficiency", null="n", statistic=1.0, p=0.01, passes=True, interval=(0.9, 1.0))
    checks = CircuitChecks(tests=corrected([test]), left_out=("nothing",), settings={"n_pairs": 3})
    held_out = HeldOutSummary("0" * 64, 100, 30, 28.0, "entities", 1.0, None)
    verdict = Verdict("supported", (), held_out, checks=checks)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    before = {name: value for name, value in verdict.to_json().items() if name != "checks"}
    assert Verdict.from_json(before).checks is None, "files from before there was anything beside"
    assert hash(verdict) == hash(replace(verdict, checks=None))


def test_the_found_circuit_alone_keeps_the_metric_and_its_removal_loses_it(found) -> None:
    model, circuit = found
    split = ms.behaviors.load("induction", model, n=240).held_out.select(range(12))
    alone = measure_circuits(model, [circuit], prediction=ms.recovers(0.8), split=split)[0]
    less = ms.lowers(0.5, unit="gap", how="corrupt")
    without = measure_circuits(model, [circuit], prediction=less, split=split)[0]
    clean, corrupt = (
        ms.run_experiments(model, [ms.Experiment(inputs=inputs, metric=split.metric)])[0].numpy()
        for inputs in (split.clean, split.corrupt)
    )
    assert (
        abs(alone - clean).mean() < 0.05 * (clean - corrupt).mean()
        and without.mean() < corrupt.mean() + 0.1 * (clean - corrupt).mean()
    )


def test_a_circuit_without_a_behaviour_must_be_told_one(found) -> None:
    model, _ = found
    written = ms.circuits.Circuit.of(model, ["embed->logits"])
    with pytest.raises(BadClaim, match="behaviour"):
        ms.Claim.about(written)


def test_steering_along_edges_is_refused(found) -> None:
    model, circuit = found
    claim = ms.Claim.about(circuit, predictions=[ms.raises(1.0, dose=1.0)])
    with pytest.raises(BadClaim, match="steered"):
        claim.test(model)
