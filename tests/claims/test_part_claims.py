"""Claims about circuits of latents and of experts: planted parts are supported, others are refuted, files reproduce."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mechscope as ms
from circuits.test_latents import PLANTED, planted
from family_cases import opened
from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.own import from_tokens
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.parts.evaluation import PartMeasures
from mechscope.circuits.parts.experts import ExpertCircuit
from mechscope.circuits.parts.latents import LatentCircuit, choose_latents
from mechscope.circuits.statistics.checks import CheckSettings
from mechscope.claims.bench import EngineBench
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.controls import ANY_LAYER, RIVALS
from mechscope.claims.part_claims import Parts, draw_parts, measure_parts
from mechscope.claims.saved_mechanisms import mechanism_from_json
from mechscope.claims.testing import verify_claim
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import BadClaim, BadFile, DictionaryMismatch, NotEnoughEvidence
from tiny_models import VOCABULARY

EXPERTS = {0: (1,), 1: (2,), 2: (0,)}


def told_apart(model: Model, n: int = 204) -> Behavior:
    """Random pairs that differ in two tokens, the clean one being that on which the model's metric is higher."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(0, VOCABULARY, (n, 6), generator=generator)
    second = first.clone()
    second[:, [1, 3]] = torch.randint(0, VOCABULARY, (n, 2), generator=generator)
    logits = [model.logits(side)[:, -1] for side in (first, second)]
    is_higher = (logits[0][:, 3] - logits[0][:, 4] > logits[1][:, 3] - logits[1][:, 4])[:, None]
    clean, corrupt = torch.where(is_higher, first, second), torch.where(is_higher, second, first)
    return from_tokens(clean, corrupt, answers=[3] * n, wrong=[4] * n)


@cache
def of_latents() -> tuple[Model, list[Dictionary], Behavior]:
    """A model of which three units of the MLPs write, transcoders that are its MLPs, and prompts."""
    model, dictionaries = planted()
    return model, dictionaries, told_apart(model)


@cache
def of_experts() -> tuple[Model, Behavior]:
    """A mixture of which one expert a layer writes, and prompts."""
    hf = copy.deepcopy(opened("mixtral").hf)
    with torch.no_grad():
        for index, layer in enumerate(hf.model.layers):
            for expert in range(5):
                layer.mlp.experts.down_proj[expert] *= 100.0 * (expert in EXPERTS[index])
    model = wrap(hf, name="planted", check=False)
    return model, told_apart(model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ClaimRecord]:
    """A folder with a tested claim about the planted latents, found by the search, and their dictionaries."""
    model, dictionaries, behavior = of_latents()
    folder = tmp_path_factory.mktemp("latents")
    for index, one in enumerate(dictionaries):
        one.save(folder / "transcoders" / f"layer_{index}")
    found = choose_latents(model, behavior, dictionaries=dictionaries, n_latents=50, errors="removed")
    claim = ms.Claim.about(found, dictionaries=[folder / "transcoders"])
    record = claim.examine(model, behaviors=[behavior], checks=CheckSettings(n_controls=0))
    record.save(folder / "claim.json")
    return folder, record


def test_the_latents_that_were_planted_are_supported(saved: tuple[Path, ClaimRecord]):
    _, record = saved
    assert record.verdict.outcome == "supported", str(record.verdict)
    mechanism = record.claim.mechanism
    assert isinstance(mechanism, Parts) and mechanism.members == PLANTED
    for result in record.verdict.predictions:
        assert result.controls is not None and result.controls.family == RIVALS
        assert result.controls.n_drawn >= 199 and result.controls.rank.startswith("1st of")
        assert [shown.family for shown in result.others] == [ANY_LAYER]
    assert "3 latents" in record.claim.statement


def test_other_tests_stand_beside_the_claim(saved: tuple[Path, ClaimRecord]):
    checks = saved[1].verdict.checks
    assert checks is not None and checks.settings["part"] == "latent" and checks.controls is None
    asked = ("sufficiency", "necessity", "minimality", "random parts removed", "worst part removed")
    assert {checks[name].outcome for name in asked} == {"holds"}


@pytest.mark.slow
def test_other_latents_are_refuted():
    model, dictionaries, behavior = of_latents()
    wrong = LatentCircuit.of(dictionaries, latents={"mlp_out.0": (1, 3), "mlp_out.1": (4,)}, errors="removed")
    claim = ms.Claim.about(
        wrong, behavior=behavior, dictionaries=dictionaries, predictions=[ms.recovers(0.8)]
    )
    verdict = claim.test(model, checks=False)
    assert verdict.checks is None
    assert verdict.outcome == "refuted" and verdict.predictions[0].outcome == "fails"


def test_the_experts_that_were_planted_are_supported_and_others_are_refuted():
    model, behavior = of_experts()
    outcomes = []
    for experts, predictions in ((EXPERTS, None), ({0: (0,), 1: (1,), 2: (2,)}, [ms.recovers(0.8)])):
        circuit = ExpertCircuit.of(model, experts=experts, routing="recomputed")
        claim = ms.Claim.about(circuit, behavior=behavior, predictions=predictions)
        verdict = claim.test(model, checks=False)
        controls = verdict.predictions[0].controls
        assert controls is not None and controls.n_members == 4**3 == controls.n_drawn
        outcomes.append(verdict.outcome)
    assert outcomes == ["supported", "refuted"]


