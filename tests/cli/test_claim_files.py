"""What somebody else can do with a claim file: show, verify, test again; an edited one is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line_runs import Shell, is_refusal
from mechscope.behaviors import Behavior, from_pairs, load
from mechscope.claims.claim import Claim
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.controls import SAME_LAYERS
from mechscope.claims.ledger import Ledger
from mechscope.claims.mechanisms import Components
from mechscope.claims.predictions import lowers, recovers
from mechscope.models import opening
from mechscope.models.model import Model
from mechscope.specimens.induction.truth import INDUCTION

N = 12


@pytest.fixture(scope="module")
def model() -> Model:
    return opening.load("induction")


def claim_about(behavior: Any, head: tuple[int, int] = INDUCTION) -> Claim:
    """One of the true heads; its 15 neighbours are the controls, so the test is quick and cannot gate."""
    return Claim(
        "The induction head carries it",
        behavior=behavior,
        mechanism=Components((head,)),
        predictions=[lowers(0.5, unit="gap", how="corrupt"), recovers(0.5)],
        controls=SAME_LAYERS,
    )


@pytest.fixture(scope="module")
def tested(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tested claim on disk."""
    path = tmp_path_factory.mktemp("claims") / "claim.json"
    claim_about(load("induction", model, n=N)).examine(model).save(path)
    return path


@pytest.fixture
def file(tested: Path, tmp_path: Path) -> Path:
    """A copy of it, with a folder to itself."""
    path = tmp_path / "claim.json"
    path.write_bytes(tested.read_bytes())
    return path


