"""Match a family without an adapter by its structure: the usual names of the usual parts.

Knows the naming of Llama's descendants: one list of decoder layers, norms before or after attention and MLP,
separate projections. Norms are recognised by what they do to a vector, not by their class. Whatever is matched
must still pass the self-check; a wrong guess (a multiplier, a clipped activation) is refused there.
"""

from typing import Any

import torch
from torch import nn

from mechscope.models.anatomy import Anatomy, Attention, Head, Norm, Part
from mechscope.models.layouts import Heads, HeadsFirst, Layout, Plain

_LAYERS = "model.layers"
_EMBEDDING, _FINAL = "model.embed_tokens", ("model.norm", "model.final_layernorm")
_OUTPUTS = ("o_proj", "out_proj", "dense")
_PLAIN_MLPS = (("fc1", "fc2"), ("c_fc", "c_proj"), ("up_proj", "down_proj"))
_HEAD_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))


def match_by_structure(hf: nn.Module) -> Anatomy | None:
    """An anatomy guessed from module names and what norms do, or None if the usual parts are not there.

    Args:
        hf: A language model in memory.

    Returns:
        An anatomy named after the model type and marked as matched; `None` for mixtures of experts, fused
        projections and anything else that is not built of the usual parts.
    """
    modules = dict(hf.named_modules())
    layer = modules.get(f"{_LAYERS}.0")
    final = next((name for name in _FINAL if name in modules), None)
    if layer is None or final is None or _EMBEDDING not in modules or "lm_head" not in modules:
        return None
    attention = _attention(hf, layer)
    mlp = _mlp_parts(layer)
    if attention is None or mlp is None:
        return None
    config: Any = hf.config
    around, is_parallel = _around(layer)
    return Anatomy(
        family=f"{config.model_type} (matched by structure)",
        layers=_LAYERS,
        parts=_attention_parts(layer, attention) | mlp | around,
        ends={"embed": Part(_EMBEDDING), "ln_final": Part(final)},
        norms=_norms(layer, around, modules[final], final),
        attention=attention,
        head=Head(softcap=config.to_dict().get("final_logit_softcapping")),
        is_parallel=is_parallel,
    )


def _attention(hf: nn.Module, layer: nn.Module) -> Attention | None:
    modules = dict(layer.named_modules())
    output = next((name for name in _OUTPUTS if f"self_attn.{name}" in modules), None)
    projections = [modules.get(f"self_attn.{name}_proj") for name in "qkv"]
    if output is None or not all(isinstance(module, nn.Linear) for module in projections):
        return None
    widths = [module.out_features for module in projections if isinstance(module, nn.Linear)]
    config: Any = hf.config
    d_head = config.to_dict().get("head_dim") or widths[0] // config.num_attention_heads
    return Attention(
        module="self_attn",
        n_heads=widths[0] // d_head,
        n_kv_heads=widths[1] // d_head,
        d_head=d_head,
        output=f"self_attn.{output}",
        is_rotary=any("rotary" in name for name, _ in hf.named_modules()),
    )


def _attention_parts(layer: nn.Module, attention: Attention) -> dict[str, Part]:
    queries, keys = Heads(attention.n_heads), Heads(attention.n_kv_heads)
    parts = {
        "attn_in": Part("self_attn", "input"),
        "q_proj": Part("self_attn.q_proj", layout=queries),
        "k_proj": Part("self_attn.k_proj", layout=keys),
        "v_proj": Part("self_attn.v_proj", layout=keys),
        "attn_raw": Part("self_attn"),
        "attn_out": Part("self_attn"),
    }
    if not attention.is_rotary:
        return parts
    parts |= {"q_pre": parts["q_proj"], "k_pre": parts["k_proj"]}
    children = dict(layer.named_modules())
    for names in _HEAD_NORMS:
        if all(f"self_attn.{name}" in children for name in names):
            for point, name, heads in zip(("q_pre", "k_pre"), names, (queries, keys), strict=True):
                layout = _head_norm_layout(children[f"self_attn.{name}"], attention, heads)
                parts[point] = Part(f"self_attn.{name}", layout=layout)
    return parts


def _head_norm_layout(norm: nn.Module, attention: Attention, heads: Heads) -> Layout:
    """How a norm on queries or keys sees them: all heads in one axis, or head by head before or after a transpose."""
    width = next(norm.parameters()).shape[-1]
    if width != attention.d_head or attention.n_heads == 1:
        return heads
    is_transposed = type(norm).__name__.startswith(("Gemma", "LayerNorm", "StableLm"))
    return HeadsFirst() if is_transposed else Plain()


def _mlp_parts(layer: nn.Module) -> dict[str, Part] | None:
    children = dict(layer.named_modules())
    ends = {"mlp_in": Part("mlp", "input"), "mlp_raw": Part("mlp"), "mlp_out": Part("mlp")}
    if all(f"mlp.{name}" in children for name in ("gate_proj", "up_proj", "down_proj")):
        return ends | {
            "mlp_gate": Part("mlp.gate_proj"),
            "mlp_pre": Part("mlp.up_proj"),
            "mlp_post": Part("mlp.down_proj", "input"),
        }
    for inner, outer in _PLAIN_MLPS:
        if f"mlp.{inner}" in children and f"mlp.{outer}" in children:
            return ends | {"mlp_pre": Part(f"mlp.{inner}"), "mlp_post": Part(f"mlp.{outer}", "input")}
    return None


def _around(layer: nn.Module) -> tuple[dict[str, Part], bool]:
    """The norms around attention and MLP, and whether both read the layer's input."""
    names = {name for name, _ in layer.named_children()}
    parts: dict[str, Part] = {}
    if "input_layernorm" in names:
        parts["ln1"] = Part("input_layernorm")
    if "post_feedforward_layernorm" in names:
        parts["attn_out"] = Part("post_attention_layernorm")
        parts["mlp_out"] = Part("post_feedforward_layernorm")
        second = "pre_feedforward_layernorm" if "pre_feedforward_layernorm" in names else None
    else:
        second = "post_attention_layernorm" if "post_attention_layernorm" in names else None
        if second is None:
            return parts, True
    if second is None:
        return parts | {"resid_mid": Part("mlp", "input")}, False
    return parts | {"resid_mid": Part(second, "input"), "ln2": Part(second)}, False


def _norms(layer: nn.Module, around: dict[str, Part], final: nn.Module, path: str) -> dict[str, Norm]:
    found = {
        point: _what_a_norm_does(layer.get_submodule(around[point].module), around[point].module)
        for point in ("ln1", "ln2")
        if point in around
    }
    found["ln_final"] = _what_a_norm_does(final, path)
    return {point: norm for point, norm in found.items() if norm is not None}


def _what_a_norm_does(norm: nn.Module, path: str) -> Norm | None:
    """Kind, epsilon and weight offset, found by applying the norm to a random vector; None if it is another kind."""
    parameters = dict(norm.named_parameters())
    weight = parameters.get("weight")
    eps = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if name in vars(norm)), None)
    if weight is None or eps is None:
        return None
    # Far from zero mean, so that subtracting the mean shows.
    vector = (2 + torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))).to(weight)
    with torch.no_grad():
        given = (norm(vector[None])[0] - parameters.get("bias", torch.zeros_like(weight))).double()
        for kind in ("rms", "layer"):
            x = vector.double() - (vector.double().mean() if kind == "layer" else 0)
            x = x / (x.pow(2).mean() + eps).sqrt()
            for offset in (0.0, 1.0):
                if torch.allclose(x * (weight.double() + offset), given, atol=2e-2, rtol=2e-2):
                    return Norm(path, kind, eps, offset)
    return None