def test_the_claims_file_says_where_dictionaries_are(saved: tuple[Path, ClaimRecord]):
    folder, _ = saved
    plain = ClaimRecord.load(folder / "claim.json").claim.mechanism.to_json()
    assert plain["opened"]["mlp_out.1"] == {"place": "transcoders", "dtype": "float64"}, "no machine's path"
    mechanism = mechanism_from_json(plain, beside=folder)
    assert isinstance(mechanism, Parts) and mechanism.to_json()["parts"] == plain["parts"]


@pytest.mark.slow
def test_the_claims_file_reproduces_and_another_mechanism_does_not(saved: tuple[Path, ClaimRecord]):
    folder, _ = saved
    model, _, behavior = of_latents()
    again = ClaimRecord.load(folder / "claim.json")
    mechanism = mechanism_from_json(again.claim.mechanism.to_json(), beside=folder)
    assert isinstance(mechanism, Parts)
    bench = EngineBench(model, [behavior])
    assert verify_claim(again, bench, mechanism=mechanism, exact=True) == []
    other = mechanism.keeping(PLANTED | {"mlp_out.1": (2, 8)})
    assert verify_claim(again, bench, mechanism=other), "another mechanism than on record is seen"


def test_dictionaries_that_are_nowhere_or_others_are_refused_by_site(
    saved: tuple[Path, ClaimRecord], tmp_path: Path
):
    folder, record = saved
    plain = record.claim.mechanism.to_json()
    with pytest.raises(BadFile, match=r"(?s)not found.*mlp_out.0.*nothing lies at transcoders.*--dictionary"):
        mechanism_from_json(plain, beside=tmp_path)
    given = mechanism_from_json(plain, dictionaries=[folder / "transcoders"], beside=tmp_path)
    assert isinstance(given, Parts) and given.members == PLANTED
    with pytest.raises(
        BadFile, match=r"(?s)none that writes mlp_out.1.*those that were given write mlp_out.0"
    ):
        mechanism_from_json(plain, dictionaries=[folder / "transcoders" / "layer_0"])
    for index, one in enumerate(of_latents()[1]):
        shifted = {name: tensor + 1 for name, tensor in one.tensors.items()}
        Dictionary(one.settings, shifted).save(tmp_path / "transcoders" / f"layer_{index}")
    with pytest.raises(DictionaryMismatch, match=r"(?s)mlp_out.2 has other weights"):
        mechanism_from_json(plain, beside=tmp_path)


def test_dictionaries_are_known_again_in_another_precision_and_by_name_if_they_ship(tmp_path: Path):
    _, dictionaries, _ = of_latents()
    single = [one.to(dtype=torch.float32) for one in dictionaries]
    circuit = LatentCircuit.of(single, latents=PLANTED, errors="removed")
    mechanism = Parts.of(circuit, dictionaries)
    assert {one.dtype for one in mechanism.placed.values()} == {"float32"}
    with pytest.raises(BadFile, match=r"(?s)because: *none was given.*dictionaries="):
        Parts.of(circuit)
    shipped = [ms.features.open(f"village/mlp.{layer}").dictionary() for layer in (1, 3)]
    named = LatentCircuit.of(shipped, latents={"mlp_out.3": (7,)}, errors="kept")
    by_place = Parts.of(named, ["village/mlp.*"])
    assert [one.place for one in by_place.placed.values()] == ["village/mlp.1", "village/mlp.3"]
    assert Parts.from_json(by_place.to_json()).to_json() == by_place.to_json()


@pytest.mark.parametrize("errors", ["kept", "removed"])
def test_alone_and_without_are_what_evaluations_measure(errors):
    model, dictionaries, behavior = of_latents()
    split = behavior.validation
    circuit = LatentCircuit.of(dictionaries, latents={"mlp_out.1": (2, 4)}, errors=errors)
    evaluation = circuit.evaluate(model, split, dictionaries=dictionaries, measures=PartMeasures(n_random=0))
    mechanism = Parts.of(circuit, dictionaries)
    alone = measure_parts(model, [mechanism], prediction=ms.recovers(0.8), split=split)[0]
    less = ms.lowers(0.5, unit="gap", how="corrupt")
    without = measure_parts(model, [mechanism], prediction=less, split=split)[0]
    assert np.abs(alone - evaluation.values).max() < 1e-6
    assert np.abs(without - evaluation.rest_values).max() < 1e-6
    assert np.abs(alone - without).max() > 1e-2
    means = measure_parts(model, [mechanism], prediction=ms.lowers(1.0, how="mean"), split=split)[0]
    by_mean = (~circuit).evaluate(
        model,
        split,
        dictionaries=dictionaries,
        conventions=Conventions(ablation="mean"),
        measures=PartMeasures(n_random=0),
    )
    assert np.abs(means - by_mean.values).max() < 1e-6 and np.abs(means - without).max() > 1e-3


