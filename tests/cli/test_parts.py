"""`mechscope parts`: latents and experts as circuits; and which checks `mechscope investigate` is asked for."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mechscope as ms
from command_line_runs import Shell, is_refusal
from mechscope.circuits.parts.latents import LatentCircuit
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.ledger import Ledger
from mechscope.investigations.part_search import PartSearch
from mechscope.vocabulary.errors import NotEnoughEvidence


@pytest.mark.parametrize(
    "words",
    [
        ("--grain", "latents"),
        ("--grain", "latents-alone"),
        ("--grain", "experts", "--dictionary", "somewhere"),
    ],
)
def test_dictionaries_that_are_missing_or_too_many_are_refused_before_the_model_is_opened(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("mechscope.cli.circuits.open_model", lambda *_, **__: pytest.fail("opened"))
    done = shell("parts", "induction", "induction", "--out", tmp_path / "o", *words)
    assert is_refusal(done, "BadCommand") and not (tmp_path / "o").exists()


def test_transcoders_that_ship_with_the_model_are_the_default(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def investigate(*_: Any, search: Any, **__: Any) -> None:
        asked.append((search.grain, search.n_parts, search.dictionaries))
        raise NotEnoughEvidence("Enough was seen.", got="a search", because="this is a test")

    monkeypatch.setattr("mechscope.investigations.part_search.investigate_parts", investigate)
    words = ("parts", "village", "ioi", "--n", 12, "--out", tmp_path)
    assert is_refusal(shell(*words), "NotEnoughEvidence")
    shell(*words, "--grain", "latents-alone", "--keep", 7, "--dictionary", "village/resid_post.*")
    assert asked == [
        ("latents", None, ("village/mlp.*",)),
        ("latents-alone", 7, ("village/resid_post.*",)),
    ]


def test_models_without_experts_are_refused(shell: Shell, tmp_path: Path) -> None:
    done = shell(
        "parts", "compiled/length", "compiled/length", "--grain", "experts", "--n", 12, "--out", tmp_path
    )
    assert is_refusal(done, "PointUnavailable") and not list(tmp_path.iterdir())


def test_an_investigation_checks_its_circuit_only_if_asked(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def investigate(*_: Any, checks: Any, **__: Any) -> None:
        asked.append(checks)
        raise NotEnoughEvidence("Enough was seen.", got="a search", because="this is a test")

    monkeypatch.setattr("mechscope.investigations.investigate.investigate", investigate)
    words = ("investigate", "compiled/length", "compiled/length", "--n", 12, "--seed", 3, "--out", tmp_path)
    for more in ((), ("--checks",)):
        assert is_refusal(shell(*words, *more), "NotEnoughEvidence")
    assert asked[0] is None and (asked[1].n_controls, asked[1].tests.seed) == (19, 3)


def test_a_claim_asks_for_dictionaries_that_are_not_where_its_file_says(shell: Shell, tmp_path: Path) -> None:
    dictionary = ms.features.open("village/mlp.1").dictionary()
    dictionary.save(tmp_path / "mine")
    circuit = LatentCircuit.of([dictionary], latents={"mlp_out.1": (1, 5)}, errors="kept")
    behavior = ms.behaviors.load("agreement", ms.load("village"), n=12)
    ms.Claim.about(circuit, behavior=behavior, dictionaries=[tmp_path / "mine"]).save(tmp_path / "claim.json")
    (tmp_path / "mine").rename(tmp_path / "moved")
    done = shell("claim", "test", tmp_path / "claim.json", "--model", "village")
    assert is_refusal(done, "BadFile") and "--dictionary" in done.err and "nothing lies at mine" in done.err
    assert not Ledger(tmp_path).entries()


@pytest.mark.slow
def test_latents_that_carry_a_behaviour_are_found_claimed_and_verified(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(PartSearch, n_controls=2)
    monkeypatch.setattr("mechscope.investigations.part_search.PartSearch", few)  # nineteen take minutes
    words = ("parts", "village", "agreement", "--keep", 60, "--n", 204)
    done = shell(*words, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    assert done.json["outcome"] == "supported" and done.json["faithfulness"] > 0.75
    assert done.json["best random"] < 0.2 and abs(done.json["complement"]) < 0.3
    record = ClaimRecord.load(tmp_path / "claim.json")
    plain = record.claim.mechanism.to_json()
    assert plain["opened"]["mlp_out.3"] == {"place": "village/mlp.3", "dtype": "float32"}
    circuit = LatentCircuit.load(tmp_path / "circuit.json")
    assert circuit.to_json()["parts"] == plain["parts"] and len(circuit) == 60 and circuit.scores is not None
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["needs"]) == 20 and [one["n_parts"] for one in result["sizes"]][-2:] == [60, 120]
    assert done.json["checks"]["sufficiency"] == "holds" and "worst part removed" in done.json["checks"]
    page = (tmp_path / "report.html").read_text()
    assert "The latents of agreement in village" in page and "taken to mean" in page
    assert "each of its latents matter more" in page
    assert shell("claim", "verify", tmp_path / "claim.json").code == 0
