"""Circuits of latents that write several sites, cross-layer transcoders and crosscoders, against arithmetic by hand."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.precision import double
from circuits.cases import padded_pairs, pairs
from circuits.test_latents import ALONE, measured, random_dictionary
from dictionaries.samples import random_tensors
from family_cases import opened
from mechscope.attribution.latents import attribute_latents
from mechscope.behaviors.split import Split
from mechscope.circuits.parts.evaluation import PartMeasures
from mechscope.circuits.parts.latents import LatentCircuit, choose_latents
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Normalization, Port, Settings
from mechscope.engine.naive import measure_logits
from mechscope.interventions.replace import patch
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.edges import Node
from mechscope.vocabulary.errors import DictionaryMismatch, InterventionMismatch
from mechscope.vocabulary.sites import Site

D, EACH, N = 32, 8, 20


def ports(point: str, layers: range) -> tuple[Port, ...]:
    return tuple(Port(site=Site(point, layer), shape=(D,)) for layer in layers)


@cache
def cross_layer(seed: int = 0) -> Dictionary:
    layers = range(3)
    settings = Settings(
        reads=ports("mlp_in", layers),
        writes=ports("mlp_out", layers),
        n_latents=3 * EACH,
        gate=Gate(rule="topk", k=4),
        is_cross_layer=True,
        targets=((0, 1, 2), (1, 2), (2,)),
    )
    return Dictionary(settings, random_tensors(settings, seed))


@cache
def crosscoder(seed: int = 1, **more) -> Dictionary:
    both = ports("resid_post", range(2))
    settings = Settings(reads=both, writes=both, n_latents=N, gate=Gate(rule="topk", k=6), **more)
    return Dictionary(settings, random_tensors(settings, seed))


CASES = {
    "cross-layer": [cross_layer()],
    "crosscoder": [crosscoder(), random_dictionary("mlp_in.2", "mlp_out.2")],
}


def some_of(dictionaries: list[Dictionary], errors: tuple[str, ...]) -> LatentCircuit:
    empty = LatentCircuit.of(dictionaries, latents={}, errors="removed")
    kept = {site: [i for i in range(len(w) - 1) if (i * 7 + len(site)) % 3] for site, w in empty.kept.items()}
    return LatentCircuit.of(dictionaries, latents=kept, errors=errors)


def parts_of(one: Dictionary, circuit: LatentCircuit) -> np.ndarray:
    """Which latents of a dictionary are kept, in its own numbers."""
    if one.kind == "cross_layer_transcoder":
        return np.concatenate([circuit.kept[f"mlp_out.{layer}"][:-1] for layer in range(3)])
    return circuit.kept[str(one.writes[0])][:-1]


def by_hand(
    model: Model, split: Split, dictionaries: list[Dictionary], circuit: LatentCircuit, ablation: str
) -> Tensor:
    """Site after site, latent by latent: what is put at each is formed from a run with what was put before."""
    put: list = []
    real = split.clean.mask.bool()
    every = sorted({site for one in dictionaries for site in (*one.reads, *one.writes)})
    plain = model.run(split.clean, capture=every).cache
    twin = plain if ablation == "mean" else model.run(split.corrupt, capture=every).cache
    for site in sorted({site for one in dictionaries for site in one.writes}):
        one = next(one for one in dictionaries if site in one.writes)
        here = model.run(split.clean, interventions=put, capture=every).cache

        def joined(cache, one=one) -> Tensor:
            values = [cache[read] for read in one.reads]
            return values[0] if len(values) == 1 else torch.stack(values, dim=2)

        def at(written: Tensor, one=one, site=site) -> Tensor:
            return written if len(one.writes) == 1 else written[..., list(one.writes).index(site), :]

        mine = one.encode(joined(plain if one.kind == "crosscoder" else here))
        theirs = one.encode(joined(twin))
        nothing = torch.zeros_like(mine)

        def writes(latent: int, codes: Tensor, one=one, nothing=nothing, at=at) -> Tensor:
            single = nothing.clone()
            single[..., latent] = codes[..., latent]
            return at(one.decode(single)) - at(one.decode(nothing))

        latents = range(one.n_latents)
        rest = here[site] - sum(writes(latent, mine) for latent in latents)
        if ablation == "zero":
            theirs, other_rest = nothing, at(one.decode(nothing))
        elif ablation == "mean":
            theirs = theirs[real].mean(0).expand_as(theirs)
            other_rest = twin[site][real].mean(0) - sum(writes(latent, theirs) for latent in latents)
        else:
            other_rest = twin[site] - sum(writes(latent, theirs) for latent in latents)
        kept = parts_of(one, circuit)
        new = rest if circuit.kept[str(site)][-1] else other_rest
        for latent in latents:
            new = new + writes(latent, mine if kept[latent] else theirs)
        put.append(patch(site, new))
    return measure_logits(split.metric, split.clean, model.logits(split.clean, interventions=put))


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("case", list(CASES))
def test_kept_latents_are_what_site_by_site_arithmetic_gives(case: str, ablation: str) -> None:
    model, split, dictionaries = opened("llama"), padded_pairs(), CASES[case]
    sites = [str(site) for one in dictionaries for site in one.writes]
    with double("llama"):
        values = []
        for errors in ((), tuple(sites), tuple(sites[1:])):
            circuit = some_of(dictionaries, errors)
            wanted = by_hand(model, split, dictionaries, circuit, ablation).numpy()
            got = measured(model, split, dictionaries, circuit.kept, ablation)
            assert np.abs(got - wanted).max() < 1e-10, errors
            values.append(wanted)
    assert min(np.abs(values[0] - other).max() for other in values[1:]) > 1e-4


@pytest.mark.parametrize("case", list(CASES))
def test_all_kept_is_the_model_and_none_the_twins_last_site(case: str) -> None:
    model, split, dictionaries = opened("llama"), padded_pairs(), CASES[case]
    with double("llama"):
        whole = ~LatentCircuit.of(dictionaries, latents={}, errors="removed")
        full = measure_logits(split.metric, split.clean, model.logits(split.clean)).numpy()
        assert np.abs(measured(model, split, dictionaries, whole.kept) - full).max() < 1e-12
        wanted = by_hand(model, split, dictionaries, ~whole, "resample").numpy()
        assert np.abs(measured(model, split, dictionaries, (~whole).kept) - wanted).max() < 1e-10


def test_removing_a_latent_takes_away_what_it_writes_everywhere() -> None:
    """One latent of layer 0 alone, against its writes subtracted at all three sites; at one site it is not the same."""
    model, split, one = opened("llama"), pairs(), cross_layer()
    codes = one.encode(torch.stack([model.run(split.clean, capture=[s])[s] for s in one.reads], dim=2))
    latent = int((codes[..., :EACH] > 0).sum((0, 1)).argmax())
    circuit = ~LatentCircuit.of([one], latents={"mlp_out.0": (latent,)}, errors="removed")
    with double("llama"):
        got = measured(model, split, [one], circuit.kept, "zero")
        wanted = by_hand(model, split, [one], circuit, "zero").numpy()
        assert np.abs(got - wanted).max() < 1e-10
        # With the latent's later writes cut from the dictionary the first site is the only one that loses it.
        tensors = dict(one.tensors)
        tensors["W_dec.0"] = tensors["W_dec.0"].clone()
        tensors["W_dec.0"][latent, 1:] = 0
        short = Dictionary(one.settings, tensors)
        assert np.abs(measured(model, split, [short], circuit.kept, "zero") - got).max() > 1e-6


def gradient_at(model: Model, split: Split, site: Site) -> Tensor:
    """The sum of the metric over pairs, differentiated by what a module of the transformers model gives."""
    layer = model.hf.model.layers[site.layer]
    module, kept = (layer.mlp if site.point == "mlp_out" else layer), []

    def keep(_module, _inputs, output):
        whole = output if isinstance(output, Tensor) else output[0]
        kept.append(whole.detach().clone().requires_grad_())
        return kept[0] if isinstance(output, Tensor) else (kept[0], *output[1:])

    handle = module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model.hf(split.clean.ids).logits
            return torch.autograd.grad(measure_logits(split.metric, split.clean, logits).sum(), kept[0])[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("case", list(CASES))
def test_effects_are_gradients_along_all_that_a_latent_writes(case: str, ablation) -> None:
    """By hand: the difference of codes, times each site's gradient along what the latent writes there."""
    model, split, dictionaries = opened("llama"), pairs(), CASES[case]
    with double("llama"):
        found = attribute_latents(model, split, dictionaries=dictionaries, removed=ablation)
        one = dictionaries[0]
        sites = list(dict.fromkeys((*one.reads, *one.writes)))
        own, twin = (model.run(batch, capture=sites).cache for batch in (split.clean, split.corrupt))
        values = [torch.stack([cache[read] for read in one.reads], dim=2) for cache in (own, twin)]
        mine, theirs = one.encode(values[0]), one.encode(values[1])
        theirs = {"resample": theirs, "zero": 0 * mine, "mean": mine.mean((0, 1)).expand_as(mine)}[ablation]
        latents = np.zeros(one.n_latents)
        for index, site in enumerate(one.writes):
            gradient = gradient_at(model, split, site)
            rows = one.decoder_rows().reshape(one.n_latents, len(one.writes), D)[:, index]
            latents += ((theirs - mine) * (gradient @ rows.T)).sum((0, 1)).numpy() / len(split.clean)
    home = np.concatenate([found.effects[str(site)][:-1] for site in one.writes])
    assert np.abs(home - latents).max() < 1e-9 * max(1.0, np.abs(latents).max())
    assert np.abs(home).max() > 0


