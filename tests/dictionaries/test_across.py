"""A crosscoder over two models: what only one of them has is found, and where they are alike nothing is."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import mechscope as ms
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.training.spec import Job
from mechscope.dictionaries.training.trainer import Trainer
from mechscope.engine.harvest.aligned import AlignedBlocks, SiteOf
from mechscope.engine.harvest.blocks import ModelBlocks, TensorBlocks
from mechscope.engine.harvest.corpus import corpus_of
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import DictionaryMismatch, PairLengthMismatch, PositionOutOfRange
from mechscope.vocabulary.sites import Site
from small_models import model_of
from tiny_models import VOCABULARY, tiny

dictionaries = ms.dictionaries
SITE = Site("resid_pre", 0)
TRAINING = dictionaries.Training(batch=256, n_tokens=256 * 300, rate=5e-3)
CONFIG = dictionaries.BatchTopK(width=40, k=2)


def rows(n: int, seed: int, length: int = 12) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(seed))


@cache
def models(is_planted: bool) -> dict[str, ms.Model]:
    """Two models whose stream starts as the token's embedding alone; one adds a direction at some positions."""
    base, tuned = tiny("gpt2"), tiny("gpt2")
    with torch.no_grad():
        for one in (base, tuned):
            one.transformer.wpe.weight.zero_()
        if is_planted:
            tuned.transformer.wpe.weight[planted_positions()] = planted_direction()
    return {"base": wrap(base), "tuned": wrap(tuned)}


def planted_positions() -> torch.Tensor:
    return torch.arange(48)[torch.rand(48, generator=torch.Generator().manual_seed(5)) < 0.5]


def planted_direction() -> torch.Tensor:
    v = torch.randn(32, generator=torch.Generator().manual_seed(6))
    return 6 * v / v.norm()


@cache
def trained(is_planted: bool) -> Dictionary:
    return dictionaries.train_across(
        models(is_planted), site=str(SITE), text=rows(400, 1), config=CONFIG, training=TRAINING
    )


@cache
def compared(is_planted: bool) -> dictionaries.ModelComparison:
    return dictionaries.compare_models(trained(is_planted), models(is_planted), rows(40, 2))


def test_a_direction_that_one_model_has_is_a_latent_of_that_model_alone() -> None:
    found, crosscoder = compared(True), trained(True)
    own = found.only_in("tuned")
    assert len(own) and not len(found.only_in("base"))
    written = crosscoder.W_dec[own.tolist()].double()
    along = torch.cosine_similarity(written[:, 1], planted_direction().double()[None], dim=1)
    assert float(along.abs().min()) > 0.98, "each of its latents is that direction"
    assert np.abs(found.presence[0, own]).max() < 0.1 and np.abs(found.presence[1, own] - 1).max() < 0.1
    assert all(estimate.value < 0.15 for estimate in found.fvu.values())
    assert f"tuned        fvu {found.fvu['tuned']!r}   {len(own)} latents" in repr(found)


def test_two_models_that_are_alike_have_no_latent_of_their_own() -> None:
    found = compared(False)
    fires = found.density > 0
    assert fires.sum() > 20 and np.allclose(found.shares[:, fires], 0.5, atol=1e-6)
    assert np.allclose(found.cosine[fires], 1) and np.allclose(
        found.presence[0], found.presence[1], equal_nan=True
    )
    assert not len(found.only_in("base")) and not len(found.only_in("tuned"))


