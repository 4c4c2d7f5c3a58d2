"""The main job on weights that somebody else trained, with our prompts and with one's own."""

import json
from pathlib import Path

import pytest

import mechscope as ms
from command_line_runs import Shell
from mechscope.claims.claim_file import ClaimRecord

pytestmark = pytest.mark.slow
OUTCOMES = {"supported", "refuted", "inconclusive", "no claim"}


@pytest.fixture(scope="module")
def stories(shared: Path) -> Path:
    """A small Llama with grouped-query attention, trained on stories."""
    return shared / "models" / "stories260K"


def report_of(shell: Shell, tmp_path: Path, *request: object) -> tuple[dict, str]:
    """The result and the page of an investigation that ended well."""
    out = tmp_path / "report"
    done = shell("investigate", *request, "--out", out, "--json")
    assert done.code == 0, done.err
    result, page = json.loads((out / "result.json").read_text()), (out / "report.html").read_text()
    assert done.json["outcome"] == result["outcome"] in OUTCOMES
    links = set(page.split("http")[1:])
    assert all(link.startswith("://www.w3.org/") for link in links), links
    if result["outcome"] == "no claim":
        assert not (out / "claim.json").exists() and done.json["statement"] in page
    else:
        assert ClaimRecord.load(out / "claim.json").verdict.outcome == result["outcome"]
    return result, page


def test_induction_on_real_weights_ends_in_a_verdict_or_stops_short(
    shell: Shell, stories: Path, tmp_path: Path
) -> None:
    result, page = report_of(shell, tmp_path, stories, "induction")
    assert "stories260K" in page and "induction" in page
    assert result["outcome"] != "supported" or result["mechanism"]["heads"]


def test_ones_own_pairs_on_real_weights(shell: Shell, stories: Path, tmp_path: Path) -> None:
    model = ms.load(stories)
    drawn = ms.behaviors.load("induction", model, n=60)
    rows = [
        {"clean": clean, "corrupt": corrupt, "answer": model.reader.strings(right)[0].strip()}
        | {"wrong": model.reader.strings(wrong)[0].strip(), "split": name}
        for name, split in drawn.splits.items()
        for (clean, corrupt), right, wrong in zip(split.texts, split.answers, split.wrong, strict=True)
    ]
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(map(json.dumps, rows)) + "\n")
    result, page = report_of(shell, tmp_path, stories, "mine", "--pairs", own)
    assert "mine" in page
    assert result["outcome"] in {"no claim", "inconclusive", "refuted"}, "30 held-out prompts support nothing"
