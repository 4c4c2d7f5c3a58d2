"""The edge-patched forward in plain arithmetic: an input of its own for each reader, one edge at a time."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from arithmetic_forward import Arithmetic
from mechscope.models.inputs import TokenBatch
from mechscope.vocabulary.edges import Edge, Node, Wiring

Added = dict[Node, Tensor]


class EdgesByHand(Arithmetic):
    """`Arithmetic` with the residual stream taken apart into what each node adds."""

    units: list[tuple[Tensor, Tensor]] | None = None
    """Of each MLP: which units are kept, and the activations of the others."""

    def _kept_units(self, layer: int, point: str, value: Tensor) -> Tensor:
        if self.units is None or point != "mlp_post":
            return value
        return torch.where(self.units[layer][0], value, self.units[layer][1])

    def added_in(self, batch: TokenBatch) -> Added:
        """What each node adds in an ordinary run."""
        return self._pass(batch, lambda _node, _which, rest, own: rest + sum(own.values()))[0]

    def logits(
        self,
        batch: TokenBatch,
        wiring: Wiring,
        kept: set[Edge] | Mapping[Edge, Tensor],
        removed: Mapping[Node, Tensor],
    ) -> Tensor:
        """Logits where edges outside `kept` carry `removed` values, [batch, pos, d_vocab].

        A mapping says at which tokens each edge is kept, [batch, pos].
        """

        def see(node: Node, which: str, rest: Tensor, own: Added) -> Tensor:
            seen = rest
            for source in wiring.sources(node):
                edge = Edge(source=source, target=node, input=which)  # type: ignore[arg-type]
                if isinstance(kept, Mapping):
                    seen = seen + torch.where(kept[edge][..., None], own[source], removed[source])
                else:
                    seen = seen + (own if edge in kept else removed)[source]
            return seen

        return self._pass(batch, see)[1]

    def _pass(self, batch: TokenBatch, see: Callable[..., Tensor]) -> tuple[Added, Tensor]:
        self.edits, self.values = {}, {}
        self.columns = torch.arange(batch.ids.shape[1])
        self.real = self.columns[None] >= batch.n_pad[:, None]
        self.position = (self.columns[None] - batch.n_pad[:, None]).clamp(min=0)
        names = self.names
        x = self.weights[names.embed + ".weight"][batch.ids] * self.embed_scale()
        self.learned = None
        if names.positions is not None:
            self.learned = self.weights[names.positions + ".weight"][self.position + names.position_offset]
            if not names.is_position_for_queries_and_keys_only:
                x = x + self.learned
        own: Added = {Node(kind="embed"): x}
        rest = torch.zeros_like(x)
        for layer in range(self.n_layers):
            own, rest = self._layer(layer, see, own, rest)
        x = see(Node(kind="logits"), "", rest, own)
        if names.final is not None:
            x = self.norm(names.final)(x)
        logits = self.linear(names.head)(x) / self.setting("logits_scaling", default=1.0)
        cap = self.setting("final_logit_softcapping", "logit_softcap")
        return own, logits if cap is None else cap * torch.tanh(logits / cap)

    def _layer(
        self, layer: int, see: Callable[..., Tensor], own: Added, rest: Tensor
    ) -> tuple[Added, Tensor]:
        """What is added up to and with a layer, and the constants beside it."""
        names, here = self.names, self.names.layer.format(layer)
        multiplier = self.setting("residual_multiplier", default=1.0)
        heads, bias = self._heads(layer, lambda node, which: see(node, which, rest, own))
        new = {Node(kind="head", layer=layer, head=h): head * multiplier for h, head in enumerate(heads)}
        after = rest + bias * multiplier
        if self.has_mlp(layer):
            node = Node(kind="mlp", layer=layer)
            seen = see(node, "", rest, own) if names.is_parallel else see(node, "", after, own | new)
            if names.is_mlp_fed_by_ln1:
                second = self.norm(here + names.ln1)(seen)
            else:
                second = seen if names.ln2 is None else self.norm(here + names.ln2)(seen)
            raw = self.mlp(layer, second, lambda point, value: self._kept_units(layer, point, value))
            new[node] = (raw if names.post2 is None else self.norm(here + names.post2)(raw)) * multiplier
        return own | new, after

    def _heads(self, layer: int, see: Callable[[Node, str], Tensor]) -> tuple[list[Tensor], Tensor]:
        """What each head adds, and what attention adds beside them."""
        names, here, d = self.names, self.names.layer.format(layer), self.d_head
        kind = "kv" if self.n_kv_heads < self.n_heads else "head"
        project = self.projections(here)

        def one(which: int, name: str, head: int) -> Tensor:
            node = Node(kind="head" if name == "q" else kind, layer=layer, head=head)  # type: ignore[arg-type]
            stream = see(node, name)
            x = stream if names.ln1 is None else self.norm(here + names.ln1)(stream)
            if name != "v" and names.is_position_for_queries_and_keys_only and self.learned is not None:
                x = x + self.learned
            return project[which](x)[..., head * d : (head + 1) * d]

        q = torch.stack([one(0, "q", h) for h in range(self.n_heads)], dim=2)
        k = torch.stack([one(1, "k", h) for h in range(self.n_kv_heads)], dim=2)
        v = torch.stack([one(2, "v", h) for h in range(self.n_kv_heads)], dim=2)
        if names.is_rotary:
            q = self.rotate(layer, self.head_norm(here, names.q_norm, q))
            k = self.rotate(layer, self.head_norm(here, names.k_norm, k))
        groups = self.n_heads // self.n_kv_heads
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.score_scale()
        cap = self.setting("attn_logit_softcapping") if self.config.model_type == "gemma2" else None
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        scores = scores.masked_fill(~self.visible(layer), -torch.inf)
        pattern = self.softmax(here, scores, lambda _point, value: value)
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        output = self.linear(here + names.o)
        bias = output(torch.zeros_like(z).flatten(-2))
        raw = []
        for head in range(self.n_heads):
            alone = torch.zeros_like(z)
            alone[:, :, head] = z[:, :, head]
            raw.append(output(alone.flatten(-2)) - bias)
        if names.post1 is None:
            return raw, bias
        # A head adds its share of the norm's output, whose denominator is that of the whole (RMS in all families).
        raw = [one_raw + bias / self.n_heads for one_raw in raw]
        whole = sum(raw)
        scale = (whole.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        weight = self.weights[here + names.post1 + ".weight"] + names.offset
        return [one_raw / scale * weight for one_raw in raw], torch.zeros_like(bias)
