"""TransformerLens settings as a `NativeConfig`, and back.

Owns: the translation of a `HookedTransformerConfig` dictionary, defaults included.
Refuses: a setting that we do not know, or know and do not offer, each by name, all at once.
Invariant: a setting is read, or proven to be without effect on the forward pass, or refused.
"""

# Settings that follow another's are None only until NativeConfig.__post_init__; the library types `config` as its base.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOptionalCall=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false

import math
from collections.abc import Mapping
from typing import Any

from mechscope.models.native.config import ACTIVATIONS, NativeConfig
from mechscope.vocabulary.errors import UnsupportedModel

NORM_NAMES = {
    None: "none",
    "LN": "layernorm",
    "LNPre": "layernorm_pre",
    "RMS": "rmsnorm",
    "RMSPre": "rmsnorm_pre",
}
POSITION_NAMES = {
    "standard": "learned",
    "shortformer": "shortformer",
    "rotary": "rotary",
    "none": "none",
    None: "none",
}
DIRECTIONS = {"causal": True, "bidirectional": False}

READ_WITH_DEFAULTS: dict[str, object] = {
    "n_layers": None,
    "d_model": None,
    "d_head": None,
    "n_ctx": None,
    "d_vocab": None,
    "n_heads": -1,
    "n_key_value_heads": None,
    "d_mlp": None,
    "act_fn": None,
    "attn_only": False,
    "gated_mlp": False,
    "parallel_attn_mlp": False,
    "d_vocab_out": -1,
    "normalization_type": "LN",
    "final_rms": False,
    "eps": 1e-5,
    "use_attn_scale": True,
    "attn_scale": -1.0,
    "attention_dir": "causal",
    "positional_embedding_type": "standard",
    "rotary_dim": None,
    "rotary_base": 10000,
    "rotary_adjacent_pairs": False,
    "output_logits_soft_cap": -1.0,
}
REQUIRED = ("n_layers", "d_model", "d_head", "n_ctx", "d_vocab")

# They change the forward pass, and we offer only the value that leaves it alone.
ONLY_OFF_NAMES = (
    "use_local_attn scale_attn_by_inverse_layer_idx post_embedding_ln load_in_4bit num_experts "
    "experts_per_token use_normalization_before_and_after use_qk_norm use_NTK_by_parts_rope "
    "use_yarn_rope rmsnorm_uses_offset rotary_base_local relative_attention_max_distance "
    "relative_attention_num_buckets attn_scores_soft_cap"
)
ONLY_OFF = frozenset(ONLY_OFF_NAMES.split())
OFF = (None, False, -1, -1.0, 0)

# Names, devices, initialisation, tokenisation, extra hooks: none of them changes what a state dict computes.
WITHOUT_EFFECT_NAMES = (
    "model_name original_architecture from_checkpoint checkpoint_index checkpoint_label_type "
    "checkpoint_value tokenizer_name tokenizer_prepends_bos default_prepend_bos use_attn_result "
    "use_split_qkv_input use_hook_mlp_in use_attn_in use_hook_tokens ungroup_gqa window_size attn_types "
    "init_mode weight_init_mode device n_devices seed initializer_range init_weights n_params dtype "
    "trust_remote_code decoder_start_token_id tie_word_embeddings NTK_by_parts_low_freq_factor "
    "NTK_by_parts_high_freq_factor NTK_by_parts_factor NTK_original_ctx_len"
)
WITHOUT_EFFECT = frozenset(WITHOUT_EFFECT_NAMES.split())


def settings_to_config(settings: Mapping[str, object]) -> NativeConfig:
    """Translate the dictionary of a `HookedTransformerConfig`; absent keys take its defaults.

    Raises:
        UnsupportedModel: naming every setting that is missing, unknown, or not offered here.
    """
    _refuse_unreadable(settings)
    read: dict[str, Any] = READ_WITH_DEFAULTS | {
        key: settings[key] for key in settings if key in READ_WITH_DEFAULTS
    }
    norm = NORM_NAMES[read["normalization_type"]]
    n_heads = read["d_model"] // read["d_head"] if read["n_heads"] == -1 else read["n_heads"]
    d_mlp = 0 if read["attn_only"] else (read["d_mlp"] or 4 * read["d_model"])
    cap = read["output_logits_soft_cap"]
    return NativeConfig(
        n_layers=read["n_layers"],
        d_model=read["d_model"],
        n_heads=n_heads,
        d_head=read["d_head"],
        n_kv_heads=read["n_key_value_heads"],
        d_mlp=d_mlp,
        d_vocab=read["d_vocab"],
        d_vocab_out=read["d_vocab"] if read["d_vocab_out"] == -1 else read["d_vocab_out"],
        n_ctx=read["n_ctx"],
        norm=norm,
        norm_eps=read["eps"],
        final_norm=norm.replace("layernorm", "rmsnorm") if read["final_rms"] else norm,
        positions=POSITION_NAMES[read["positional_embedding_type"]],
        rotary_dim=read["rotary_dim"],
        rotary_base=float(read["rotary_base"]),
        rotary_adjacent_pairs=read["rotary_adjacent_pairs"],
        is_causal=DIRECTIONS[read["attention_dir"]],
        attn_scale=_score_factor(read),
        activation=read["act_fn"] if d_mlp else "relu",
        gated=read["gated_mlp"],
        parallel=read["parallel_attn_mlp"],
        unembed_bias=True,
        logit_softcap=cap if cap and cap > 0 else None,
        foreign_notes=presumed_foldings(norm),
    )


