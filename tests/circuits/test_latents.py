"""Circuits of latents: equal to site-by-site arithmetic; planted latents are found, and nothing where nothing is."""

import copy
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.precision import double
from circuits.cases import padded_pairs, pairs
from dictionaries.samples import random_tensors
from family_cases import opened
from mechscope.attribution.latents import attribute_latents
from mechscope.attribution.nodes import attribute
from mechscope.attribution.part_scores import PartScores
from mechscope.attribution.settings import NodeSettings
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.parts.evaluation import (
    PartEvaluation,
    PartMeasures,
    measure_kept,
    prompts_for,
    random_parts,
)
from mechscope.circuits.parts.latents import LatentCircuit, choose_latents, evaluate_latents
from mechscope.circuits.units import UnitCircuit
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Normalization, Port, Settings
from mechscope.engine.kept_parts.latents import LatentRuns
from mechscope.engine.kept_parts.removed_latents import record_removed
from mechscope.engine.naive import measure_logits
from mechscope.interventions.replace import patch
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.models.writing import from_token_form, to_token_form
from mechscope.vocabulary.edges import Node
from mechscope.vocabulary.errors import (
    DictionaryMismatch,
    InterventionMismatch,
    NotEnoughEvidence,
    UnknownEdge,
)
from mechscope.vocabulary.sites import Site
from small_models import LinearCodec

D, N = 32, 24
ALONE = PartMeasures(n_random=0)
PLANTED = {"mlp_out.0": (5,), "mlp_out.1": (2, 9)}


def random_dictionary(
    read: str, write: str = "", *, shape: tuple[int, ...] = (D,), seed: int = 0, **more
) -> Dictionary:
    ports = [(Port(site=Site.parse(name), shape=shape),) for name in (read, write or read)]
    settings = Settings(reads=ports[0], writes=ports[1], n_latents=N, gate=Gate(rule="topk", k=6), **more)
    return Dictionary(settings, random_tensors(settings, seed))


CASES = {
    "stream": [random_dictionary("resid_post.0"), random_dictionary("resid_post.1", seed=1)],
    "all kinds": [
        random_dictionary("resid_pre.1"),
        random_dictionary("z.1", shape=(4, 10), seed=1),
        random_dictionary("attn_out.1", seed=2),
        random_dictionary("mlp_in.1", "mlp_out.1", seed=3),
        random_dictionary("mlp_in.2", "mlp_out.2", seed=4, has_skip=True),
        random_dictionary("resid_post.2", seed=5),
    ],
    "normalised by token": [
        random_dictionary("resid_post.0", normalization=Normalization(rule="layer_norm")),
        random_dictionary("mlp_in.2", "mlp_out.2", seed=1, normalization=Normalization(rule="layer_norm")),
    ],
}
PIECES = ("stream", "all kinds", "normalised by token")


def half_of(dictionaries: list[Dictionary], errors: tuple[str, ...]) -> LatentCircuit:
    kept = {
        str(one.writes[0]): [i for i in range(N) if (i * 7 + n) % 3] for n, one in enumerate(dictionaries)
    }
    return LatentCircuit.of(dictionaries, latents=kept, errors=errors)


def by_hand(
    model: Model, split: Split, dictionaries: list[Dictionary], circuit: LatentCircuit, ablation: str
) -> Tensor:
    """Site after site: run with what was put so far, form the new value latent by latent, put it."""
    put: list = []
    real = split.clean.mask.bool()
    for one in sorted(dictionaries, key=lambda one: one.writes[0]):
        read, write = one.reads[0], one.writes[0]
        here = model.run(split.clean, interventions=put, capture=[read, write]).cache
        there = model.run(split.clean if ablation == "mean" else split.corrupt, capture=[read, write]).cache
        values, others = (to_token_form(cache[read], read.row) for cache in (here, there))
        old, other = (to_token_form(cache[write], write.row) for cache in (here, there))
        mine, theirs = one.encode(values), one.encode(others)
        nothing = torch.zeros_like(mine)

        def writes(latent: int, codes: Tensor, given: Tensor, one=one, nothing=nothing) -> Tensor:
            single = nothing.clone()
            single[..., latent] = codes[..., latent]
            return one.decode(single, given) - one.decode(nothing, given)

        rest = old - sum(writes(latent, mine, values) for latent in range(N))
        if ablation == "zero":
            theirs, other_rest = nothing, one.decode(nothing, values)
        elif ablation == "mean":
            theirs = theirs[real].mean(0).expand_as(theirs)
            other_rest = other[real].mean(0) - sum(writes(latent, theirs, values) for latent in range(N))
        else:
            other_rest = other - sum(writes(latent, theirs, others) for latent in range(N))
        kept = circuit.kept[str(write)]
        new = rest if kept[-1] else other_rest
        given = others if ablation == "resample" else values
        for latent in range(N):
            new = new + (writes(latent, mine, values) if kept[latent] else writes(latent, theirs, given))
        put.append(patch(write, from_token_form(new, write.row)))
    return measure_logits(split.metric, split.clean, model.logits(split.clean, interventions=put))


