"""Falcon: three generations of wiring around a fused attention; the residual stream and the MLP only."""

from typing import Any

from mechscope.models.adapters.bloom import ATTENTION_ONLY, OUT_OF_REACH
from mechscope.models.adapters.llama import layer_norms
from mechscope.models.anatomy import Anatomy, Attention, Part, family
from mechscope.models.layouts import Copied
from mechscope.vocabulary.errors import UnsupportedModel


@family("falcon")
def describe_falcon(config: Any) -> Anatomy:
    """Parallel with one norm (7b), with two (40b, 180b), or sequential (rw)."""
    ln1, ln2 = _norm_paths(config)
    is_parallel = config.parallel_attn
    # Parallel layers add attention to the MLP's output in place.
    returned = Part("mlp", layout=Copied()) if is_parallel else Part("mlp")
    parts = {
        "ln1": Part(ln1),
        "attn_in": Part("self_attention", "input"),
        "attn_raw": Part("self_attention"),
        "attn_out": Part("self_attention"),
        "mlp_in": Part("mlp", "input"),
        "mlp_pre": Part("mlp.dense_h_to_4h"),
        "mlp_post": Part("mlp.dense_4h_to_h", "input"),
        "mlp_raw": returned,
        "mlp_out": returned,
    }
    if ln2 is not None:
        parts["ln2"] = Part(ln2)
        parts |= {} if is_parallel else {"resid_mid": Part(ln2, "input")}
    return Anatomy(
        family="falcon",
        layers="transformer.h",
        parts=parts,
        ends={"embed": Part("transformer.word_embeddings"), "ln_final": Part("transformer.ln_f")},
        norms=layer_norms(config.layer_norm_epsilon, ln1=ln1, ln2=ln2, ln_final="transformer.ln_f"),
        attention=Attention(
            module="self_attention",
            n_heads=config.num_attention_heads,
            n_kv_heads=_n_kv_heads(config),
            d_head=config.hidden_size // config.num_attention_heads,
            output="self_attention.dense",
            is_rotary=not config.alibi,
            has_interface=False,
        ),
        is_parallel=is_parallel,
        why_missing=dict.fromkeys((*ATTENTION_ONLY, "q_proj", "k_proj", "v_proj"), OUT_OF_REACH)
        | ({} if ln2 else {"ln2": "attention and MLP share the first norm"}),
    )


def _norm_paths(config: Any) -> tuple[str, str | None]:
    n_norms = config.num_ln_in_parallel_attn
    if config.new_decoder_architecture and not config.parallel_attn:
        raise UnsupportedModel(
            "This Falcon variant is not opened.",
            got="new_decoder_architecture=True, parallel_attn=False",
            because="its MLP has no input of its own",
            instead="a published Falcon",
        )
    if not config.parallel_attn:
        return "input_layernorm", "post_attention_layernorm"
    if config.new_decoder_architecture and n_norms in (None, 2):
        return "ln_attn", "ln_mlp"
    return "input_layernorm", None


def _n_kv_heads(config: Any) -> int:
    if config.new_decoder_architecture or not config.multi_query:
        return config.num_kv_heads
    return 1
