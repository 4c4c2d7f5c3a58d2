"""Where families keep their parameters, and what they do with them: the table that `arithmetic_forward` reads.

Written from the papers and the checkpoints' parameter names; shares nothing with the adapters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Function = Callable[[Tensor], Tensor]


@dataclass
class Names:
    """Where a checkpoint keeps its parameters, and the arithmetic that its family does with them."""

    layer: str = "model.layers.{}."
    embed: str = "model.embed_tokens"
    positions: str | None = None
    position_offset: int = 0
    embed_norm: str | None = None
    final: str | None = "model.norm"
    head: str = "lm_head"
    ln1: str | None = "input_layernorm"
    ln2: str | None = "post_attention_layernorm"
    post1: str | None = None
    post2: str | None = None
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    q_norm: str | None = None
    k_norm: str | None = None
    is_norm_over_all_heads: bool = False
    gate: str | None = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    kind: str = "rms"
    offset: float = 0.0
    is_parallel: bool = False
    is_mlp_fed_by_ln1: bool = False
    is_transposed: bool = False
    is_rotary: bool = True
    is_rotary_adjacent: bool = False
    is_position_for_queries_and_keys_only: bool = False
    is_causal: bool = True
    is_norm_on_stream: bool = False
    types: str | None = None
    transform: str | None = None
    act: Function = F.silu
    out_of_reach: tuple[str, ...] = ()


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gelu_bloom(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


def solu(x: Tensor) -> Tensor:
    y = x * x.softmax(-1)
    y = y - y.mean(-1, keepdim=True)
    return y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def names_of(config: Any) -> Names:
    """The table of families."""
    sandwich = {
        "ln2": "pre_feedforward_layernorm",
        "post1": "post_attention_layernorm",
        "post2": "post_feedforward_layernorm",
    }
    head_norms = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    match config.model_type:
        case "llama" | "mistral" | "qwen2" | "mixtral" | "gpt_oss" | "granite" | "phi3":
            return Names()
        case "qwen3" | "qwen3_moe":
            return Names(**head_norms)
        case "gemma":
            return Names(offset=1.0, act=gelu_tanh)
        case "gemma2":
            return Names(offset=1.0, act=gelu_tanh, **sandwich)
        case "gemma3_text":
            return Names(offset=1.0, act=gelu_tanh, **sandwich, **head_norms)
        case "olmo2":
            return Names(
                ln1=None,
                **(sandwich | head_norms | {"ln2": None}),
                is_norm_over_all_heads=True,
            )
        case "starcoder2":
            return Names(gate=None, up="mlp.c_fc", down="mlp.c_proj", kind="layer", act=gelu_tanh)
        case "stablelm":
            norms = {"q_norm": "self_attn.q_layernorm", "k_norm": "self_attn.k_layernorm"}
            shared = {"ln2": None, "is_mlp_fed_by_ln1": True} if config.use_parallel_residual else {}
            used = norms if config.qk_layernorm else {}
            return Names(kind="layer", is_parallel=config.use_parallel_residual, **shared, **used)
        case "phi":
            return Names(
                kind="layer",
                is_parallel=True,
                is_mlp_fed_by_ln1=True,
                ln2=None,
                final="model.final_layernorm",
                o="self_attn.dense",
                gate=None,
                up="mlp.fc1",
                down="mlp.fc2",
                act=gelu_tanh,
                q_norm="self_attn.q_layernorm",
                k_norm="self_attn.k_layernorm",
            )
        case "opt":
            return Names(
                layer="model.decoder.layers.{}.",
                embed="model.decoder.embed_tokens",
                positions="model.decoder.embed_positions",
                position_offset=2,
                final="model.decoder.final_layer_norm",
                ln1="self_attn_layer_norm",
                ln2="final_layer_norm",
                o="self_attn.out_proj",
                gate=None,
                up="fc1",
                down="fc2",
                kind="layer",
                is_rotary=False,
                act=F.relu,
            )
        case "gpt2":
            return Names(
                layer="transformer.h.{}.",
                embed="transformer.wte",
                positions="transformer.wpe",
                final="transformer.ln_f",
                ln1="ln_1",
                ln2="ln_2",
                o="attn.c_proj",
                gate=None,
                up="mlp.c_fc",
                down="mlp.c_proj",
                kind="layer",
                is_transposed=True,
                is_rotary=False,
                act=gelu_tanh,
            )
        case "gpt_neox":
            return Names(
                layer="gpt_neox.layers.{}.",
                embed="gpt_neox.embed_in",
                final="gpt_neox.final_layer_norm",
                o="attention.dense",
                gate=None,
                up="mlp.dense_h_to_4h",
                down="mlp.dense_4h_to_h",
                kind="layer",
                is_parallel=config.use_parallel_residual,
                act=F.gelu,
            )
        case "gpt_neo":
            return Names(
                layer="transformer.h.{}.",
                embed="transformer.wte",
                positions="transformer.wpe",
                final="transformer.ln_f",
                ln1="ln_1",
                ln2="ln_2",
                q="attn.attention.q_proj",
                k="attn.attention.k_proj",
                v="attn.attention.v_proj",
                o="attn.attention.out_proj",
                gate=None,
                up="mlp.c_fc",
                down="mlp.c_proj",
                kind="layer",
                is_rotary=False,
                act=gelu_tanh,
            )
        case "gptj":
            return Names(
                layer="transformer.h.{}.",
                embed="transformer.wte",
                final="transformer.ln_f",
                ln1="ln_1",
                ln2=None,
                q="attn.q_proj",
                k="attn.k_proj",
                v="attn.v_proj",
                o="attn.out_proj",
                gate=None,
                up="mlp.fc_in",
                down="mlp.fc_out",
                kind="layer",
                is_parallel=True,
                is_mlp_fed_by_ln1=True,
                is_rotary_adjacent=True,
                act=gelu_tanh,
            )
        case "bert":
            return Names(
                layer="bert.encoder.layer.{}.",
                embed="bert.embeddings.word_embeddings",
                positions="bert.embeddings.position_embeddings",
                types="bert.embeddings.token_type_embeddings",
                embed_norm="bert.embeddings.LayerNorm",
                transform="cls.predictions.transform.dense",
                final="cls.predictions.transform.LayerNorm",
                head="cls.predictions.decoder",
                ln1=None,
                ln2=None,
                post1="attention.output.LayerNorm",
                post2="output.LayerNorm",
                q="attention.self.query",
                k="attention.self.key",
                v="attention.self.value",
                o="attention.output.dense",
                gate=None,
                up="intermediate.dense",
                down="output.dense",
                kind="layer",
                is_rotary=False,
                is_causal=config.is_decoder,
                is_norm_on_stream=True,
                act=F.gelu,
            )
        case "bloom" | "falcon":
            return _fused_names(config)
        case "mechscope_native":
            return _native_names(config)
    raise LookupError(config.model_type)


def _fused_names(config: Any) -> Names:
    """Families whose attention is out of reach: fused, and without the library's interface."""
    hidden = ("q_pre", "k_pre", "q", "k", "v", "scores", "pattern", "z")
    usual: dict[str, Any] = {
        "layer": "transformer.h.{}.",
        "embed": "transformer.word_embeddings",
        "final": "transformer.ln_f",
        "o": "self_attention.dense",
        "gate": None,
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
        "kind": "layer",
    }
    if config.model_type == "bloom":
        norm = "transformer.word_embeddings_layernorm"
        return Names(**usual, embed_norm=norm, is_rotary=False, act=gelu_bloom, out_of_reach=hidden)
    norms: dict[str, Any] = {}
    if config.new_decoder_architecture:
        norms = {"ln1": "ln_attn", "ln2": "ln_mlp"}
    elif config.parallel_attn:
        norms = {"ln2": None, "is_mlp_fed_by_ln1": True}
    return Names(
        **usual,
        **norms,
        is_parallel=config.parallel_attn,
        is_rotary=not config.alibi,
        act=F.gelu,
        out_of_reach=(*hidden, "q_proj", "k_proj", "v_proj"),
    )


def _native_names(config: Any) -> Names:
    has_norm = config.norm != "none"
    return Names(
        embed="model.embed",
        positions="model.pos_embed" if config.positions in ("learned", "shortformer") else None,
        final="model.ln_final" if config.final_norm != "none" else None,
        head="unembed",
        ln1="ln1" if has_norm else None,
        ln2="ln2" if has_norm else None,
        q="attn.q_proj",
        k="attn.k_proj",
        v="attn.v_proj",
        o="attn.o_proj",
        gate="mlp.gate_proj" if config.gated else None,
        kind="layer" if config.norm.startswith("layernorm") else "rms",
        is_parallel=config.parallel,
        is_rotary=config.positions == "rotary",
        is_position_for_queries_and_keys_only=config.positions == "shortformer",
        is_causal=config.is_causal,
        act={"gelu": F.gelu, "solu_ln": solu}[config.activation],
    )
