"""BERT: attention in both directions, and norms on the skip connection, so that the stream is no sum.

Each layer adds and then norms the sum; what the norm returns is the residual stream that the next part reads. The
masked-language head is a dense layer, an activation and a norm before the unembedding, and its logits at a position
are about that position's own token. With `is_decoder` it is a causal model that predicts the next token.
"""

from typing import Any

from mechscope.models.anatomy import Anatomy, Attention, Head, Norm, Part, family
from mechscope.models.layouts import Heads
from mechscope.vocabulary.errors import UnsupportedModel

_FIRST, _SECOND = "attention.output.LayerNorm", "output.LayerNorm"
_TRANSFORM = "cls.predictions.transform"


@family("bert")
def describe_bert(config: Any) -> Anatomy:
    """Post-norm on the stream, learned positions, plain MLP, masked-language or causal head."""
    _refuse_variants(config)
    n_heads = config.num_attention_heads
    parts = {
        "attn_in": Part("attention.self", "input"),
        "attn_raw": Part("attention.output.dense"),
        "attn_out": Part("attention.output.dense"),
        "resid_mid": Part(_FIRST),
        "mlp_in": Part("intermediate", "input"),
        "mlp_pre": Part("intermediate.dense"),
        "mlp_post": Part("output.dense", "input"),
        "mlp_raw": Part("output.dense"),
        "mlp_out": Part("output.dense"),
    }
    projections = {
        f"{letter}_proj": Part(f"attention.self.{name}", layout=Heads(n_heads))
        for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))
    }
    ends = {
        "embed": Part("bert.embeddings.word_embeddings"),
        "pos_embed": Part("bert.embeddings.position_embeddings"),
        "ln_final": Part(f"{_TRANSFORM}.LayerNorm"),
    }
    return Anatomy(
        family="bert",
        layers="bert.encoder.layer",
        parts=parts | projections,
        ends=ends,
        norms=_norms(config.layer_norm_eps),
        attention=Attention(
            module="attention.self",
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_head=config.hidden_size // n_heads,
            output="attention.output.dense",
            is_rotary=False,
        ),
        head=Head(
            module="cls.predictions.decoder",
            transform=_TRANSFORM,
            predicts="next" if config.is_decoder else "own",
        ),
        is_causal=config.is_decoder,
    )


def _norms(eps: float) -> dict[str, Norm]:
    return {
        "ln1": Norm(_FIRST, "layer", eps, is_on_stream=True),
        "ln2": Norm(_SECOND, "layer", eps, is_on_stream=True),
        "ln_final": Norm(f"{_TRANSFORM}.LayerNorm", "layer", eps),
    }


def _refuse_variants(config: Any) -> None:
    because = []
    if config.add_cross_attention:
        because.append("its layers attend to an encoder's output, which is no point of the layer")
    if config.chunk_size_feed_forward:
        because.append("its MLPs run on one piece of the prompt after another")
    if because:
        raise UnsupportedModel(
            "This BERT variant is not opened.",
            got=f"add_cross_attention={config.add_cross_attention}, "
            f"chunk_size_feed_forward={config.chunk_size_feed_forward}",
            because="; ".join(because),
            instead="the same weights with add_cross_attention=False and chunk_size_feed_forward=0, "
            "if they were trained without",
        )
