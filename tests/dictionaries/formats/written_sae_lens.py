"""Fixtures in the formats of SAELens, made from the written rules alone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictionaries.formats.drawn import SCALE, D, F, case, draw, plain, positive, put


def version_6(architecture: str, **more: Any) -> dict[str, Any]:
    metadata = {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post"}
    metadata |= {"hook_name_out": None, "hook_head_index": None, "prepend_bos": True} | more.pop(
        "metadata", {}
    )
    config = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"}
    config |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    return config | more | {"metadata": metadata}


def sae_lens(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    put(folder, "cfg.json", config)
    put(folder, "sae_weights.safetensors", tensors)


@case
def sae_lens_standard(folder: Path) -> None:
    sae_lens(folder, version_6("standard"), plain())


@case
def sae_lens_topk(folder: Path) -> None:
    sae_lens(folder, version_6("topk", k=3, apply_b_dec_to_input=False), plain())


@case
def sae_lens_topk_rescaled(folder: Path) -> None:
    sae_lens(folder, version_6("topk", k=3, rescale_acts_by_decoder_norm=True), plain())


@case
def sae_lens_abstopk(folder: Path) -> None:
    sae_lens(folder, version_6("abstopk", k=3), plain())


@case
def sae_lens_jumprelu(folder: Path) -> None:
    threshold = positive("threshold", F)
    threshold[0] = -0.5  # acts as zero: they take the positive part as well
    sae_lens(folder, version_6("jumprelu", apply_b_dec_to_input=False), plain() | {"threshold": threshold})


@case
def sae_lens_gated(folder: Path) -> None:
    tensors = {name: one for name, one in plain().items() if name != "b_enc"}
    tensors |= {name: draw(name, F, size=0.3) for name in ("b_gate", "b_mag", "r_mag")}
    sae_lens(folder, version_6("gated"), tensors)


@case
def sae_lens_matching_pursuit(folder: Path) -> None:
    tensors = {name: one for name, one in plain().items() if name in ("W_dec", "b_dec")}
    tensors["W_dec"] = tensors["W_dec"] / tensors["W_dec"].norm(dim=1, keepdim=True)
    sae_lens(folder, version_6("matching_pursuit", max_iterations=3, residual_threshold=0.2), tensors)


@case
def sae_lens_layer_norm(folder: Path) -> None:
    sae_lens(folder, version_6("standard", normalize_activations="layer_norm"), plain())


@case
def sae_lens_constant_norm(folder: Path) -> None:
    config = version_6("standard", normalize_activations="constant_norm_rescale", apply_b_dec_to_input=False)
    sae_lens(folder, config, plain())


@case
def sae_lens_whitened(folder: Path) -> None:
    config = version_6("jumprelu", normalize_activations="covariance_whitening")
    sae_lens(folder, config, plain() | {"threshold": positive("threshold", F)})
    matrix = draw("matrix", D, D, size=0.4) + torch.eye(D)
    whitening = {"mean": draw("mean", D), "matrix": matrix, "inverse_matrix": torch.linalg.inv(matrix)}
    put(folder, "activation_whitening.safetensors", whitening)


@case
def sae_lens_hook_z(folder: Path) -> None:
    metadata = {"hook_name": "blocks.1.attn.hook_z"}
    sae_lens(folder, version_6("standard", reshape_activations="hook_z", metadata=metadata), plain())


@case
def sae_lens_centred(folder: Path) -> None:
    metadata = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    sae_lens(folder, version_6("standard", metadata=metadata), plain())


def transcoder(architecture: str, **more: Any) -> dict[str, Any]:
    metadata = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    return version_6(architecture, d_out=4, apply_b_dec_to_input=False, metadata=metadata, **more)


@case
def sae_lens_transcoder(folder: Path) -> None:
    sae_lens(folder, transcoder("transcoder"), plain(4))


@case
def sae_lens_skip_transcoder(folder: Path) -> None:
    sae_lens(folder, transcoder("skip_transcoder"), plain(4) | {"W_skip": draw("W_skip", 4, D, size=0.3)})


@case
def sae_lens_jumprelu_skip_transcoder(folder: Path) -> None:
    tensors = plain(4) | {"W_skip": draw("W_skip", 4, D, size=0.3), "threshold": positive("threshold", F)}
    sae_lens(folder, transcoder("jumprelu_skip_transcoder"), tensors)


@case
def sae_lens_checkpoint_batchtopk(folder: Path) -> None:
    config = version_6("batchtopk", k=2.5, rescale_acts_by_decoder_norm=True)
    config["normalize_activations"] = "expected_average_only_in"
    sae_lens(folder, config, plain() | {"topk_threshold": torch.tensor(0.45, dtype=torch.float64)})
    put(folder, "activation_scaler.json", {"scaling_factor": SCALE, "has_whitening": False})


@case
def sae_lens_checkpoint_matryoshka(folder: Path) -> None:
    config = version_6(
        "matryoshka_batchtopk", k=2, rescale_acts_by_decoder_norm=False, matryoshka_widths=[2, 4, F]
    )
    sae_lens(folder, config, plain() | {"topk_threshold": torch.tensor(0.2, dtype=torch.float64)})


@case
def sae_lens_checkpoint_log_threshold(folder: Path) -> None:
    config = version_6("jumprelu", jumprelu_bandwidth=0.05)
    sae_lens(folder, config, plain() | {"log_threshold": positive("threshold", F).log()})


@case
def sae_lens_flat(folder: Path) -> None:
    config = {"d_in": D, "d_sae": F, "dtype": "torch.float32", "hook_point": "blocks.1.hook_resid_post"}
    config |= {"hook_point_head_index": None, "activation_fn_str": "relu", "normalize_activations": False}
    config |= {"model_name": "gpt2-small", "context_size": 128}
    sae_lens(folder, config, plain() | {"scaling_factor": torch.ones(F)})


@case
def sae_lens_flat_topk(folder: Path) -> None:
    config = {"d_in": D, "d_sae": F, "dtype": "float32", "hook_name": "blocks.1.hook_resid_post"}
    config |= {"activation_fn": "topk", "activation_fn_kwargs": {"k": 2}, "architecture": "standard"}
    config |= {
        "apply_b_dec_to_input": False,
        "normalize_activations": "layer_norm",
        "sae_lens_version": "5.10.3",
    }
    sae_lens(folder, config, plain())


@case
def sae_lens_flat_scaled(folder: Path) -> None:
    config = {"d_in": D, "d_sae": F, "dtype": "float32", "hook_name": "blocks.1.hook_resid_post"}
    config |= {"normalize_activations": True, "finetuning_scaling_factor": True}
    sae_lens(folder, config, plain() | {"scaling_factor": positive("scaling", F) + 0.7})
