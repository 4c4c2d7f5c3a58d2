"""Fixtures: tiny folders in other libraries' formats, made from the written rules alone; none of our writers is used.

Run as a module it writes `fixtures/` anew: in tests, `python -m dictionaries.formats.written`. A test compares what is
checked in with what this makes.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import dictionaries.formats.written_sae_lens  # noqa: F401  (its cases join)
from dictionaries.formats.drawn import CASES, SCALE, D, F, L, case, draw, plain, positive, put

# --- dictionary_learning ---------------------------------------------------------------------------------------


def learning(name: str, **more: Any) -> dict[str, Any]:
    trainer = {
        "dict_class": name,
        "trainer_class": "Trainer",
        "activation_dim": D,
        "dict_size": F,
        "layer": 1,
    }
    trainer |= {"lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_1"} | more
    return {"trainer": trainer, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128}}


def linear(*names: str) -> dict[str, Tensor]:
    """Weights of linear layers, [out, in]."""
    tensors = plain()
    every = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"]}
    every |= {
        "decoder.weight": tensors["W_dec"].T,
        "bias": tensors["b_dec"],
        "decoder.bias": tensors["b_dec"],
    }
    every |= {"b_dec": tensors["b_dec"], "decoder_bias": tensors["b_dec"]}
    return {name: every[name].contiguous() for name in ("encoder.weight", "decoder.weight", *names)}


@case
def learning_autoencoder(folder: Path) -> None:
    put(folder, "ae.pt", linear("encoder.bias", "bias"))
    put(folder, "config.json", learning("AutoEncoder"))


@case
def learning_autoencoder_new(folder: Path) -> None:
    put(folder, "ae.pt", linear("encoder.bias", "decoder.bias"))
    put(folder, "config.json", learning("AutoEncoderNew"))


@case
def learning_topk(folder: Path) -> None:
    buffers = {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
    put(folder, "ae.pt", linear("encoder.bias", "b_dec") | buffers)
    put(folder, "config.json", learning("AutoEncoderTopK", k=3))


@case
def learning_batchtopk(folder: Path) -> None:
    buffers = {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(0.25)}
    put(folder, "ae.pt", linear("encoder.bias", "b_dec") | buffers)
    put(folder, "config.json", learning("BatchTopKSAE", k=3))


@case
def learning_backup(folder: Path) -> None:
    buffers = {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(0.25)}
    state = linear("encoder.bias", "b_dec") | buffers
    put(folder, "ae.pt", {"step": 500, "ae": state, "optimizer": {}, "config": {}, "norm_factor": 1 / SCALE})
    put(folder, "config.json", learning("BatchTopKSAE", k=3))


@case
def learning_matryoshka(folder: Path) -> None:
    buffers = {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(0.25)}
    put(folder, "ae.pt", plain() | buffers | {"group_sizes": torch.tensor([2, 2, 4])})
    put(folder, "config.json", learning("MatryoshkaBatchTopKSAE", k=3))


@case
def learning_jumprelu(folder: Path) -> None:
    put(folder, "ae.pt", plain() | {"threshold": positive("threshold", F)})
    put(folder, "config.json", learning("JumpReluAutoEncoder"))


@case
def learning_gated(folder: Path) -> None:
    gates = {"r_mag": draw("r_mag", F, size=0.3)}
    gates |= {"gate_bias": draw("b_gate", F, size=0.3), "mag_bias": draw("b_mag", F, size=0.3)}
    put(folder, "ae.pt", linear("decoder_bias") | gates)
    put(folder, "config.json", learning("GatedAutoEncoder"))


def crosscoder(**more: Any) -> dict[str, Tensor]:
    """Layers first: encoder (L, D, F), decoder (L, F, D)."""
    weights = {"encoder.weight": draw("E", L, D, F, size=0.4), "encoder.bias": draw("b_enc", F, size=0.2)}
    weights |= {"decoder.weight": draw("W", L, F, D, size=0.5), "decoder.bias": draw("b", L, D, size=0.3)}
    return weights | more


def crosscoder_config(name: str, **more: Any) -> dict[str, Any]:
    config = {
        "activation_dim": D,
        "dict_size": F,
        "num_layers": L,
        "encoder_layers": None,
        "dict_class": name,
    }
    return config | {"num_decoder_layers": None, "norm_init_scale": 1.0} | more


def no_statistics() -> dict[str, Tensor]:
    nothing = torch.full((L, D), torch.nan)
    ones = {"activation_global_scale": torch.ones(L), "target_rms": torch.tensor(1.0)}
    return {"activation_mean": nothing, "activation_std": nothing.clone()} | ones


@case
def crosscoder_relu(folder: Path) -> None:
    put(folder, "model.safetensors", crosscoder() | no_statistics())
    put(folder, "config.json", crosscoder_config("CrossCoder", code_normalization="CROSSCODER"))


@case
def crosscoder_batchtopk(folder: Path) -> None:
    std = draw("std", L, D).abs() + 0.3
    scale = 1.5 / (std.square().sum(-1) + 1e-8).sqrt()
    statistics = {"activation_mean": draw("mean", L, D, size=0.5), "activation_std": std}
    statistics |= {"activation_global_scale": scale, "target_rms": torch.tensor(1.5)}
    buffers = {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(1.2)}
    buffers |= {"code_normalization_id": torch.tensor(1)}
    put(folder, "model.safetensors", crosscoder() | statistics | buffers)
    put(folder, "config.json", crosscoder_config("BatchTopKCrossCoder", k=3))


@case
def crosscoder_some_layers(folder: Path) -> None:
    """Reads the first and the last of three layers."""
    tensors = crosscoder()
    tensors["encoder.weight"] = tensors["encoder.weight"][[0, 2]]
    buffers = {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(0.9)}
    put(folder, "model.safetensors", tensors | buffers)
    mixed = {"code_normalization_alpha_sae": 1.0, "code_normalization_alpha_cc": 0.1}
    more = mixed | {"code_normalization": "MIXED", "encoder_layers": [0, 2]}
    put(folder, "config.json", crosscoder_config("BatchTopKCrossCoder", **more))


@case
def crosscoder_state(folder: Path) -> None:
    """A training run's own file: a pickled state, and the trainer's settings."""
    buffers = {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(0.8)}
    put(folder, "ae.pt", crosscoder() | buffers | {"code_normalization_id": torch.tensor(2)})
    put(folder, "config.json", learning("BatchTopKCrossCoder"))


# --- sparsify --------------------------------------------------------------------------------------------------


def by_rows(*, skip: bool = False) -> dict[str, Tensor]:
    tensors = plain()
    rows = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"]}
    rows |= {"W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    return rows | ({"W_skip": draw("W_skip", D, D, size=0.3)} if skip else {})


def sparsify(**more: Any) -> dict[str, Any]:
    config = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": F,
        "k": 3,
    }
    return config | {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D} | more


@case
def sparsify_topk(folder: Path) -> None:
    put(folder / "layers.1", "sae.safetensors", by_rows())
    put(folder / "layers.1", "cfg.json", sparsify())
    put(folder, "config.json", {"model": "EleutherAI/pythia-70m", "hookpoints": ["layers.1"]})


@case
def sparsify_groupmax(folder: Path) -> None:
    put(folder / "layers.1/seed1", "sae.safetensors", by_rows())
    put(folder / "layers.1/seed1", "cfg.json", sparsify(activation="groupmax", k=4))


@case
def sparsify_skip_transcoder(folder: Path) -> None:
    put(folder / "h.1.mlp", "sae.safetensors", by_rows(skip=True))
    put(folder / "h.1.mlp", "cfg.json", sparsify(transcode=True, skip_connection=True))


# --- clt-training -----------------------------------------------------------------------------------------------


def coder(layer: int, *, n: int, tied: bool = False) -> dict[str, Tensor]:
    """Layer `layer`'s coder, which writes to its own layer and the next n - 1."""
    tensors: dict[str, Tensor] = {"encoder.weight": draw("E", F, D, size=0.4, seed=layer)}
    tensors["encoder.bias"] = draw("e", F, size=0.2, seed=layer)
    for t in range(n):
        tensors[f"b_decs.{t}"] = draw(f"b_decs.{t}", D, size=0.3, seed=layer)
        tensors[f"post_encs.{t}"] = torch.zeros(F)
        if not tied:
            tensors[f"W_decs.{t}"] = draw(f"W_decs.{t}", F, D, size=0.4, seed=layer)
    return tensors | ({"W_dec": draw("W_dec", F, D, size=0.4, seed=layer)} if tied else {})