def measured(
    model: Model, split: Split, dictionaries: list[Dictionary], kept: Mapping[str, np.ndarray], how="resample"
) -> np.ndarray:
    conventions = Conventions(ablation=how)
    tokens, other, ablation = prompts_for(split, conventions)
    runs = LatentRuns(
        model, tokens, metric=split.metric, dictionaries=dictionaries, ablation=ablation, other=other
    )
    return measure_kept(runs, [kept], conventions)[0]


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("case", PIECES)
def test_kept_latents_are_what_site_by_site_arithmetic_gives(case: str, ablation: str):
    model, split, dictionaries = opened("llama"), padded_pairs(), CASES[case]
    with double("llama"):
        for errors in ((), (str(dictionaries[-1].writes[0]),)):
            circuit = half_of(dictionaries, errors)
            wanted = by_hand(model, split, dictionaries, circuit, ablation).numpy()
            got = measured(model, split, dictionaries, circuit.kept, ablation)
            assert np.abs(got - wanted).max() < 1e-10
            other = half_of(dictionaries, tuple(str(one.writes[0]) for one in dictionaries[:-1]))
            assert np.abs(measured(model, split, dictionaries, other.kept, ablation) - wanted).max() > 1e-4


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bloom", "gptj"])
def test_all_kept_is_the_model_and_none_is_the_run_of_the_twins(name: str):
    model, split = opened(name), padded_pairs()
    dictionaries = [
        random_dictionary("resid_post.0"),
        random_dictionary("mlp_in.1", "mlp_out.1"),
        random_dictionary("resid_post.2"),
    ]
    with double(name):
        whole = LatentCircuit.of(
            dictionaries, latents={str(one.writes[0]): range(N) for one in dictionaries}, errors="kept"
        )
        full = measure_logits(split.metric, split.clean, model.logits(split.clean)).numpy()
        twins = measure_logits(split.metric, split.corrupt, model.logits(split.corrupt)).numpy()
        assert np.abs(measured(model, split, dictionaries, whole.kept) - full).max() < 1e-10
        assert np.abs(measured(model, split, dictionaries, (~whole).kept) - twins).max() < 1e-10
        halfway = measured(model, split, dictionaries, half_of(dictionaries, ()).kept)
    assert np.abs(full - twins).max() > 1e-3 and np.abs(halfway - twins).max() > 1e-3


def test_all_latents_without_the_error_are_the_reconstruction_under_zero():
    model, split, one = opened("llama"), padded_pairs(), random_dictionary("resid_post.1")
    with double("llama"):
        circuit = LatentCircuit.of([one], latents={"resid_post.1": range(N)}, errors="removed")
        got = measured(model, split, [one], circuit.kept, "zero")
        run = model.run(split.clean, splice=[(one, "drop")])
        assert np.abs(got - measure_logits(split.metric, split.clean, run.logits).numpy()).max() < 1e-10


def test_denoising_is_noising_with_the_twins_exchanged():
    model, split, dictionaries = opened("llama"), pairs(), CASES["stream"]
    circuit = half_of(dictionaries, ("resid_post.0",))
    with double("llama"):
        found = circuit.evaluate(
            model,
            split,
            dictionaries=dictionaries,
            conventions=Conventions(direction="denoising"),
            measures=ALONE,
        )
        runs = LatentRuns(
            model,
            split.corrupt,
            metric=split.metric,
            dictionaries=dictionaries,
            ablation="resample",
            other=split.clean,
        )
        wanted = runs.measure([(~circuit).kept])[0]
    assert np.abs(found.values - wanted).max() < 1e-12
    clean, corrupt = (
        measure_logits(split.metric, b, model.logits(b)).numpy() for b in (split.clean, split.corrupt)
    )
    np.testing.assert_allclose(found.model_values, clean, atol=1e-5)
    np.testing.assert_allclose(found.none_values, corrupt, atol=1e-5)


