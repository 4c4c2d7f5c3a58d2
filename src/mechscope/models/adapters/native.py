"""Our own small transformer: any mixture of the choices in its configuration, attention-only models included."""

from typing import Any

from mechscope.models.adapters.llama import attention_parts, gated_mlp_parts, plain_mlp_parts
from mechscope.models.anatomy import Anatomy, Attention, Head, Norm, Part, family

_NO_NORM = "this configuration has no norm, so what would be its output is its input"
_NO_MLP = "this configuration is attention-only"
_ONLY_ATTENTION = ("resid_mid", "ln2", "mlp_in", "mlp_pre", "mlp_gate", "mlp_post", "mlp_raw", "mlp_out")


@family("mechscope_native")
def describe_native(config: Any) -> Anatomy:
    """Norms, positions, MLP and parallel wiring as configured."""
    is_rotary, has_norm, has_mlp = config.positions == "rotary", config.norm != "none", config.d_mlp > 0
    parts = attention_parts(config, module="attn")
    if not is_rotary:
        del parts["q_pre"], parts["k_pre"]
    if has_norm:
        parts["ln1"] = Part("ln1")
    if has_mlp:
        mlp = gated_mlp_parts() if config.gated else plain_mlp_parts("up_proj", "down_proj")
        parts |= mlp | ({"ln2": Part("ln2")} if has_norm else {})
        parts |= {} if config.parallel else {"resid_mid": Part("ln2", "input")}
    return Anatomy(
        family="mechscope_native",
        layers="model.layers",
        parts=parts,
        ends=_ends(config),
        norms=_norms(config),
        attention=Attention(
            module="attn",
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            d_head=config.d_head,
            output="attn.o_proj",
            is_rotary=is_rotary,
        ),
        head=Head(module="unembed", softcap=config.logit_softcap),
        is_parallel=config.parallel and has_mlp,
        is_causal=config.is_causal,
        why_missing=_why_missing(has_norm=has_norm, has_mlp=has_mlp),
    )


def _ends(config: Any) -> dict[str, Part]:
    ends = {"embed": Part("model.embed")}
    if config.positions in ("learned", "shortformer"):
        ends["pos_embed"] = Part("model.pos_embed")
    return ends if config.final_norm == "none" else ends | {"ln_final": Part("model.ln_final")}


def _norms(config: Any) -> dict[str, Norm]:
    kinds = {
        "ln1": ("ln1", config.norm),
        "ln2": ("ln2", config.norm),
        "ln_final": ("model.ln_final", config.final_norm),
    }
    if config.d_mlp == 0:
        del kinds["ln2"]
    return {
        name: Norm(path, "layer" if kind.startswith("layernorm") else "rms", config.norm_eps)
        for name, (path, kind) in kinds.items()
        if kind != "none"
    }


def _why_missing(*, has_norm: bool, has_mlp: bool) -> dict[str, str]:
    reasons = {} if has_norm else {"ln1": _NO_NORM, "ln2": _NO_NORM, "ln_final": _NO_NORM}
    return reasons if has_mlp else reasons | dict.fromkeys(_ONLY_ATTENTION, _NO_MLP)
