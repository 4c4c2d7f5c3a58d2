"""The one translator of foreign site names: TransformerLens hook points and SAELens `hook_name`s.

Some foreign names mean different tensors in different architectures; those translate to several candidates,
best first, and the model takes the first that it forms. Nothing is folded or centred here: names that
presume TransformerLens' default weight folding say so in `PRESUMES_FOLDING`.
"""

import re

HOOK_KEY = "hook_name"
"""Key of the site in SAELens' files."""
OLD_HOOK_KEY = "hook_point"
"""The same before its version 3."""
HEAD_OUTPUTS_HOOK = "hook_z"
"""Both a hook and SAELens' word for joining the heads' outputs."""
MLP_INPUT_HOOK = "hook_mlp_in"
"""A hook that transcoders' files take for the MLP's own input."""

_IN_BLOCK: dict[str, tuple[str, ...]] = {
    "hook_resid_pre": ("resid_pre",),
    "hook_resid_mid": ("resid_mid",),
    "hook_resid_post": ("resid_post",),
    "hook_attn_in": ("resid_pre",),
    "hook_q_input": ("resid_pre",),
    "hook_k_input": ("resid_pre",),
    "hook_v_input": ("resid_pre",),
    "hook_mlp_in": ("resid_mid",),
    "hook_attn_out": ("attn_out",),
    "hook_mlp_out": ("mlp_out",),
    "ln1.hook_scale": ("ln1_scale",),
    "ln1.hook_normalized": ("ln1_normalized",),
    "ln2.hook_scale": ("ln2_scale",),
    "ln2.hook_normalized": ("ln2_normalized",),
    "attn.hook_q": ("q_pre", "q"),
    "attn.hook_k": ("k_pre", "k"),
    "attn.hook_v": ("v",),
    "attn.hook_rot_q": ("q",),
    "attn.hook_rot_k": ("k",),
    "attn.hook_attn_scores": ("scores",),
    "attn.hook_pattern": ("pattern",),
    "attn.hook_z": ("z",),
    "attn.hook_result": ("head_out",),
    "mlp.hook_pre": ("mlp_gate", "mlp_pre"),
    "mlp.hook_pre_linear": ("mlp_pre",),
    "mlp.hook_post": ("mlp_post",),
    "mlp.hook_router_logits": ("router_logits",),
    "mlp.hook_expert_indices": ("expert_choice",),
    "mlp.hook_expert_weights": ("expert_weight",),
}
_ONCE: dict[str, tuple[str, ...]] = {
    "hook_embed": ("embed",),
    "hook_pos_embed": ("pos_embed",),
    "ln_final.hook_scale": ("ln_final_scale",),
    "ln_final.hook_normalized": ("ln_final_normalized",),
    "unembed.hook_out": ("logits",),
}
PRESUMES_FOLDING = frozenset({"ln1.hook_normalized", "ln2.hook_normalized", "ln_final.hook_normalized"})
"""Foreign names that mean "before the norm's weight" only after TransformerLens folded that weight away."""

_BLOCK = re.compile(r"blocks\.(-?\d+)\.(.+)")


def translate(name: str) -> tuple[tuple[str, ...], int | None] | None:
    """Candidate points (best first) and layer of a foreign name; None if the name is not foreign.

    >>> translate("blocks.6.hook_resid_post")
    (('resid_post',), 6)
    >>> translate("resid_post.6") is None
    True
    """
    if name in _ONCE:
        return _ONCE[name], None
    if (match := _BLOCK.fullmatch(name)) and match[2] in _IN_BLOCK:
        return _IN_BLOCK[match[2]], int(match[1])
    return None


def presumes_folding(name: str) -> bool:
    """Whether a foreign name means what it is translated to only where a norm's weight was folded away.

    >>> presumes_folding("blocks.0.ln1.hook_normalized"), presumes_folding("blocks.0.ln1.hook_scale")
    (True, False)
    """
    match = _BLOCK.fullmatch(name)
    return (match[2] if match else name) in PRESUMES_FOLDING


def foreign_name(point: str, layer: int | None) -> str | None:
    """The TransformerLens name of a point, for the documentation's table; None where there is none."""
    for name, candidates in _ONCE.items():
        if candidates[0] == point:
            return name
    for name, candidates in _IN_BLOCK.items():
        if point in candidates:
            return f"blocks.{layer}.{name}"
    return None