@cache
def planted() -> tuple[Model, Dictionary]:
    """A random model whose three MLPs are one cross-layer transcoder, of which two units of layer 0 write at all."""
    hf = copy.deepcopy(opened("opt").hf).double()
    layers = hf.model.decoder.layers
    n = layers[0].fc1.weight.shape[0]
    with torch.no_grad():
        for index, layer in enumerate(layers):
            keep = torch.zeros(n, dtype=torch.bool)
            keep[[5, 9]] = index == 0
            layer.fc2.weight[:, ~keep] = 0
            layer.fc2.weight[:, keep] *= 20
    n_layers = len(layers)
    settings = Settings(
        reads=ports("mlp_in", range(n_layers)),
        writes=ports("mlp_out", range(n_layers)),
        n_latents=n_layers * n,
        gate=Gate(rule="relu"),
        is_cross_layer=True,
        targets=tuple(tuple(range(i, n_layers)) for i in range(n_layers)),
    )
    tensors = {
        "W_enc": torch.stack([layer.fc1.weight.T for layer in layers]).detach(),
        "b_enc": torch.cat([layer.fc1.bias for layer in layers]).detach(),
        "b_dec": torch.stack([layer.fc2.bias for layer in layers]).detach(),
    }
    for index, layer in enumerate(layers):
        rows = torch.zeros(n, n_layers - index, D, dtype=torch.float64)
        rows[:, 0] = layer.fc2.weight.T.detach()
        tensors[f"W_dec.{index}"] = rows
    return wrap(hf, name="planted", check=False), Dictionary(settings, tensors)


