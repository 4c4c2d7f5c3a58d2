"""StarCoder 2: a Llama with LayerNorms, biases and a plain MLP."""

from typing import Any

from mechscope.models.adapters.llama import (
    attention_parts,
    layer_norms,
    llama_like,
    plain_mlp_parts,
    pre_norm_parts,
)
from mechscope.models.anatomy import Anatomy, family


@family("starcoder2")
def describe_starcoder2(config: Any) -> Anatomy:
    """Pre-norm, rotary, plain MLP, sliding window if configured."""
    return llama_like(
        config,
        name="starcoder2",
        parts=pre_norm_parts() | attention_parts(config) | plain_mlp_parts("c_fc", "c_proj"),
        norms=layer_norms(config.norm_epsilon),
    )
