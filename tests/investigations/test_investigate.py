"""The loop finds the heads and edges that are there, claims nothing where nothing is, and writes a page of its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mechscope as ms
from mechscope.circuits.size_curve import SizeCurve
from mechscope.circuits.statistics.checks import CheckSettings
from mechscope.circuits.statistics.significance import TestSettings
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.ledger import Ledger
from mechscope.investigations import edges
from mechscope.investigations.circuit_section import found_circuit_section
from mechscope.investigations.edges import EdgePart, claim_edges, find_edges, smallest_faithful
from mechscope.investigations.investigate import Investigation, investigate
from mechscope.investigations.prediction_sizes import size_predictions
from mechscope.investigations.relation import relate
from mechscope.investigations.saving import save_investigation
from mechscope.investigations.search import score_components, search_components
from mechscope.models.opening import describe, wrap
from mechscope.vocabulary.errors import PointUnavailable

TRUE = ms.Components(heads=((0, 5), (1, 11)))
TRUE_EDGES = ["embed->a0.5.v", "a0.5->a1.11.k", "a1.11->logits"]


@pytest.fixture(scope="module")
def model() -> ms.Model:
    return ms.load("induction")


@pytest.fixture(scope="module")
def behavior(model: ms.Model):
    return ms.behaviors.load("induction", model, n=120, seed=0)


@pytest.fixture(scope="module")
def small(model: ms.Model):
    return ms.behaviors.load("induction", model, n=48, seed=0)


@pytest.fixture(scope="module")
def part(model: ms.Model, small) -> EdgePart:
    return find_edges(model, small, small.train.select(range(6)))


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


def test_the_smallest_faithful_circuit_is_the_edges_that_were_written_down(part: EdgePart) -> None:
    assert part.circuit is not None and part.evaluation is not None and not part.stopped
    assert [str(edge) for edge in part.circuit.edges] == TRUE_EDGES
    assert part.sizes[part.chosen or 0] == 3, "two edges are on no path from the embedding to the logits"
    assert part.evaluation.settings["split"] == "validation" and part.evaluation.faithfulness > 0.95
    assert (part.evaluation.edge_needs > 0.95).all(), "each is needed"


def test_the_circuits_claim_is_sized_on_validation_and_held_against_random_circuits(
    model, small, part
) -> None:
    claim = claim_edges(model, small, part=part).claim
    assert claim is not None and claim.controls == "random circuits"
    assert [(p.kind, p.how) for p in claim.predictions] == [
        ("lowers", "corrupt"),
        ("recovers", ""),
        ("needs", ""),
    ]
    assert all(0.5 < p.bound < 0.9 for p in claim.predictions)
    assert "3 of the 897 edges" in claim.statement
    remembered = part.circuit.settings["behavior"]["name"]
    assert remembered == small.name, "Claim.about(circuit.json) knows its behaviour"


def curve_of(*faithfulness: float) -> SizeCurve:
    sizes = tuple(range(1, len(faithfulness) + 1))
    return SizeCurve(fractions=sizes, n_edges=sizes, faithfulness=faithfulness, by="magnitude")


def test_the_first_size_that_is_faithful_enough_is_taken() -> None:
    assert smallest_faithful(curve_of(0.2, 0.95, 0.5, 1.0)) == 1
    assert smallest_faithful(curve_of(0.2, 0.4)) is None


def test_where_no_size_is_faithful_enough_no_circuit_is_claimed(model, small, monkeypatch) -> None:
    def low(*_: object, fractions: list[float], **__: object) -> SizeCurve:
        return curve_of(*[0.2] * (len(fractions) - 1), 0.4)

    monkeypatch.setattr(edges, "size_curve", low)
    part = find_edges(model, small, small.train.select(range(2)))
    assert part.circuit is None and part.claim is None
    assert "The best keeps 40% with" in part.stopped and "No circuit is claimed" in part.stopped
    assert claim_edges(model, small, part=part) == part
    assert "No circuit is claimed" in found_circuit_section(part, None, name="induction").blocks[0].text


def test_where_edges_are_out_of_reach_it_is_said_and_nothing_is_claimed(model, behavior, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PointUnavailable(
            "Edges of this model can't be attributed.", because="its attention is out of reach"
        )

    monkeypatch.setattr(edges, "discover", refuse)
    part = find_edges(model, behavior, behavior.train)
    assert "can't be attributed. Its attention is out of reach." in part.stopped and part.curve is None


def test_a_set_of_heads_is_put_beside_the_circuit(part: EdgePart) -> None:
    assert part.circuit is not None
    relation = relate(TRUE, part.circuit)
    assert [str(edge) for edge, _ in relation.between] == ["a0.5->a1.11.k"]
    assert len(relation.shared) == 2 and not relation.others
    first, second = relation.claimed
    assert [str(edge) for edge, _ in first.receives] == ["embed->a0.5.v"]
    assert [str(edge) for edge, _ in second.sends] == ["a1.11->logits"]
    stranger = relate(ms.Components(heads=((0, 2),)), part.circuit)
    assert not stranger.shared and [str(other.node) for other in stranger.others] == ["a0.5", "a1.11"]


def test_an_untrained_model_is_not_explained(model, behavior, tmp_path: Path) -> None:
    found = investigate(untrained_twin(model), behavior, ledger=tmp_path)
    assert found.record is None and found.circuit_record is None
    assert (found.outcome, found.circuit_outcome) == ("no claim", "no claim")
    assert found.stopped and not Ledger(tmp_path).entries(), "held-out prompts stay closed"
    written = save_investigation(found, tmp_path / "out")
    assert set(written) == {"report.html", "result.json"}
    assert "no claim" in written["report.html"].read_text(encoding="utf-8")


def test_a_quick_loop_goes_from_prompts_to_a_tested_claim_and_a_page_with_its_pictures(
    model: ms.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole loop but for edges, eight prompts searched, and 49 controls: eight heads a layer to draw them from."""
    others = {layer: range(8) if layer == 0 else range(8, 16) for layer in range(2)}
    monkeypatch.setattr("mechscope.claims.control_families.universe_of", lambda *_: others)
    monkeypatch.setattr("mechscope.investigations.investigate.N_SEARCHED", 8)
    without = EdgePart(stopped="No edges were looked for.")
    for name in ("find_edges", "claim_edges"):
        monkeypatch.setattr(f"mechscope.investigations.investigate.{name}", lambda *_, **__: without)
    found = investigate(
        model, ms.behaviors.load("induction", model, n=200, seed=0), ledger=tmp_path / "ledger"
    )
    assert found.outcome == "supported" and found.record.claim.mechanism == TRUE
    assert len(Ledger(tmp_path / "ledger").entries()) == 1
    page = save_investigation(found, tmp_path / "out")["report.html"].read_text(encoding="utf-8")
    where, heads = (
        page.split(f">{title}</h2>")[1].split("<h2")[0] for title in ("Where it is carried", "The heads")
    )
    assert len(found.grids) > 2
    for title in found.grids:
        assert f"Heatmap: {title[0].upper() + title[1:]}" in where
    n_prompts = len(found.heads.patterns)
    assert heads.count('class="ms-attention"') == n_prompts > 0
    for head in ("0.5", "1.11"):
        assert heads.count(f"Attention pattern of head {head}") == n_prompts


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledger")