def config_to_settings(config: NativeConfig) -> dict[str, object]:
    """The TransformerLens dictionary that `settings_to_config` turns back into `config`."""
    norm_names = {ours: theirs for theirs, ours in NORM_NAMES.items()}
    return {
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "d_head": config.d_head,
        "n_ctx": config.n_ctx,
        "d_vocab": config.d_vocab,
        "d_vocab_out": config.d_vocab_out,
        "n_heads": config.n_heads,
        "n_key_value_heads": None if config.n_kv_heads == config.n_heads else config.n_kv_heads,
        "d_mlp": config.d_mlp or None,
        "attn_only": config.d_mlp == 0,
        "act_fn": config.activation if config.d_mlp else None,
        "gated_mlp": config.gated,
        "parallel_attn_mlp": config.parallel,
        "normalization_type": norm_names[config.norm],
        "final_rms": config.final_norm != config.norm,
        "eps": config.norm_eps,
        "use_attn_scale": True,
        "attn_scale": 1.0 / config.score_scale,
        "attention_dir": "causal" if config.is_causal else "bidirectional",
        "positional_embedding_type": {"learned": "standard"}.get(config.positions, config.positions),
        "rotary_dim": config.rotary_dim if config.positions == "rotary" else None,
        "rotary_base": config.rotary_base,
        "rotary_adjacent_pairs": config.rotary_adjacent_pairs,
        "output_logits_soft_cap": config.logit_softcap or -1.0,
    }


def presumed_foldings(norm: str) -> list[str]:
    """What a checkpoint with these norms presumes about its weights, said so that no one compares in vain."""
    if not norm.endswith("_pre"):
        return []
    notes = [
        f"{norm}: there are no norm weights. Either none were trained, or TransformerLens folded them into "
        "W_Q, W_K, W_V, W_in and W_U (fold_ln); these matrices then differ from the original checkpoint's."
    ]
    if norm == "layernorm_pre":
        notes.append(
            "layernorm_pre: matrices that write to the residual stream may be centred "
            "(center_writing_weights) and W_U too (center_unembed): logits then agree up to a constant."
        )
    return notes


def _score_factor(read: Mapping[str, Any]) -> float | None:
    """Our factor on q.k; TransformerLens divides by its `attn_scale`, sqrt(d_head) by default."""
    if not read["use_attn_scale"]:
        return 1.0
    divisor = read["attn_scale"]
    is_default = divisor in (-1, None) or math.isclose(divisor, math.sqrt(read["d_head"]))
    return None if is_default else 1.0 / divisor


def _refuse_unreadable(settings: Mapping[str, object]) -> None:
    problems = [f"{key} is missing" for key in REQUIRED if settings.get(key) in (None, -1)]
    for key, value in settings.items():
        if key in ONLY_OFF and value not in OFF:
            problems.append(f"{key}={value!r} is not offered")
        elif key not in READ_WITH_DEFAULTS and key not in ONLY_OFF and key not in WITHOUT_EFFECT:
            problems.append(f"{key}={value!r} is unknown")
    choices = {
        "normalization_type": NORM_NAMES,
        "positional_embedding_type": POSITION_NAMES,
        "attention_dir": DIRECTIONS,
    }
    for key, allowed in choices.items():
        if key in settings and settings[key] not in allowed:
            problems.append(f"{key}={settings[key]!r} is none of {', '.join(map(repr, allowed))}")
    if not settings.get("attn_only") and settings.get("act_fn") not in ACTIVATIONS:
        problems.append(f"act_fn={settings.get('act_fn')!r} is none of {', '.join(ACTIVATIONS)}")
    if settings.get("final_rms") and settings.get("normalization_type", "LN") is None:
        problems.append("final_rms=True without normalization_type")
    if problems:
        raise UnsupportedModel(
            "these TransformerLens settings can't be read",
            got="; ".join(problems),
            because="each of them could change what the weights compute",
            instead="settings of a HookedTransformer made of the parts that NativeConfig lists",
        )
