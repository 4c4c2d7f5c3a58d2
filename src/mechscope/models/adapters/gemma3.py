"""Gemma 3 (text): Gemma 2's sandwich with a norm per head on queries and keys instead of soft-capped scores."""

from typing import Any

from mechscope.models.adapters.gemma2 import SECOND_NORM, sandwich_parts
from mechscope.models.adapters.llama import llama_like, rms_norms
from mechscope.models.anatomy import Anatomy, Head, Part, family
from mechscope.models.layouts import HeadsFirst


@family("gemma3_text")
def describe_gemma3(config: Any) -> Anatomy:
    """Sandwich norms, QK-norm, rotary with two bases, alternating windows."""
    normed = {
        "q_pre": Part("self_attn.q_norm", layout=HeadsFirst()),
        "k_pre": Part("self_attn.k_norm", layout=HeadsFirst()),
    }
    return llama_like(
        config,
        name="gemma3_text",
        parts=sandwich_parts(config) | normed,
        norms=rms_norms(config, ln2=SECOND_NORM, weight_offset=1.0),
        head=Head(softcap=config.final_logit_softcapping),
        is_causal=not config.use_bidirectional_attention,
    )
