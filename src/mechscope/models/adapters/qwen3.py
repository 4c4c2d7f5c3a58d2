"""Qwen3: a Llama whose queries and keys pass a norm per head."""

from typing import Any

from mechscope.models.adapters.llama import attention_parts, gated_mlp_parts, llama_like, pre_norm_parts
from mechscope.models.anatomy import Anatomy, Part, family


def normed_attention_parts(config: Any) -> dict[str, Part]:
    """Llama's attention with a norm per head between projection and rotary."""
    normed = {"q_pre": Part("self_attn.q_norm"), "k_pre": Part("self_attn.k_norm")}
    return attention_parts(config) | normed


@family("qwen3")
def describe_qwen3(config: Any) -> Anatomy:
    """Pre-norm, QK-norm, rotary, gated MLP."""
    parts = pre_norm_parts() | normed_attention_parts(config) | gated_mlp_parts()
    return llama_like(config, name="qwen3", parts=parts)
