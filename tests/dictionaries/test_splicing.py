"""A dictionary in the forward pass: identity with its error, a known change without, and clamps in sweeps."""

from dataclasses import replace

import pytest
import torch

import mechscope as ms
from dictionaries.samples import random_tensors
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Normalization, Port, Settings, Source
from mechscope.engine.naive import run_naively
from mechscope.interventions.metrics import LogitDifference, answer_sets
from mechscope.vocabulary.errors import DictionaryMismatch, InterventionMismatch, SiteAfterStop
from mechscope.vocabulary.sites import Site
from small_models import biggest, model_of, prompts

D = 32


def dictionary(
    reads: tuple[str, ...] = ("resid_post.1",), writes: tuple[str, ...] | None = None, **more
) -> Dictionary:
    ports = [tuple(Port(site=Site.parse(s), shape=(D,)) for s in names) for names in (reads, writes or reads)]
    settings = Settings(reads=ports[0], writes=ports[1], n_latents=24, gate=Gate(rule="topk", k=5), **more)
    return Dictionary(settings, random_tensors(settings))


CLT = {
    "reads": ("mlp_in.0", "mlp_in.1"),
    "writes": ("mlp_out.0", "mlp_out.1"),
    "is_cross_layer": True,
    "targets": ((0, 1), (1,)),
}
CASES = {
    "sae": {},
    "transcoder": {"reads": ("mlp_in.1",), "writes": ("mlp_out.1",)},
    "skip": {"reads": ("mlp_in.1",), "writes": ("mlp_out.1",), "has_skip": True},
    "cross-layer": CLT,
    "normalised by token": {"normalization": Normalization(rule="layer_norm")},
}


@pytest.mark.parametrize("case", list(CASES))
def test_with_its_error_a_dictionary_changes_nothing_and_its_codes_are_recorded(case: str) -> None:
    model, batch, one = model_of(), prompts(), dictionary(**CASES[case])
    run = model.run(batch, splice=[one], capture=[*one.reads])
    assert torch.equal(run.logits, model.logits(batch))
    real = batch.mask.bool()
    values = [run[site][real] for site in one.reads]
    codes = one.encode(values[0] if len(values) == 1 else torch.stack(values, 1))
    assert torch.allclose(run.cache["latents", one][real], codes, atol=1e-9)
    assert run.cache["latents", one][~real].abs().sum() == 0
    with pytest.raises(SiteAfterStop, match="not spliced"):
        run.cache["latents", dictionary()]


@pytest.mark.parametrize("case", list(CASES))
def test_without_its_error_what_is_written_is_the_reconstruction(case: str) -> None:
    model, batch, one = model_of(), prompts(), dictionary(**CASES[case])
    run = model.run(batch, splice=[(one, "drop")], capture=[*one.reads, *one.writes])
    real = batch.mask.bool()
    last = one.writes[-1]
    clean = model.run(batch, capture=[*one.reads])
    source = run if case == "cross-layer" else clean  # its second read is downstream of its first write
    values = [source[site][real] for site in one.reads]
    wanted = one(values[0] if len(values) == 1 else torch.stack(values, 1))
    wanted = wanted if len(one.writes) == 1 else wanted[:, -1]
    assert torch.allclose(run[last][real], wanted, atol=1e-9)
    assert (
        biggest(run.logits, clean.logits if clean.logits is not None else model.logits(batch), batch) > 1e-3
    )
    same = model.run(batch, splice=[one.spliced("drop")])
    assert torch.equal(same.logits, run.logits)


def test_gradients_go_through_the_codes() -> None:
    model, batch, one = model_of(), prompts(), dictionary()
    run = model.run(batch, splice=[one], grad=True)
    link = run.cache.latents[id(one)]
    with torch.enable_grad():
        run.logits[:, -1, 3].sum().backward()
    at, latent = 4, int(link.codes[4].argmax())

    def logit(step: float) -> torch.Tensor:
        def nudge(value: torch.Tensor) -> torch.Tensor:
            value = value.clone()
            value[at] += step * one.W_dec[latent]
            return value

        return model.logits(batch, interventions=[ms.edit("resid_post.1", nudge)])[:, -1, 3].sum()

    slope = (logit(1e-2) - logit(-1e-2)) / 2e-2
    assert torch.allclose(link.codes.grad[at, latent], slope, rtol=2e-2)
    assert abs(float(slope)) > 1e-4


