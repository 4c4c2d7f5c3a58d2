"""The main job on weights that somebody else trained, with our prompts and with one's own."""

import json
import re
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
    assert set(re.findall(r"https?://[^/]*", page)) <= {"http://www.w3.org"}, "the page stands alone"
    if result["outcome"] == "no claim":
        assert not (out / "claim.json").exists() and done.json["statement"] in page
    else:
        assert ClaimRecord.load(out / "claim.json").verdict.outcome == result["outcome"]
    return result, page


def can_be_read(model: ms.Model, clean: str, corrupt: str, words: list[str]) -> bool:
    """Whether random tokens, read as text, are cut alike, and each word is one token more."""
    n, *others = (
        len(model.tokens(text).row(0)) for text in (clean, corrupt, *(f"{clean} {w}" for w in words))
    )
    return others == [n, n + 1, n + 1]


def test_induction_on_real_weights_ends_in_a_verdict_or_stops_short(
    shell: Shell, stories: Path, tmp_path: Path
) -> None:
    result, page = report_of(shell, tmp_path, stories, "induction")
    assert "stories260K" in page and "induction" in page
    assert result["outcome"] != "supported" or result["mechanism"]["heads"]


def test_ones_own_pairs_on_real_weights(shell: Shell, stories: Path, tmp_path: Path) -> None:
    model = ms.load(stories)
    drawn = ms.behaviors.load("induction", model, n=600)
    rows = [
        {"clean": clean, "corrupt": corrupt, "answer": right, "wrong": wrong}
        for split in drawn.splits.values()
        for (clean, corrupt), *both in zip(split.texts, split.answers, split.wrong, strict=True)
        for right, wrong in [[model.reader.strings(ids)[0].strip() for ids in both]]
        if can_be_read(model, clean, corrupt, [right, wrong])
    ]
    assert len(rows) >= 60
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(map(json.dumps, rows)) + "\n")
    result, page = report_of(shell, tmp_path, stories, "mine", "--pairs", own)
    assert "mine" in page
    assert result["outcome"] in {"no claim", "inconclusive", "refuted"}, "30 held-out prompts support nothing"
