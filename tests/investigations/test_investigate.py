"""The loop finds what is there, claims nothing where nothing is, and writes a page that stands alone."""

import json
from pathlib import Path

import pytest
import torch

import mechscope as ms
from mechscope.claims.claim_file import ClaimRecord
from mechscope.investigations.investigate import Investigation, investigate
from mechscope.investigations.prediction_sizes import size_predictions
from mechscope.investigations.saving import save_investigation
from mechscope.investigations.search import score_components, search_components
from mechscope.models.opening import describe, wrap

TRUE = ms.Components(heads=((0, 5), (1, 11)))


@pytest.fixture(scope="module")
def model() -> ms.Model:
    return ms.load("induction")


@pytest.fixture(scope="module")
def behavior(model: ms.Model):
    return ms.behaviors.load("induction", model, n=120, seed=0)


def untrained_twin(model: ms.Model) -> ms.Model:
    """The same wiring with random weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    twin = AutoModelForCausalLM.from_config(model.hf.config).eval()
    for parameter in twin.parameters():
        parameter.data.normal_(0, 0.1)
    assert describe(twin).family == model.binding.anatomy.family
    return wrap(twin, model.tokenizer, name="random", check=False)


def test_the_search_finds_the_heads_that_were_written_down_and_no_other(model, behavior) -> None:
    found = search_components(model, behavior.train.select(range(16)))
    assert found.mechanism == TRUE
    assert found.score.recovered > 0.95 and found.score.lost > 0.95
    assert max(found.singles, key=lambda name: found.singles[name]) in ("0.5", "1.11")


def test_a_wrong_set_scores_nothing(model, behavior) -> None:
    score = score_components(model, behavior.validation, ms.Components(heads=((0, 2), (1, 3))))
    assert abs(score.recovered) < 0.05 and abs(score.lost) < 0.05


def test_sizes_are_below_what_validation_shows(model, behavior) -> None:
    sized = size_predictions(model, behavior, mechanism=TRUE)
    assert [p.kind for p in sized.predictions] == ["lowers", "recovers", "needs"]
    assert all(0 < p.bound < 0.85 for p in sized.predictions)
    assert any("spares" in reason for reason in sized.left_out)


def test_an_untrained_model_is_not_explained(model, behavior, tmp_path: Path) -> None:
    found = investigate(untrained_twin(model), behavior)
    assert found.record is None and found.outcome == "no claim"
    assert found.stopped
    written = save_investigation(found, tmp_path / "out")
    assert set(written) == {"report.html", "result.json"}
    assert "no claim" in written["report.html"].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def investigation(model: ms.Model, behavior, tmp_path_factory: pytest.TempPathFactory) -> Investigation:
    return investigate(
        model, behavior, ledger=tmp_path_factory.mktemp("ledger"), command="mechscope investigate ..."
    )


@pytest.mark.slow
def test_the_whole_loop_ends_in_a_supported_claim(investigation: Investigation) -> None:
    assert investigation.outcome == "supported"
    assert investigation.record is not None and investigation.record.claim.mechanism == TRUE


@pytest.mark.slow
def test_the_report_stands_alone_and_the_claim_file_opens(
    investigation: Investigation, tmp_path: Path
) -> None:
    written = save_investigation(investigation, tmp_path)
    page = written["report.html"].read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    for heading in (
        "The behaviour",
        "Where it is carried",
        "The mechanism",
        "The claim",
        "What was not shown",
    ):
        assert heading in page
    numbers = json.loads(written["result.json"].read_text(encoding="utf-8"))
    assert numbers["mechanism"] == {"kind": "components", "heads": [[0, 5], [1, 11]], "mlps": []}
    assert ClaimRecord.load(written["claim.json"]).verdict.outcome == "supported"