def clt_config(n: int, **more: Any) -> dict[str, Any]:
    ranks = {"coalesce_topk": "none", "topk_coalesced": False, "secondary_target_tied": False}
    config = sparsify(transcode=True, normalize_decoder=False, n_targets=n, n_sources=L) | ranks
    return config | {"per_source_tied": False, "divide_cross_layer": False, "normalize_io": False} | more


@case
def clt_training_skip(folder: Path) -> None:
    """Every switch that has a place: skips, scales by target, norms of inputs and outputs, divided sums."""
    more = {
        "skip_connection": True,
        "post_encoder_scale": True,
        "normalize_io": True,
        "divide_cross_layer": True,
    }
    for i in range(L):
        n = L - i
        tensors = coder(i, n=n) | {
            "in_norm": torch.tensor([2.0 + i]),
            "out_norm": torch.tensor([3.0 - i / 2]),
        }
        for t in range(n):
            tensors[f"W_skips.{t}"] = draw(f"W_skips.{t}", D, D, size=0.2, seed=i)
            tensors[f"post_enc_scales.{t}"] = positive(f"scale.{t}", F, seed=i) + 0.5
        first = {name: tensors[f"{name}s.0"].clone() for name in ("W_dec", "b_dec", "W_skip")}
        put(folder / f"layers.{i}.mlp", "sae.safetensors", tensors | first)
        put(folder / f"layers.{i}.mlp", "cfg.json", clt_config(n, **more))
    put(folder, "config.json", {"model": "HuggingFaceTB/SmolLM2-135M"})


