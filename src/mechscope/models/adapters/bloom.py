"""BLOOM: position biases inside a fused attention, so the residual stream and the MLP only.

Its attention and MLP modules return their sum with the residual stream, so what they add is their last projection's.
"""

from typing import Any

from mechscope.models.adapters.llama import layer_norms
from mechscope.models.anatomy import Anatomy, Attention, Part, family
from mechscope.models.layouts import Interleaved
from mechscope.vocabulary.errors import UnsupportedModel

OUT_OF_REACH = (
    "the family computes its attention inside the module and does not call the library's attention interface"
)
ATTENTION_ONLY = ("q", "k", "v", "q_pre", "k_pre", "scores", "pattern", "z", "head_out")


@family("bloom")
def describe_bloom(config: Any) -> Anatomy:
    """Pre-norm, ALiBi, plain MLP, a norm after the embedding."""
    if config.apply_residual_connection_post_layernorm:
        raise UnsupportedModel(
            "This BLOOM variant is not opened.",
            got="apply_residual_connection_post_layernorm=True",
            because="its skip connections start behind the norms, so no part adds to a residual stream",
            instead="a BLOOM with the usual skip connections",
        )
    n_heads = config.n_head
    fused = {
        name: Part("self_attention.query_key_value", layout=Interleaved(n_heads, 3, index))
        for index, name in enumerate(("q_proj", "k_proj", "v_proj"))
    }
    parts = {
        "ln1": Part("input_layernorm"),
        "attn_in": Part("self_attention", "input"),
        "attn_raw": Part("self_attention.dense"),
        "attn_out": Part("self_attention.dense"),
        "resid_mid": Part("post_attention_layernorm", "input"),
        "ln2": Part("post_attention_layernorm"),
        "mlp_in": Part("mlp", "input"),
        "mlp_pre": Part("mlp.dense_h_to_4h"),
        "mlp_post": Part("mlp.dense_4h_to_h", "input"),
        "mlp_raw": Part("mlp.dense_4h_to_h"),
        "mlp_out": Part("mlp.dense_4h_to_h"),
    }
    return Anatomy(
        family="bloom",
        layers="transformer.h",
        parts=parts | fused,
        ends={"embed": Part("transformer.word_embeddings"), "ln_final": Part("transformer.ln_f")},
        norms=layer_norms(config.layer_norm_epsilon, ln_final="transformer.ln_f"),
        attention=Attention(
            module="self_attention",
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_head=config.hidden_size // n_heads,
            output="self_attention.dense",
            is_rotary=False,
            has_interface=False,
        ),
        why_missing=dict.fromkeys(ATTENTION_ONLY, OUT_OF_REACH),
    )