def test_a_model_that_differs_a_little_everywhere_has_no_latent_of_its_own() -> None:
    """Noise on every embedding is a difference, and no feature."""
    near = wrap(tiny("gpt2"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        near.hf.transformer.wpe.weight.zero_()
        weight = near.hf.transformer.wte.weight
        weight.add_(0.2 * weight.std() * torch.randn(weight.shape, generator=generator))
    pair = {**models(False), "tuned": near}
    crosscoder = dictionaries.train_across(
        pair, site=str(SITE), text=rows(400, 1), config=CONFIG, training=TRAINING
    )
    found = dictionaries.compare_models(crosscoder, pair, rows(40, 2))
    assert not len(found.only_in("base")) and not len(found.only_in("tuned"))
    assert found.cosine[found.density > 0].min() < 0.999, "that they differ is seen"


def test_models_that_read_other_tokens_share_nothing() -> None:
    """The twin of alignment: the same values, one model's in another order."""
    one = models(False)["base"].run(rows(300, 1), capture=[str(SITE)])[str(SITE)].flatten(0, 1).float()
    order = torch.randperm(len(one), generator=torch.Generator().manual_seed(0))
    sites = [SiteOf(SITE.point, SITE.layer, label) for label in ("base", "tuned")]
    config = dictionaries.BatchTopK(width=80, k=2)
    shared = []
    for values in (one, one[order]):
        blocks = TensorBlocks(dict(zip(sites, (one, values), strict=True)))
        found = Trainer(blocks, [Job(reads=tuple(sites), config=config)], training=TRAINING).run()[0]
        norms = found.W_dec.norm(dim=2)
        share = norms[:, 1] / norms.sum(1)
        fires = (found.encode(torch.stack([one, values], 1)) != 0).float().mean(0) > 0.002
        shared.append(float(((share > 0.4) & (share < 0.6))[fires].float().mean()))
    assert shared[0] == 1 and shared[1] < 0.3, shared


def test_a_latent_whose_decoder_was_shrunk_in_one_model_is_not_the_others_own() -> None:
    """What L1 does to weak decoders: norms alone say "only in tuned", and what base carries says it is not."""
    crosscoder = trained(False)
    latent = int(compared(False).density.argmax())
    decoder = crosscoder.W_dec.clone()
    decoder[latent, 0] = 0
    shrunk = Dictionary(crosscoder.settings, crosscoder.tensors | {"W_dec": decoder})
    found = dictionaries.compare_models(shrunk, models(False), rows(40, 2))
    assert found.shares[1, latent] == 1 and found.presence[0, latent] > 0.9
    assert latent not in found.only_in("tuned")
    assert found.only_in("tuned", most_elsewhere=2.0).tolist() == [latent], "norms alone are misled"


def test_presence_is_least_squares_on_what_other_latents_leave() -> None:
    crosscoder, found = trained(True), compared(True)
    values = [
        one.run(rows(40, 2), capture=[str(SITE)])[str(SITE)].flatten(0, 1).double()
        for one in models(True).values()
    ]
    exact = crosscoder.to(dtype=torch.float64)
    scale = exact.tensors["in_scale"].reshape(2, -1)
    codes = exact.encode(torch.stack(values, 1))
    for latent in [*found.only_in("tuned")[:1].tolist(), int(found.density.argmax())]:
        others = codes.clone()
        others[:, latent] = 0
        rest = exact.decode(others)
        strongest = exact.W_dec[latent, int(exact.W_dec[latent].norm(dim=1).argmax())]
        design = (codes[:, latent, None] * strongest).reshape(-1, 1)
        for model in range(2):
            left = ((values[model] - rest[:, model]) * scale[model]).reshape(-1, 1)
            fitted = float(torch.linalg.lstsq(design, left).solution)
            assert found.presence[model, latent] == pytest.approx(fitted, abs=1e-4)
    assert found.density.sum() == pytest.approx(found.l0.value)
    error = (
        torch.stack([values[m] - exact(torch.stack(values, 1))[:, m] for m in range(2)]).square().sum((1, 2))
    )
    spread = torch.stack([(one - one.mean(0)).square().sum() for one in values])
    assert [found.fvu[label].value for label in ("base", "tuned")] == pytest.approx(
        (error / spread).tolist(), rel=1e-4
    )


def test_folding_and_the_batch_size_change_nothing() -> None:
    found = compared(True)
    again = dictionaries.compare_models(trained(True).folded(), models(True), rows(40, 2), batch_size=7)
    for name in ("norms", "presence", "cosine", "density"):
        assert np.allclose(getattr(found, name), getattr(again, name), atol=1e-4, equal_nan=True), name


def test_a_comparison_and_its_crosscoder_come_back_from_files(tmp_path: Path) -> None:
    crosscoder, found = trained(True), compared(True)
    crosscoder.save(tmp_path / "crosscoder")
    back = dictionaries.open(tmp_path / "crosscoder")
    assert back.settings == crosscoder.settings and "base: resid_pre.0, tuned: resid_pre.0" in repr(back)
    assert [port.model for port in back.settings.writes] == ["base", "tuned"]
    known = back.settings.source.notes["models"]
    assert {label: known[label]["weights_sha256"] for label in known} == {
        label: one.fingerprint.weights_sha256 for label, one in models(True).items()
    }
    found.save(tmp_path / "comparison.json")
    read = dictionaries.ModelComparison.load(tmp_path / "comparison.json")
    assert repr(read) == repr(found) and np.array_equal(read.presence, found.presence, equal_nan=True)
    assert read.settings["bos"] == "given" and read.data_sha256 == found.data_sha256
    assert found.histogram().values.sum() == (found.density > 0).sum()
    assert found.plot() is not None


def test_a_run_in_a_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    short = replace(TRAINING, n_tokens=256 * 20)
    arguments = {"site": str(SITE), "text": rows(60, 1), "config": CONFIG, "training": short}
    first = dictionaries.train_across(models(True), folder=tmp_path, **arguments)
    again = dictionaries.train_across(models(True), folder=tmp_path, **arguments)
    alone = dictionaries.train_across(models(True), **arguments)
    for name, value in alone.tensors.items():
        assert torch.equal(first.tensors[name], value) and torch.equal(again.tensors[name], value), name


def test_values_of_both_models_belong_to_the_same_tokens() -> None:
    texts = [rows(1, seed, length)[0].tolist() for seed, length in enumerate((5, 9, 3, 12, 7))]
    both = models(False)
    corpus = corpus_of(both["base"], texts)
    parts = {
        label: ModelBlocks(model=one, corpus=corpus, sites=(SITE,), rows_per_block=3, rows_at_once=2)
        for label, one in both.items()
    }
    blocks = AlignedBlocks(parts)
    here, there = (SiteOf(SITE.point, SITE.layer, label) for label in both)
    assert here != there and here != SITE and str(here) == "base: resid_pre.0" and here.bare == SITE
    assert blocks.sizes == [17, 19] and set(blocks.shapes) == {here, there}
    for index in range(2):
        block = blocks.block(index)
        assert torch.equal(block[here], block[there]) and len(block[here]) == blocks.sizes[index]
    with pytest.raises(PairLengthMismatch, match="same tokens"):
        AlignedBlocks({**parts, "tuned": replace(parts["tuned"], rows_at_once=3)})
    with pytest.raises(PairLengthMismatch, match="same tokens"):
        AlignedBlocks({**parts, "tuned": replace(parts["tuned"], corpus=corpus.shuffled(1))})


def test_models_of_other_widths_and_depths_share_a_crosscoder_too() -> None:
    pair = {"small": wrap(tiny("gpt2")), "large": wrap(tiny("gpt2", n_embd=48, n_layer=4))}
    short = replace(TRAINING, n_tokens=256 * 10)
    found = dictionaries.train_across(
        pair, site=["resid_post.-1"], text=rows(40, 1), config=CONFIG, training=short
    )
    assert [str(port.site) for port in found.settings.reads] == ["resid_post.2", "resid_post.3"]
    result = dictionaries.compare_models(found, pair, rows(10, 2))
    assert np.isnan(result.presence).all() and np.isnan(result.cosine).all()
    assert result.norms.shape == (2, 40) and np.isfinite(result.norms).all()


def test_bad_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both, crosscoder = models(True), trained(True)
    arguments = {"site": str(SITE), "text": rows(40, 1), "config": CONFIG}
    with pytest.raises(DictionaryMismatch, match="at least two"):
        dictionaries.train_across({"base": both["base"]}, **arguments)
    with pytest.raises(DictionaryMismatch, match="Attention maps"):
        dictionaries.train_across(both, **{**arguments, "site": "pattern.0"})
    fewer = {**both, "tuned": wrap(tiny("gpt2", vocab_size=20))}
    with pytest.raises(PositionOutOfRange, match="tuned"):
        dictionaries.train_across(fewer, **arguments)
    with pytest.raises(DictionaryMismatch, match="reads and writes each"):
        dictionaries.compare_models(crosscoder, {"base": both["base"], "other": both["tuned"]}, rows(4, 2))
    with pytest.raises(DictionaryMismatch, match="carries 48 numbers"):
        wide = {**both, "tuned": wrap(tiny("gpt2", n_embd=48))}
        dictionaries.compare_models(crosscoder, wide, rows(4, 2))
    with pytest.raises(DictionaryMismatch, match="no model"):
        compared(True).only_in("other")
    for label, told in (("base", "a" * 64), ("tuned", "b" * 64)):
        monkeypatch.setitem(vars(both[label]), "tokenizer_sha256", told)
    with pytest.raises(DictionaryMismatch, match="different tokenizers"):
        dictionaries.train_across(both, **arguments)


def test_a_crosscoder_over_models_is_refused_where_one_model_runs() -> None:
    crosscoder, model = trained(True), models(True)["base"]
    with pytest.raises(DictionaryMismatch, match="several models"):
        model.run(rows(2, 1), splice=[crosscoder])
    with pytest.raises(DictionaryMismatch, match="several models"):
        model.run(rows(2, 1), interventions=[ms.clamp(crosscoder, feature=1, to=1.0)])
    with pytest.raises(DictionaryMismatch, match="several models"):
        dictionaries.evaluate(crosscoder, model, rows(4, 1))
    over_layers = dictionaries.train(
        model_of(),
        site=["resid_post.0", "resid_post.1"],
        text=rows(40, 1).tolist(),
        config=CONFIG,
        training=replace(TRAINING, n_tokens=256),
    )
    assert over_layers.sites_of(0)[0] == over_layers.reads, "several sites of one model are as before"


def test_it_is_written_and_opened_as_forks_of_dictionary_learning_do(tmp_path: Path) -> None:
    crosscoder, found = trained(True), compared(True)
    dictionaries.export(crosscoder, tmp_path / "theirs", format="dictionary_learning_crosscoder")
    back = dictionaries.open(tmp_path / "theirs", site=str(SITE), model="base,tuned")
    again = dictionaries.compare_models(back, models(True), rows(40, 2))
    assert again.only_in("tuned").tolist() == found.only_in("tuned").tolist()
    for name in ("shares", "presence", "density"):
        assert np.allclose(getattr(again, name), getattr(found, name), atol=1e-4, equal_nan=True), name