@case
def clt_training_tied(folder: Path) -> None:
    """One decoder for all targets, and at most two targets."""
    for i in range(L):
        n = min(2, L - i)
        put(folder / f"layers.{i}.mlp", "sae.safetensors", coder(i, n=n, tied=True))
        put(folder / f"layers.{i}.mlp", "cfg.json", clt_config(n, per_source_tied=True))


# --- Gemma Scope -----------------------------------------------------------------------------------------------


@case
def gemma_scope_res(folder: Path) -> None:
    inside = folder / "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_3"
    put(inside, "params.npz", plain() | {"threshold": positive("threshold", F)})


@case
def gemma_scope_embedding(folder: Path) -> None:
    inside = folder / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    put(inside, "params.npz", plain() | {"threshold": positive("threshold", F)})


@case
def gemma_scope_transcoder(folder: Path) -> None:
    inside = folder / "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_3"
    put(inside, "params.npz", plain(4) | {"threshold": positive("threshold", F)})


@case
def gemma_scope_att(folder: Path) -> None:
    """Of what heads write before they are mixed, heads end to end."""
    inside = folder / "gemma-scope-2b-pt-att/layer_1/width_16k/average_l0_3"
    put(inside, "params.npz", plain(seed=1) | {"threshold": positive("threshold", F, seed=1)})


@case
def gemma_scope_mlp(folder: Path) -> None:
    inside = folder / "gemma-scope-9b-it-mlp/layer_1/width_16k/average_l0_3"
    put(inside, "params.npz", plain(seed=2) | {"threshold": positive("threshold", F, seed=2)})


def lower(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.lower(): one for name, one in tensors.items()}


@case
def gemma_scope_2_transcoder(folder: Path) -> None:
    tensors = lower(plain(4)) | {"threshold": positive("threshold", F)}
    put(folder, "params.safetensors", tensors | {"affine_skip_connection": draw("W_skip", D, 4, size=0.3)})
    module = "model.layers.1."
    config = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "affine_connection": True}
    config |= {"hf_hook_point_in": module + "pre_feedforward_layernorm.output"}
    put(folder, "config.json", config | {"hf_hook_point_out": module + "post_feedforward_layernorm.output"})


