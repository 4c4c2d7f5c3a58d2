"""Mixtral: Mistral with a mixture of experts; softmax over all experts, then the best, renormalised."""

from typing import Any

from mechscope.models.adapters.llama import attention_parts, llama_like, pre_norm_parts
from mechscope.models.anatomy import Anatomy, Experts, Part, family

FUSED = "the experts' projections are fused, so no single module takes or returns this tensor"
WHY_MISSING = {
    "mlp_gate": FUSED,
    "mlp_pre": FUSED,
    "mlp_post": FUSED,
    "W_in": FUSED,
    "W_gate": FUSED,
    "W_out": FUSED,
}


def mixture_parts(experts: Experts, *, module: str = "mlp") -> dict[str, Part]:
    """A router that returns (logits, weights, choice) of flat tokens, and experts."""
    return {
        "mlp_in": Part(module, "input"),
        "router_logits": Part(experts.router, index=0, is_flat=True),
        "expert_weight": Part(experts.router, index=1, is_flat=True),
        "expert_choice": Part(experts.router, index=2, is_flat=True),
        "expert_out": Part(experts.module, is_flat=True),
        "mlp_raw": Part(module),
        "mlp_out": Part(module),
    }


@family("mixtral")
def describe_mixtral(config: Any) -> Anatomy:
    """Pre-norm, rotary, sliding window if configured."""
    experts = Experts(
        router="mlp.gate",
        module="mlp.experts",
        n_experts=config.num_local_experts,
        n_chosen=config.num_experts_per_tok,
        is_softmax_first=True,
        is_renormalised=True,
        has_narrow_weights=False,
    )
    return llama_like(
        config,
        name="mixtral",
        parts=pre_norm_parts() | attention_parts(config) | mixture_parts(experts),
        experts=experts,
        why_missing=WHY_MISSING,
    )
