"""The compiler: check, plan, write weights, pad with distractors, record what was written.

    compiled = compile_program(program)
    compiled.model                 # a native transformer, float32, ready for `ms.wrap`
    compiled.wiring.edges          # the edges that carry something by construction

Owns: `Compiled`, `Blueprint` and `compile_program`. Invariant: equal programs give equal weights on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from torch import Tensor

from mechscope.models.model import Model
from mechscope.models.native import NativeConfig, NativeForCausalLM
from mechscope.models.opening import wrap
from mechscope.specimens.compiled.distractors import draw_heads, draw_neurons
from mechscope.specimens.compiled.plan import Plan, make_plan
from mechscope.specimens.compiled.rasp import Program, Series
from mechscope.specimens.compiled.tokenizer import BOS, Vocabulary, make_tokenizer
from mechscope.specimens.compiled.weights import Head, Neurons, stack_neurons, write_head, write_neurons
from mechscope.specimens.compiled.wired import Blueprint, draw_blueprint
from mechscope.vocabulary.edges import Wiring

LOGIT_GAIN = 10.0
"""Logit of a category that is the output; others have 0. A number is its own logit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """A program as a model, with everything that is known about it.

    Args:
        program: The program.
        plan: Which layer computes what.
        network: The native transformer.
        vocabulary: Its tokens.
        blueprint: Which node does what, and what reads what, by construction.
    """

    program: Program
    plan: Plan
    network: NativeForCausalLM
    vocabulary: Vocabulary
    blueprint: Blueprint

    @cached_property
    def model(self) -> Model:
        """The network opened and checked, with its tokenizer."""
        return wrap(self.network, self.tokenizer, name=f"compiled/{self.program.name}")

    @cached_property
    def tokenizer(self):
        """Words between spaces, [BOS] in front."""
        return make_tokenizer(self.vocabulary, n_context=self.program.length + 1)

    @cached_property
    def wiring(self) -> Wiring:
        """All nodes and edges of the model, distractors too."""
        config = self.network.config
        return Wiring(n_layers=config.n_layers, n_heads=config.n_heads, n_kv_heads=config.n_heads)

    @property
    def subspaces(self) -> Mapping[str, slice]:
        """Dimensions of the residual stream by name."""
        return self.plan.subspaces


def compile_program(
    program: Program, *, n_distractor_heads: int = 3, n_distractor_neurons: int = 4
) -> Compiled:
    """Compile a program to exact weights.

    Args:
        program: What to compute, at every position.
        n_distractor_heads: Heads without effect in each layer, at least; layers are filled to equal width.
        n_distractor_neurons: MLP neurons without effect in each layer, at least.

    Raises:
        BadProgram: with every problem of the program.

    Cost: well under a second for the programs of `programs.py`; nothing is trained or run.
    """
    plan = make_plan(program)
    heads, order = _heads(plan, n_distractor_heads)
    neurons = _neurons(plan, n_distractor_neurons)
    vocabulary = Vocabulary.of(program, plan.domains[program.output])
    config = NativeConfig(
        n_layers=plan.n_layers,
        d_model=plan.d_model,
        n_heads=len(heads[0]),
        d_head=heads[0][0].q.shape[0],
        d_mlp=len(neurons[0][0]),
        d_vocab=len(vocabulary.words),
        n_ctx=program.length + 1,
        norm="none",
        positions="learned",
        attn_scale=1.0,
        activation="relu",
        bias=True,
        is_causal=program.is_causal,
        pad_token_id=0,
        bos_token_id=BOS,
    )
    network = NativeForCausalLM(config)
    weights = _ends(plan, vocabulary) | _layers(heads, [drawn for drawn, _ in neurons])
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return Compiled(
        program=program,
        plan=plan,
        network=network.eval(),
        vocabulary=vocabulary,
        blueprint=draw_blueprint(plan, order, heads=heads, neurons=[units for _, units in neurons]),
    )


