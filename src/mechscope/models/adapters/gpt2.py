"""GPT-2: fused query-key-value projection in a Conv1D, learned positions, LayerNorm."""

from typing import Any

from mechscope.models.anatomy import Anatomy, Attention, Norm, Part, family
from mechscope.models.layouts import Columns, Heads


@family("gpt2")
def describe_gpt2(config: Any) -> Anatomy:
    """Pre-norm, learned positions, plain MLP."""
    width, n_heads = config.n_embd, config.n_head
    heads = Heads(n_heads)
    fused = {
        name: Part("attn.c_attn", layout=Columns(index * width, (index + 1) * width, heads))
        for index, name in enumerate(("q_proj", "k_proj", "v_proj"))
    }
    return Anatomy(
        family="gpt2",
        layers="transformer.h",
        parts=fused
        | {
            "ln1": Part("ln_1"),
            "attn_in": Part("attn", "input"),
            "attn_raw": Part("attn"),
            "attn_out": Part("attn"),
            "resid_mid": Part("ln_2", "input"),
            "ln2": Part("ln_2"),
            "mlp_in": Part("mlp", "input"),
            "mlp_pre": Part("mlp.c_fc"),
            "mlp_post": Part("mlp.c_proj", "input"),
            "mlp_raw": Part("mlp"),
            "mlp_out": Part("mlp"),
        },
        ends={
            "embed": Part("transformer.wte"),
            "pos_embed": Part("transformer.wpe"),
            "ln_final": Part("transformer.ln_f"),
        },
        norms={
            "ln1": Norm("ln_1", "layer", config.layer_norm_epsilon),
            "ln2": Norm("ln_2", "layer", config.layer_norm_epsilon),
            "ln_final": Norm("transformer.ln_f", "layer", config.layer_norm_epsilon),
        },
        attention=Attention(
            module="attn",
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_head=width // n_heads,
            output="attn.c_proj",
            is_rotary=False,
        ),
    )