@cache
def planted(*, is_silent: bool = False) -> tuple[Model, list[Dictionary]]:
    """A random model with ReLU units of which all but three write nothing, and transcoders that are its MLPs."""
    hf = copy.deepcopy(opened("opt").hf)
    dictionaries = []
    for index, layer in enumerate(hf.model.decoder.layers):
        with torch.no_grad():
            silent = torch.ones(layer.fc2.weight.shape[1], dtype=torch.bool)
            silent[list(PLANTED.get(f"mlp_out.{index}", ()))] = is_silent
            layer.fc2.weight[:, silent] = 0
            layer.fc2.weight[:, ~silent] *= 20
        tensors = {"W_enc": layer.fc1.weight.T, "b_enc": layer.fc1.bias}
        tensors |= {"W_dec": layer.fc2.weight.T, "b_dec": layer.fc2.bias}
        ports = [(Port(site=Site(point, index), shape=(D,)),) for point in ("mlp_in", "mlp_out")]
        settings = Settings(
            reads=ports[0], writes=ports[1], n_latents=len(layer.fc1.bias), gate=Gate(rule="relu")
        )
        dictionaries.append(Dictionary(settings, {k: t.detach().clone() for k, t in tensors.items()}))
    return wrap(hf, name="planted", check=False), dictionaries


@pytest.mark.parametrize("method", ["attribution", "ig"])
def test_planted_latents_are_chosen_and_carry_all(method: str):
    (model, dictionaries), split = planted(), pairs()
    with double("opt"):
        found = choose_latents(
            model, split, dictionaries=dictionaries, n_latents=50, errors="removed", method=method
        )
        assert {site: kept for site, kept in found.latents.items() if kept} == PLANTED
        scores = attribute_latents(model, split, dictionaries=dictionaries, method=method)
        assert max(map(abs, scores.errors.values())) < 1e-10 * np.abs(scores.effects["mlp_out.1"]).max()
        fitted = found.evaluate(model, split, dictionaries=dictionaries)
        assert fitted.faithfulness == pytest.approx(1, abs=1e-9) and fitted.completeness < 1e-9
        assert fitted.errors_alone is None and fitted.p is not None and fitted.p < 0.1
        fewer = found.resized(1)
        assert abs(fewer.evaluate(model, split, dictionaries=dictionaries).faithfulness - 1) > 1e-3
        others = LatentCircuit.of(dictionaries, latents={"mlp_out.0": (1, 3)}, errors="kept")
        nothing = others.evaluate(model, split, dictionaries=dictionaries, measures=ALONE)
    assert nothing.faithfulness == pytest.approx(0, abs=1e-9) and nothing.errors_alone is not None
    assert Node.parse("mlp_out.1:9") in found and "mlp_out.1:3" not in found
    assert len(found) == 3 and not found.errors and "no error kept" in found.name


def test_latents_that_are_units_are_a_circuit_of_units():
    (model, dictionaries), split = planted(), pairs()
    units = {0: (5, 7), 1: (2,), 2: ()}
    with double("opt"):
        as_units = UnitCircuit(
            circuit=Circuit.whole(model), d_mlp=dictionaries[0].n_latents, units=units
        ).evaluate(model, split)
        as_latents = LatentCircuit.of(
            dictionaries, latents={f"mlp_out.{layer}": kept for layer, kept in units.items()}, errors="kept"
        ).evaluate(model, split, dictionaries=dictionaries, measures=ALONE)
    assert np.abs(as_units.values - as_latents.values).max() < 1e-10
    assert np.abs(as_units.values - as_latents.model_values).max() > 1e-3


def test_where_latents_carry_nothing_none_is_chosen_and_nothing_is_claimed():
    (model, dictionaries), split = planted(is_silent=True), pairs()
    found = choose_latents(model, split, dictionaries=dictionaries, n_latents=10, errors="removed")
    assert len(found) == 0
    with pytest.raises(NotEnoughEvidence, match="empty"):
        found.evaluate(model, split, dictionaries=dictionaries)
    by_hand = LatentCircuit.of(dictionaries, latents={"mlp_out.0": (5,)}, errors="removed")
    with pytest.raises(NotEnoughEvidence, match="cannot be told apart"):
        by_hand.evaluate(model, split, dictionaries=dictionaries)


