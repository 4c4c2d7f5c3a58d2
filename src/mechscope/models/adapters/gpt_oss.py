"""gpt-oss: attention sinks, alternating windows, and a mixture that chooses before its softmax."""

from typing import Any

from mechscope.models.adapters.llama import attention_of, attention_parts, llama_like, pre_norm_parts
from mechscope.models.adapters.mixtral import WHY_MISSING, mixture_parts
from mechscope.models.anatomy import Anatomy, Experts, family


@family("gpt_oss")
def describe_gpt_oss(config: Any) -> Anatomy:
    """Pre-norm, rotary; softmaxes of attention and router in the activations' own dtype."""
    experts = Experts(
        router="mlp.router",
        module="mlp.experts",
        n_experts=config.num_local_experts,
        n_chosen=config.num_experts_per_tok,
        is_softmax_first=False,
    )
    return llama_like(
        config,
        name="gpt_oss",
        parts=pre_norm_parts() | attention_parts(config) | mixture_parts(experts),
        attention=attention_of(config, has_sinks=True, is_softmax_native=True),
        experts=experts,
        why_missing=WHY_MISSING,
    )
