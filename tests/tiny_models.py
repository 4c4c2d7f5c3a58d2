"""Tiny random instances of every family, with weights large enough that every effect is visible.

Nothing is left at a value that would make a mistake invisible: norm weights are not one, biases and sinks are
not zero, windows are shorter than the probes, and the configurations differ in what families differ in.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from mechscope.models import native

VOCABULARY = 37
WINDOW = 4
_NO_SPECIAL: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
_LLAMA: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 44,
    "max_position_embeddings": 48,
    "vocab_size": VOCABULARY,
} | _NO_SPECIAL
_ALTERNATING = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": WINDOW,
}


def _llama_like(name: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return name, _LLAMA | more


def _without(names: str, settings: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return settings[0], {key: value for key, value in settings[1].items() if key not in names.split()}


_PLAIN = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 44}
_PLAIN |= _NO_SPECIAL | {"max_position_embeddings": 48, "vocab_size": VOCABULARY}
_WHOLE = {"rope_type": "default", "rope_theta": 10000.0}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}

_FALCON: dict[str, Any] = _NO_SPECIAL | {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4}
_FALCON |= {"vocab_size": VOCABULARY, "max_position_embeddings": 48}
_NATIVE: dict[str, Any] = {"n_layers": 3, "d_model": 32, "n_heads": 4, "d_head": 10, "d_mlp": 44}
_NATIVE |= {"d_vocab": VOCABULARY, "n_ctx": 48}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2",
        _NO_SPECIAL | {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 48, "vocab_size": VOCABULARY},
    ),
    "gpt_neox": ("GPTNeoX", _PLAIN | {"rope_parameters": _PARTIAL}),
    "gpt_neox_sequential": (
        "GPTNeoX",
        _PLAIN | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "llama": _llama_like("Llama", attention_bias=True, mlp_bias=True),
    "mistral": _llama_like("Mistral", sliding_window=WINDOW),
    "qwen2": _without("head_dim", _llama_like("Qwen2", tie_word_embeddings=True)),
    "qwen3": _llama_like("Qwen3", use_sliding_window=True, **_ALTERNATING),
    "gemma": _llama_like("Gemma", num_key_value_heads=1),
    "gemma2": _llama_like(
        "Gemma2",
        query_pre_attn_scalar=7,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        **_ALTERNATING,
    ),
    "gemma3_text": _llama_like(
        "Gemma3Text", query_pre_attn_scalar=7, final_logit_softcapping=3.0, **_ALTERNATING
    ),
    "phi3": _without("head_dim", _llama_like("Phi3", rope_parameters=_PARTIAL, sliding_window=WINDOW)),
    "olmo2": _without("head_dim", _llama_like("Olmo2")),
    "mixtral": _llama_like(
        "Mixtral", intermediate_size=48, num_local_experts=5, num_experts_per_tok=2, sliding_window=WINDOW
    ),
    "qwen3_moe": _llama_like(
        "Qwen3Moe",
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        moe_intermediate_size=24,
    ),
    "gpt_oss": _llama_like(
        "GptOss",
        intermediate_size=48,
        num_local_experts=5,
        num_experts_per_tok=2,
        rope_parameters=_WHOLE,
        **_ALTERNATING,
    ),
    "opt": ("OPT", _PLAIN | {"ffn_dim": 44, "word_embed_proj_dim": 32, "activation_function": "relu"}),
    "phi": ("Phi", _PLAIN | {"rope_parameters": _PARTIAL, "qk_layernorm": True}),
    "granite": _without(
        "head_dim",
        _llama_like(
            "Granite",
            embedding_multiplier=1.7,
            residual_multiplier=0.6,
            attention_multiplier=0.4,
            logits_scaling=2.5,
        ),
    ),
    "stablelm": _without(
        "head_dim", _llama_like("StableLm", rope_parameters=_PARTIAL, use_qkv_bias=True, qk_layernorm=True)
    ),
    "stablelm_parallel": _without(
        "head_dim", _llama_like("StableLm", rope_parameters=_PARTIAL, use_parallel_residual=True)
    ),
    "starcoder2": _without("head_dim", _llama_like("Starcoder2", sliding_window=WINDOW)),
    "gpt_neo": (
        "GPTNeo",
        _NO_SPECIAL
        | {
            "num_layers": 3,
            "hidden_size": 32,
            "num_heads": 4,
            "max_position_embeddings": 48,
            "window_size": WINDOW,
        }
        | {"attention_types": [[["global", "local"], 1], [["local"], 1]], "vocab_size": VOCABULARY},
    ),
    "gptj": (
        "GPTJ",
        _NO_SPECIAL
        | {
            "n_layer": 3,
            "n_embd": 32,
            "n_head": 4,
            "rotary_dim": 4,
            "n_positions": 48,
            "vocab_size": VOCABULARY,
        },
    ),
    "bloom": (
        "Bloom",
        _NO_SPECIAL | {"n_layer": 3, "hidden_size": 32, "n_head": 4, "vocab_size": VOCABULARY},
    ),
    "bert": ("Bert", _PLAIN),
    "bert_decoder": ("Bert", _PLAIN | {"is_decoder": True, "tie_word_embeddings": False}),
    "falcon_7b": ("Falcon", _FALCON | {"multi_query": True, "parallel_attn": True}),
    "falcon_40b": ("Falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_rw": (
        "Falcon",
        _FALCON | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "native": ("Native", _NATIVE | {"n_kv_heads": 2, "gated": True, "unembed_bias": True}),
    "native_attention_only": ("Native", _NATIVE | {"d_mlp": 0, "norm": "none", "positions": "shortformer"}),
    "native_parallel": (
        "Native",
        _NATIVE
        | {"parallel": True, "positions": "rotary", "rotary_dim": 6, "norm": "rmsnorm", "logit_softcap": 3.0},
    ),
    "native_bidirectional": (
        "Native",
        _NATIVE | {"is_causal": False, "positions": "none", "norm": "layernorm_pre", "activation": "solu_ln"},
    ),
}
"""Configuration class (without "Config") and settings, by the name that tests use."""

_MODEL_CLASSES = {"gpt2": "GPT2LMHeadModel", "gemma3_text": "Gemma3ForCausalLM", "bert": "BertForMaskedLM"}
_MODEL_CLASSES |= {"bert_decoder": "BertLMHeadModel"}


def tiny(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> nn.Module:
    """A random model of a family, in evaluation mode; `changes` go to its configuration."""
    stem, settings = TINY[name]
    library = native if stem == "Native" else transformers
    config = getattr(library, f"{stem}Config")(**(settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # vectors are redrawn around what the class itself draws
        model = getattr(library, _MODEL_CLASSES.get(name, f"{stem}ForCausalLM"))(config)
    redraw(model, seed)
    return model.to(dtype).eval()


def redraw(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value of a size at which its effect shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_sized(name)(parameter, noise))


def _sized(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def size(old: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        if old.ndim == 1:
            # Norm weights start at one, or at zero where the family stores them minus one.
            return old + 0.4 * noise
        if "embed" in name or "wte" in name or "wpe" in name:
            return 0.7 * noise
        return 1.3 * noise * min(old.shape[-2:]) ** -0.5

    return size
