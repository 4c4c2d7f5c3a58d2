"""`mechscope train-dictionary`: trains at sites, goes on, says what it measured; refuses a k that means nothing."""

from pathlib import Path

import pytest

import mechscope as ms
from command_line_runs import Shell, is_refusal
from mechscope.models.opening import BUNDLED

TEXT = BUNDLED / "induction" / "calibration.txt"
SITES = ["--site", "resid_post.0", "--site", "resid_post.0 -> resid_post.1"]
SMALL = ["--width", 16, "--k", 2, "--tokens", "320,16"]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_dictionaries_are_trained_at_every_site_into_a_folder_that_goes_on(
    shell: Shell, tmp_path: Path
) -> None:
    words = ["induction", TEXT, "--out", tmp_path, *SITES, *SMALL]
    told = shell("train-dictionary", *words, "--json")
    assert told.code == 0, told.err
    rows = told.json["dictionaries"]
    assert [row["site"] for row in rows] == SITES[1::2]
    for row, kind in zip(rows, ("sae", "transcoder"), strict=True):
        found = ms.dictionaries.open(row["dictionary"])
        assert found.kind == kind and found.n_latents == 16 and row["l0"] <= 2
        assert row["fvu"] == found.settings.calibration.fvu
        assert found.settings.source.n_tokens == 320
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    again = shell("train-dictionary", *words)
    assert again.code == 0 and "resid_post.0" in again.out and str(tmp_path) in again.out
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka", "jumprelu"])
def test_a_k_on_average_need_not_be_whole(shell: Shell, tmp_path: Path, kind: str) -> None:
    words = ["induction", TEXT, "--out", tmp_path, "--site", "resid_post.0", *SMALL, "--kind", kind]
    assert shell("train-dictionary", *words, "--k", 2.6, "--json").code == 0
    config = ms.dictionaries.open(tmp_path / "resid_post.0").settings.source.notes["config"]
    assert config["l0" if kind == "jumprelu" else "k"] == 2.6


@pytest.mark.parametrize(("kind", "k"), [("topk", 2.6), ("relu", 4), ("batchtopk", 0)])
def test_a_k_that_means_nothing_is_refused(shell: Shell, tmp_path: Path, kind: str, k: float) -> None:
    words = ["induction", TEXT, "--out", tmp_path / "new", "--site", "resid_post.0", "--kind", kind, "--k", k]
    assert is_refusal(shell("train-dictionary", *words), "BadCommand")
    assert not (tmp_path / "new").exists()


def test_a_text_that_is_too_short_can_be_trained_on_in_smaller_steps(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(" ".join(TEXT.read_text().split()[:20]))
    words = [
        "induction",
        tmp_path / "short.txt",
        "--out",
        tmp_path / "new",
        "--site",
        "resid_post.0",
        "--k",
        2,
    ]
    refused = shell("train-dictionary", *words)
    assert is_refusal(refused, "EmptyPrompt") and "--tokens N,BATCH" in refused.err
    assert shell("train-dictionary", *words, "--tokens", "0,8", "--width", 16).code == 0
    for wrong in ("many", "1,2,3", "0,0", "-1"):
        assert is_refusal(shell("train-dictionary", *words, "--tokens", wrong), "BadCommand")
    assert is_refusal(shell("train-dictionary", "induction", TEXT, "--out", tmp_path / "x"), "BadCommand")
