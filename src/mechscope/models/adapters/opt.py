"""OPT: learned positions with an offset; MLP on flat tokens; norms before or (350m) after the skip connection."""

from typing import Any

from mechscope.models.adapters.llama import layer_norms
from mechscope.models.anatomy import Anatomy, Attention, Part, family
from mechscope.models.layouts import Heads
from mechscope.vocabulary.errors import UnsupportedModel


@family("opt")
def describe_opt(config: Any) -> Anatomy:
    """Pre-norm, learned positions, plain MLP; queries are scaled before the attention function sees them."""
    _refuse_variants(config)
    n_heads = config.num_attention_heads
    width = config.hidden_size // n_heads
    parts = {
        "ln1": Part("self_attn_layer_norm"),
        "attn_in": Part("self_attn", "input"),
        "attn_raw": Part("self_attn"),
        "attn_out": Part("self_attn"),
        "resid_mid": Part("final_layer_norm", "input", is_flat=True),
        "ln2": Part("final_layer_norm", is_flat=True),
        "mlp_in": Part("fc1", "input", is_flat=True),
        "mlp_pre": Part("fc1", is_flat=True),
        "mlp_post": Part("fc2", "input", is_flat=True),
        "mlp_raw": Part("fc2", is_flat=True),
        "mlp_out": Part("fc2", is_flat=True),
    }
    projections = {
        name: Part(f"self_attn.{name}", layout=Heads(n_heads)) for name in ("q_proj", "k_proj", "v_proj")
    }
    ends = {
        "embed": Part("model.decoder.embed_tokens"),
        "pos_embed": Part("model.decoder.embed_positions"),
        "ln_final": Part("model.decoder.final_layer_norm"),
    }
    return Anatomy(
        family="opt",
        layers="model.decoder.layers",
        parts=parts | projections,
        ends=ends,
        norms=layer_norms(
            1e-5,
            ln1="self_attn_layer_norm",
            ln2="final_layer_norm",
            ln_final="model.decoder.final_layer_norm",
        ),
        attention=Attention(
            module="self_attn",
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_head=width,
            output="self_attn.out_proj",
            is_rotary=False,
        ),
    )


def _refuse_variants(config: Any) -> None:
    because = []
    if not config.do_layer_norm_before:
        because.append("its norms come after the skip connection, so no part adds to a residual stream")
    if config._remove_final_layer_norm:
        because.append("it has no final norm")
    if config.word_embed_proj_dim != config.hidden_size:
        because.append("its embeddings are projected into the residual stream")
    if because:
        raise UnsupportedModel(
            "This OPT variant is not opened.",
            got=f"do_layer_norm_before={config.do_layer_norm_before}, word_embed_proj_dim={config.word_embed_proj_dim}",
            because="; ".join(because),
            instead="another size: every OPT but 350m is pre-norm",
        )