@pytest.fixture(scope="module")
def investigation(model: ms.Model, ledger: Path) -> Investigation:
    enough = ms.behaviors.load("induction", model, n=240, seed=0)
    return replace(investigate(model, enough, ledger=ledger), command="mechscope investigate ...")


@pytest.mark.slow
def test_the_whole_loop_ends_in_two_supported_claims_of_one_opening(investigation, ledger: Path) -> None:
    assert (investigation.outcome, investigation.circuit_outcome) == ("supported", "supported")
    record, circuit_record = investigation.record, investigation.circuit_record
    assert record.claim.mechanism == TRUE
    assert set(TRUE_EDGES) <= {str(edge) for edge in circuit_record.claim.mechanism.edges}
    (opening,) = Ledger(ledger).entries()
    assert (opening.claim_id, opening.also) == (record.claim.id, (circuit_record.claim.id,))
    assert record.verdict.held_out.openings == circuit_record.verdict.held_out.openings == 1


@pytest.mark.slow
def test_the_report_stands_alone_and_the_claim_files_open(investigation, tmp_path: Path) -> None:
    written = save_investigation(investigation, tmp_path)
    page = written["report.html"].read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    for heading in (
        "The behaviour",
        "Where it is carried",
        "The heads",
        "The claim about the heads",
        "The circuit",
        "The claim about the circuit",
        "What was not shown",
    ):
        assert f">{heading}</h2>" in page
    assert 'data-node="a1.11"' in page and "ms-node-marked" in page and "How many edges are enough" in page
    numbers = json.loads(written["result.json"].read_text(encoding="utf-8"))
    assert numbers["mechanism"] == {"kind": "components", "heads": [[0, 5], [1, 11]], "mlps": []}
    assert numbers["circuit"]["edges"]["edges"] == TRUE_EDGES and numbers["circuit"]["outcome"] == "supported"
    assert numbers["relation"]["claimed"] == {"a0.5": True, "a1.11": True}
    assert ClaimRecord.load(written["claim.json"]).verdict.outcome == "supported"
    assert ClaimRecord.load(written["circuit-claim.json"]).verdict.outcome == "supported"
    assert ms.Claim.about(ms.circuits.Circuit.load(written["circuit.json"])).behavior.name == "induction"


@pytest.mark.slow
def test_files_of_an_earlier_circuit_do_not_stay(investigation, tmp_path: Path) -> None:
    save_investigation(investigation, tmp_path)
    part = EdgePart(stopped="No edges were looked for.")
    written = save_investigation(replace(investigation, edges=part, circuit_record=None), tmp_path)
    assert (
        set(written)
        == {path.name for path in tmp_path.iterdir()}
        == {"report.html", "result.json", "claim.json"}
    )
    page = written["report.html"].read_text(encoding="utf-8")
    assert "No edges were looked for." in page and "The claim about the circuit" not in page


@pytest.mark.slow
def test_checks_stand_beside_the_circuits_claim_and_change_no_verdict(
    model: ms.Model, investigation: Investigation, tmp_path: Path
) -> None:
    enough = ms.behaviors.load("induction", model, n=240, seed=0)
    few = CheckSettings(
        tests=TestSettings(n_rivals=60, n_inflated=60), n_controls=1, n_parts=60, n_search=8, n_tested=40
    )
    checked = investigate(model, enough, checks=few)
    verdict, bare = (found.circuit_record.verdict for found in (checked, investigation))
    assert bare.checks is None and verdict.checks is not None
    assert verdict.outcome == bare.outcome and checked.record.verdict.checks is None
    assert verdict.predictions == bare.predictions
    page = save_investigation(checked, tmp_path)["report.html"].read_text(encoding="utf-8")
    assert "Beside the claim about the circuit: other tests" in page
    assert "The same search where there is nothing to find" in page
