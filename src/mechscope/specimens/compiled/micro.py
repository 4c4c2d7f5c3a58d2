"""The micro-model: two layers of two heads on one token, so small that every number can be worked out by hand.

Its residual stream has two dimensions. Each head multiplies what it reads: head 0 by (1, 2), head 1 by (3, 4). With
one token the attention pattern is 1 whatever queries and keys are, so the model is linear and every attribution
method must give the effects below exactly. Numbers as published for AutoCircuit's micro-model (MIT licence).
"""

import torch

from mechscope.models.native import NativeConfig, NativeForCausalLM
from mechscope.vocabulary.edges import Edge

CLEAN, CORRUPT = 0, 1
"""The two tokens: (1, 1) and (-1, -1)."""
CLEAN_LOGITS, CORRUPT_LOGITS = (25.0, 49.0), (-25.0, -49.0)

HEALING: tuple[tuple[str, tuple[float, float]], ...] = (
    ("embed->a1.1.v", (-19.0, -41.0)),
    ("a0.0->a1.1.v", (-13.0, -25.0)),
    ("embed->a0.0.v", (-9.0, -13.0)),
)
"""Edges that carry the clean value on the corrupt prompt, one more each time, and the logits then."""

_LOSSES: dict[str, tuple[float, float]] = {
    "embed->a0.0.v": (5, 14),
    "embed->a0.1.v": (15, 28),
    "embed->a1.0.v": (1, 2),
    "embed->a1.1.v": (3, 4),
    "a0.0->a1.0.v": (1, 4),
    "a0.0->a1.1.v": (3, 8),
    "a0.1->a1.0.v": (3, 8),
    "a0.1->a1.1.v": (9, 16),
    "embed->logits": (1, 1),
    "a0.0->logits": (1, 2),
    "a0.1->logits": (3, 4),
    "a1.0->logits": (5, 14),
    "a1.1->logits": (15, 28),
}
EFFECTS: dict[Edge, tuple[float, float]] = {
    Edge.parse(name): (-2.0 * one, -2.0 * two) for name, (one, two) in _LOSSES.items()
}
"""Change of both logits when an edge alone carries the corrupt value on the clean prompt. Edges into queries and keys
have none. On this model `EFFECTS` are also the exact scores of edge attribution."""


def make_micro() -> NativeForCausalLM:
    """Build the micro-model, in float32 and eval mode."""
    config = NativeConfig(
        n_layers=2,
        d_model=2,
        n_heads=2,
        d_head=2,
        d_mlp=0,
        d_vocab=2,
        n_ctx=4,
        norm="none",
        positions="none",
        attn_scale=1.0,
        bias=False,
    )
    model = NativeForCausalLM(config)
    both = torch.eye(2).repeat(2, 1)
    heads = torch.tensor([[1.0, 0.0, 3.0, 0.0], [0.0, 2.0, 0.0, 4.0]])
    weights = {"model.embed.weight": torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), "unembed.weight": torch.eye(2)}
    for layer in range(2):
        name = f"model.layers.{layer}.attn"
        weights |= {f"{name}.{letter}_proj.weight": both for letter in "qkv"} | {
            f"{name}.o_proj.weight": heads
        }
    model.load_state_dict(weights)
    return model.eval()
