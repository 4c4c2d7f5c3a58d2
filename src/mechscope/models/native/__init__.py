"""A small clean transformer for specimens and toy checkpoints, opened like any Hugging Face family.

Owns: `NativeConfig`, the models, the TransformerLens reader and writer, and `register`.
Invariant: importing registers nothing; `register()` tells transformers' Auto classes, once.
"""

from mechscope.models.native.config import NativeConfig
from mechscope.models.native.model import (
    NativeForCausalLM,
    NativeForSequenceClassification,
    NativeModel,
)
from mechscope.models.native.transformer_lens import native_to_transformer_lens, open_transformer_lens

__all__ = [
    "NativeConfig",
    "NativeForCausalLM",
    "NativeForSequenceClassification",
    "NativeModel",
    "native_to_transformer_lens",
    "open_transformer_lens",
    "register",
]


def register() -> None:
    """Let `AutoModelForCausalLM.from_pretrained` open native checkpoints without remote code. Idempotent."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    AutoConfig.register(NativeConfig.model_type, NativeConfig, exist_ok=True)
    AutoModel.register(NativeConfig, NativeModel, exist_ok=True)
    AutoModelForCausalLM.register(NativeConfig, NativeForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(NativeConfig, NativeForSequenceClassification, exist_ok=True)
