"""Llama, Mistral and Qwen2, which differ in configuration only, and the parts that their descendants share."""

from typing import Any

from mechscope.models.anatomy import Anatomy, Attention, Norm, Part, family
from mechscope.models.layouts import Heads


def attention_parts(config: Any, *, module: str = "self_attn") -> dict[str, Part]:
    """Separate query, key and value projections."""
    n_kv_heads = config.num_key_value_heads
    return {
        "attn_in": Part(module, "input"),
        "q_proj": Part(f"{module}.q_proj", layout=Heads(config.num_attention_heads)),
        "k_proj": Part(f"{module}.k_proj", layout=Heads(n_kv_heads)),
        "v_proj": Part(f"{module}.v_proj", layout=Heads(n_kv_heads)),
        "q_pre": Part(f"{module}.q_proj", layout=Heads(config.num_attention_heads)),
        "k_pre": Part(f"{module}.k_proj", layout=Heads(n_kv_heads)),
        "attn_raw": Part(module),
        "attn_out": Part(module),
    }


def gated_mlp_parts(*, module: str = "mlp") -> dict[str, Part]:
    """Gate, up and down projections."""
    return {
        "mlp_in": Part(module, "input"),
        "mlp_gate": Part(f"{module}.gate_proj"),
        "mlp_pre": Part(f"{module}.up_proj"),
        "mlp_post": Part(f"{module}.down_proj", "input"),
        "mlp_raw": Part(module),
        "mlp_out": Part(module),
    }


def pre_norm_parts(*, ln1: str = "input_layernorm", ln2: str = "post_attention_layernorm") -> dict[str, Part]:
    """A norm before attention and one before the MLP."""
    return {"ln1": Part(ln1), "resid_mid": Part(ln2, "input"), "ln2": Part(ln2)}


def rms_norms(
    config: Any,
    *,
    ln1: str = "input_layernorm",
    ln2: str = "post_attention_layernorm",
    weight_offset: float = 0.0,
) -> dict[str, Norm]:
    """RMS norms at the usual places."""
    eps = config.rms_norm_eps
    return {
        "ln1": Norm(ln1, "rms", eps, weight_offset),
        "ln2": Norm(ln2, "rms", eps, weight_offset),
        "ln_final": Norm("model.norm", "rms", eps, weight_offset),
    }


def layer_norms(
    eps: float,
    *,
    ln1: str = "input_layernorm",
    ln2: str | None = "post_attention_layernorm",
    ln_final: str = "model.norm",
) -> dict[str, Norm]:
    """LayerNorms at the usual places; `ln2` is None where attention and MLP share the first."""
    paths = {"ln1": ln1, "ln2": ln2, "ln_final": ln_final}
    return {name: Norm(path, "layer", eps) for name, path in paths.items() if path is not None}


def plain_mlp_parts(inner: str, outer: str, *, module: str = "mlp") -> dict[str, Part]:
    """An MLP without a gate: `inner` projection, activation, `outer` projection."""
    return {
        "mlp_in": Part(module, "input"),
        "mlp_pre": Part(f"{module}.{inner}"),
        "mlp_post": Part(f"{module}.{outer}", "input"),
        "mlp_raw": Part(module),
        "mlp_out": Part(module),
    }


def width_of_head(config: Any) -> int:
    """`head_dim` where the configuration sets it, else d_model over heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def attention_of(config: Any, **changes: Any) -> Attention:
    """Rotary attention with `o_proj`, changed where a family differs."""
    usual: dict[str, Any] = {
        "module": "self_attn",
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "d_head": width_of_head(config),
        "output": "self_attn.o_proj",
    }
    return Attention(**(usual | changes))


ENDS = {"embed": Part("model.embed_tokens"), "ln_final": Part("model.norm")}


def llama_like(config: Any, *, name: str, **changes: Any) -> Anatomy:
    """Llama's anatomy under another name, with fields replaced."""
    usual: dict[str, Any] = {
        "family": name,
        "layers": "model.layers",
        "parts": pre_norm_parts() | attention_parts(config) | gated_mlp_parts(),
        "ends": ENDS,
        "attention": attention_of(config),
    }
    norms = changes.pop("norms", None) or rms_norms(config)
    return Anatomy(**(usual | changes), norms=norms)


@family("llama", "mistral", "qwen2")
def describe_llama(config: Any) -> Anatomy:
    """Pre-norm, rotary, gated MLP; sliding windows and projection biases are the configuration's."""
    return llama_like(config, name=config.model_type)
