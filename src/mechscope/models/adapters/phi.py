"""Phi-1 and 2: attention and MLP in parallel behind one LayerNorm, partial rotary, biases everywhere."""

from typing import Any

from mechscope.models.adapters.llama import attention_of, attention_parts, layer_norms, plain_mlp_parts
from mechscope.models.anatomy import Anatomy, Part, family
from mechscope.models.layouts import HeadsFirst


@family("phi")
def describe_phi(config: Any) -> Anatomy:
    """Parallel, rotary, plain MLP; a norm per head on queries and keys if configured."""
    parts = {"ln1": Part("input_layernorm")} | attention_parts(config) | plain_mlp_parts("fc1", "fc2")
    if config.qk_layernorm:
        parts |= {
            "q_pre": Part("self_attn.q_layernorm", layout=HeadsFirst()),
            "k_pre": Part("self_attn.k_layernorm", layout=HeadsFirst()),
        }
    shared = "attention and MLP share the first norm"
    return Anatomy(
        family="phi",
        layers="model.layers",
        parts=parts,
        ends={"embed": Part("model.embed_tokens"), "ln_final": Part("model.final_layernorm")},
        norms=layer_norms(config.layer_norm_eps, ln2=None, ln_final="model.final_layernorm"),
        attention=attention_of(config, output="self_attn.dense"),
        is_parallel=True,
        why_missing={"ln2": shared},
    )