def gemma_scope_2(folder: Path, hook: str, seed: int) -> None:
    put(
        folder,
        "params.safetensors",
        lower(plain(seed=seed)) | {"threshold": positive("threshold", F, seed=seed)},
    )
    config = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt"}
    put(folder, "config.json", config | {"hf_hook_point_in": hook})


@case
def gemma_scope_2_res(folder: Path) -> None:
    gemma_scope_2(folder, "model.layers.1.output", seed=3)


@case
def gemma_scope_2_att(folder: Path) -> None:
    gemma_scope_2(folder, "model.layers.1.self_attn.o_proj.input", seed=4)


@case
def gemma_scope_2_cross_layer(folder: Path) -> None:
    for layer in range(L):
        tensors = lower(plain(seed=layer)) | {"threshold": positive("threshold", F, seed=layer)}
        tensors["w_dec"] = draw("W_dec all", F, L, D, size=0.4, seed=layer)
        tensors["w_dec"][:, :layer] = 0
        put(folder, f"layer_{layer}.safetensors", tensors)
    module = "model.layers.0."
    config = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt"}
    config |= {"hf_hook_point_in": module + "pre_feedforward_layernorm.output"}
    put(folder, "config.json", config | {"hf_hook_point_out": module + "post_feedforward_layernorm.output"})


# --- Llama Scope -----------------------------------------------------------------------------------------------

NORM_IN, NORM_OUT = 5.0, 3.0


@case
def llama_scope_1(folder: Path) -> None:
    put(folder, "checkpoints/final.safetensors", linear("encoder.bias", "decoder.bias"))
    hyperparameters = {"d_model": D, "d_sae": F, "hook_point_in": "blocks.1.hook_resid_post"}
    hyperparameters |= {"hook_point_out": "blocks.1.hook_resid_post", "jump_relu_threshold": 0.3}
    put(
        folder,
        "hyperparams.json",
        hyperparameters | {"dataset_average_activation_norm": {"in": NORM_IN, "out": NORM_IN}},
    )


@case
def llama_scope_1_transcoder(folder: Path) -> None:
    put(folder, "checkpoints/final.safetensors", linear("encoder.bias", "decoder.bias"))
    hyperparameters = {"d_model": D, "d_sae": F, "hook_point_in": "blocks.1.ln2.hook_normalized"}
    hyperparameters |= {"hook_point_out": "blocks.1.hook_mlp_out", "jump_relu_threshold": 0.3}
    norms = {"dataset_average_activation_norm": {"in": NORM_IN, "out": NORM_OUT}}
    put(folder, "hyperparams.json", hyperparameters | norms)


@case
def llama_scope_distilled(folder: Path) -> None:
    threshold = positive("threshold", F).log()
    put(
        folder,
        "sae_weights.safetensors",
        linear("encoder.bias", "decoder.bias") | {"log_jumprelu_threshold": threshold},
    )
    config = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": 1,
        "hook_point_in": "blocks.1.hook_resid_post",
    }
    put(folder, "config.json", config | {"hook_point_out": "blocks.1.hook_resid_post", "act_fn": "jumprelu"})


@case
def llama_scope_current(folder: Path) -> None:
    tensors = plain()
    names = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
    hook = "blocks.1.hook_resid_post"
    saved = {names[name]: one for name, one in tensors.items()}
    saved |= {"activation_function.log_jumprelu_threshold": positive("threshold", F).log()}
    saved |= {f"dataset_average_activation_norm.{hook}": torch.tensor(NORM_IN)}
    put(folder, "sae_weights.safetensors", saved)
    config = {
        "sae_type": "sae",
        "d_model": D,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "act_fn": "jumprelu",
    }
    put(
        folder,
        "config.json",
        config | {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True},
    )


