"""Caches: names, references, decompositions, maps formed on demand, saving; never the model."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mechscope as ms
from mechscope.models.opening import wrap
from mechscope.records.files import open_tensors, save_tensors
from mechscope.vocabulary.errors import BadFile, ShapeError, SiteAfterStop, UnknownSite
from small_models import biggest, direction, model_of, prompts
from tiny_models import tiny

EXACT = 1e-11
FAMILIES = ("gpt2", "llama", "gemma2", "native")


def test_names_ours_and_foreign_mean_the_same_tensor() -> None:
    _, cache = model_of("gpt2").run_with_cache(prompts())
    for name in (("resid_post", 1), "blocks.1.hook_resid_post", ms.Site("resid_post", 1), "resid_post.-2"):
        assert cache[name] is cache["resid_post.1"], name
    assert cache["blocks.1.attn.hook_z"] is cache["z.1"]
    assert cache["blocks.1.hook_q_input"] is cache["resid_pre.1"]
    with pytest.warns(UserWarning, match="without folding its LayerNorm means ln_final"):
        assert cache["ln_final.hook_normalized"].shape == (2, 8, 32)
    with pytest.raises(UnknownSite):
        cache["blocks.9.hook_resid_post"]
    assert "z.1" in cache and "pattern.1" in cache and "head_out.1" in cache
    assert "z.9" not in cache and "nonsense" not in cache and "mlp_gate.0" not in cache


def test_what_is_captured_is_kept_by_reference() -> None:
    model, seen = model_of("gpt2"), {}
    layer = model.binding.layers[1]
    modules = {
        "resid_post.1": layer,
        "attn_raw.1": layer.attn.c_proj,
        "q_proj.1": layer.attn.c_attn,
        "mlp_post.1": layer.mlp.act,
    }
    handles = [
        m.register_forward_hook(lambda _m, _a, out, n=n: seen.update({n: out})) for n, m in modules.items()
    ]
    try:
        _, cache = model.run_with_cache(prompts())
    finally:
        for handle in handles:
            handle.remove()
    for name, out in seen.items():
        assert cache[name].untyped_storage().data_ptr() == out.untyped_storage().data_ptr(), name


def test_a_default_capture_forms_no_map_until_it_is_read() -> None:
    _, cache = model_of().run_with_cache(prompts())
    assert not {site.point for site in cache} & {"pattern", "scores", "head_out"}
    assert cache["pattern.1"].shape == (2, 4, 8, 8)
    assert "24 tensors" not in repr(cache) and repr(cache).startswith("<Cache of ")
    assert "resid_post" in repr(cache) and "(2, 8) tokens" in repr(cache)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_oss", "mistral"])
def test_maps_formed_on_demand_equal_those_captured(family: str) -> None:
    model = model_of(family)
    later, now = (
        model.run(prompts(), capture="*").cache,
        model.run(prompts(), capture=["scores.*", "pattern.*"]).cache,
    )
    for name in ("scores.0", "pattern.0", "scores.2", "pattern.2"):
        for row, n in ((0, 8), (1, 5)):
            a, b = later[name][row, :, -n:, -n:], now[name][row, :, -n:, -n:]
            assert torch.equal(torch.isinf(a), torch.isinf(b))
            assert torch.allclose(a.nan_to_num(neginf=0.0), b.nan_to_num(neginf=0.0), atol=1e-9), (name, row)
    future = torch.ones(8, 8).triu(1).bool()
    assert bool(torch.isneginf(later["scores.0"][0][:, future]).all())


def test_maps_on_demand_see_interventions() -> None:
    model = model_of()
    write = ms.edit("pattern.1", lambda p: p * 0.5)
    later = model.run(prompts(), capture="*", interventions=[write]).cache
    plain = model.run(prompts(), capture="*").cache
    assert torch.allclose(later["pattern.1"][0], 0.5 * plain["pattern.1"][0])


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_neox", "gemma3_text", "granite", "native_attention_only"])
def test_a_residual_site_is_the_sum_of_its_components(family: str) -> None:
    model = model_of(family)
    _, cache = model.run_with_cache(prompts())
    for name in ("resid_pre.2", "resid_post.2", *(["resid_mid.1"] if "resid_mid.1" in cache else [])):
        labels, parts = cache.decompose(name)
        assert len(labels) == len(parts)
        assert labels[0] == "embed"
        assert biggest(parts.sum(0), cache[name], prompts()) < 1e-9, name
    assert biggest(parts[:-1].sum(0), cache[name], prompts()) > 1e-3, "the last component counts"


def test_a_component_that_was_not_captured_is_refused_not_left_out() -> None:
    cache = model_of().run(prompts(), capture=["resid_pre.0", "attn_out.0", "resid_post.0"]).cache
    with pytest.raises(SiteAfterStop, match=r"mlp_out\.0 was not captured"):
        cache.decompose("resid_post.0")
    with pytest.raises(UnknownSite, match="residual stream"):
        cache.decompose("attn_out.0")


@pytest.mark.parametrize("family", FAMILIES)
def test_logit_effects_sum_to_the_logit_difference_less_biases(family: str) -> None:
    model, batch = model_of(family), prompts()
    logits, cache = model.run_with_cache(batch)
    labels, effects = cache.logit_effects([3, 5], [7, 9])
    assert effects.shape == (len(labels), 2)
    softcap = model.binding.anatomy.head.softcap
    if softcap is not None:
        logits = softcap * torch.atanh(logits / softcap)  # effects are those before the cap
    last = logits[:, -1]
    difference = torch.stack([last[0, 3] - last[0, 7], last[1, 5] - last[1, 9]])
    head, norm = model.weights["W_U"], dict(model.binding.final_norm.named_parameters()).get("bias")
    biases = torch.zeros(2, dtype=torch.float64)
    if norm is not None:
        biases += torch.stack([norm @ (head[:, 3] - head[:, 7]), norm @ (head[:, 5] - head[:, 9])])
    if model.weights.has("b_U"):
        b = model.weights["b_U"]
        biases += torch.stack([b[3] - b[7], b[5] - b[9]])
    assert torch.allclose(effects.sum(0), difference - biases, atol=1e-9)
    _, one_for_all = cache.logit_effects([3])
    assert torch.allclose(one_for_all[:, 0], cache.logit_effects([3, 3])[1][:, 0])
    with pytest.raises(ShapeError, match="one token id a row"):
        cache.logit_effects([3, 5, 7])


def test_logit_effects_of_a_run_that_stopped_early_are_refused() -> None:
    cache = model_of().run(prompts(), capture="*", stop_after="resid_post.1").cache
    with pytest.raises(SiteAfterStop):
        cache.logit_effects([3, 5])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_head_outputs_sum_to_the_attention_output_less_its_bias(family: str) -> None:
    model = model_of(family)
    _, cache = model.run_with_cache(prompts())
    total = cache["head_out.1"].sum(2)
    if model.weights.has("b_O", 1):
        total = total + model.weights["b_O", 1]
    assert biggest(total.detach(), cache["attn_raw.1"], prompts()) < EXACT
    assert not cache["head_out.1"].requires_grad


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_norm_scales_and_unscaled_outputs_are_those_of_the_norm(family: str) -> None:
    model = model_of(family)
    _, cache = model.run_with_cache(prompts())
    norm = model.binding.anatomy.norms["ln2"]
    x = cache["resid_mid.1"]
    x = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
    wanted = (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    assert torch.allclose(cache["ln2_scale.1"], wanted)
    assert torch.allclose(cache["ln2_normalized.1"] * wanted, x)


def test_a_cache_does_not_hold_the_model() -> None:
    model = wrap(tiny("llama"), check=False)
    run = model.run(prompts(), capture="*")
    held, hf = weakref.ref(model), weakref.ref(model.hf)
    del model
    gc.collect()
    assert held() is None and hf() is None
    for name in ("pattern.1", "head_out.1", "ln2_scale.1", "ln_final_normalized", "blocks.1.hook_resid_pre"):
        assert torch.isfinite(run[name]).any()
    run.cache.decompose("resid_post.2")
    run.cache.logit_effects([3, 4])


def test_a_cache_moves_whole() -> None:
    _, cache = model_of().run_with_cache(prompts())
    moved = cache.to("cpu")
    for name in ("z.1", "pattern.1", "scores.0", "head_out.2"):
        assert torch.equal(moved[name].nan_to_num(neginf=0.0), cache[name].nan_to_num(neginf=0.0))
    assert len(moved) == len(cache)
    meta = cache.to("meta")
    assert {meta[n].device.type for n in ("z.1", "pattern.1", "head_out.1")} == {"meta"}, (
        "nothing stays behind"
    )


def test_a_cache_survives_saving(tmp_path: Path) -> None:
    model = model_of()
    run = model.run(
        prompts(), capture=["*", "pattern.1"], interventions=[ms.add("resid_post.0", direction(32), dose=0.2)]
    )
    run.cache.save(tmp_path / "run.safetensors")
    again = model.open_cache(tmp_path / "run.safetensors")
    assert list(again) == list(run.cache)
    assert all(torch.equal(again[site], run.cache[site]) for site in run.cache)
    assert torch.equal(again.tokens.ids, prompts().ids) and torch.equal(again.tokens.n_pad, prompts().n_pad)
    assert torch.allclose(again["head_out.1"], run.cache["head_out.1"])
    assert "pattern.1" in again and "pattern.0" not in again
    patched = model.logits(prompts(), interventions=[ms.patch("z.1", again)])
    assert biggest(patched, model.logits(prompts(), interventions=[ms.patch("z.1", run)]), prompts()) < EXACT


def test_a_saved_cache_says_what_was_done_about_the_beginning_of_sequence(tmp_path: Path) -> None:
    model, path = model_of(), tmp_path / "run.safetensors"
    cache = model.run(replace(prompts(), bos="removed"), capture=["z.1"]).cache
    cache.save(path)
    assert model.open_cache(path).tokens.bos == "removed"
    tensors = open_tensors(path, "torch")
    save_tensors(path, tensors)  # as it was before it was noted
    assert model.open_cache(path).tokens.bos == "given" and "z.1" in model.open_cache(path)


def test_a_file_that_is_no_cache_of_this_model_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "other.safetensors", {"weights": torch.zeros(2)})
    with pytest.raises(BadFile, match="not a cache"):
        model_of().open_cache(tmp_path / "other.safetensors")
    model_of("llama").run(prompts(), capture=["mlp_gate.0"]).cache.save(tmp_path / "llama.safetensors")
    with pytest.raises(BadFile, match=r"mlp_gate\.0"):
        model_of("gpt2").open_cache(tmp_path / "llama.safetensors")
