"""Phi-3: a Llama with fused query-key-value and gate-up projections."""

from typing import Any

from mechscope.models.adapters.llama import gated_mlp_parts, llama_like, pre_norm_parts, width_of_head
from mechscope.models.anatomy import Anatomy, Part, family
from mechscope.models.layouts import Columns, Heads


@family("phi3")
def describe_phi3(config: Any) -> Anatomy:
    """Pre-norm, partial rotary, gated MLP."""
    n_heads, n_kv_heads, d_head = (
        config.num_attention_heads,
        config.num_key_value_heads,
        width_of_head(config),
    )
    ends = [0, n_heads * d_head, (n_heads + n_kv_heads) * d_head, (n_heads + 2 * n_kv_heads) * d_head]
    queries, keys, values = (
        Part("self_attn.qkv_proj", layout=Columns(ends[i], ends[i + 1], Heads(n)))
        for i, n in enumerate((n_heads, n_kv_heads, n_kv_heads))
    )
    width = config.intermediate_size
    parts = {
        "attn_in": Part("self_attn", "input"),
        "q_proj": queries,
        "k_proj": keys,
        "v_proj": values,
        "q_pre": queries,
        "k_pre": keys,
        "attn_raw": Part("self_attn"),
        "attn_out": Part("self_attn"),
    }
    fused_mlp = {
        "mlp_gate": Part("mlp.gate_up_proj", layout=Columns(0, width)),
        "mlp_pre": Part("mlp.gate_up_proj", layout=Columns(width, 2 * width)),
    }
    return llama_like(config, name="phi3", parts=pre_norm_parts() | parts | gated_mlp_parts() | fused_mlp)
