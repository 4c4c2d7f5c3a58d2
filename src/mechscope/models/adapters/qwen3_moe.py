"""Qwen3 mixture of experts; some layers may be dense."""

from typing import Any

from mechscope.models.adapters.llama import gated_mlp_parts, llama_like, pre_norm_parts
from mechscope.models.adapters.mixtral import WHY_MISSING, mixture_parts
from mechscope.models.adapters.qwen3 import normed_attention_parts
from mechscope.models.anatomy import Anatomy, Experts, family


@family("qwen3_moe")
def describe_qwen3_moe(config: Any) -> Anatomy:
    """Pre-norm, QK-norm, rotary; softmax over all experts, then the best, renormalised if configured."""
    experts = Experts(
        router="mlp.gate",
        module="mlp.experts",
        n_experts=config.num_experts,
        n_chosen=config.num_experts_per_tok,
        is_softmax_first=True,
        is_renormalised=config.norm_topk_prob,
    )
    shared = pre_norm_parts() | normed_attention_parts(config)
    dense = [i for i in range(config.num_hidden_layers) if _is_dense(config, i)]
    return llama_like(
        config,
        name="qwen3_moe",
        parts=shared | mixture_parts(experts),
        layer_parts=dict.fromkeys(dense, shared | gated_mlp_parts()),
        experts=experts,
        why_missing=WHY_MISSING,
    )


def _is_dense(config: Any, layer: int) -> bool:
    is_listed = layer in config.mlp_only_layers
    return is_listed or config.num_experts == 0 or (layer + 1) % config.decoder_sparse_step != 0
