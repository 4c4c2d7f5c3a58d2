"""The forward pass edge by edge: what each node adds, and what the output is when some edges carry something else.

For native models without norms, in double precision, written out and slow: this is how the truth is defined, and
what faster code elsewhere can be compared with. Each reader's input is the sum of what all earlier nodes wrote,
where a cut edge carries zero or the same node's value on the corrupt prompt. Everything else is recomputed.
"""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.models.native import NativeForCausalLM
from mechscope.vocabulary.edges import Edge, Input, Node, Wiring
from mechscope.vocabulary.errors import UnsupportedModel

Outputs = Mapping[Node, Float[Tensor, "batch pos d_model"]]
EMBED, LOGITS = Node(kind="embed"), Node(kind="logits")


class Streams:
    """A native model without norms, taken apart into nodes.

    Args:
        network: Its weights are read once, as doubles.

    Raises:
        UnsupportedModel: it has norms, grouped keys, gates, rotary positions or an activation other than relu.
    """

    def __init__(self, network: NativeForCausalLM) -> None:
        config = network.config
        plain = (
            config.norm,
            config.final_norm,
            config.gated,
            config.parallel,
            config.logit_softcap,
        )
        is_plain = (
            plain == ("none", "none", False, False, None)
            and config.n_kv_heads == config.n_heads
            and config.positions in ("learned", "none")
        )
        if not is_plain or (config.d_mlp and config.activation != "relu"):
            raise UnsupportedModel(
                "this model can't be taken apart edge by edge",
                got=f"norm={config.norm}, positions={config.positions}, activation={config.activation}",
                because="with a norm, or another of these choices, what a node adds depends on the others",
                instead="a native model without norms, with learned positions or none, and relu",
            )
        self.config = config
        self.weights = {
            name.removeprefix("model."): value.detach().double()
            for name, value in network.state_dict().items()
        }
        self.wiring = Wiring(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_heads,
            has_mlps=bool(config.d_mlp),
        )

    def outputs(self, tokens: Int[Tensor, "batch pos"]) -> Outputs:
        """What each node adds to the residual stream; at the node "logits", the logits."""
        return self.run(tokens, cut=(), instead={})

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        cut: Collection[Edge],
        instead: Outputs,
        known: Outputs | None = None,
    ) -> Outputs:
        """As `outputs`, with cut edges carrying what `instead` holds for their source, or zero.

        Args:
            tokens: Equally long prompts, unpadded.
            cut: Edges between whole nodes.
            instead: Outputs of the corrupt prompts; {} for zero.
            known: `outputs` of these tokens; layers before the first cut are taken from it.
        """
        cuts: dict[tuple[Node, Input], list[Node]] = {}
        for edge in cut:
            cuts.setdefault((edge.target, edge.input), []).append(edge.source)
        n_layers, w = self.config.n_layers, self.weights
        first = min((n_layers if e.target.layer is None else e.target.layer for e in cut), default=0)
        stream = w["embed.weight"][tokens]
        if self.config.positions == "learned":
            stream = stream + w["pos_embed.weight"][: tokens.shape[1]]
        found: dict[Node, Tensor] = {EMBED: stream}

        def read(target: Node, which: Input) -> Tensor:
            value = stream
            for source in cuts.get((target, which), ()):
                value = value - found[source] + (instead[source] if instead else 0.0)
            return value

        for layer in range(n_layers):
            before = known if layer < first else None
            for head in range(self.config.n_heads):
                node = Node(kind="head", layer=layer, head=head)
                inputs = [] if before is not None else [read(node, which) for which in ("q", "k", "v")]
                found[node] = before[node] if before is not None else self._head(layer, head, inputs)
            heads = [found[Node(kind="head", layer=layer, head=head)] for head in range(self.config.n_heads)]
            stream = stream + sum(heads) + w.get(f"layers.{layer}.attn.o_proj.bias", 0.0)
            if self.config.d_mlp:
                node = Node(kind="mlp", layer=layer)
                found[node] = before[node] if before is not None else self._mlp(layer, read(node, ""))
                stream = stream + found[node]
        found[LOGITS] = read(LOGITS, "") @ w["unembed.weight"].T
        return found

    def _head(self, layer: int, head: int, inputs: list[Tensor]) -> Tensor:
        w, d_head = self.weights, self.config.d_head
        rows, name = slice(head * d_head, (head + 1) * d_head), f"layers.{layer}.attn"
        q, k, v = (
            value @ w[f"{name}.{letter}_proj.weight"][rows].T + self._bias(f"{name}.{letter}_proj.bias", rows)
            for letter, value in zip("qkv", inputs, strict=True)
        )
        scores = q @ k.transpose(1, 2) * self.config.score_scale
        if self.config.is_causal:
            n = scores.shape[-1]
            scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        return scores.softmax(-1) @ v @ w[f"{name}.o_proj.weight"][:, rows].T

    def _mlp(self, layer: int, value: Tensor) -> Tensor:
        w, name = self.weights, f"layers.{layer}.mlp"
        hidden = value @ w[f"{name}.up_proj.weight"].T + w.get(f"{name}.up_proj.bias", torch.zeros(1))
        return hidden.relu() @ w[f"{name}.down_proj.weight"].T + w.get(
            f"{name}.down_proj.bias", torch.zeros(1)
        )

    def _bias(self, name: str, rows: slice) -> Tensor:
        return self.weights[name][rows] if name in self.weights else torch.zeros(1, dtype=torch.float64)
