"""Export to a stock configuration: a causal compiled model as a `GPT2LMHeadModel`.

GPT-2 has layer norms, which these models are not written for; they are made to do nothing. Two more dimensions hold
+C and -C at every position, so that the variance is C's, and one dimension balances each write, so that the mean is 0.
A norm is then a division by a constant, up to a relative error of about |x|^2 / 4 C^2, and its weight multiplies the
constant back. Refuses bidirectional models: no stock causal language model attends to later positions.
"""

from typing import cast

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from mechscope.models.native import NativeConfig, NativeForCausalLM
from mechscope.vocabulary.errors import UnsupportedModel

STEADY = 2000.0
"""C: large against what the residual stream holds (norms of a few), small enough that float32 means round little."""


def to_gpt2(network: NativeForCausalLM) -> GPT2LMHeadModel:
    """A GPT-2 that computes the same, head by head and neuron by neuron.

    Args:
        network: A causal native model without norms, with learned positions and relu (or without MLPs).

    Returns:
        The model, float32, eval mode. `ms.wrap` opens it. Its first dimensions are the native model's, and its wiring
        too (with MLPs), so the needed edges have the same names.

    Raises:
        UnsupportedModel: bidirectional, or another mixture of choices.
    """
    config = cast(NativeConfig, network.config)
    _refuse_others(config)
    d_head = max(config.d_head, -(-(config.d_model + 3) // config.n_heads))
    stock = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.d_vocab,
            n_positions=config.n_ctx,
            n_embd=config.n_heads * d_head,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_inner=max(config.d_mlp, 1),
            activation_function="relu",
            tie_word_embeddings=False,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=config.bos_token_id,
            eos_token_id=None,
            pad_token_id=config.pad_token_id,
        )
    )
    stock.load_state_dict(_weights(network, stock, d_head=d_head))
    return stock.eval()


def _refuse_others(config: NativeConfig) -> None:
    plain = (
        config.norm,
        config.final_norm,
        config.positions,
        config.gated,
        config.parallel,
        config.logit_softcap,
    )
    problems = [] if config.is_causal else ["it is bidirectional, and GPT-2 only looks back"]
    if plain != ("none", "none", "learned", False, False, None) or config.n_kv_heads != config.n_heads:
        problems.append("it has norms or other choices that compiled models do not have")
    if config.d_mlp and config.activation != "relu":
        problems.append(f"its activation is {config.activation}")
    if problems:
        raise UnsupportedModel(
            "this model has no stock GPT-2 form",
            got=f"is_causal={config.is_causal}, norm={config.norm}, positions={config.positions}",
            because="; ".join(problems),
            instead="a compiled program with is_causal=True; the native model opens everywhere in mechscope",
        )


def _weights(network: NativeForCausalLM, stock: GPT2LMHeadModel, *, d_head: int) -> dict[str, Tensor]:
    config, old = cast(NativeConfig, network.config), network.state_dict()
    weights = {name: torch.zeros_like(value) for name, value in stock.state_dict().items()}
    width, n_embd = config.d_model, stock.config.n_embd
    plus, minus = width + 1, width + 2
    scale = (2 * STEADY**2 / n_embd + stock.config.layer_norm_epsilon) ** 0.5
    position = _balanced(old["model.pos_embed.weight"], n_embd)
    position[:, plus], position[:, minus] = STEADY, -STEADY
    weights["transformer.wte.weight"] = _balanced(old["model.embed.weight"], n_embd)
    weights["transformer.wpe.weight"] = position
    weights["lm_head.weight"][:, :width] = old["unembed.weight"]
    for name in weights:
        if ".ln_" in name and name.endswith(".weight"):
            weights[name][:width] = scale
    for layer in range(config.n_layers):
        prefix = f"model.layers.{layer}."
        parts = {name.removeprefix(prefix): value for name, value in old.items() if name.startswith(prefix)}
        found = _attention(config, parts, d_head=d_head, n_embd=n_embd)
        found |= _mlp(parts, n_embd=n_embd) if config.d_mlp else {}
        weights |= {f"transformer.h.{layer}.{name}": value for name, value in found.items()}
    return weights


def _balanced(rows: Tensor, n_embd: int) -> Tensor:
    """What is written to the residual stream, [..., d_model], as [..., n_embd] with mean 0."""
    width = rows.shape[-1]
    out = rows.new_zeros(*rows.shape[:-1], n_embd)
    out[..., :width], out[..., width] = rows, -rows.sum(-1)
    return out


def _attention(
    config: NativeConfig, parts: dict[str, Tensor], *, d_head: int, n_embd: int
) -> dict[str, Tensor]:
    n_heads, width = config.n_heads, config.d_model
    matrices, biases = [], []
    for letter, factor in (("q", config.score_scale * d_head**0.5), ("k", 1.0), ("v", 1.0)):
        into, more = torch.zeros(n_heads, d_head, n_embd), torch.zeros(n_heads, d_head)
        matrix = parts[f"attn.{letter}_proj.weight"].unflatten(0, (n_heads, config.d_head))
        bias = parts.get(f"attn.{letter}_proj.bias", torch.zeros(n_heads * config.d_head))
        into[:, : config.d_head, :width] = factor * matrix
        more[:, : config.d_head] = factor * bias.unflatten(0, (n_heads, config.d_head))
        matrices.append(into.flatten(0, 1).T)
        biases.append(more.flatten())
    out = torch.zeros(n_heads, d_head, n_embd)
    rows = parts["attn.o_proj.weight"].T.unflatten(0, (n_heads, config.d_head))
    out[:, : config.d_head] = _balanced(rows, n_embd)
    return {
        "attn.c_attn.weight": torch.cat(matrices, dim=1),
        "attn.c_attn.bias": torch.cat(biases),
        "attn.c_proj.weight": out.flatten(0, 1),
        "attn.c_proj.bias": _balanced(parts.get("attn.o_proj.bias", torch.zeros(width)), n_embd),
    }


def _mlp(parts: dict[str, Tensor], *, n_embd: int) -> dict[str, Tensor]:
    up, down = parts["mlp.up_proj.weight"], parts["mlp.down_proj.weight"]
    into = torch.zeros(n_embd, up.shape[0])
    into[: up.shape[1]] = up.T
    return {
        "mlp.c_fc.weight": into,
        "mlp.c_fc.bias": parts.get("mlp.up_proj.bias", torch.zeros(up.shape[0])),
        "mlp.c_proj.weight": _balanced(down.T, n_embd),
        "mlp.c_proj.bias": _balanced(parts.get("mlp.down_proj.bias", torch.zeros(up.shape[1])), n_embd),
    }
