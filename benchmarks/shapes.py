"""Shapes: the two models that speed is measured on, with random weights, and their prompts."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.models.opening import wrap

GPT2_SMALL: dict[str, Any] = {}
"""12 layers, 768 wide, 12 heads, vocabulary 50257: the defaults of the configuration."""

SMALL: dict[str, Any] = {"n_layer": 4, "n_embd": 256, "n_head": 8, "vocab_size": 4096}

SHAPES = {"gpt2-small": GPT2_SMALL, "4-layer-256-wide": SMALL}


@cache
def random_model(shape: str, attention: str = "sdpa") -> GPT2LMHeadModel:
    """A random model of a shape, in evaluation mode and float32; equal weights whatever the attention."""
    torch.manual_seed(0)
    no_tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    settings: dict[str, Any] = SHAPES[shape] | no_tokens | {"attn_implementation": attention}
    model = GPT2LMHeadModel(GPT2Config(**settings)).eval()
    return model.requires_grad_(False)


@cache
def opened(shape: str) -> Model:
    """The same model, open."""
    return wrap(random_model(shape), name=shape)


def random_ids(shape: str, n_rows: int, n_columns: int, seed: int = 0) -> Tensor:
    """Random token ids, [row, column]."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = random_model(shape).config.vocab_size
    return torch.randint(0, vocabulary, (n_rows, n_columns), generator=generator)


def random_pair(shape: str, n_tokens: int, *, n_shared: int) -> tuple[TokenBatch, TokenBatch]:
    """A clean and a corrupt prompt that share their first tokens and differ in every later one."""
    clean, corrupt = (random_ids(shape, 1, n_tokens, seed)[0].tolist() for seed in (0, 1))
    for column in range(n_tokens):
        if column < n_shared:
            corrupt[column] = clean[column]
        elif corrupt[column] == clean[column]:
            corrupt[column] = (clean[column] + 1) % random_model(shape).config.vocab_size
    return batch_of([clean], pad_id=0), batch_of([corrupt], pad_id=0)
