"""GPT-NeoX (Pythia): one fused projection stored head by head, partial rotary, parallel or sequential layers."""

from typing import Any

from mechscope.models.adapters.llama import layer_norms, plain_mlp_parts, pre_norm_parts
from mechscope.models.anatomy import Anatomy, Attention, Part, family
from mechscope.models.layouts import Interleaved


@family("gpt_neox")
def describe_gpt_neox(config: Any) -> Anatomy:
    """LayerNorm with bias; `use_parallel_residual` decides whether there is a stream between attention and MLP."""
    n_heads = config.num_attention_heads
    fused = {
        name: Part("attention.query_key_value", layout=Interleaved(n_heads, 3, index))
        for name, index in {"q_proj": 0, "k_proj": 1, "v_proj": 2, "q_pre": 0, "k_pre": 1}.items()
    }
    attention = {
        "attn_in": Part("attention", "input"),
        "attn_raw": Part("attention"),
        "attn_out": Part("attention"),
    }
    norms = pre_norm_parts()
    if config.use_parallel_residual:
        del norms["resid_mid"]
    return Anatomy(
        family="gpt_neox",
        layers="gpt_neox.layers",
        parts=norms | fused | attention | plain_mlp_parts("dense_h_to_4h", "dense_4h_to_h"),
        ends={"embed": Part("gpt_neox.embed_in"), "ln_final": Part("gpt_neox.final_layer_norm")},
        norms=layer_norms(config.layer_norm_eps, ln_final="gpt_neox.final_layer_norm"),
        attention=Attention(
            module="attention",
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_head=config.hidden_size // n_heads,
            output="attention.dense",
        ),
        is_parallel=config.use_parallel_residual,
    )
