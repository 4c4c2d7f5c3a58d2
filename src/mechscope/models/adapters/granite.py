"""Granite: a Llama with multipliers on embeddings, attention scores, residual branches and logits."""

from typing import Any

from mechscope.models.adapters.llama import ENDS, attention_parts, gated_mlp_parts, llama_like, pre_norm_parts
from mechscope.models.anatomy import Anatomy, Head, Part, family
from mechscope.models.layouts import Scaled


@family("granite")
def describe_granite(config: Any) -> Anatomy:
    """`attn_out` and `mlp_out` include the residual multiplier, `embed` the embedding multiplier."""
    added = Scaled(config.residual_multiplier)
    branches = {"attn_out": Part("self_attn", layout=added), "mlp_out": Part("mlp", layout=added)}
    return llama_like(
        config,
        name="granite",
        parts=pre_norm_parts() | attention_parts(config) | gated_mlp_parts() | branches,
        ends=ENDS | {"embed": Part("model.embed_tokens", layout=Scaled(config.embedding_multiplier))},
        head=Head(scale=1 / config.logits_scaling),
    )
