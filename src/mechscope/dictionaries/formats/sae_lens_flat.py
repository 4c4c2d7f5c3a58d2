"""SAELens before version 6: one flat `cfg.json`. Renamed keys and the defaults of their time, as version 6 has them."""

import re
from collections.abc import Mapping
from typing import Any

from mechscope.vocabulary.errors import UnknownGate
from mechscope.vocabulary.foreign_names import HEAD_OUTPUTS_HOOK, HOOK_KEY, OLD_HOOK_KEY

_RENAMED = {
    OLD_HOOK_KEY: HOOK_KEY,
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_METADATA = (
    HOOK_KEY,
    *"sae_lens_version sae_lens_training_version model_name hook_head_index hook_name_out context_size".split(),
    *"prepend_bos seqpos_slice model_from_pretrained_kwargs dataset_path neuronpedia_id".split(),
)


def is_flat(config: Mapping[str, Any]) -> bool:
    """Whether settings are older than version 6: no version, or a smaller one."""
    metadata = config.get("metadata")
    version = config.get("sae_lens_version") or (metadata or {}).get("sae_lens_version")
    if not version:
        return True
    match = re.match(r"(\d+)\.", str(version))
    return match is None or int(match[1]) < 6


def as_version_6(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings as version 6 writes them.

    Raises:
        UnknownGate: an activation function other than ReLU and top-k.
    """
    flat = {_RENAMED.get(name, name): value for name, value in config.items()}
    flat = {**(flat.pop("metadata", None) or {}), **flat}
    flat.setdefault("prepend_bos", True)
    flat.setdefault("apply_b_dec_to_input", True)
    flat.setdefault("architecture", "standard")
    flat.setdefault(
        "reshape_activations", HEAD_OUTPUTS_HOOK if HEAD_OUTPUTS_HOOK in str(flat.get(HOOK_KEY)) else "none"
    )
    normalize = flat.get("normalize_activations")
    if isinstance(normalize, bool) or normalize is None:
        flat["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    activation, k = flat.get("activation_fn", "relu"), (flat.get("activation_fn_kwargs") or {}).get("k")
    if activation == "topk":
        flat["architecture"] = "topk"
        if k is not None:
            flat["k"] = k
    elif activation != "relu":
        raise UnknownGate(
            f'The activation function "{activation}" is not known.',
            got=activation,
            because="a dictionary read under another rule gives other codes, silently",
            instead="relu or topk",
        )
    flat["metadata"] = {name: flat[name] for name in _METADATA if name in flat}
    return flat
