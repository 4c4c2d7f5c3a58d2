"""Claims about circuits: the true one is supported, a random one of its size is refuted, files reproduce."""

from pathlib import Path

import pytest

import mechscope as ms
from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.claims.circuit_claims import measure_circuits
from mechscope.claims.claim_file import ClaimRecord
from mechscope.investigations.reproducing import verify_record
from mechscope.vocabulary.errors import BadClaim


@pytest.fixture(scope="module")
def found() -> tuple[ms.Model, "ms.circuits.Circuit"]:
    model = ms.load("induction")
    behavior = ms.behaviors.load("induction", model, n=240)
    return model, ms.discover(model, behavior, method="eap", n_edges=3)


@pytest.mark.slow
def test_a_circuit_that_was_found_is_supported_and_its_file_verifies(found, tmp_path: Path) -> None:
    model, circuit = found
    record = ms.Claim.about(circuit).examine(model)
    assert record.verdict.outcome == "supported", str(record.verdict)
    record.save(tmp_path / "claim.json")
    again = ClaimRecord.load(tmp_path / "claim.json")
    assert again.claim.mechanism.to_json() == circuit.to_json()
    assert verify_record(again, model) == []


@pytest.mark.slow
def test_a_random_circuit_of_its_size_is_refuted(found) -> None:
    model, circuit = found
    rival = random_circuits(circuit, 1, seed=2, avoiding=True)[0]
    behavior = ms.behaviors.load("induction", model, n=240)
    assert ms.Claim.about(rival, behavior=behavior).test(model).outcome == "refuted"


def test_the_found_circuit_alone_keeps_the_metric_and_its_removal_loses_it(found) -> None:
    model, circuit = found
    split = ms.behaviors.load("induction", model, n=240).held_out.select(range(12))
    alone = measure_circuits(model, [circuit], ms.recovers(0.8), split)[0]
    without = measure_circuits(model, [circuit], ms.lowers(0.5, unit="gap", how="corrupt"), split)[0]
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
