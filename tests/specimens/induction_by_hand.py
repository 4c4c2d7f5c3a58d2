"""An independent forward pass of the induction specimen, edge by edge, for tests of its truth."""

import torch
from torch import Tensor

from mechscope.models.native import NativeForCausalLM
from mechscope.specimens.induction import WORDS
from mechscope.specimens.induction.language import BOS, FIRST_WORD
from mechscope.specimens.induction.truth import Edge

N_LAYERS, N_HEADS, D_HEAD = 2, 16, 36


def all_edges() -> list[Edge]:
    """Every edge of the residual graph: what each head's q, k, v and the logits read."""
    edges, sources = [], ["embed", "pos_embed"]
    for layer in range(N_LAYERS):
        heads = [f"{layer}.{head}" for head in range(N_HEADS)]
        edges += [Edge(s, h, letter) for s in sources for h in heads for letter in "qkv"]
        sources = sources + heads
    return edges + [Edge(source, "logits") for source in sources]


def run_by_hand(
    model: NativeForCausalLM,
    tokens: Tensor,
    cut: tuple[Edge, ...] = (),
    instead: dict[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and what each node adds; a cut edge carries zero, or the source's value in `instead`."""
    w = {name.removeprefix("model."): value.detach() for name, value in model.state_dict().items()}
    nodes = {
        "embed": w["embed.weight"][tokens],
        "pos_embed": w["pos_embed.weight"][: tokens.shape[1]].expand(len(tokens), -1, -1),
    }

    def read(stream: Tensor, target: str, letter: str | None) -> Tensor:
        for edge in cut:
            if (edge.target, edge.reads) == (target, letter):
                stream = stream - nodes[edge.source] + (0 if instead is None else instead[edge.source])
        return stream

    future = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    for layer in range(N_LAYERS):
        stream, added = sum(nodes.values()), {}
        for head in range(N_HEADS):
            rows, name = slice(head * D_HEAD, (head + 1) * D_HEAD), f"{layer}.{head}"
            q, k, v = (
                read(stream, name, x) @ w[f"layers.{layer}.attn.{x}_proj.weight"][rows].T for x in "qkv"
            )
            pattern = (q @ k.transpose(1, 2)).masked_fill(future, -torch.inf).softmax(-1)
            added[name] = pattern @ v @ w[f"layers.{layer}.attn.o_proj.weight"][:, rows].T
        nodes |= added
    return read(sum(nodes.values()), "logits", None) @ w["unembed.weight"].T, nodes


def encode(texts: list[str]) -> Tensor:
    """Token ids of texts of equal length, without the tokenizer."""
    return torch.tensor([[BOS] + [FIRST_WORD + WORDS.index(word) for word in text.split()] for text in texts])
