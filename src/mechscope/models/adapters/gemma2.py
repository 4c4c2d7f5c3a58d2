"""Gemma 2: norms before and after attention and MLP, soft-capped scores and logits, alternating windows."""

from typing import Any

from mechscope.models.adapters.llama import (
    attention_parts,
    gated_mlp_parts,
    llama_like,
    pre_norm_parts,
    rms_norms,
)
from mechscope.models.anatomy import Anatomy, Head, Part, family

SECOND_NORM = "pre_feedforward_layernorm"


def sandwich_parts(config: Any) -> dict[str, Part]:
    """`attn_out` and `mlp_out` are what the post-norms return: that is what the residual stream receives."""
    post_norms = {
        "attn_out": Part("post_attention_layernorm"),
        "mlp_out": Part("post_feedforward_layernorm"),
    }
    return pre_norm_parts(ln2=SECOND_NORM) | attention_parts(config) | gated_mlp_parts() | post_norms


@family("gemma2")
def describe_gemma2(config: Any) -> Anatomy:
    """Sandwich norms, rotary, gated MLP."""
    return llama_like(
        config,
        name="gemma2",
        parts=sandwich_parts(config),
        norms=rms_norms(config, ln2=SECOND_NORM, weight_offset=1.0),
        head=Head(softcap=config.final_logit_softcapping),
    )
