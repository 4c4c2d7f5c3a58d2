"""The commands on a folder that holds a masked language model."""

from pathlib import Path

import pytest

from command_line_runs import Shell, is_refusal
from tiny_models import tiny


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A tiny BERT on disk."""
    tiny("bert").save_pretrained(tmp_path / "bert")  # pyright: ignore[reportCallIssue]
    return tmp_path / "bert"


def test_doctor_shows_what_holds_of_a_bert(shell: Shell, bert_folder: Path) -> None:
    done = shell("doctor", bert_folder, "--json")
    assert done.code == 0, done.err
    findings = done.json["findings"]
    assert done.json["passed"]
    assert {row["part"] for row in findings} == {"forward", "identities", "padding", "calls", "writes"}
    said = [row["what"] for row in findings]
    assert "residual + attention, normed = resid_mid, layer 2" in said
    assert "resid_mid + MLP, normed = residual, layer 2" in said


def test_open_lists_its_points(shell: Shell, bert_folder: Path) -> None:
    told = shell("open", bert_folder, "--json").json
    points = {row["point"] for row in told["points"]}
    assert told["model"]["class"] == "BertForMaskedLM"
    assert {"resid_mid", "attn_out", "ln_final", "z"} <= points and not {
        "ln1",
        "ln2",
        "ln_final_scale",
    } & points


def test_a_behavior_of_next_words_is_refused(shell: Shell, bert_folder: Path, tmp_path: Path) -> None:
    assert shell("behaviors", bert_folder, "--json").json["behaviors"] == []
    done = shell("investigate", bert_folder, "ioi", "--out", tmp_path / "report")
    assert is_refusal(done, "NoNextToken") and not (tmp_path / "report").exists()
