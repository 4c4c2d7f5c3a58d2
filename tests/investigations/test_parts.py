"""The latents or experts of a behaviour: the planted ones are found, claimed, and told in a report."""

from pathlib import Path

import pytest

from claims.test_part_claims import EXPERTS, of_experts
from mechscope.circuits.parts.experts import ExpertCircuit
from mechscope.investigations.part_report import save_part_investigation
from mechscope.investigations.part_search import PartSearch, investigate_parts, strongest_parts
from mechscope.vocabulary.errors import InterventionMismatch


def test_planted_experts_are_found_supported_and_told(tmp_path: Path) -> None:
    model, behavior = of_experts()
    found = investigate_parts(
        model, behavior, search=PartSearch(grain="experts", n_parts=6, n_controls=1), ledger=tmp_path
    )
    assert isinstance(found.circuit, ExpertCircuit) and found.circuit.experts == EXPERTS
    assert found.record.verdict.outcome == "supported" and found.record.verdict.held_out.openings == 1
    checks = found.record.verdict.checks
    assert checks is not None and checks.settings["part"] == "expert" and checks["worst part removed"].passes
    assert found.evaluation.faithfulness == pytest.approx(1, abs=1e-6)
    assert set(found.needs) == {"m0:1", "m1:2", "m2:0"} and not found.labels
    top = strongest_parts(found.circuit, 2)
    assert len(top) == 2 and abs(top[0][2]) >= abs(top[1][2]) > 0
    written = save_part_investigation(found, tmp_path)
    page = written["report.html"].read_text(encoding="utf-8")
    for told in (
        "The experts of own in planted",
        "3 of 15 experts",
        "routers choose anew",
        "m1:2",
        "each of its experts matter",
    ):
        assert told in page
    assert "taken to mean" not in page and "https://" not in page
    assert ExpertCircuit.load(written["circuit.json"]) == found.circuit


def test_a_search_says_what_it_is_of() -> None:
    for wrong in (
        {"grain": "edges"},
        {"grain": "latents"},
        {"grain": "experts", "dictionaries": ("village/mlp.*",)},
    ):
        with pytest.raises(InterventionMismatch, match=r"(?s)can't be chosen so.*grains are"):
            PartSearch(**wrong)
