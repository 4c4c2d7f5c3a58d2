"""Bad input is refused before work starts: four lines, exit code 2, nothing half-written.

What can't be reached from the command line is in tests/refusals/test_bad_input.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line_runs import Done, Shell, is_refusal
from tiny_models import tiny

CONTEXT = 128
FINE = {"clean": "ember apple badge ember", "corrupt": "apple ember badge ember", "answer": "apple"}


def pairs_file(folder: Path, **changes: str) -> Path:
    """A file of one pair in the specimen's words; `changes` spoil it."""
    path = folder / "own.jsonl"
    path.write_text(json.dumps(FINE | changes) + "\n")
    return path


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A tiny GPT-2 on disk."""
    folder = tmp_path / "model"
    tiny("gpt2").save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report"


def refused(done: Done, name: str, out: Path) -> bool:
    """Refused, with nothing left behind: no folder, and no temporary file beside it."""
    return is_refusal(done, name) and not out.exists() and not list(out.parent.glob(".*"))


def test_the_pair_that_the_others_spoil_is_fine(shell: Shell, tmp_path: Path) -> None:
    done = shell("patch", "induction", pairs_file(tmp_path), "--site", "z")
    assert done.code == 0, done.err


def test_an_unknown_site(shell: Shell, out: Path) -> None:
    done = shell("patch", "induction", "induction", "--site", "resid_prex", "--out", out.with_suffix(".html"))
    assert is_refusal(done, "UnknownSite") and not out.with_suffix(".html").exists()


def test_a_layer_that_does_not_exist(shell: Shell) -> None:
    assert is_refusal(shell("patch", "induction", "induction", "--site", "z.7"), "UnknownSite")


def test_a_point_that_this_model_does_not_form(shell: Shell) -> None:
    done = shell("patch", "induction", "induction", "--site", "mlp_out.1")
    assert is_refusal(done, "PointUnavailable")


def test_mismatched_pair_lengths_are_shown_with_both_tokenisations(
    shell: Shell, tmp_path: Path, out: Path
) -> None:
    path = pairs_file(tmp_path, corrupt="apple ember badge badge ember")
    done = shell("investigate", "induction", path, "--out", out)
    assert refused(done, "PairLengthMismatch", out)
    assert "'badge', 'badge'" in done.err and "line 1" in done.err


@pytest.mark.parametrize("spoilt", [{"clean": ""}, {"corrupt": "  "}, {"answer": ""}])
def test_an_empty_prompt(shell: Shell, tmp_path: Path, out: Path, spoilt: dict[str, str]) -> None:
    done = shell("investigate", "induction", pairs_file(tmp_path, **spoilt), "--out", out)
    assert refused(done, "BadPairs", out) and "empty" in done.err


def test_a_prompt_longer_than_the_context(shell: Shell, tmp_path: Path, out: Path) -> None:
    long = {side: f"{FINE[side]} " + "badge " * CONTEXT for side in ("clean", "corrupt")}
    done = shell("investigate", "induction", pairs_file(tmp_path, **long), "--out", out)
    assert refused(done, "BadPairs", out) and str(CONTEXT) in done.err


def test_a_file_of_pairs_that_is_not_there(shell: Shell, tmp_path: Path, out: Path) -> None:
    assert refused(shell("investigate", "induction", tmp_path / "no.csv", "--out", out), "BadFile", out)


def test_a_behaviour_that_does_not_exist(shell: Shell, out: Path) -> None:
    done = shell("investigate", "induction", "inductoin", "--out", out)
    assert refused(done, "BadPairs", out) and "induction" in done.err.splitlines()[-1]


def test_a_place_where_no_folder_can_be(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechscope.cli.investigating.open_model", lambda *_, **__: pytest.fail("opened"))
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert is_refusal(shell("investigate", "induction", "induction", "--out", taken / "below"), "BadFile")
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("command", ["open", "doctor", "behaviors"])
def test_a_folder_that_is_not_a_model(shell: Shell, tmp_path: Path, command: str) -> None:
    assert is_refusal(shell(command, tmp_path), "NotAModel")


def test_a_folder_that_is_not_a_model_stops_an_investigation(shell: Shell, tmp_path: Path, out: Path) -> None:
    assert refused(shell("investigate", tmp_path, "ioi", "--out", out), "NotAModel", out)


def test_a_pickle(shell: Shell, model_folder: Path, out: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, model_folder / "pytorch_model.bin")
    done = shell("investigate", model_folder, "induction", "--out", out)
    assert refused(done, "UnsafeFile", out) and "pytorch_model.bin" in done.err


def test_a_pickle_in_the_place_of_a_claim(shell: Shell, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "claim.json")
    assert is_refusal(shell("claim", "verify", tmp_path / "claim.json"), "UnsafeFile")


def test_nan_weights(shell: Shell, tmp_path: Path, out: Path) -> None:
    broken = tiny("gpt2")
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_fc.weight[0, 0] = torch.nan  # pyright: ignore
    broken.save_pretrained(tmp_path / "model")  # pyright: ignore[reportCallIssue]
    done = shell("investigate", tmp_path / "model", "induction", "--out", out)
    assert refused(done, "NonFiniteWeights", out) and "transformer.h.1.mlp.c_fc.weight" in done.err
    assert is_refusal(shell("doctor", tmp_path / "model"), "NonFiniteWeights")


def make_restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in which one family's MLPs are random, whatever the weights say."""
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

    honest = GPT2MLP.forward

    def restless(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        found = honest(self, hidden)
        return found + torch.rand_like(found)

    monkeypatch.setattr(GPT2MLP, "forward", restless)


def test_a_model_that_fails_the_self_check(
    shell: Shell, model_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell("doctor", model_folder).code == 0
    make_restless(monkeypatch)
    done = shell("investigate", model_folder, "induction", "--out", out)
    assert refused(done, "SelfCheckFailed", out) and "gpt2" in done.err
    told = shell("doctor", model_folder)
    assert told.code == 1 and "NO" in told.out and "comparisons fail" in told.out
    assert not shell("doctor", model_folder, "--json").json["passed"]