def test_a_clamp_sets_the_code_in_runs_sweeps_and_generation() -> None:
    model, batch = model_of(), prompts()
    for one in (dictionary(), dictionary(normalization=Normalization(rule="layer_norm"))):
        clamps = [ms.clamp(one, feature=f, to=6.0) for f in (0, 3, 7)]
        before = model.run(batch, capture=["resid_post.1"])["resid_post.1"]
        after = model.run(batch, interventions=[clamps[1]], capture=["resid_post.1"])["resid_post.1"]
        codes = one.encode(before)
        wanted = codes.clone()
        wanted[..., 3] = 6.0
        moved = before + one.decode(wanted, before) - one.decode(codes, before)
        assert biggest(after, moved, batch) < 1e-9 and biggest(after, before, batch) > 0.1
        metric = LogitDifference(answers=answer_sets([3, 3]), wrong=answer_sets([5, 5]))
        experiments = [ms.Experiment(inputs=batch, writes=(clamp,), metric=metric) for clamp in clamps]
        swept, naive = ms.run_experiments(model, experiments), run_naively(model, experiments)
        for found, oracle in zip(swept, naive, strict=True):
            assert torch.allclose(torch.as_tensor(found), torch.as_tensor(oracle), atol=1e-9)
        plain = model.generate(batch, max_new_tokens=6, returns="tokens")
        steered = model.generate(
            batch, max_new_tokens=6, interventions=[ms.clamp(one, feature=3, to=60.0)], returns="tokens"
        )
        uncached = model.generate(
            batch,
            max_new_tokens=6,
            interventions=[ms.clamp(one, feature=3, to=60.0)],
            returns="tokens",
            use_cache=False,
        )
        assert steered == uncached != plain


def test_what_does_not_fit_is_refused_before_the_run() -> None:
    model, batch = model_of(), prompts()
    with pytest.raises(InterventionMismatch, match="can't be spliced"):
        model.run(batch, splice=["resid_post.1"])
    with pytest.raises(InterventionMismatch, match="forward pass"):
        model.run(batch, splice=[dictionary(("resid_post.0", "resid_post.1"))])
    elsewhere = dictionary(("resid_post.9",))
    with pytest.raises(DictionaryMismatch, match="does not belong") as refusal:
        model.run(batch, splice=[elsewhere])
    assert "resid_post.9" in refusal.value.because
    ports = (Port(site=Site("resid_post", 1), shape=(D + 1,)),)
    settings = Settings(reads=ports, writes=ports, n_latents=24, gate=Gate(rule="relu"))
    with pytest.raises(DictionaryMismatch) as refusal:
        model.run(batch, splice=[Dictionary(settings, random_tensors(settings))])
    assert f"{D} numbers here" in refusal.value.because and f"{D + 1}" in refusal.value.because
    one = dictionary()
    early = model.run(batch, splice=[one], stop_after="resid_post.0")
    with pytest.raises(SiteAfterStop, match="no codes"):
        early.cache["latents", one]


def test_a_dictionary_of_another_tokenizer_is_refused() -> None:
    model = ms.load("village")
    width = model.d_model
    ports = (Port(site=Site("resid_post", 0), shape=(width,)),)
    settings = Settings(reads=ports, writes=ports, n_latents=24, gate=Gate(rule="relu"))
    mine = replace(settings, source=Source(tokenizer_sha256=model.tokenizer_sha256))
    other = replace(settings, source=Source(tokenizer_sha256="0" * 64))
    tensors = random_tensors(settings, dtype=torch.float32)
    Dictionary(mine, tensors).refuse_unless_fits(model)
    with pytest.raises(DictionaryMismatch, match="does not belong") as refusal:
        Dictionary(other, tensors).refuse_unless_fits(model)
    assert "tokenizer" in refusal.value.because
