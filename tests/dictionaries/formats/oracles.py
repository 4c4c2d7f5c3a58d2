"""Oracles: codes and reconstructions by plain torch arithmetic from the raw files; nothing of ours is called.

Each is the rule of one format in a few lines. `x` is [token, D], or [token, layer, D] for several layers.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dictionaries.formats.drawn import SCALE, D, F, L
from dictionaries.formats.written import NORM_IN, NORM_OUT

Given = tuple[Tensor, Tensor]
Oracle = Callable[[Path, Tensor], Given]
SAELENS = "sae_weights.safetensors"


def topk(pre: Tensor, k: int) -> Tensor:
    keep = torch.zeros_like(pre).scatter(-1, pre.topk(k, dim=-1).indices, 1.0)
    return pre * keep


def jump(pre: Tensor, threshold: Tensor | float) -> Tensor:
    return pre.relu() * (pre > threshold)


def affine(x: Tensor, w: dict[str, Tensor], *, subtracts: bool) -> Tensor:
    return (x - (w["b_dec"] if subtracts else 0)) @ w["W_enc"] + w["b_enc"]


def recon(f: Tensor, w: dict[str, Tensor]) -> Tensor:
    return f @ w["W_dec"] + w["b_dec"]


def sae_lens_standard(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    f = affine(x, w, subtracts=True).relu()
    return f, recon(f, w)


def sae_lens_topk(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    f = topk(affine(x, w, subtracts=False), 3).relu()
    return f, recon(f, w)


def sae_lens_topk_rescaled(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    norm = w["W_dec"].norm(dim=-1)
    f = topk(affine(x, w, subtracts=True) * norm, 3).relu()
    return f, recon(f / norm, w)


def sae_lens_abstopk(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    pre = affine(x, w, subtracts=True)
    f = pre * torch.zeros_like(pre).scatter(-1, pre.abs().topk(3, dim=-1).indices, 1.0)
    return f, recon(f, w)


def sae_lens_jumprelu(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    f = jump(affine(x, w, subtracts=False), w["threshold"])
    return f, recon(f, w)


def gated(x: Tensor, w: dict[str, Tensor]) -> Given:
    taken = x - w["b_dec"]
    is_open = taken @ w["W_enc"] + w["b_gate"] > 0
    f = is_open * (taken @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    return f, recon(f, w)


def sae_lens_gated(folder: Path, x: Tensor) -> Given:
    return gated(x, load_file(folder / SAELENS))


def sae_lens_matching_pursuit(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    f = torch.zeros(len(x), F)
    for row, left in enumerate(x - w["b_dec"]):
        seen: set[int] = set()
        for _ in range(3):
            products = (w["W_dec"] @ left).relu()
            best = int(products.argmax())
            f[row, best] += products[best]
            left = left - products[best] * w["W_dec"][best]
            if best in seen or products[best] == 0 or left.norm() < 0.2:
                break
            seen.add(best)
    return f, recon(f, w)


def sae_lens_layer_norm(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    f = affine((x - mean) / (std + 1e-5), w, subtracts=True).relu()
    return f, recon(f, w) * std + mean


def sae_lens_constant_norm(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    scale = D**0.5 / x.norm(dim=-1, keepdim=True)
    f = affine(x * scale, w, subtracts=False).relu()
    return f, recon(f, w) / scale


def sae_lens_whitened(folder: Path, x: Tensor) -> Given:
    w, white = load_file(folder / SAELENS), load_file(folder / "activation_whitening.safetensors")
    f = jump(affine((x - white["mean"]) @ white["matrix"], w, subtracts=True), w["threshold"])
    return f, recon(f, w) @ white["inverse_matrix"] + white["mean"]


def sae_lens_centred(folder: Path, x: Tensor) -> Given:
    return sae_lens_standard(folder, x - x.mean(-1, keepdim=True))


def sae_lens_transcoder(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    f = affine(x, w, subtracts=False).relu()
    return f, recon(f, w)


def sae_lens_skip_transcoder(folder: Path, x: Tensor) -> Given:
    f, y = sae_lens_transcoder(folder, x)
    return f, y + x @ load_file(folder / SAELENS)["W_skip"].T


def sae_lens_jumprelu_skip_transcoder(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    f = jump(affine(x, w, subtracts=False), w["threshold"])
    return f, recon(f, w) + x @ w["W_skip"].T


def sae_lens_checkpoint_batchtopk(folder: Path, x: Tensor) -> Given:
    """Scaled inputs; the running threshold is compared with what decoder norms rescale."""
    w = load_file(folder / SAELENS)
    norm = w["W_dec"].norm(dim=-1)
    f = jump(affine(x * SCALE, w, subtracts=True) * norm, float(w["topk_threshold"]))
    return f, recon(f / norm, w) / SCALE


def sae_lens_checkpoint_matryoshka(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    f = jump(affine(x, w, subtracts=True), float(w["topk_threshold"]))
    return f, recon(f, w)


def sae_lens_checkpoint_log_threshold(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    f = jump(affine(x, w, subtracts=True), w["log_threshold"].exp())
    return f, recon(f, w)


def sae_lens_flat_topk(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    f = topk(affine((x - mean) / (std + 1e-5), w, subtracts=False), 2).relu()
    return f, recon(f, w) * std + mean


def sae_lens_flat_scaled(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    f = affine(x * SCALE, w, subtracts=True).relu()
    return f, recon(f * w["scaling_factor"], w) / SCALE


def learnt(folder: Path) -> dict[str, Tensor]:
    """Their linear layers, turned."""
    saved = torch.load(folder / "ae.pt", weights_only=True)
    saved = saved.get("ae", saved)
    if "W_enc" in saved:
        return saved
    b_dec = next(saved[n] for n in ("bias", "decoder.bias", "b_dec", "decoder_bias") if n in saved)
    w = {"W_enc": saved["encoder.weight"].T, "W_dec": saved["decoder.weight"].T, "b_dec": b_dec}
    return saved | w | ({"b_enc": saved["encoder.bias"]} if "encoder.bias" in saved else {})


def learning_autoencoder(folder: Path, x: Tensor) -> Given:
    w = learnt(folder)
    f = affine(x, w, subtracts=True).relu()
    return f, recon(f, w)


def learning_autoencoder_new(folder: Path, x: Tensor) -> Given:
    w = learnt(folder)
    f = affine(x, w, subtracts=False).relu()
    return f, recon(f, w)


def learning_topk(folder: Path, x: Tensor) -> Given:
    w = learnt(folder)
    f = topk(affine(x, w, subtracts=True).relu(), 3)
    return f, recon(f, w)


def learning_batchtopk(folder: Path, x: Tensor) -> Given:
    w = learnt(folder)
    f = jump(affine(x, w, subtracts=True), float(w["threshold"]))
    return f, recon(f, w)


def learning_backup(folder: Path, x: Tensor) -> Given:
    """Trained on x * SCALE; their last step multiplies biases and threshold, so that codes are in raw units."""
    w = learnt(folder)
    f = jump(affine(x * SCALE, w, subtracts=True), float(w["threshold"]))
    return f / SCALE, recon(f, w) / SCALE


def learning_jumprelu(folder: Path, x: Tensor) -> Given:
    w = learnt(folder)
    f = jump(affine(x, w, subtracts=False), w["threshold"])
    return f, recon(f, w)


def learning_gated(folder: Path, x: Tensor) -> Given:
    w = learnt(folder)
    return gated(x, w | {"b_gate": w["gate_bias"], "b_mag": w["mag_bias"]})


def cross(w: dict[str, Tensor], x: Tensor, norm: Tensor | None) -> Given:
    """x [token, layer read, D]; a pre-activation x norm is compared with the one threshold."""
    pre = (torch.einsum("bld,ldf->bf", x, w["encoder.weight"]) + w["encoder.bias"]).relu()
    f = pre if norm is None else pre * (pre * norm > w["threshold"])
    return f, torch.einsum("bf,lfd->bld", f, w["decoder.weight"]) + w["decoder.bias"]


def crosscoder_relu(folder: Path, x: Tensor) -> Given:
    return cross(load_file(folder / "model.safetensors"), x, None)


def crosscoder_batchtopk(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / "model.safetensors")
    mean, scale = w["activation_mean"], w["activation_global_scale"][:, None]
    f, y = cross(w, (x - mean) * scale, w["decoder.weight"].norm(dim=2).sum(0))
    return f, y / (scale + 1e-8) + mean


def crosscoder_some_layers(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / "model.safetensors")
    norms = w["decoder.weight"].norm(dim=2)
    return cross(w, x, norms.square().sum(0).sqrt() + 0.1 * norms.sum(0))


def crosscoder_state(folder: Path, x: Tensor) -> Given:
    w = torch.load(folder / "ae.pt", weights_only=True)
    return cross(w, x, w["decoder.weight"].norm(dim=(0, 2)))


def clt(folder: Path, x: Tensor, *, reach: int, tied: bool = False, full: bool = False) -> Given:
    """Layer after layer, as their runner sums what earlier coders write; `full` is every switch."""
    layers = [load_file(folder / f"layers.{i}.mlp" / "sae.safetensors") for i in range(L)]
    taken = [x[:, i] * (D**0.5 / w["in_norm"] if full else 1) for i, w in enumerate(layers)]
    codes = [
        topk((taken[i] @ w["encoder.weight"].T + w["encoder.bias"]).relu(), 3) for i, w in enumerate(layers)
    ]

    def says(i: int, t: int) -> Tensor:
        w = layers[i]
        f = codes[i] * w[f"post_enc_scales.{t}"] if full else codes[i]
        y = f @ w["W_dec" if tied else f"W_decs.{t}"] + w[f"b_decs.{t}"]
        return y + taken[i] @ w[f"W_skips.{t}"].mT if full else y

    written = []
    for j in range(L):
        earlier = [says(i, j - i) for i in range(j) if j - i < reach]
        out = says(j, 0) + sum(earlier) / (max(1, len(earlier)) if full else 1)
        written.append(out * (layers[j]["out_norm"] / D**0.5 if full else 1))
    return torch.cat(codes, -1), torch.stack(written, 1)


def clt_training_skip(folder: Path, x: Tensor) -> Given:
    return clt(folder, x, reach=L, full=True)


def clt_training_tied(folder: Path, x: Tensor) -> Given:
    return clt(folder, x, reach=2, tied=True)


def rows(folder: Path, name: str) -> dict[str, Tensor]:
    w = load_file(folder / name / "sae.safetensors")
    return w | {"W_enc": w["encoder.weight"].T, "b_enc": w["encoder.bias"]}


def sparsify_topk(folder: Path, x: Tensor) -> Given:
    w = rows(folder, "layers.1")
    f = topk(affine(x, w, subtracts=True).relu(), 3)
    return f, recon(f, w)


def sparsify_groupmax(folder: Path, x: Tensor) -> Given:
    w = rows(folder, "layers.1/seed1")
    groups = affine(x, w, subtracts=True).relu().reshape(-1, 4, 2)
    f = (groups * (groups == groups.max(-1, keepdim=True).values)).reshape(-1, F)
    return f, recon(f, w)


def sparsify_skip_transcoder(folder: Path, x: Tensor) -> Given:
    w = rows(folder, "h.1.mlp")
    f = topk(affine(x, w, subtracts=False).relu(), 3)
    return f, recon(f, w) + x @ w["W_skip"].T


def arrays(folder: Path) -> dict[str, Tensor]:
    with np.load(next(folder.rglob("params.npz"))) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def gemma_scope_res(folder: Path, x: Tensor) -> Given:
    w = arrays(folder)
    f = jump(affine(x, w, subtracts=False), w["threshold"])
    return f, recon(f, w)


def gemma_scope_embedding(folder: Path, x: Tensor) -> Given:
    """Trained on embeddings without the model's scale of sqrt(D)."""
    f, y = gemma_scope_res(folder, x / D**0.5)
    return f, y * D**0.5


