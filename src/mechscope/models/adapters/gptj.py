"""GPT-J: attention and MLP in parallel behind one norm, partial rotary; reached through the method `_attn`."""

from typing import Any

from mechscope.models.adapters.llama import layer_norms, plain_mlp_parts
from mechscope.models.anatomy import Anatomy, Attention, InnerMethod, Part, family
from mechscope.models.layouts import Heads


@family("gptj")
def describe_gptj(config: Any) -> Anatomy:
    """Parallel, rotary on adjacent pairs, plain MLP, unembedding with a bias."""
    width = config.n_embd // config.n_head
    sources = {
        "q_proj": "q_proj",
        "k_proj": "k_proj",
        "v_proj": "v_proj",
        "q_pre": "q_proj",
        "k_pre": "k_proj",
    }
    inner = {point: Part(f"attn.{name}", layout=Heads(config.n_head)) for point, name in sources.items()}
    attention = {"attn_in": Part("attn", "input"), "attn_raw": Part("attn"), "attn_out": Part("attn")}
    return Anatomy(
        family="gptj",
        layers="transformer.h",
        parts={"ln1": Part("ln_1")} | inner | attention | plain_mlp_parts("fc_in", "fc_out"),
        ends={"embed": Part("transformer.wte"), "ln_final": Part("transformer.ln_f")},
        norms=layer_norms(config.layer_norm_epsilon, ln1="ln_1", ln2=None, ln_final="transformer.ln_f"),
        attention=Attention(
            module="attn",
            n_heads=config.n_head,
            n_kv_heads=config.n_head,
            d_head=width,
            output="attn.out_proj",
            inner=InnerMethod(name="_attn", scale=width**-0.5),
        ),
        is_parallel=True,
        why_missing={"ln2": "attention and MLP share the first norm"},
    )
