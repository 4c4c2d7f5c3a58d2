"""The fingerprint of an open model: which weights, in which precision, wired how; and that of its tokenizer."""

import json
from typing import Any

from torch import nn

from mechscope.records.canonical import hash_json
from mechscope.records.fingerprint import ModelFingerprint, hash_tensors

_NOT_WIRING = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")
"""Configuration entries that say where a checkpoint came from, not what it computes."""


def fingerprint_of(hf: nn.Module, *, name: str, family: str, revision: str, dtype: str) -> ModelFingerprint:
    """Hash weights and configuration. Cost: one pass over the weights, about 2 GB/s."""
    config: Any = hf.config
    # transformers' own JSON form turns label ids and dtypes into text.
    wiring = {
        key: value
        for key, value in json.loads(config.to_json_string(use_diff=False)).items()
        if key not in _NOT_WIRING
    }
    return ModelFingerprint(
        name=name,
        family=family,
        revision=revision,
        dtype=dtype,
        weights_sha256=hash_tensors(dict(hf.state_dict())),
        n_parameters=sum(parameter.numel() for parameter in hf.parameters()),
        config_sha256=hash_json(wiring),
    )


def tokenizer_sha256_of(tokenizer: Any) -> str:
    """Hash of what a tokenizer does: its rules where it can tell them, else its vocabulary. "" without one."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:  # how it was last called is not what it is
        rules |= {"padding": None, "truncation": None}
    return hash_json({"rules": rules, "special": sorted(tokenizer.all_special_ids)})