def gemma_scope_2_res(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / "params.safetensors")
    f = jump(x @ w["w_enc"] + w["b_enc"], w["threshold"])
    return f, f @ w["w_dec"] + w["b_dec"]


def gemma_scope_2_transcoder(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / "params.safetensors")
    f = jump(x @ w["w_enc"] + w["b_enc"], w["threshold"])
    return f, f @ w["w_dec"] + w["b_dec"] + x @ w["affine_skip_connection"]


def gemma_scope_2_cross_layer(folder: Path, x: Tensor) -> Given:
    layers = [load_file(folder / f"layer_{i}.safetensors") for i in range(L)]
    codes = [jump(x[:, i] @ w["w_enc"] + w["b_enc"], w["threshold"]) for i, w in enumerate(layers)]
    written = [
        w["b_dec"] + sum(codes[i] @ layers[i]["w_dec"][:, j] for i in range(j + 1))
        for j, w in enumerate(layers)
    ]
    return torch.cat(codes, -1), torch.stack(written, 1)


def llama(
    w: dict[str, Tensor], x: Tensor, threshold: Tensor | float, norms: tuple[float, float], *, by_norm: bool
) -> Given:
    into, out = D**0.5 / norms[0], D**0.5 / norms[1]
    pre = x * into @ w["encoder.weight"].T + w["encoder.bias"]
    compared = pre * w["decoder.weight"].norm(dim=0) if by_norm else pre
    f = pre * (compared > threshold)
    return f, (f @ w["decoder.weight"].T + w["decoder.bias"]) / out


