"""What we write in other libraries' formats: read back it is the same function, and the raw file follows the rule."""

from pathlib import Path

import pytest
import torch

from dictionaries.formats.oracles import oracle_of
from dictionaries.formats.test_reading import ANSWERS, INSIDE, LAYERED, opened, values
from mechscope import dictionaries
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, sae_settings
from mechscope.vocabulary.errors import DictionaryError

BY_FORMAT = {
    "saelens": [
        "sae_lens_standard",
        "sae_lens_topk",
        "sae_lens_topk_rescaled",
        "sae_lens_abstopk",
        "sae_lens_jumprelu",
        "sae_lens_gated",
        "sae_lens_matching_pursuit",
        "sae_lens_layer_norm",
        "sae_lens_constant_norm",
        "sae_lens_whitened",
        "sae_lens_transcoder",
        "sae_lens_skip_transcoder",
        "sae_lens_jumprelu_skip_transcoder",
        "sae_lens_checkpoint_batchtopk",
        "gemma_scope_res",
        "gemma_scope_2_transcoder",
        "learning_topk",
        "openai_topk",
    ],
    "dictionary_learning": [
        "learning_autoencoder",
        "learning_autoencoder_new",
        "learning_topk",
        "learning_batchtopk",
        "learning_jumprelu",
        "learning_gated",
        "sae_lens_checkpoint_batchtopk",
        "sae_lens_checkpoint_log_threshold",
        "gemma_scope_res",
    ],
    "sparsify": [
        "sparsify_topk",
        "sparsify_groupmax",
        "sparsify_skip_transcoder",
        "learning_topk",
        "sae_lens_topk",
    ],
    "dictionary_learning_crosscoder": [
        "crosscoder_relu",
        "crosscoder_state",
        "crosscoder_batchtopk",
    ],
    "circuit_tracer": [
        "tracer_transcoders",
        "tracer_topk",
        "tracer_cross_layer",
        "gemma_scope_2_cross_layer",
        "sae_lens_skip_transcoder",
    ],
}
CASES = [(format, name) for format, names in BY_FORMAT.items() for name in names]
FOLDERS = {"sparsify_topk": "layers.1", "learning_topk": "layers.1", "sae_lens_topk": "layers.1"}


def folder_for(format: str, name: str, root: Path) -> Path:
    """sparsify keeps the site in the folder's name."""
    if format != "sparsify":
        return root / "written"
    return root / {"sparsify_skip_transcoder": "h.1.mlp"}.get(name, "layers.1")


@pytest.mark.parametrize(("format", "name"), CASES)
def test_written_and_read_back_it_is_the_same_function(format: str, name: str, tmp_path: Path) -> None:
    dictionary, x = opened(name), values(name)
    folder = folder_for(format, name, tmp_path)
    dictionaries.export(dictionary, folder, format=format)
    answers = (
        {"layer": dictionary.reads[0].layer} if format == "circuit_tracer" and name not in LAYERED else {}
    )
    if name.startswith("crosscoder"):  # their files name no sites
        answers = ANSWERS[name]
    back = dictionaries.open(folder, **answers)
    torch.testing.assert_close(back.encode(x), dictionary.encode(x), atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(back(x), dictionary(x), atol=5e-6, rtol=1e-4)
    assert (back.reads, back.writes) == (dictionary.reads, dictionary.writes)


@pytest.mark.parametrize(
    "name",
    [
        "sae_lens_standard",
        "sae_lens_gated",
        "sae_lens_topk",
        "sae_lens_jumprelu",
        "sae_lens_transcoder",
        "sae_lens_skip_transcoder",
        "learning_autoencoder",
        "learning_batchtopk",
        "sparsify_topk",
        "sparsify_groupmax",
        "sparsify_skip_transcoder",
        "tracer_transcoders",
        "tracer_topk",
        "tracer_cross_layer",
        "crosscoder_batchtopk",
    ],
)
def test_the_raw_file_follows_the_foreign_rule(name: str, tmp_path: Path) -> None:
    """The oracle reads what we wrote: a mistake that reader and writer share would show."""
    by_name = {"sae": "saelens", "lea": "dictionary_learning", "tra": "circuit_tracer", "spa": "sparsify"}
    format = (by_name | {"cro": "dictionary_learning_crosscoder"})[name[:3]]
    x = values(name)
    inside = INSIDE.get(name, "")  # sparsify keeps the site in the folder's name
    dictionaries.export(opened(name), tmp_path / inside, format=format)
    codes, written = oracle_of(name)(tmp_path, x)
    torch.testing.assert_close(opened(name).encode(x), codes, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(opened(name)(x), written, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("format", "name", "why"),
    [
        ("sparsify", "sae_lens_jumprelu", "topk and groupmax"),
        ("saelens", "tracer_cross_layer", "cross_layer_transcoder"),
        ("saelens", "tracer_topk", "topk"),
        ("saelens", "sparsify_groupmax", "groupmax"),
        ("dictionary_learning", "sae_lens_layer_norm", "token by token"),
        ("circuit_tracer", "sae_lens_standard", "sae"),
        ("gemma_scope", "gemma_scope_res", "Nothing is written"),
        ("dictionary_learning_crosscoder", "crosscoder_some_layers", "one threshold serves all"),
        ("dictionary_learning_crosscoder", "sae_lens_standard", "sae"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(
    format: str, name: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(DictionaryError, match=why):
        dictionaries.export(opened(name), tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_a_threshold_on_rescaled_values_is_written_as_the_equal_one_on_bare_values(tmp_path: Path) -> None:
    gate = Gate(rule="jumprelu", compares="pre_times_decoder_norm")
    settings = sae_settings("resid_post.1", width=6, n_latents=8, gate=gate)
    parts = opened("gemma_scope_res").tensors
    dictionary, x = Dictionary(settings, parts), values("gemma_scope_res")
    dictionaries.export(dictionary, tmp_path, format="saelens")
    assert torch.equal(dictionaries.open(tmp_path).encode(x) != 0, dictionary.encode(x) != 0)
    assert not torch.equal(opened("gemma_scope_res").encode(x) != 0, dictionary.encode(x) != 0)
