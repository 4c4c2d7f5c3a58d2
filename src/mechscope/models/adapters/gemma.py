"""Gemma 1: a Llama with norm weights stored minus one and embeddings scaled in the embedding module."""

from typing import Any

from mechscope.models.adapters.llama import llama_like, rms_norms
from mechscope.models.anatomy import Anatomy, family


@family("gemma")
def describe_gemma(config: Any) -> Anatomy:
    """Pre-norm, rotary, gated MLP."""
    return llama_like(config, name="gemma", norms=rms_norms(config, weight_offset=1.0))