def test_planted_latents_are_chosen_and_carry_all_and_others_nothing() -> None:
    (model, one), split = planted(), pairs()
    with double("opt"):
        found = choose_latents(model, split, dictionaries=[one], n_latents=9, errors="removed")
        assert {site: kept for site, kept in found.latents.items() if kept} == {"mlp_out.0": (5, 9)}
        fitted = found.evaluate(model, split, dictionaries=[one], measures=PartMeasures(n_random=5))
        other = LatentCircuit.of([one], latents={"mlp_out.1": (5, 9)}, errors="removed")
        nothing = other.evaluate(model, split, dictionaries=[one], measures=ALONE)
    assert fitted.faithfulness == pytest.approx(1, abs=1e-9)
    assert nothing.faithfulness == pytest.approx(0, abs=1e-9)
    assert Node.parse("mlp_out.0:9") in found and "mlp_out.1:9" not in found


def test_they_survive_saving_and_misfits_are_refused(tmp_path) -> None:
    model, split = opened("llama"), pairs()
    found = choose_latents(model, split, dictionaries=[cross_layer()], n_latents=6, errors="chosen")
    found.save(tmp_path / "circuit.json")
    again = LatentCircuit.load(tmp_path / "circuit.json")
    assert again == found and again.resized(2).kept.keys() == found.kept.keys()
    again.evaluate(model, split, dictionaries=[cross_layer()], measures=PartMeasures(n_random=2))
    with pytest.raises(DictionaryMismatch, match="other weights"):
        again.evaluate(model, split, dictionaries=[cross_layer(4)])
    with pytest.raises(InterventionMismatch, match=r"two of them write mlp_out.2"):
        choose_latents(
            model,
            split,
            dictionaries=[cross_layer(), random_dictionary("mlp_in.2", "mlp_out.2")],
            n_latents=3,
            errors="kept",
        )
    scaled = crosscoder(normalization=Normalization(rule="layer_norm"))
    with pytest.raises(InterventionMismatch, match="depends on the values read"):
        choose_latents(model, split, dictionaries=[scaled], n_latents=3, errors="kept")