@pytest.mark.parametrize("method", ["attribution", "ig", "relp"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_effects_of_latents_and_error_add_up_to_their_sites(method: str, direction):
    model, split, dictionaries = opened("llama"), padded_pairs(), CASES["all kinds"]
    settings = NodeSettings(steps=2)
    with double("llama"):
        found = attribute_latents(
            model, split, dictionaries=dictionaries, method=method, direction=direction, settings=settings
        )
        for site, effects in found.effects.items():
            whole = attribute(
                model,
                split,
                site=site,
                method=method,
                direction=direction,
                positions="all",
                settings=settings,
            )
            assert effects.sum() == pytest.approx(float(whole.scores.values.sum()), abs=1e-9)
            assert abs(effects[:-1].sum()) > 1e-6


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("method", ["attribution", "ig"])
def test_where_the_rest_is_linear_effects_are_real_exchanges(method: str, ablation):
    name = "native_attention_only"
    model, split = opened(name), padded_pairs()
    one = random_dictionary("resid_post.2")
    with double(name):
        found = attribute_latents(model, split, dictionaries=[one], method=method, removed=ablation)
        whole = np.ones(N + 1, dtype=bool)
        full = measured(model, split, [one], {"resid_post.2": whole}, ablation)
        for index in range(0, N + 1, 4):  # the last is the error
            kept = whole.copy()
            kept[index] = False
            real = (measured(model, split, [one], {"resid_post.2": kept}, ablation) - full).mean()
            assert found.effects["resid_post.2"][index] == pytest.approx(real, abs=1e-9)


def test_little_memory_gives_the_same_effects_and_the_same_circuits(monkeypatch: pytest.MonkeyPatch):
    model, split, dictionaries = opened("llama"), padded_pairs(), CASES["all kinds"]
    kept = half_of(dictionaries, ("z.1",)).kept
    found: list[tuple] = []
    with double("llama"):
        for memory, codes in ((2**28, 2**26), (1, 1)):
            monkeypatch.setattr("mechscope.attribution.latents._CODES", codes)
            effects = attribute_latents(model, split, dictionaries=dictionaries, removed="mean").effects
            runs = LatentRuns(
                model,
                split.clean,
                metric=split.metric,
                dictionaries=dictionaries,
                ablation="mean",
                other=split.clean,
                memory=memory,
            )
            found.append((effects, runs.measure([kept, runs.whole, kept]), runs.active))
    (effects, values, active), (less, again, fires) = found
    assert all(np.abs(effects[site] - less[site]).max() < 1e-10 for site in effects)
    assert np.abs(values - again).max() < 1e-10 and np.array_equal(again[0], again[2])
    assert all(np.array_equal(active[site], fires[site]) for site in active)


def test_with_little_memory_the_codes_of_one_pair_are_held_at_once(monkeypatch: pytest.MonkeyPatch):
    rows: list[int] = []

    def recorded(model, codecs, batch):
        rows.append(len(batch))
        return record_removed(model, codecs, batch)

    monkeypatch.setattr("mechscope.attribution.latents.record_removed", recorded)
    for codes, most in ((2**26, len(padded_pairs().clean)), (1, 1)):
        rows.clear()
        monkeypatch.setattr("mechscope.attribution.latents._CODES", codes)
        attribute_latents(opened("llama"), padded_pairs(), dictionaries=CASES["all kinds"])
        assert max(rows) == most > 0


def test_errors_are_ranked_with_latents_if_asked_and_always_told():
    model, split, dictionaries = opened("llama"), pairs(), CASES["stream"]
    chosen = choose_latents(model, split, dictionaries=dictionaries, n_latents=48, errors="chosen")
    assert chosen.errors and len(chosen) == 48 - len(chosen.errors)
    every = choose_latents(model, split, dictionaries=dictionaries, n_latents=4, errors="kept")
    assert every.errors == ("resid_post.0", "resid_post.1") and len(every) == 4
    assert str(every.nodes[-1]) == "resid_post.1:error"
    found = every.evaluate(model, split, dictionaries=dictionaries, measures=PartMeasures(n_random=3))
    numbers = found.to_json()
    assert numbers["errors_kept"] == list(every.errors) and numbers["errors_alone"] is not None
    assert "errors kept at" in found.table()._repr_html_() and len(found.random_faithfulness) == 3
    assert set(every.resized(2).latents["resid_post.0"]) <= set(every.latents["resid_post.0"])


def test_random_circuits_have_as_many_latents_at_each_site_of_those_that_fire():
    model, split, dictionaries = opened("llama"), pairs(), CASES["stream"]
    runs = LatentRuns(
        model,
        split.clean,
        metric=split.metric,
        dictionaries=dictionaries,
        ablation="resample",
        other=split.corrupt,
    )
    at, real = dictionaries[0].reads[0], [split.clean.mask.bool(), split.corrupt.mask.bool()]
    values = [model.run(batch, capture=[at])[at] for batch in (split.clean, split.corrupt)]
    codes = torch.cat([dictionaries[0].encode(v)[mask] for v, mask in zip(values, real, strict=True)])
    assert np.array_equal(runs.active[str(at)][:-1], (codes != 0).any(0).numpy())
    circuit = half_of(dictionaries, ("resid_post.1",))
    drawn = [random_parts(circuit, runs.active, seed=0, index=i) for i in range(5)]
    for site, fires in runs.active.items():
        n = int((circuit.kept[site] & fires).sum())
        assert 0 < n < fires.sum()
        for one in drawn:
            assert one[site][:-1].sum() == n and not (one[site] & ~fires)[:-1].any()
            assert one[site][-1] == circuit.kept[site][-1]
    assert len({one["resid_post.0"].tobytes() for one in drawn}) > 1


def test_circuits_scores_and_evaluations_survive_saving(tmp_path):
    model, split, dictionaries = opened("llama"), pairs(), CASES["stream"]
    found = choose_latents(model, split, dictionaries=dictionaries, n_latents=5, errors="kept")
    found.save(tmp_path / "latents.json")
    again = LatentCircuit.load(tmp_path / "latents.json")
    assert again == found and again.top(3) == found.top(3) and again.unit == found.unit
    one = again.evaluate(model, split, dictionaries=dictionaries, measures=PartMeasures(n_random=2))
    one.save(tmp_path / "evaluation.json")
    two = PartEvaluation.load(tmp_path / "evaluation.json")
    assert two.to_json() == one.to_json() and two.circuit == found
    scores = attribute_latents(model, split, dictionaries=dictionaries)
    scores.save(tmp_path / "scores.json")
    assert PartScores.load(tmp_path / "scores.json").top(5) == scores.top(5)
    assert "resid_post" in found.plot()._repr_html_() and "resid_post" in scores.plot()._repr_html_()


def test_latents_and_dictionaries_that_do_not_fit_are_refused_before_anything_is_run():
    model, split, dictionaries = opened("llama"), pairs(), CASES["stream"]
    with pytest.raises(UnknownEdge, match=r"(?s)resid_post.0:24, of 24.*instead:"):
        LatentCircuit.of(dictionaries, latents={"resid_post.0": (24,)}, errors="kept")
    with pytest.raises(UnknownEdge, match=r"(?s)no dictionary writes resid_post.7.*because:.*instead:"):
        LatentCircuit.of(dictionaries, latents={"resid_post.7": (1,)}, errors="kept")
    found = LatentCircuit.of(dictionaries, latents={"resid_post.0": (1,)}, errors="removed")
    other = [dictionaries[0], random_dictionary("resid_post.1", seed=9)]
    with pytest.raises(DictionaryMismatch, match=r"(?s)got:.*because:.*resid_post.1 has other weights"):
        found.evaluate(model, split, dictionaries=other)
    with pytest.raises(DictionaryMismatch, match=r"(?s)none writes resid_post.1"):
        found.evaluate(model, split, dictionaries=dictionaries[:1])
    narrow = [random_dictionary("resid_post.0", shape=(16,))]
    with pytest.raises(DictionaryMismatch, match=r"(?s)does not belong.*carries 32 numbers here"):
        choose_latents(model, split, dictionaries=narrow, n_latents=3, errors="kept")
    with pytest.raises(InterventionMismatch, match=r"(?s)two of them write resid_post.0"):
        choose_latents(model, split, dictionaries=[dictionaries[0]] * 2, n_latents=3, errors="kept")
    with pytest.raises(InterventionMismatch, match=r"(?s)none was given"):
        choose_latents(model, split, dictionaries=[], n_latents=3, errors="kept")
    with pytest.raises(InterventionMismatch, match=r"(?s)LinearCodec does not say how many"):
        attribute_latents(model, split, dictionaries=[LinearCodec(Site("resid_post", 0))])
    with pytest.raises(NotEnoughEvidence, match=r"(?s)one part at least.*got: *0"):
        choose_latents(model, split, dictionaries=dictionaries, n_latents=0, errors="kept")
    with pytest.raises(NotEnoughEvidence, match="no circuit"):
        evaluate_latents(model, [], split=split, dictionaries=dictionaries)
    with pytest.raises(InterventionMismatch, match="no constants"):
        attribute_latents(model, split, dictionaries=dictionaries, direction="denoising", removed="zero")
    chosen = choose_latents(model, split, dictionaries=dictionaries, n_latents=3, errors="kept")
    with pytest.raises(UnknownEdge, match="another model"):
        chosen.evaluate(opened("gpt2"), split, dictionaries=dictionaries)
    with pytest.raises(NotEnoughEvidence, match="no scores"):
        found.resized(4)