def _heads(plan: Plan, n_distractors: int) -> tuple[list[list[Head]], dict[Series, int]]:
    """All heads of all layers at equal width, and which head of its layer computes which series."""
    true = [
        {series: write_head(plan, series) for series in plan.attention_at(layer)}
        for layer in range(plan.n_layers)
    ]
    n_heads = max(len(heads) for heads in true) + n_distractors
    layers, order = [], {}
    for layer, heads in enumerate(true):
        slots = Random(f"mechscope compiled {plan.program.name} order {layer}").sample(
            range(n_heads), len(heads)
        )
        drawn = draw_heads(plan, layer, true=list(heads.values()), n=n_heads - len(heads))
        placed: dict[int, Head] = {}
        for (series, head), slot in zip(heads.items(), slots, strict=True):
            placed[slot], order[series] = head, slot
        free = iter(drawn)
        layers.append([placed[slot] if slot in placed else next(free) for slot in range(n_heads)])
    d_head = max(head.q.shape[0] for heads in layers for head in heads)
    return [[head.padded(d_head) for head in heads] for heads in layers], order


def _neurons(plan: Plan, n_distractors: int) -> list[tuple[Neurons, dict[Series, range]]]:
    """The neurons of each layer at equal width, and which of them compute which series."""
    true = []
    for layer in range(plan.n_layers):
        rows, units = [], {}
        for series in plan.mlp_at(layer):
            drawn = write_neurons(plan, series)
            units[series] = range(len(rows), len(rows) + len(drawn))
            rows += list(zip(drawn.reads, drawn.bias.tolist(), drawn.writes, strict=True))
        true.append((rows, units))
    width = max(len(rows) for rows, _ in true) + n_distractors
    layers = []
    for layer, (rows, units) in enumerate(true):
        more = draw_neurons(plan, layer, n=n_distractors)
        rows = rows + list(zip(more.reads, more.bias.tolist(), more.writes, strict=True))
        zero = torch.zeros(plan.d_model, dtype=torch.float64)
        rows += [(zero, 0.0, zero)] * (width - len(rows))
        layers.append((stack_neurons(rows, plan.d_model), units))
    return layers


def _ends(plan: Plan, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Embeddings of tokens and positions, and the unembedding."""
    n_words = len(vocabulary.words)
    embed, unembed = (torch.zeros(n_words, plan.d_model, dtype=torch.float64) for _ in range(2))
    position = torch.zeros(plan.program.length + 1, plan.d_model, dtype=torch.float64)
    for index, word in enumerate(plan.program.alphabet):
        embed[vocabulary.ids[word], plan.subspaces["tokens"].start + index] = 1.0
    embed[BOS, plan.subspaces["is_bos"]] = 1.0
    start = plan.subspaces["indices"].start
    for index in range(plan.program.length):
        position[1 + index, start + index] = 1.0
    output = plan.domains[plan.program.output]
    gain = 1.0 if output.is_number else LOGIT_GAIN
    unembed[list(vocabulary.answers)] = gain * plan.reading(plan.program.output)
    return {
        "model.embed.weight": embed,
        "model.pos_embed.weight": position,
        "unembed.weight": unembed,
    }


def _layers(heads: list[list[Head]], neurons: list[Neurons]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for layer, (row, mlp) in enumerate(zip(heads, neurons, strict=True)):
        attn, prefix = f"model.layers.{layer}.attn", f"model.layers.{layer}.mlp"
        for letter in "qkv":
            weights[f"{attn}.{letter}_proj.weight"] = torch.cat([head.reads()[letter] for head in row])
            weights[f"{attn}.{letter}_proj.bias"] = torch.zeros(
                len(row) * row[0].q.shape[0], dtype=torch.float64
            )
        weights[f"{attn}.q_proj.bias"] = torch.cat([head.b_q for head in row])
        weights[f"{attn}.o_proj.weight"] = torch.cat([head.o for head in row], dim=1)
        d_model = row[0].q.shape[1]
        weights[f"{attn}.o_proj.bias"] = torch.zeros(d_model, dtype=torch.float64)
        weights[f"{prefix}.up_proj.weight"], weights[f"{prefix}.up_proj.bias"] = mlp.reads, mlp.bias
        weights[f"{prefix}.down_proj.weight"] = mlp.writes.T.contiguous()
        weights[f"{prefix}.down_proj.bias"] = torch.zeros(d_model, dtype=torch.float64)
    return weights
