"""`open`, `doctor`, `behaviors`, `patch` and `bench` on the small specimen."""

from pathlib import Path

import pytest

from command_line_runs import Shell, is_refusal
from mechscope.cli import benchmarking
from mechscope.specimens.induction.truth import HEADS


def test_open_says_what_a_model_is(shell: Shell) -> None:
    text = shell("open", "induction")
    assert text.code == 0 and "pattern" in text.out and "[batch, 16 head, query, key]" in text.out
    facts = shell("open", "induction", "--json").json
    assert facts["model"]["heads"] == 16 and facts["tokenizer"]["size"] == facts["model"]["d_vocab"]
    assert len(facts["fingerprint"]["weights_sha256"]) == 64
    kinds = {row["point"]: row["kind"] for row in facts["points"]}
    assert kinds["z"] == "formed" and kinds["head_out"] == "derived, read only"
    assert "mlp_out" not in kinds, "the specimen has no MLPs"


def test_doctor_shows_the_six_parts(shell: Shell) -> None:
    done = shell("doctor", "induction", "--json")
    assert done.code == 0 and done.json["passed"] is True
    parts = {finding["part"] for finding in done.json["findings"]}
    assert parts == {"forward", "identities", "causality", "padding", "calls", "writes"}


def test_patch_finds_the_heads_that_were_written_down(shell: Shell, tmp_path: Path) -> None:
    done = shell(
        "patch", "induction", "induction", "--site", "z", "--n", "4", "--out", tmp_path / "z.html", "--json"
    )
    assert done.code == 0, done.err
    best = {(cell["layer"], cell["head"]) for cell in done.json["top"][:2]}
    assert best == set(HEADS)
    assert "<svg" in (tmp_path / "z.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["z.html"]


def test_a_saved_grid_is_read_again(shell: Shell, tmp_path: Path) -> None:
    from mechscope.patching.grid_result import PatchGrid

    out = tmp_path / "grid.json"
    done = shell("patch", "induction", "induction", "--site", "attn_out", "--n", "2", "--out", out)
    assert done.code == 0 and "recovered" in done.out
    assert PatchGrid.load(out).n_pairs == 2


def test_a_file_of_no_known_form_is_refused_before_the_model_is_opened(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechscope.cli.patching.open_model", lambda *_, **__: pytest.fail("opened"))
    out = tmp_path / "grid.png"
    assert is_refusal(shell("patch", "induction", "induction", "--out", out), "BadCommand")
    assert not out.exists()


def test_bench_says_where_the_suite_lives_if_it_is_not_there(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmarking, "__file__", str(tmp_path / "a" / "b" / "c" / "benchmarking.py"))
    assert is_refusal(shell("bench"), "OptionalPackageMissing")


def test_bench_runs_the_suite_beside_it_and_hands_on_its_exit_code(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tmp_path / "benchmarks"
    suite.mkdir()
    (suite / "__main__.py").write_text('print(\'{"name": "x", "passed": false}\')\nraise SystemExit(1)\n')
    monkeypatch.chdir(tmp_path)
    done = shell("bench", "x", "--json")
    assert done.code == 1 and done.json == {"benchmarks": [{"name": "x", "passed": False}]}