def llama_scope_1(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / "checkpoints/final.safetensors")
    return llama(w, x, 0.3, (NORM_IN, NORM_IN), by_norm=True)


def llama_scope_1_transcoder(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / "checkpoints/final.safetensors")
    return llama(w, x, 0.3, (NORM_IN, NORM_OUT), by_norm=False)


def llama_scope_distilled(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    norm = D**0.5 / SCALE
    return llama(w, x, w["log_jumprelu_threshold"].exp(), (norm, norm), by_norm=False)


def llama_scope_current(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    names = {"encoder.weight": w["W_E"].T, "encoder.bias": w["b_E"], "decoder.weight": w["W_D"].T}
    threshold = w["activation_function.log_jumprelu_threshold"].exp()
    return llama(names | {"decoder.bias": w["b_D"]}, x, threshold, (NORM_IN, NORM_IN), by_norm=True)


def llama_scope_cross_layer(folder: Path, x: Tensor) -> Given:
    w = load_file(folder / SAELENS)
    norm = "dataset_average_activation_norm.blocks.{}.hook_{}"
    into = [D**0.5 / float(w[norm.format(i, "resid_mid")]) for i in range(L)]
    out = [D**0.5 / float(w[norm.format(i, "mlp_out")]) for i in range(L)]
    codes = [(x[:, i] * into[i] @ w["W_E"][i] + w["b_E"][i]).relu() for i in range(L)]
    written = [
        (w[f"b_D.{j}"] + sum(codes[i] @ w[f"W_D.{j}"][i] for i in range(j + 1))) / out[j] for j in range(L)
    ]
    return torch.cat(codes, -1), torch.stack(written, 1)


def openai(folder: Path, x: Tensor) -> Given:
    w = torch.load(folder / "8.pt", weights_only=True)
    pre = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    f = topk(pre, 3).relu() if w["activation"] == "TopK" else pre.relu()
    return f, f @ w["decoder.weight"].T + w["pre_bias"]


def openai_topk(folder: Path, x: Tensor) -> Given:
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    f, y = openai(folder, (x - mean) / (std + 1e-5))
    return f, y * std + mean


def tracer_transcoders(folder: Path, x: Tensor) -> Given:
    layers = [load_file(folder / f"layer_{i}.safetensors") for i in range(L)]
    codes, written = [], []
    for i, w in enumerate(layers):
        pre = x[:, i] @ w["W_enc"].T + w["b_enc"]
        codes.append(pre * (pre > w["activation_function.threshold"]))
        written.append(codes[-1] @ w["W_dec"] + w["b_dec"] + x[:, i] @ w["W_skip"].T)
    return torch.cat(codes, -1), torch.stack(written, 1)


def tracer_relu(folder: Path, x: Tensor) -> Given:
    layers = [load_file(folder / f"layer_{i}.safetensors") for i in range(L)]
    codes = [(x[:, i] @ w["W_enc"].T + w["b_enc"]).relu() for i, w in enumerate(layers)]
    written = [f @ w["W_dec"] + w["b_dec"] for f, w in zip(codes, layers, strict=True)]
    return torch.cat(codes, -1), torch.stack(written, 1)


def tracer_topk(folder: Path, x: Tensor) -> Given:
    """Selected negative values are kept."""
    w = load_file(folder / "layer_0.safetensors")
    f = topk(x @ w["W_enc"].T + w["b_enc"], 6)
    return f, f @ w["W_dec"] + w["b_dec"]


def tracer_cross_layer(folder: Path, x: Tensor) -> Given:
    into = [load_file(folder / f"W_enc_{i}.safetensors") for i in range(L)]
    out = [load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"] for i in range(L)]
    codes = []
    for i, w in enumerate(into):
        pre = x[:, i] @ w[f"W_enc_{i}"].T + w[f"b_enc_{i}"]
        codes.append(pre * (pre > w.get(f"threshold_{i}", torch.zeros(()))))
    written = [
        into[j][f"b_dec_{j}"] + sum(codes[i] @ out[i][:, j - i] for i in range(j + 1)) for j in range(L)
    ]
    return torch.cat(codes, -1), torch.stack(written, 1)


SAME_RULE = {
    "sae_lens_hook_z": sae_lens_standard,
    "sae_lens_flat": sae_lens_standard,
    "learning_matryoshka": learning_batchtopk,
    "gemma_scope_transcoder": gemma_scope_res,
    "gemma_scope_att": gemma_scope_res,
    "gemma_scope_mlp": gemma_scope_res,
    "gemma_scope_2_att": gemma_scope_2_res,
    "openai_relu": openai,
    "tracer_cross_layer_relu": tracer_cross_layer,
}


def oracle_of(name: str) -> Oracle:
    return SAME_RULE.get(name) or globals()[name]