def test_a_claim_is_shown_without_a_model(shell: Shell, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechscope.cli.claims.open_recorded", lambda *_, **__: pytest.fail("opened"))
    done = shell("claim", "show", file)
    assert done.code == 0
    assert "INCONCLUSIVE: The induction head carries it" in done.out and "head 1.11" in done.out
    told = shell("claim", "show", file, "--json").json
    assert told["verdict"]["outcome"] == "inconclusive"
    assert told["claim"]["id"] == ClaimRecord.load(file).claim.id


def test_a_claim_is_reproduced_bit_for_bit_from_its_file_alone(shell: Shell, file: Path) -> None:
    done = shell("claim", "verify", file, "--exact", "--json")
    assert done.code == 0, done
    assert done.json["reproduced"] is True and done.json["differences"] == []
    assert Ledger(file.parent).openings(ClaimRecord.load(file).held_out.data_hash) == 0, "it does not count"
    assert shell("claim", "verify", file).out.startswith("reproduced")


COMPILED = "compiled/symbolic_ioi"


@pytest.mark.parametrize("recorded", [COMPILED, "symbolic_ioi"])
def test_a_claim_about_a_compiled_specimen_names_it_so_that_it_opens_again(
    shell: Shell, tmp_path: Path, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a file of the versions that recorded the last part of the name only."""
    model, path = opening.load(COMPILED), tmp_path / "claim.json"
    assert model.fingerprint.name == COMPILED
    monkeypatch.setitem(vars(model), "fingerprint", model.fingerprint.model_copy(update={"name": recorded}))
    claim_about(load(COMPILED, model, n=60), head=(0, 0)).examine(model).save(path)
    assert ClaimRecord.load(path).model.name == recorded
    done = shell("claim", "verify", path, "--exact", "--json")
    assert done.code == 0 and done.json["reproduced"], done
    monkeypatch.setattr(opening, "name_to_open", lambda name: name)
    assert is_refusal(shell("claim", "verify", path), "NotAModel") is (recorded != COMPILED)


def test_another_model_does_not_reproduce_it(shell: Shell, file: Path, tmp_path: Path) -> None:
    import torch

    other = opening.load("induction")
    with torch.no_grad():
        next(iter(other.hf.parameters())).mul_(1.01)
    other.hf.save_pretrained(tmp_path / "other")  # pyright: ignore
    other.tokenizer.save_pretrained(tmp_path / "other")
    done = shell("claim", "verify", file, "--model", tmp_path / "other")
    assert done.code == 1 and "NOT REPRODUCED" in done.out and "weights_sha256" in done.out


def test_numbers_that_do_not_come_out_again_are_not_reproduced(
    shell: Shell, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Components.ablation

    def half_hearted(self: Components, how: str, reference: Any) -> Any:
        return honest(self, how, reference)[:0]

    monkeypatch.setattr(Components, "ablation", half_hearted)
    done = shell("claim", "verify", file, "--json")
    assert done.code == 1 and done.json["reproduced"] is False
    assert any("effect" in difference["what"] for difference in done.json["differences"])


def edited(change: Callable[[dict[str, Any]], None], file: Path) -> Path:
    plain = json.loads(file.read_text())
    change(plain)
    file.write_text(json.dumps(plain))
    return file


def test_an_edited_claim_file_is_refused_before_a_model_is_opened(
    shell: Shell, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechscope.cli.claims.open_recorded", lambda *_, **__: pytest.fail("opened"))
    edited(lambda plain: plain["verdict"].update(outcome="supported"), file)
    for command in ("verify", "show", "test"):
        assert is_refusal(shell("claim", command, file), "ClaimEdited")
    assert [path.name for path in file.parent.iterdir()] == ["claim.json"], "no ledger was begun"


def test_a_file_that_is_only_written_anew_is_no_edit(shell: Shell, file: Path) -> None:
    assert shell("claim", "show", edited(lambda plain: None, file)).code == 0


@pytest.mark.parametrize("command", ["verify", "show", "test"])
def test_a_file_that_is_no_claim_is_refused(shell: Shell, tmp_path: Path, command: str) -> None:
    (tmp_path / "claim.json").write_text('{"kind": "claim"')
    assert is_refusal(shell("claim", command, tmp_path / "claim.json"), "BadFile")
    assert is_refusal(shell("claim", command, tmp_path / "nothing.json"), "BadFile")


def test_testing_again_is_counted_and_fresh_prompts_are_new(shell: Shell, file: Path, tmp_path: Path) -> None:
    again = [shell("claim", "test", file, "--json").json["verdict"] for _ in range(2)]
    assert [verdict["held_out"]["openings"] for verdict in again] == [1, 2]
    assert any("opened 2 times" in note for note in again[1]["notes"])
    out = tmp_path / "fresh.json"
    fresh = shell("claim", "test", file, "--fresh", "--seed", "3", "--out", out)
    assert fresh.code == 0 and "drawn anew" in fresh.out
    assert ClaimRecord.load(out).held_out.data_hash != ClaimRecord.load(file).held_out.data_hash
    assert shell("claim", "verify", out, "--exact").code == 0


def test_a_frozen_claim_is_tested_once_its_model_is_named(shell: Shell, model: Model, tmp_path: Path) -> None:
    frozen, out = tmp_path / "frozen.json", tmp_path / "tested.json"
    claim = claim_about(load("induction", model, n=N))
    claim.save(frozen)
    assert is_refusal(shell("claim", "verify", frozen), "BadClaim")
    assert is_refusal(shell("claim", "test", frozen), "BadCommand")
    assert shell("claim", "test", frozen, "--model", "induction", "--out", out).code == 0
    assert ClaimRecord.load(out).claim.id == claim.id


def test_controls_of_a_claim_that_is_not_about_a_circuit_are_refused_before_it_is_opened(
    shell: Shell, file: Path
) -> None:
    assert is_refusal(shell("claim", "test", file, "--controls", 19), "BadClaim")
    assert [path.name for path in file.parent.iterdir()] == ["claim.json"], "no ledger was begun"


class Misremembered:
    """A behaviour whose recipe tells other prompts than it holds, as after a change of its generator."""

    def __init__(self, behavior: Behavior) -> None:
        self._behavior = behavior

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behavior, name)

    @property
    def name(self) -> str:
        return self._behavior.name

    def recipe(self) -> dict[str, Any]:
        recipe = self._behavior.recipe()
        recipe["splits"]["held_out"]["data_sha256"] = "0" * 64
        return recipe


def test_prompts_that_are_not_the_recorded_ones_do_not_reproduce_it(
    shell: Shell, model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "claim.json"
    claim_about(Misremembered(load("induction", model, n=N))).examine(model).save(path)
    done = shell("claim", "verify", path, "--json")
    assert done.code == 1 and not done.json["reproduced"]
    assert "held_out" in done.json["because"]


def test_a_claim_about_my_own_prompts_needs_the_very_file(shell: Shell, model: Model, tmp_path: Path) -> None:
    own, path = tmp_path / "prompts" / "own.jsonl", tmp_path / "claim.json"
    own.parent.mkdir()
    train = load("induction", model, n=24)
    rows = [
        {"clean": c, "corrupt": k, "answer": model.reader.strings(a)[0], "wrong": model.reader.strings(w)[0]}
        for split in train.splits.values()
        for (c, k), a, w in zip(split.texts, split.answers, split.wrong, strict=True)
    ]
    own.write_text("\n".join(map(json.dumps, rows)) + "\n")
    claim_about(from_pairs(own, model)).examine(model).save(path)
    assert is_refusal(shell("claim", "verify", path), "BadFile")
    assert shell("claim", "verify", path, "--pairs", own).code == 0
    (tmp_path / "own.jsonl").write_bytes(own.read_bytes())
    assert shell("claim", "verify", path).code == 0, "beside the claim it is found"
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows[1:])) + "\n")
    assert is_refusal(shell("claim", "verify", path), "ChecksumMismatch")
