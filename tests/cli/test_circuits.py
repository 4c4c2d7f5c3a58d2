"""`mechscope circuit`: how many searches are run, and what stands beside the claim, which decides nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from command_line_runs import Shell, is_refusal
from mechscope.claims.claim_file import ClaimRecord
from mechscope.vocabulary.errors import NotEnoughEvidence

NAME = "compiled/reverse"


@pytest.mark.parametrize(
    ("runs", "wanted"),
    [(None, (100, 19)), ("10", (10, 10)), ("100,0", (100, 0)), ("0,99", (0, 99)), ("0", (0, 0))],
)
def test_controls_are_as_many_as_asked_for_and_at_most_19_else(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: str | None, wanted: tuple[int, int]
) -> None:
    asked: list[Any] = []

    def investigate(*_: Any, search: Any, **__: Any) -> None:
        asked.append(search)
        raise NotEnoughEvidence("Enough was seen.", got="a search", because="this is a test")

    monkeypatch.setattr("mechscope.investigations.circuit_search.investigate_circuit", investigate)
    more = () if runs is None else ("--runs", runs)
    done = shell("circuit", "compiled/length", "compiled/length", "--n", 12, "--out", tmp_path, *more)
    assert is_refusal(done, "NotEnoughEvidence")
    assert [(search.n_runs, search.n_controls) for search in asked] == [wanted]


@pytest.mark.parametrize("runs", ["1", "1,19", "many", "10,", "3,4,5", "-2", ""])
def test_runs_that_are_no_number_of_searches_are_refused_before_the_model_is_opened(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: str
) -> None:
    monkeypatch.setattr("mechscope.cli.circuits.open_model", lambda *_, **__: pytest.fail("opened"))
    assert is_refusal(shell("circuit", NAME, NAME, f"--runs={runs}", "--out", tmp_path / "o"), "BadCommand")
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_what_stands_beside_the_claim_is_said_and_kept_and_done_again(shell: Shell, tmp_path: Path) -> None:
    words = ("circuit", NAME, NAME, "--method", "acdc", "--edges", 5, "--runs", "2,1", "--n", 240)
    done = shell(*words, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    beside = done.json["checks"]
    assert beside["sufficiency"] == beside["worst part removed"] == "holds"
    assert beside["search with permuted answers"] in ("can't tell", "not shown")
    result = json.loads((tmp_path / "result.json").read_text())
    record = ClaimRecord.load(tmp_path / "claim.json")
    assert record.verdict.checks is not None and record.verdict.checks.outcomes == beside
    assert result["verdict"]["checks"]["settings"]["n_controls"] == 1
    assert record.rejudged().outcome == record.verdict.outcome
    page = (tmp_path / "report.html").read_text()
    assert "its verdict does not depend on them" in page and "--runs 2,1" in page

    again = shell("claim", "test", tmp_path / "claim.json", "--controls", 1, "--json").json["verdict"]
    assert again["outcome"] == record.verdict.outcome
    assert {test["name"]: test["outcome"] for test in again["checks"]["tests"]}.items() <= beside.items()
    assert len(again["checks"]["worlds"]) == 3, "circuit.json beside says how it was found"
    (tmp_path / "circuit.json").unlink()
    bare = shell("claim", "test", tmp_path / "claim.json", "--controls", 1, "--json").json["verdict"][
        "checks"
    ]
    assert not bare["worlds"] and "does not say how it was found" in bare["left_out"][0]
