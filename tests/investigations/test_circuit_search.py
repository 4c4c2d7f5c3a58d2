"""The circuit's job: the written edges are found, the claim is supported, the files say so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import mechscope as ms
from mechscope.circuits.circuit import Circuit
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.ledger import Ledger
from mechscope.investigations.circuit_report import save_circuit_investigation
from mechscope.investigations.circuit_search import CircuitSearch, investigate_circuit


@pytest.mark.slow
def test_the_written_edges_are_found_and_their_claim_supported(tmp_path: Path) -> None:
    model = ms.load("induction")
    behavior = ms.behaviors.load("induction", model, n=240)
    told: list[tuple[str, float]] = []
    found = investigate_circuit(
        model,
        behavior,
        search=CircuitSearch(method="eap", n_edges=3, n_runs=3, n_controls=2),
        ledger=tmp_path,
        progress=lambda what, share: told.append((what, share)),
    )
    found = replace(found, command="mechscope circuit ...")
    files = save_circuit_investigation(found, tmp_path / "out")
    (opening,) = Ledger(tmp_path).entries()
    assert opening.claim_id == found.record.claim.id
    assert found.record.verdict.outcome == "supported" and found.evaluation.faithfulness > 0.95
    assert found.stability is not None and found.stability.stable == found.circuit
    assert Circuit.load(files["circuit.json"]) == found.circuit
    assert ClaimRecord.load(files["claim.json"]).claim.id == found.record.claim.id
    result = json.loads(files["result.json"].read_text())
    assert result["verdict"]["outcome"] == "supported"
    assert list(result["sizes"]) == ["magnitude", "signed"]
    assert result["sizes"]["signed"]["cpr"] == pytest.approx(found.curves[1].cpr)
    page = files["report.html"].read_text()
    assert "CPR over log size" in page
    by_magnitude, by_sign = found.curves
    assert f"<strong>CPR {by_sign.cpr:.3f}</strong>" in page
    assert f"<strong>CMD {by_magnitude.cmd:.3f}</strong>" in page
    assert ", ".join(map(str, by_sign.n_edges)) in page
    assert "a1.11" in page and "Would other prompts" in page and "mechscope circuit ..." in page
    beside = {test["name"]: test["outcome"] for test in result["verdict"]["checks"]["tests"]}
    assert beside["sufficiency"] == beside["worst part removed"] == "holds"
    assert [world["rank"] for world in result["verdict"]["checks"]["worlds"]] == [1, 1, 1]
    assert "Beside the claim: other tests" in page and "where there is nothing to find" in page
    assert any("recovers" in what for what, _ in told) and any("redrawn weights" in what for what, _ in told)
    assert all(0 <= share <= 1 for _, share in told)
