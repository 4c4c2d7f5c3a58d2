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


def added_by_hand(one: Dictionary, feature: int, to: float, positions: tuple[int, ...] | None) -> list:
    """What a clamp has to add, from a clean run: the latent's deficit times its decoder row, by edits."""
    model, batch = model_of(), prompts()
    reads, writes = one.sites_of(feature)
    read = model.run(batch, capture=list(one.reads))
    values = [read[site] for site in one.reads]
    lacks = to - one.encode(values[0] if len(values) == 1 else torch.stack(values, 2))[..., feature]
    rows = one.decoder_rows()[feature].reshape(len(one.writes), D)
    assert all(site == reads[-1] or site.layer == reads[-1].layer for site in reads)

    def adding(site: Site):
        chosen = batch.mask.bool()
        if positions is not None:
            n = batch.n_real[:, None]
            places = (batch.mask.cumsum(1) - 1).where(chosen, -100)
            chosen = sum((places == (p if p >= 0 else n + p)) for p in positions) > 0
        added = lacks[..., None] * rows[one.writes.index(site)] * chosen[..., None]

        def add(value: torch.Tensor) -> torch.Tensor:
            return value + added.reshape(value.shape)

        return ms.edit(site, add)

    return [adding(site) for site in writes]


@pytest.mark.parametrize("positions", [None, (1, -2)])
@pytest.mark.parametrize("feature", [3, 15])
@pytest.mark.parametrize("case", ["transcoder", "skip", "cross-layer"])
def test_a_clamp_of_a_transcoder_adds_what_its_latent_writes_too_little(
    case: str, feature: int, positions: tuple[int, ...] | None
) -> None:
    model, batch, one = model_of(), prompts(), dictionary(**CASES[case])
    clamp = ms.clamp(one, feature=feature, to=6.0, positions=positions)
    got = model.logits(batch, interventions=[clamp])
    wanted = model.logits(batch, interventions=added_by_hand(one, feature, 6.0, positions))
    assert biggest(got, wanted, batch) < 1e-9 and biggest(got, model.logits(batch), batch) > 1e-3
    spliced = model.run(batch, interventions=[clamp], splice=[one])
    assert torch.allclose(spliced.logits, got), "spliced with its error, it changes nothing more"


def test_a_clamp_of_a_transcoder_whose_scale_is_the_tokens_own_uses_that_scale() -> None:
    model, batch = model_of(), prompts()
    one = dictionary(("mlp_in.1",), ("mlp_out.1",), normalization=Normalization(rule="token_norm"))
    clean = model.run(batch, capture=["mlp_in.1", "mlp_out.1"])
    codes = one.encode(clean["mlp_in.1"])
    held = codes.clone()
    held[..., 5] = 4.0
    read = clean["mlp_in.1"]
    wanted = clean["mlp_out.1"] + one.decode(held, read) - one.decode(codes, read)
    got = model.run(batch, interventions=[ms.clamp(one, feature=5, to=4.0)], capture=["mlp_out.1"])
    assert biggest(got["mlp_out.1"], wanted, batch) < 1e-9


@pytest.mark.parametrize("positions", [None, -2])
@pytest.mark.parametrize("case", ["transcoder", "cross-layer"])
def test_clamps_of_transcoders_give_the_same_in_sweeps_and_with_a_cache(
    case: str, positions: int | None
) -> None:
    model, batch, one = model_of(), prompts(), dictionary(**CASES[case])
    metric = LogitDifference(answers=answer_sets([3, 3]), wrong=answer_sets([5, 5]))
    clamps = [ms.clamp(one, feature=f, to=t, positions=positions) for f in (0, 3, 15) for t in (4.0, 0.0)]
    upstream = ms.add("resid_pre.0", torch.ones(D, dtype=torch.float64), absolute=0.3, positions=2)
    writes = [(clamp,) for clamp in clamps] + [(upstream, clamp) for clamp in clamps]
    experiments = [ms.Experiment(inputs=batch, writes=one, metric=metric) for one in writes]
    swept, naive = ms.run_experiments(model, experiments), run_naively(model, experiments)
    for found, oracle in zip(swept, naive, strict=True):
        assert torch.allclose(torch.as_tensor(found), torch.as_tensor(oracle), atol=1e-9)
    strong = [ms.clamp(one, feature=3, to=60.0)]
    texts = [
        model.generate(batch, max_new_tokens=6, interventions=w, returns="tokens", use_cache=cached)
        for w in (strong, [])
        for cached in (True, False)
    ]
    assert texts[0] == texts[1] != texts[2] == texts[3]


@pytest.mark.parametrize("case", list(CASES))
def test_dictionaries_are_spliced_into_generation_and_cached_equals_uncached(case: str) -> None:
    model, batch, one = model_of(), prompts(), dictionary(**CASES[case])

    def said(**more) -> list[list[int]]:
        return model.generate(batch, max_new_tokens=6, returns="tokens", stops_at_eos=False, **more)

    assert said(splice=[one]) == said(), "with its error a dictionary changes no word"
    dropped = said(splice=[(one, "drop")])
    assert dropped == said(splice=[(one, "drop")], use_cache=False) != said()
    ids = batch.row(0)
    for token in dropped[0]:
        assert int(model.run([ids], splice=[(one, "drop")]).logits[0, -1].argmax()) == token
        ids = [*ids, token]
    with model.intervening([], splice=[(one, "drop")]) as hf:
        theirs = hf(input_ids=torch.tensor([batch.row(0)])).logits
    assert torch.allclose(theirs, model.run([batch.row(0)], splice=[(one, "drop")]).logits)


def test_a_clamp_that_can_not_be_made_is_refused() -> None:
    model, batch = model_of(), prompts()
    with pytest.raises(DictionaryMismatch, match="no latent 24"):
        ms.clamp(dictionary(), feature=24, to=1.0)
    with pytest.raises(InterventionMismatch, match="one forward pass") as refusal:
        ms.clamp(dictionary(("resid_post.0", "resid_post.1")), feature=0, to=1.0)
    assert "resid_post.1" in refusal.value.got
    derived = ms.clamp(dictionary(("ln2_normalized.1",), ("mlp_out.1",)), feature=0, to=1.0)
    with pytest.raises(InterventionMismatch, match="listen"):
        model.run(batch, interventions=[derived])
    late = dictionary(("mlp_in.0",), ("mlp_out.1",))
    start = ("resid_pre.1", model.run(batch, capture=["resid_pre.1"])["resid_pre.1"])
    with pytest.raises(SiteAfterStop, match="starts behind"):
        model.run(batch, interventions=[ms.clamp(late, feature=0, to=1.0)], start=start)
    with pytest.raises(SiteAfterStop, match="before the place where the run starts"):
        model.run(batch, splice=[late], start=start)


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
