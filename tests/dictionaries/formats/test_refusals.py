"""What a foreign file leaves open is asked, what can't be represented is refused, and nothing is dropped silently."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dictionaries.formats.drawn import F, plain, put
from dictionaries.formats.test_reading import FIXTURES, opened, values
from dictionaries.formats.written import by_rows
from dictionaries.formats.written_sae_lens import sae_lens, version_6
from mechscope import dictionaries
from mechscope.dictionaries.formats.hub import find_on_hub
from mechscope.vocabulary.errors import (
    AmbiguousDictionary,
    BadFile,
    DictionaryError,
    DictionaryMismatch,
    FoldingError,
    UnknownGate,
    UnsafeFile,
)


def copied(name: str, folder: Path) -> Path:
    shutil.copytree(FIXTURES / name, folder / name)
    return folder / name


def changed_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def changed_tensors(path: Path, **new: torch.Tensor) -> None:
    save_file(load_file(path) | new, path)


def test_the_gate_of_llama_scope_is_asked_for_and_the_two_readings_differ() -> None:
    with pytest.raises(AmbiguousDictionary, match="decoder's norm") as refusal:
        dictionaries.open(FIXTURES / "llama_scope_1")
    assert "compares=" in refusal.value.instead
    x = values("llama_scope_1")
    readings = [
        dictionaries.open(FIXTURES / "llama_scope_1", compares=rule)
        for rule in ("pre", "pre_times_decoder_norm")
    ]
    assert not torch.equal(readings[0].encode(x) != 0, readings[1].encode(x) != 0)


def test_a_stated_gate_is_not_overruled_by_an_answer() -> None:
    with pytest.raises(DictionaryMismatch, match="states compares itself"):
        dictionaries.open(FIXTURES / "llama_scope_current", compares="pre")


def test_a_normalisation_without_its_scale_is_asked_for() -> None:
    with pytest.raises(AmbiguousDictionary, match="By which number were the inputs multiplied"):
        dictionaries.open(FIXTURES / "sae_lens_flat_scaled")


def test_whitening_without_its_matrix_is_asked_for(tmp_path: Path) -> None:
    folder = copied("sae_lens_whitened", tmp_path)
    (folder / "activation_whitening.safetensors").unlink()
    with pytest.raises(AmbiguousDictionary, match="whitened"):
        dictionaries.open(folder)


def test_a_scaling_factor_that_settings_deny_is_asked_about(tmp_path: Path) -> None:
    folder = copied("sae_lens_flat", tmp_path)
    changed_tensors(folder / "sae_weights.safetensors", scaling_factor=torch.full((F,), 1.5))
    with pytest.raises(AmbiguousDictionary, match="scaling_factor"):
        dictionaries.open(folder)


def test_centred_weights_are_asked_about_and_the_answers_differ() -> None:
    with pytest.raises(AmbiguousDictionary, match="centred"):
        dictionaries.open(FIXTURES / "sae_lens_centred")
    x = values("sae_lens_centred")
    as_is = dictionaries.open(FIXTURES / "sae_lens_centred", basis="as_is")
    assert not torch.allclose(as_is.encode(x), opened("sae_lens_centred").encode(x))
    centred = x - x.mean(-1, keepdim=True)
    assert torch.allclose(as_is.encode(centred), opened("sae_lens_centred").encode(x), atol=1e-6)


def test_a_running_threshold_that_was_never_set_is_asked_for(tmp_path: Path) -> None:
    folder = copied("sae_lens_checkpoint_matryoshka", tmp_path)
    changed_tensors(folder / "sae_weights.safetensors", topk_threshold=torch.tensor(0.0, dtype=torch.float64))
    with pytest.raises(AmbiguousDictionary, match="never set"):
        dictionaries.open(folder)
    assert float(dictionaries.open(folder, threshold=0.1).threshold[0]) == pytest.approx(0.1)


def test_a_threshold_of_minus_one_is_asked_for(tmp_path: Path) -> None:
    folder = copied("learning_batchtopk", tmp_path)
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(state | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    with pytest.raises(AmbiguousDictionary, match="-1"):
        dictionaries.open(folder)


def test_top_k_and_batch_top_k_are_not_told_apart_by_their_weights(tmp_path: Path) -> None:
    folder = copied("learning_batchtopk", tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(AmbiguousDictionary, match="top-k or BatchTopK"):
        dictionaries.open(folder, site="resid_post.1")
    rules = [
        dictionaries.open(folder, site="resid_post.1", gate=gate).settings.gate.rule
        for gate in ("topk", "batchtopk")
    ]
    assert rules == ["topk", "jumprelu"]


def test_whether_an_imported_jumprelu_reads_its_bias_is_asked(tmp_path: Path) -> None:
    folder = copied("learning_jumprelu", tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(AmbiguousDictionary, match="b_dec subtracted"):
        dictionaries.open(folder, site="resid_post.1")


def test_a_backup_without_its_factor_is_asked_about(tmp_path: Path) -> None:
    folder = copied("learning_backup", tmp_path)
    saved = torch.load(folder / "ae.pt", weights_only=True)
    del saved["norm_factor"]
    torch.save(saved, folder / "ae.pt")
    with pytest.raises(AmbiguousDictionary, match="backup"):
        dictionaries.open(folder)
    x = values("learning_backup")
    assert torch.allclose(dictionaries.open(folder, scale=0.4).encode(x), opened("learning_backup").encode(x))


def test_the_sites_of_a_crosscoder_are_asked_for_and_counted(tmp_path: Path) -> None:
    with pytest.raises(AmbiguousDictionary, match="Which 3 sites"):
        dictionaries.open(FIXTURES / "crosscoder_relu")
    with pytest.raises(DictionaryError, match="one site for each layer"):
        dictionaries.open(FIXTURES / "crosscoder_relu", site="resid_post.0,resid_post.1")
    folder = copied("crosscoder_some_layers", tmp_path)
    changed_json(folder / "config.json", lambda config: config.update(encoder_layers=[1]))
    with pytest.raises(BadFile, match="another number of layers"):
        dictionaries.open(folder, site="resid_post.0,resid_post.1,resid_post.2")


def test_the_norm_of_a_crosscoders_threshold_is_asked_and_the_answers_differ(tmp_path: Path) -> None:
    folder, site = copied("crosscoder_some_layers", tmp_path), "resid_post.0,resid_post.1,resid_post.2"
    changed_json(folder / "config.json", lambda config: config.pop("code_normalization"))
    with pytest.raises(AmbiguousDictionary, match="which norm of the decoder"):
        dictionaries.open(folder, site=site)
    x = values("crosscoder_some_layers")
    rules = ("pre", "pre_times_decoder_norm", "pre_times_sum_of_decoder_norms")
    counts = [
        int((dictionaries.open(folder, site=site, compares=rule).encode(x) != 0).sum()) for rule in rules
    ]
    assert len(set(counts)) == 3
    with pytest.raises(UnknownGate, match="None"):
        dictionaries.open(folder, site=site, compares="anything")
    for stated, refused, text in (("DECOUPLED", UnknownGate, "code of its own"), ("MIXED", BadFile, "MIXED")):
        changed_json(
            folder / "config.json", lambda config, stated=stated: config.update(code_normalization=stated)
        )
        changed_json(folder / "config.json", lambda config: config.pop("code_normalization_alpha_cc", None))
        with pytest.raises(refused, match=text):
            dictionaries.open(folder, site=site)


def test_a_crosscoders_threshold_that_was_never_set_is_asked_for(tmp_path: Path) -> None:
    folder, site = copied("crosscoder_batchtopk", tmp_path), "resid_post.0,resid_post.1,resid_post.2"
    changed_tensors(folder / "model.safetensors", threshold=torch.tensor(-1.0))
    with pytest.raises(AmbiguousDictionary, match="never set"):
        dictionaries.open(folder, site=site)
    assert float(dictionaries.open(folder, site=site, threshold=0.0).threshold.max()) == 0


def test_what_clt_training_does_that_has_no_place_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="one layer of a cross-layer transcoder"):
        dictionaries.open(FIXTURES / "clt_training_skip" / "layers.0.mlp")
    folder = copied("clt_training_skip", tmp_path)
    first = folder / "layers.0.mlp"
    for name, value, text in (
        ("coalesce_topk", "per-layer", "no place"),
        ("secondary_target_tied", True, "no place"),
        ("activation", "batchtopk", "depends on the batch"),
    ):
        before = (first / "cfg.json").read_text()
        changed_json(first / "cfg.json", lambda config, name=name, value=value: config.update({name: value}))
        with pytest.raises(UnknownGate, match=text):
            dictionaries.open(folder)
        (first / "cfg.json").write_text(before)
    kept = load_file(first / "sae.safetensors")
    changed_tensors(first / "sae.safetensors", **{"post_encs.1": torch.full((F,), 0.1)})
    with pytest.raises(DictionaryError, match="bias to each code") as refusal:
        dictionaries.open(folder)
    assert refusal.value.got == "post_encs.1"
    save_file(kept, first / "sae.safetensors")
    changed_tensors(first / "sae.safetensors", W_dec=kept["W_decs.0"] + 1)
    with pytest.raises(DictionaryError, match="does not explain"):
        dictionaries.open(folder)
    save_file(kept, first / "sae.safetensors")
    (folder / "layers.2.mlp/cfg.json").unlink()
    with pytest.raises(BadFile, match="layer of this cross-layer transcoder is missing"):
        dictionaries.open(folder)


def test_a_file_that_names_no_site_is_asked_and_an_answer_that_contradicts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AmbiguousDictionary, match="Which site is read"):
        dictionaries.open(FIXTURES / "openai_topk" / "8.pt")
    with pytest.raises(DictionaryMismatch, match="states the site itself"):
        dictionaries.open(FIXTURES / "sae_lens_standard", site="resid_post.2")
    put(tmp_path / "layers.1.mystery", "sae.safetensors", by_rows())
    shutil.copy(FIXTURES / "sparsify_topk/layers.1/cfg.json", tmp_path / "layers.1.mystery")
    with pytest.raises(AmbiguousDictionary, match="mystery"):
        dictionaries.open(tmp_path / "layers.1.mystery")


@pytest.mark.parametrize(
    ("name", "file", "key", "value"),
    [
        ("sae_lens_standard", "cfg.json", "architecture", "temporal"),
        ("sparsify_topk", "layers.1/cfg.json", "activation", "jumprelu"),
        ("gemma_scope_2_transcoder", "config.json", "architecture", "topk"),
        ("llama_scope_current", "config.json", "act_fn", "softplus"),
    ],
)
def test_an_unknown_gate_rule_is_refused_by_name(
    name: str, file: str, key: str, value: str, tmp_path: Path
) -> None:
    folder = copied(name, tmp_path)
    changed_json(folder / file, lambda config: config.update({key: value}))
    with pytest.raises(UnknownGate, match=value):
        dictionaries.open((folder / file).parent)


def test_an_old_activation_function_is_refused_by_name(tmp_path: Path) -> None:
    folder = copied("sae_lens_flat", tmp_path)
    changed_json(folder / "cfg.json", lambda config: config.update(activation_fn_str="tanh-relu"))
    with pytest.raises(UnknownGate, match="tanh-relu"):
        dictionaries.open(folder)


def test_tensors_that_nothing_would_use_are_refused(tmp_path: Path) -> None:
    folder = copied("sparsify_topk", tmp_path) / "layers.1"
    changed_tensors(folder / "sae.safetensors", **{"post_enc.0": torch.ones(F)})
    with pytest.raises(DictionaryError, match="does not explain") as refusal:
        dictionaries.open(folder)
    assert "post_enc.0" in refusal.value.got


def test_a_dictionary_of_one_head_is_refused(tmp_path: Path) -> None:
    sae_lens(tmp_path, version_6("standard", metadata={"hook_head_index": 3}), plain())
    with pytest.raises(DictionaryError, match="single head"):
        dictionaries.open(tmp_path)


def test_matching_pursuit_with_rows_of_other_norms_is_refused(tmp_path: Path) -> None:
    folder = copied("sae_lens_matching_pursuit", tmp_path)
    rows = load_file(folder / "sae_weights.safetensors")["W_dec"]
    changed_tensors(folder / "sae_weights.safetensors", W_dec=rows * 1.2)
    with pytest.raises(DictionaryError, match="unit decoder rows"):
        dictionaries.open(folder)


def test_a_transposed_decoder_is_refused_by_its_shape(tmp_path: Path) -> None:
    """The mistake of a published loader of sparsify files."""
    folder = copied("sparsify_topk", tmp_path) / "layers.1"
    rows = load_file(folder / "sae.safetensors")["W_dec"]
    changed_tensors(folder / "sae.safetensors", W_dec=rows.T.contiguous())
    with pytest.raises(BadFile, match="W_dec"):
        dictionaries.open(folder)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gemma_scope_2_cross_layer", "layer_1.safetensors"),
        ("tracer_transcoders", "layer_1.safetensors"),
        ("tracer_cross_layer", "W_enc_1.safetensors"),
    ],
)
def test_a_missing_layer_is_refused(name: str, file: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    (folder / file).unlink()
    with pytest.raises(BadFile, match="layer"):
        dictionaries.open(folder)


def test_a_cross_layer_transcoder_that_writes_downwards_is_refused(tmp_path: Path) -> None:
    folder = copied("gemma_scope_2_cross_layer", tmp_path)
    decoder = load_file(folder / "layer_2.safetensors")["w_dec"]
    changed_tensors(folder / "layer_2.safetensors", w_dec=decoder + 0.1)
    with pytest.raises(DictionaryError, match="below its own"):
        dictionaries.open(folder)


def test_a_set_of_top_k_transcoders_is_opened_layer_by_layer() -> None:
    with pytest.raises(DictionaryError, match="layer by layer"):
        dictionaries.open(FIXTURES / "tracer_topk")


def test_transcoders_that_hold_a_k_and_state_no_activation_are_a_question(tmp_path: Path) -> None:
    folder = copied("tracer_topk", tmp_path)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("activation: topk\n", ""))
    with pytest.raises(AmbiguousDictionary, match="Which activation"):
        dictionaries.open(folder, layer=0)
    assert dictionaries.open(folder, layer=0, gate="topk").settings.gate.k == 6


def test_folding_twice_is_an_error() -> None:
    folded = opened("sae_lens_whitened").folded()
    with pytest.raises(FoldingError, match="folded already"):
        folded.folded()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("boom",))


def test_a_pickle_that_would_run_code_is_refused_unopened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"encoder.weight": Bomb()}, tmp_path / "ae.pt")
    with pytest.raises(UnsafeFile, match="more than tensors"):
        dictionaries.open(tmp_path)
    assert "boom" not in capsys.readouterr().out


def test_object_arrays_in_an_archive_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(BadFile):
        dictionaries.open(tmp_path)
    assert "boom" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sae_lens_standard", "learning_topk", "gemma_scope_res", "sparsify_topk"])
def test_a_torn_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    weights = next(path for path in folder.rglob("*") if path.suffix in {".safetensors", ".pt", ".npz"})
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises((BadFile, UnsafeFile)):
        dictionaries.open(weights.parent)


def test_a_plain_pickle_is_no_dictionary(tmp_path: Path) -> None:
    (tmp_path / "ae.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises((BadFile, UnsafeFile)):
        dictionaries.open(tmp_path)


def test_an_answer_that_no_format_asks_for_is_refused() -> None:
    with pytest.raises(DictionaryError, match="temperature"):
        dictionaries.open(FIXTURES / "sae_lens_standard", temperature=1.0)


def test_a_hub_id_without_a_network_says_so() -> None:
    with pytest.raises(BadFile, match="hub can't be reached") as refusal:
        dictionaries.open("nobody-here/no-such-dictionary")
    assert "network" in refusal.value.because


def test_a_local_path_is_no_hub_id(tmp_path: Path) -> None:
    assert find_on_hub(str(tmp_path / "missing")) is None
    assert find_on_hub("./a/b") is None
    assert find_on_hub("missing") is None
