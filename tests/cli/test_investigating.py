"""`investigate` and `demo`: files appear together at the end, or none does; a weak behaviour is not explained."""

import json
import os
import shlex
import signal
from pathlib import Path

import pytest

from command_line_runs import Shell, is_refusal
from mechscope.behaviors import load
from mechscope.claims.ledger import Ledger
from mechscope.cli.investigating import DEMO_PAIRS, Request
from mechscope.cli.terminal import uninterrupted
from mechscope.investigations import saving
from mechscope.investigations.prompts import unopened
from mechscope.models import opening
from mechscope.specimens.induction import WORDS


@pytest.fixture
def weak(tmp_path: Path) -> Path:
    """Pairs of which the specimen knows nothing: the answer follows from neither prompt."""
    words = WORDS[:24]
    rows = [
        {"clean": f"{a} {b} {c}", "corrupt": f"{b} {a} {c}", "answer": WORDS[30], "wrong": WORDS[31]}
        for a, b, c in zip(words[:8], words[8:16], words[16:], strict=True)
    ]
    path = tmp_path / "weak.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_a_behaviour_that_is_not_there_is_reported_and_not_explained(
    shell: Shell, weak: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "report"
    done = shell("investigate", "induction", "weak", "--pairs", weak, "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.json["outcome"] == "no claim" and "does not show" in done.json["statement"]
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "result.json", "weak.jsonl"]
    assert {str(path) for path in out.iterdir()} == set(done.json["files"].values())
    page, result = (out / "report.html").read_text(), json.loads((out / "result.json").read_text())
    assert "does not show" in page and result["outcome"] == "no claim"
    command = shlex.join(
        ["mechscope", "investigate", "induction", "weak", "--out", str(out), "--pairs", str(weak)]
    )
    assert command in page.replace("&#x27;", "'"), "the report says how to make it again"


def test_a_claim_of_an_earlier_investigation_does_not_stay_beside_a_report_without_one(
    shell: Shell, weak: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    out.mkdir()
    for name in ("claim.json", "circuit-claim.json", "circuit.json", "circuit.safetensors"):
        (out / name).write_text("{}")
    (out / "notes.txt").write_text("mine")
    assert shell("investigate", "induction", weak, "--out", out).code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "notes.txt",
        "report.html",
        "result.json",
        "weak.jsonl",
    ]


def test_a_failure_while_writing_leaves_the_folder_as_it_was(
    shell: Shell, weak: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save_text", full)  # the last file of the three
    done = shell("investigate", "induction", weak, "--out", out)
    assert is_refusal(done, "BadFile") and "No space left" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weak.jsonl"]


def test_an_interruption_leaves_nothing(
    shell: Shell, weak: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("mechscope.investigations.investigate.measure", interrupted)
    done = shell("investigate", "induction", weak, "--out", tmp_path / "report")
    assert done.code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weak.jsonl"]


def test_ctrl_c_waits_for_files_that_belong_together() -> None:
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_fresh_prompts_are_the_first_that_the_ledger_has_not_seen(tmp_path: Path) -> None:
    behavior = load("induction", opening.load("induction"), n=12)
    drawn = []
    for _ in range(2):
        fresh = unopened(behavior, tmp_path)
        drawn.append(fresh.held_out.data_hash)
        Ledger(tmp_path).record(drawn[-1], claim_id="any")
    assert len({behavior.held_out.data_hash, *drawn}) == 3
    assert unopened(behavior, tmp_path / "elsewhere").held_out.data_hash == drawn[0]


def test_a_file_of_pairs_has_no_fresh_prompts(shell: Shell, weak: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert is_refusal(shell("investigate", "induction", weak, "--fresh", "--out", out), "NotEnoughEvidence")
    assert not out.exists()


def test_the_command_in_the_report_names_what_differs_from_the_defaults() -> None:
    plain = Request(model="my model", behavior="ioi", out=Path("a"))
    assert plain.command == "mechscope investigate 'my model' ioi --out a"
    full = Request(model="m", behavior="b", out=Path("a"), n=60, seed=2, dtype="float64", fresh=True)
    assert full.command == "mechscope investigate m b --out a --n 60 --seed 2 --dtype float64 --fresh"


def test_demo_is_the_main_job_on_the_bundled_model(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(
        "mechscope.cli.investigating.carry_out", lambda request, as_json: asked.append(request)
    )
    assert shell("demo", "--out", tmp_path).code == 0
    assert asked == [Request(model="village", behavior="ioi", out=tmp_path, n=DEMO_PAIRS)]


@pytest.mark.slow
def test_the_whole_job_finds_the_heads_and_edges_that_were_written_down_and_its_claims_verify(
    shell: Shell, tmp_path: Path
) -> None:
    done = shell("investigate", "induction", "induction", "--out", tmp_path / "report", "--json")
    assert done.code == 0 and done.json["outcome"] == "supported", done
    result = json.loads((tmp_path / "report" / "result.json").read_text())
    assert result["mechanism"] == {"kind": "components", "heads": [[0, 5], [1, 11]], "mlps": []}
    assert done.json["circuit"]["outcome"] == "supported"
    assert result["circuit"]["edges"]["edges"] == ["embed->a0.5.v", "a0.5->a1.11.k", "a1.11->logits"]
    assert len(Ledger(tmp_path / "report").entries()) == 1, "one opening for both claims"
    for name in ("claim.json", "circuit-claim.json"):
        assert shell("claim", "verify", tmp_path / "report" / name).code == 0
