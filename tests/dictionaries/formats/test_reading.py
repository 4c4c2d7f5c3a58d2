"""Every foreign format: the codes and the reconstruction of a tiny fixture equal twenty lines of plain arithmetic."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dictionaries.formats.drawn import SCALE, D, F, L
from dictionaries.formats.oracles import oracle_of
from dictionaries.formats.written import CASES
from mechscope import dictionaries
from mechscope.dictionaries.dictionary import Dictionary

FIXTURES = Path(__file__).parent / "fixtures"
INSIDE = {
    "sparsify_topk": "layers.1",
    "sparsify_groupmax": "layers.1/seed1",
    "sparsify_skip_transcoder": "h.1.mlp",
    "gemma_scope_res": "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_3",
    "gemma_scope_embedding": "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6",
    "gemma_scope_transcoder": "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_3",
    "gemma_scope_att": "gemma-scope-2b-pt-att/layer_1/width_16k/average_l0_3",
    "gemma_scope_mlp": "gemma-scope-9b-it-mlp/layer_1/width_16k/average_l0_3",
    "openai_topk": "8.pt",
    "openai_relu": "8.pt",
}
ANSWERS: dict[str, dict] = {
    "sae_lens_flat_scaled": {"scale": SCALE},
    "sae_lens_hook_z": {"n_heads": 2},
    "gemma_scope_att": {"n_heads": 2},
    "gemma_scope_2_att": {"n_heads": 2},
    "sae_lens_centred": {"basis": "centred"},
    "llama_scope_1": {"compares": "pre_times_decoder_norm"},
    "llama_scope_1_transcoder": {"compares": "pre"},
    "llama_scope_distilled": {"compares": "pre", "scale": SCALE},
    "openai_topk": {"site": "resid_post.8"},
    "openai_relu": {"site": "resid_post.8"},
    "tracer_topk": {"layer": 0},
    "crosscoder_relu": {"site": "resid_post.0,resid_post.1,resid_post.2"},
    "crosscoder_batchtopk": {"site": "resid_post.1", "model": "base,chat,code"},
    "crosscoder_some_layers": {"site": "resid_post.0,resid_post.1,resid_post.2"},
    "crosscoder_state": {"site": "resid_post.0,resid_post.1,resid_post.2"},
}
LAYERED = {
    "gemma_scope_2_cross_layer",
    "llama_scope_cross_layer",
    "tracer_transcoders",
    "tracer_cross_layer",
    "tracer_cross_layer_relu",
    "tracer_relu",
    "crosscoder_relu",
    "crosscoder_batchtopk",
    "crosscoder_state",
    "clt_training_skip",
    "clt_training_tied",
}
HEADED = {"sae_lens_hook_z", "gemma_scope_att", "gemma_scope_2_att"}
WHERE = {
    "sae_lens_standard": ("resid_post.1", "resid_post.1"),
    "sae_lens_hook_z": ("z.1", "z.1"),
    "sae_lens_transcoder": ("mlp_in.1", "mlp_out.1"),
    "learning_topk": ("resid_post.1", "resid_post.1"),
    "sparsify_topk": ("resid_post.1", "resid_post.1"),
    "sparsify_skip_transcoder": ("mlp_in.1", "mlp_raw.1"),
    "gemma_scope_res": ("resid_post.1", "resid_post.1"),
    "gemma_scope_embedding": ("embed", "embed"),
    "gemma_scope_att": ("z.1", "z.1"),
    "gemma_scope_mlp": ("mlp_out.1", "mlp_out.1"),
    "gemma_scope_2_res": ("resid_post.1", "resid_post.1"),
    "gemma_scope_2_att": ("z.1", "z.1"),
    "gemma_scope_transcoder": ("ln2_normalized.1", "mlp_out.1"),
    "gemma_scope_2_transcoder": ("mlp_in.1", "mlp_out.1"),
    "llama_scope_1": ("resid_post.1", "resid_post.1"),
    "tracer_topk": ("mlp_in.0", "mlp_out.0"),
    "crosscoder_some_layers": ("resid_post.0", "resid_post.0"),
    "clt_training_skip": ("mlp_in.0", "mlp_raw.0"),
}


def opened(name: str) -> Dictionary:
    return dictionaries.open(FIXTURES / name / INSIDE.get(name, ""), **ANSWERS.get(name, {}))


def values(name: str) -> torch.Tensor:
    shape = (7, L, D) if name in LAYERED else (7, 2, D) if name == "crosscoder_some_layers" else (7, D)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.3


@pytest.mark.parametrize("name", CASES)
def test_codes_and_reconstruction_equal_the_written_rule(name: str) -> None:
    dictionary, x = opened(name), values(name)
    codes, written = oracle_of(name)(FIXTURES / name, x)
    if name in HEADED:
        x, written = x.reshape(7, 2, D // 2), written.reshape(7, 2, D // 2)
    torch.testing.assert_close(dictionary.encode(x), codes, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(dictionary(x), written, atol=1e-6, rtol=1e-5)
    assert 0 < float((codes != 0).float().mean()) < 1, "a fixture whose gate never closes shows nothing"


@pytest.mark.parametrize("name", CASES)
def test_what_is_checked_in_is_what_the_rules_make(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    kept = sorted(
        path.relative_to(FIXTURES / name) for path in (FIXTURES / name).rglob("*") if path.is_file()
    )
    assert made == kept
    for path in made:
        if path.suffix == ".safetensors":
            new, old = load_file(tmp_path / path), load_file(FIXTURES / name / path)
            assert new.keys() == old.keys()
            assert all(new[key].numpy().tobytes() == old[key].numpy().tobytes() for key in new), "NaN too"
        elif path.suffix in {".json", ".yaml"}:
            assert (tmp_path / path).read_text() == (FIXTURES / name / path).read_text()


@pytest.mark.parametrize("name", WHERE)
def test_the_site_is_the_one_that_the_file_names(name: str) -> None:
    dictionary = opened(name)
    assert (str(dictionary.reads[0]), str(dictionary.writes[0])) == WHERE[name]


def test_values_of_heads_are_taken_apart_or_end_to_end() -> None:
    dictionary, x = opened("sae_lens_hook_z"), values("sae_lens_hook_z")
    apart = x.reshape(7, 2, D // 2)
    assert torch.equal(dictionary.encode(x), dictionary.encode(apart))
    assert dictionary(x).shape == apart.shape
    flat = dictionaries.open(FIXTURES / "sae_lens_hook_z")
    assert torch.equal(flat(x), dictionary(x).reshape(7, D))


def test_nested_sizes_of_a_matryoshka_are_kept() -> None:
    assert opened("sae_lens_checkpoint_matryoshka").settings.prefixes == (2, 4, F)
    assert opened("learning_matryoshka").settings.prefixes == (2, 4, F)


def test_a_crosscoder_says_which_layers_it_reads_and_which_models() -> None:
    some = opened("crosscoder_some_layers")
    assert [str(site) for site in some.reads] == ["resid_post.0", "resid_post.2"]
    assert [port.model for port in opened("crosscoder_batchtopk").settings.writes] == ["base", "chat", "code"]
    assert opened("clt_training_tied").settings.targets == ((0, 1), (1, 2), (2,))


def test_figures_on_record_are_read_from_the_path() -> None:
    assert opened("gemma_scope_res").settings.calibration.l0 == 3
    assert opened("gemma_scope_res").settings.source.model == "google/gemma-2-2b"


def test_a_set_of_transcoders_equals_its_layers_opened_alone() -> None:
    x, folder = values("tracer_transcoders"), FIXTURES / "tracer_transcoders"
    whole = opened("tracer_transcoders")
    for layer in range(L):
        alone = dictionaries.open(folder, layer=layer)
        assert torch.allclose(alone(x[:, layer]), whole(x)[:, layer], atol=1e-6)
        assert torch.equal(alone.encode(x[:, layer]), whole.encode(x)[:, layer * F : (layer + 1) * F])


FOLDABLE = [
    "sae_lens_whitened",
    "sae_lens_checkpoint_batchtopk",
    "sae_lens_flat_scaled",
    "llama_scope_1",
    "llama_scope_1_transcoder",
    "llama_scope_current",
    "crosscoder_batchtopk",
    "clt_training_skip",
]


@pytest.mark.parametrize("name", FOLDABLE)
def test_folding_what_a_file_keeps_unfolded_changes_nothing(name: str) -> None:
    dictionary, x = opened(name).to(dtype=torch.float64), values(name).double()
    folded = dictionary.folded()
    torch.testing.assert_close(folded.encode(x), dictionary.encode(x), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(folded(x), dictionary(x), atol=1e-9, rtol=1e-9)


def test_the_scalar_threshold_of_a_checkpoint_follows_the_fold() -> None:
    """The upstream defect: with codes rescaled by norms, a fold that leaves the threshold moves the gate."""
    dictionary, x = opened("sae_lens_checkpoint_batchtopk"), values("sae_lens_checkpoint_batchtopk")
    tensors = load_file(FIXTURES / "sae_lens_checkpoint_batchtopk" / "sae_weights.safetensors")
    norm = tensors["W_dec"].norm(dim=-1) / SCALE
    pre = (x - tensors["b_dec"] / SCALE) @ (tensors["W_enc"] * SCALE) + tensors["b_enc"]
    moved = pre * norm * (pre * norm > 0.45)  # folded, threshold not divided
    right = pre * norm * (pre * norm > 0.45 / SCALE)
    assert torch.allclose(dictionary.encode(x), right * SCALE, atol=1e-5)
    assert not torch.equal(moved != 0, right != 0)
