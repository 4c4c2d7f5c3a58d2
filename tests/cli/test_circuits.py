"""`mechscope circuit`: what stands beside the claim is in every file, and decides nothing."""

import json
from pathlib import Path

import pytest

from mechscope.claims.claim_file import ClaimRecord


@pytest.mark.slow
def test_what_stands_beside_the_claim_is_said_and_kept(shell, tmp_path: Path) -> None:
    name = "compiled/reverse"
    words = ("circuit", name, name, "--method", "acdc", "--edges", 5, "--runs", 2, "--n", 240)
    done = shell(*words, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    beside = done.json["checks"]
    assert beside["sufficiency"] == beside["worst part removed"] == "holds"
    assert beside["search with permuted answers"] in ("can't tell", "not shown")
    result = json.loads((tmp_path / "result.json").read_text())
    record = ClaimRecord.load(tmp_path / "claim.json")
    assert record.verdict.checks is not None and record.verdict.checks.outcomes == beside
    assert result["verdict"]["checks"]["settings"]["n_controls"] == 2
    assert record.rejudged().outcome == record.verdict.outcome
    page = (tmp_path / "report.html").read_text()
    assert "its verdict does not depend on them" in page and "--runs 2" in page
