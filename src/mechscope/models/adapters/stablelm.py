"""StableLM: LayerNorms, partial rotary, gated MLP; parallel behind one norm if configured."""

from typing import Any

from mechscope.models.adapters.llama import (
    attention_parts,
    gated_mlp_parts,
    layer_norms,
    llama_like,
    pre_norm_parts,
)
from mechscope.models.anatomy import Anatomy, Part, family
from mechscope.models.layouts import HeadsFirst


@family("stablelm")
def describe_stablelm(config: Any) -> Anatomy:
    """Pre-norm, rotary; a norm of its own for each head's queries and keys if configured."""
    is_parallel = config.use_parallel_residual
    norms = {"ln1": Part("input_layernorm")} if is_parallel else pre_norm_parts()
    parts = norms | attention_parts(config) | gated_mlp_parts()
    if config.qk_layernorm:
        parts |= {
            "q_pre": Part("self_attn.q_layernorm", layout=HeadsFirst()),
            "k_pre": Part("self_attn.k_layernorm", layout=HeadsFirst()),
        }
    return llama_like(
        config,
        name="stablelm",
        parts=parts,
        norms=layer_norms(config.layer_norm_eps, ln2=None if is_parallel else "post_attention_layernorm"),
        is_parallel=is_parallel,
        why_missing={"ln2": "attention and MLP share the first norm"} if is_parallel else {},
    )