def test_each_part_left_out_is_what_needs_asks_about():
    model, dictionaries, behavior = of_latents()
    circuit = LatentCircuit.of(
        dictionaries, latents={"mlp_out.0": (5,), "mlp_out.1": (2, 9, 11)}, errors="removed"
    )
    mechanism = Parts.of(circuit, dictionaries)
    assert [one.members for one in mechanism.without_each()][:2] == [
        {"mlp_out.1": (2, 9, 11)},
        {"mlp_out.0": (5,), "mlp_out.1": (9, 11)},
    ]
    bench = EngineBench(model, [behavior])
    held_out = bench.open_split(behavior, fresh_seed=None)
    (drop,) = bench.measure([mechanism], ms.needs(0.1), behavior, held_out)
    assert np.abs(drop).max() < 1e-5, "latent 11 writes nothing"


def test_controls_have_as_many_active_parts_at_each_site_and_none_of_the_circuits_own():
    model, dictionaries, behavior = of_latents()
    kept = {"mlp_out.0": (5, 6), "mlp_out.2": (1, 2, 3)}
    circuit = LatentCircuit.of(dictionaries, latents=kept, errors=("mlp_out.1",))
    mechanism = Parts.of(circuit, dictionaries)
    active = mechanism.runs(model, behavior.train, Conventions()).active
    few, many = (
        draw_parts(model, mechanism, family=RIVALS, train=behavior.train, n_draws=n, seed=4)[0]
        for n in (5, 60)
    )
    assert [one.members for one in few] == [one.members for one in many[:5]]
    for one in many:
        assert {site: len(which) for site, which in one.members.items()} == {"mlp_out.0": 2, "mlp_out.2": 3}
        assert one.circuit.kept["mlp_out.1"][-1]
        assert not one.circuit.kept["mlp_out.0"][-1]
        for site, which in one.members.items():
            assert not set(which) & set(kept[site]) and active[site][list(which)].all()
    assert len({str(one.members) for one in many}) == 60
    anywhere, _ = draw_parts(model, mechanism, family=ANY_LAYER, train=behavior.train, n_draws=30, seed=4)
    assert {len(one) for one in anywhere} == {5} and len({tuple(one.members) for one in anywhere}) > 1


def test_at_any_layer_as_many_of_each_kind_of_site_are_drawn(monkeypatch: pytest.MonkeyPatch):
    kept = {"mlp_out.0": (0, 1), "mlp_out.1": (2,), "resid_post.0": (), "resid_post.1": (4,)}
    which = {site: np.isin(np.arange(11), own) for site, own in kept.items()}
    mechanism = Parts(LatentCircuit(kept=which))
    active = SimpleNamespace(active={site: np.ones(11, dtype=bool)[:10] for site in kept})
    monkeypatch.setattr(Parts, "runs", lambda *_: active)
    model, _, behavior = of_latents()
    drawn, _ = draw_parts(model, mechanism, family=ANY_LAYER, train=behavior.train, n_draws=40, seed=4)
    counts = [{site: len(own) for site, own in one.members.items()} for one in drawn]
    of_mlps = [sum(n for site, n in one.items() if site.startswith("mlp")) for one in counts]
    assert len(drawn) >= 40 and set(of_mlps) == {3} and {sum(one.values()) for one in counts} == {4}
    assert len({tuple(one) for one in counts}) > 2


def test_what_has_no_meaning_for_parts_is_refused_before_prompts_are_opened(tmp_path: Path):
    model, dictionaries, behavior = of_latents()
    circuit = LatentCircuit.of(dictionaries, latents=PLANTED, errors="removed")
    for prediction, said in (
        (ms.raises(1.0, dose=1.0), "steered"),
        (ms.lowers(1.0, how="resample"), "corrupt value, a mean or zero"),
    ):
        claim = ms.Claim.about(
            circuit, behavior=behavior, dictionaries=dictionaries, predictions=[prediction]
        )
        with pytest.raises(BadClaim, match=said):
            claim.test(model, ledger=tmp_path)
    bare = ms.Claim(
        "it", behavior=behavior, mechanism=circuit, predictions=[ms.recovers(0.5)], controls=RIVALS
    )
    with pytest.raises(BadClaim, match=r"(?s)what it takes to run it.*Claim.about"):
        bare.test(model, ledger=tmp_path)
    most = LatentCircuit.of(dictionaries, latents={"mlp_out.0": range(40)}, errors="removed")
    claim = ms.Claim.about(most, behavior=behavior, dictionaries=dictionaries)
    with pytest.raises(NotEnoughEvidence, match=r"(?s)too few other latents.*fewer latents"):
        replace(claim, controls=RIVALS).test(model, ledger=tmp_path)
    with pytest.raises(BadClaim, match="which behaviour it is for"):
        ms.Claim.about(circuit, dictionaries=dictionaries)
    mixture, prompts = of_experts()
    experts = ExpertCircuit.of(mixture, experts=EXPERTS, routing="frozen")
    with pytest.raises(BadClaim, match="not read by dictionaries"):
        ms.Claim.about(experts, behavior=prompts, dictionaries=dictionaries)
    assert not list(tmp_path.iterdir()), "nothing was opened"
