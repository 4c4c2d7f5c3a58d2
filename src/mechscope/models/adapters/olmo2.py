"""OLMo 2: norms only after attention and MLP, and over all heads' queries and keys at once."""

from typing import Any

from mechscope.models.adapters.llama import attention_parts, gated_mlp_parts, llama_like, rms_norms
from mechscope.models.anatomy import Anatomy, Part, family
from mechscope.models.layouts import Heads

_NO_FIRST_NORM = "attention and MLP read the residual stream itself; the norms come after them"


@family("olmo2")
def describe_olmo2(config: Any) -> Anatomy:
    """Post-norm inside the skip connection, QK-norm, rotary, gated MLP."""
    parts = {
        "q_pre": Part("self_attn.q_norm", layout=Heads(config.num_attention_heads)),
        "k_pre": Part("self_attn.k_norm", layout=Heads(config.num_key_value_heads)),
        "attn_out": Part("post_attention_layernorm"),
        "resid_mid": Part("mlp", "input"),
        "mlp_out": Part("post_feedforward_layernorm"),
    }
    return llama_like(
        config,
        name="olmo2",
        parts=attention_parts(config) | gated_mlp_parts() | parts,
        norms={"ln_final": rms_norms(config)["ln_final"]},
        why_missing={"ln1": _NO_FIRST_NORM, "ln2": _NO_FIRST_NORM},
    )
