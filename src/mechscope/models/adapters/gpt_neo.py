"""GPT-Neo: unscaled scores in float32, alternating global and local layers; reached through the method `_attn`."""

from typing import Any

from mechscope.models.adapters.llama import layer_norms, plain_mlp_parts, pre_norm_parts
from mechscope.models.anatomy import Anatomy, Attention, InnerMethod, Part, family
from mechscope.models.layouts import Heads


@family("gpt_neo")
def describe_gpt_neo(config: Any) -> Anatomy:
    """Pre-norm, learned positions, plain MLP."""
    inner = {
        name: Part(f"attn.attention.{name}", layout=Heads(config.num_heads))
        for name in ("q_proj", "k_proj", "v_proj")
    }
    attention = {"attn_in": Part("attn", "input"), "attn_raw": Part("attn"), "attn_out": Part("attn")}
    return Anatomy(
        family="gpt_neo",
        layers="transformer.h",
        parts=pre_norm_parts(ln1="ln_1", ln2="ln_2") | inner | attention | plain_mlp_parts("c_fc", "c_proj"),
        ends={
            "embed": Part("transformer.wte"),
            "pos_embed": Part("transformer.wpe"),
            "ln_final": Part("transformer.ln_f"),
        },
        norms=layer_norms(config.layer_norm_epsilon, ln1="ln_1", ln2="ln_2", ln_final="transformer.ln_f"),
        attention=Attention(
            module="attn.attention",
            n_heads=config.num_heads,
            n_kv_heads=config.num_heads,
            d_head=config.hidden_size // config.num_heads,
            output="attn.attention.out_proj",
            is_rotary=False,
            inner=InnerMethod(name="_attn", window="bias"),
        ),
    )