@case
def llama_scope_cross_layer(folder: Path) -> None:
    """Decoders grouped by the layer WRITTEN: W_D.j is (j + 1, F, D)."""
    saved = {"W_E": draw("W_E", L, D, F, size=0.5), "b_E": draw("b_E", L, F, size=0.2)}
    for j in range(L):
        saved |= {
            f"W_D.{j}": draw(f"W_D.{j}", j + 1, F, D, size=0.4),
            f"b_D.{j}": draw(f"b_D.{j}", D, size=0.3),
        }
    reads = [f"blocks.{i}.hook_resid_mid" for i in range(L)]
    writes = [f"blocks.{i}.hook_mlp_out" for i in range(L)]
    for index, hook in enumerate(reads + writes):
        saved[f"dataset_average_activation_norm.{hook}"] = torch.tensor(2.0 + index)
    put(folder, "sae_weights.safetensors", saved)
    config = {"sae_type": "clt", "d_model": D, "act_fn": "relu", "norm_activation": "dataset-wise"}
    put(folder, "config.json", config | {"hook_points_in": reads, "hook_points_out": writes})


# --- OpenAI ----------------------------------------------------------------------------------------------------


def openai(activation: str, state: dict[str, Any]) -> dict[str, Any]:
    tensors = plain()
    saved = {
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "decoder.weight": tensors["W_dec"].T.contiguous(),
    }
    saved |= {
        "pre_bias": tensors["b_dec"],
        "latent_bias": tensors["b_enc"],
        "stats_last_nonzero": torch.zeros(F),
    }
    return saved | {"activation": activation, "activation_state_dict": state}


@case
def openai_topk(folder: Path) -> None:
    put(folder, "8.pt", openai("TopK", {"k": 3}))


@case
def openai_relu(folder: Path) -> None:
    put(folder, "8.pt", openai("ReLU", {}))


# --- circuit-tracer --------------------------------------------------------------------------------------------


def tracer(kind: str, **more: Any) -> dict[str, Any]:
    config = {"model_name": "google/gemma-2-2b", "model_kind": kind, "feature_input_hook": "mlp.hook_in"}
    return config | {"feature_output_hook": "hook_mlp_out", "scan": "tiny"} | more


def one_layer(layer: int) -> dict[str, Tensor]:
    tensors = plain(seed=layer)
    return tensors | {"W_enc": tensors["W_enc"].T}


@case
def tracer_transcoders(folder: Path) -> None:
    for layer in range(L):
        threshold = {"activation_function.threshold": positive("threshold", F, seed=layer)}
        skip = {"W_skip": draw("W_skip", D, D, size=0.3, seed=layer)}
        put(folder, f"layer_{layer}.safetensors", one_layer(layer) | threshold | skip)
    put(folder, "config.yaml", tracer("transcoder_set"))


@case
def tracer_relu(folder: Path) -> None:
    for layer in range(L):
        put(folder, f"layer_{layer}.safetensors", one_layer(layer))
    put(folder, "config.yaml", tracer("transcoder_set"))


@case
def tracer_topk(folder: Path) -> None:
    put(folder, "layer_0.safetensors", one_layer(0) | {"k": torch.tensor(6)})
    put(folder, "config.yaml", tracer("transcoder_set", activation="topk"))


@case
def tracer_cross_layer(folder: Path) -> None:
    for layer in range(L):
        tensors = one_layer(layer)
        encoder = {f"{name}_{layer}": tensors[name] for name in ("W_enc", "b_enc", "b_dec")}
        encoder[f"threshold_{layer}"] = positive("threshold", F, seed=layer)
        put(folder, f"W_enc_{layer}.safetensors", encoder)
        decoder = draw("W_dec all", F, L - layer, D, size=0.4, seed=layer)
        put(folder, f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": decoder})
    put(folder, "config.yaml", tracer("cross_layer_transcoder"))


@case
def tracer_cross_layer_relu(folder: Path) -> None:
    tracer_cross_layer(folder)
    for layer in range(L):
        tensors = load_file(folder / f"W_enc_{layer}.safetensors")
        del tensors[f"threshold_{layer}"]
        put(folder, f"W_enc_{layer}.safetensors", tensors)


if __name__ == "__main__":
    root = Path(__file__).parent / "fixtures"
    for name, write in CASES.items():
        write(root / name)
