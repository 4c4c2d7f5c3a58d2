"""An independent forward pass of every family in plain arithmetic: the oracle that adapters are held to.

Written from the papers and the checkpoints' parameter names, with neither hooks nor the library's modules; it
computes every point of the table, and an edit given for a site replaces its value there and nowhere else. Runs in
double precision. `in_double` makes the library keep double precision where its families drop to single.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arithmetic_families import Function, names_of

SINGLE = torch.float32
Edits = Mapping[str, Callable[[Tensor], Tensor]]


@contextmanager
def in_double() -> Iterator[None]:
    """Let "compute this in float32" mean double precision, so that equalities hold to the last digits."""
    single, short, to_float = torch.float32, torch.float, Tensor.float
    try:
        torch.float32 = torch.float = torch.float64
        Tensor.float = Tensor.double
        yield
    finally:
        torch.float32, torch.float = single, short
        Tensor.float = to_float


class Arithmetic:
    """One model's forward pass; `values` holds every point after `run`."""

    def __init__(self, hf: nn.Module) -> None:
        self.config: Any = hf.config
        self.names = names_of(self.config)
        self.weights = {name: tensor.detach() for name, tensor in hf.state_dict().items()}
        self.buffers = dict(hf.named_buffers())
        fields = self.config.to_dict()

        def setting(*keys: str, default: Any = None) -> Any:
            found = [fields[key] for key in keys if fields.get(key) is not None]
            return found[0] if found else default

        self.setting = setting
        self.n_layers = setting("n_layer", "n_layers", "num_hidden_layers", "num_layers")
        self.n_heads = setting("n_head", "n_heads", "num_attention_heads", "num_heads")
        self.n_kv_heads = setting("n_kv_heads", "num_key_value_heads", default=self.n_heads)
        width = setting("n_embd", "d_model", "hidden_size")
        self.d_head = setting("head_dim", "d_head", default=width // self.n_heads)
        eps = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "rms_norm_eps", "norm_eps")
        self.eps = setting(*eps, default=1e-5)

    def run(self, ids: Tensor, n_pad: Tensor, edits: Edits | None = None) -> dict[str, Tensor]:
        """Every point of the table by canonical site name, in the table's axes."""
        self.edits, self.values = edits or {}, {}
        self.columns = torch.arange(ids.shape[1])
        self.real = self.columns[None] >= n_pad[:, None]
        self.position = (self.columns[None] - n_pad[:, None]).clamp(min=0)
        x = self.at("embed", self.weights[self.names.embed + ".weight"][ids] * self.embed_scale())
        if self.names.embed_norm is not None and self.names.types is None:
            x = self.norm(self.names.embed_norm)(x)
        self.learned = None
        if self.names.positions is not None:
            table = self.weights[self.names.positions + ".weight"]
            self.learned = self.at("pos_embed", table[self.position + self.names.position_offset])
            if not self.names.is_position_for_queries_and_keys_only:
                x = x + self.learned
        if self.names.types is not None and self.names.embed_norm is not None:
            x = self.norm(self.names.embed_norm)(x + self.weights[self.names.types + ".weight"][0])
        for layer in range(self.n_layers):
            x = self.layer(layer, x)
        if self.names.transform is not None:
            x = self.names.act(self.linear(self.names.transform)(x))
        if self.names.final is not None:
            x = self.at("ln_final", self.norm(self.names.final)(x))
        logits = self.linear(self.names.head)(x) / self.setting("logits_scaling", default=1.0)
        cap = self.setting("final_logit_softcapping", "logit_softcap")
        self.at("logits", logits if cap is None else cap * torch.tanh(logits / cap))
        return self.values

    def at(self, site: str, value: Tensor) -> Tensor:
        """A point: edited if an edit names it, kept, and passed on."""
        if site in self.edits:
            value = self.edits[site](value)
        if site.split(".")[0] not in self.names.out_of_reach:
            self.values[site] = value
        return value

    def embed_scale(self) -> float | Tensor:
        if self.names.offset:  # Gemma's families scale in the embedding, by a rounded square root
            return self.buffers["model.embed_tokens.embed_scale"]
        return self.setting("embedding_multiplier", default=1.0)

    def linear(self, path: str, rows: slice = slice(None)) -> Function:
        weight, bias = self.weights[path + ".weight"], self.weights.get(path + ".bias")
        weight = weight.T if self.names.is_transposed and path != self.names.head else weight
        return lambda x: x @ weight[rows].T + (0 if bias is None else bias[rows])

    def norm(self, path: str, kind: str | None = None) -> Function:
        weight, bias = self.weights.get(path + ".weight"), self.weights.get(path + ".bias")
        weight = torch.ones(()) if weight is None else weight + self.names.offset

        def apply(x: Tensor) -> Tensor:
            if (kind or self.names.kind) == "layer":
                x = x - x.mean(-1, keepdim=True)
            x = x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
            return x * weight + (0 if bias is None else bias)

        return apply

    def layer(self, index: int, x: Tensor) -> Tensor:
        names, here = self.names, self.names.layer.format(index)
        multiplier = self.setting("residual_multiplier", default=1.0)

        def at(point: str, value: Tensor) -> Tensor:
            return self.at(f"{point}.{index}", value)

        pre = at("resid_pre", x)
        first = pre if names.ln1 is None else at("ln1", self.norm(here + names.ln1)(pre))
        raw = at("attn_raw", self.attention(index, at("attn_in", first), at))
        if names.is_norm_on_stream:
            return self.normed_after_each_sum(index, pre + at("attn_out", raw), at)
        attn = raw if names.post1 is None else self.norm(here + names.post1)(raw)
        attn = at("attn_out", attn * multiplier)
        if not self.has_mlp(index):
            return at("resid_post", pre + attn)
        mid = pre if names.is_parallel else at("resid_mid", pre + attn)
        second = first if names.is_mlp_fed_by_ln1 else mid
        second = second if names.ln2 is None else at("ln2", self.norm(here + names.ln2)(mid))
        raw = at("mlp_raw", self.mlp(index, at("mlp_in", second), at))
        mlp = raw if names.post2 is None else self.norm(here + names.post2)(raw)
        mlp = at("mlp_out", mlp * multiplier)
        return at("resid_post", (pre + attn if names.is_parallel else mid) + mlp)

    def normed_after_each_sum(self, index: int, x: Tensor, at: Callable[[str, Tensor], Tensor]) -> Tensor:
        """What follows attention in a layer whose norms stand on the skip connections."""
        here, first, second = self.names.layer.format(index), self.names.post1, self.names.post2
        assert first is not None and second is not None
        mid = at("resid_mid", self.norm(here + first)(x))
        added = at("mlp_out", at("mlp_raw", self.mlp(index, at("mlp_in", mid), at)))
        return at("resid_post", self.norm(here + second)(mid + added))

    def has_mlp(self, index: int) -> bool:
        return any(
            "mlp" in name or "fc1" in name
            for name in self.weights
            if name.startswith(self.names.layer.format(index))
        )

    def attention(self, index: int, x: Tensor, at: Callable[[str, Tensor], Tensor]) -> Tensor:
        names, here = self.names, self.names.layer.format(index)
        with_positions = x
        if names.is_position_for_queries_and_keys_only and self.learned is not None:
            with_positions = x + self.learned
        q, k, v = (
            f(y) for f, y in zip(self.projections(here), (with_positions, with_positions, x), strict=True)
        )
        q, k = at("q_proj", self.heads(q)), at("k_proj", self.heads(k))
        if names.is_rotary:
            q = at("q_pre", self.head_norm(here, names.q_norm, q))
            k = at("k_pre", self.head_norm(here, names.k_norm, k))
            q, k = self.rotate(index, q), self.rotate(index, k)
        scale = self.score_scale()
        if self.config.model_type == "opt":
            q, scale = q * scale, 1.0
        q, k, v = at("q", q), at("k", k), at("v", self.heads(v))
        groups = self.n_heads // self.n_kv_heads
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
        scores = self.biased(torch.einsum("bqhd,bkhd->bhqk", q, k), scale)
        cap = self.setting("attn_logit_softcapping") if self.config.model_type == "gemma2" else None
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        hidden = ~self.visible(index)
        scores = at("scores", scores.masked_fill(hidden, -torch.inf)).masked_fill(hidden, -torch.inf)
        z = at("z", torch.einsum("bhqk,bkhd->bqhd", at("pattern", self.softmax(here, scores, at)), v))
        return self.linear(here + names.o)(z.flatten(-2))

    def biased(self, products: Tensor, scale: float) -> Tensor:
        """Scaled scores, with a bias linear in the key's position where the family has one."""
        if self.config.model_type not in ("bloom", "falcon") or not self.setting("alibi", default=True):
            return products * scale
        assert self.n_heads == 4, "slopes of other counts are not written down here"
        slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=torch.float64)
        bias = slopes[None, :, None, None] * self.position[:, None, None, :]
        return products * scale + bias if self.config.model_type == "bloom" else (products + bias) * scale

    def softmax(self, here: str, scores: Tensor, at: Callable[[str, Tensor], Tensor]) -> Tensor:
        sinks = self.weights.get(here + "self_attn.sinks")
        if sinks is None:
            return scores.softmax(-1).nan_to_num(0.0)
        sink = at("sink", sinks[None, :, None].expand(scores.shape[:-1]))
        return torch.cat([scores, sink[..., None]], -1).softmax(-1)[..., :-1]

    def projections(self, here: str) -> tuple[Function, Function, Function]:
        """Query, key and value projections, cut out of fused ones."""
        names, d = self.names, self.d_head
        n, n_kv = self.n_heads * d, self.n_kv_heads * d
        match self.config.model_type:
            case "gpt2":
                cuts = [self.linear(here + "attn.c_attn", slice(i * n, (i + 1) * n)) for i in range(3)]
                return cuts[0], cuts[1], cuts[2]
            case "phi3":
                ends = [0, n, n + n_kv, n + 2 * n_kv]
                fused = here + "self_attn.qkv_proj"
                return tuple(self.linear(fused, slice(ends[i], ends[i + 1])) for i in range(3))  # type: ignore
            case "falcon":
                return self.falcon_projections(here)
            case "gpt_neox" | "bloom":
                module = "attention" if self.config.model_type == "gpt_neox" else "self_attention"
                fused = self.linear(f"{here}{module}.query_key_value")
                return tuple(  # type: ignore
                    lambda x, i=i: torch.cat([h.chunk(3, -1)[i] for h in fused(x).split(3 * d, -1)], -1)
                    for i in range(3)
                )
        return self.linear(here + names.q), self.linear(here + names.k), self.linear(here + names.v)

    def falcon_projections(self, here: str) -> tuple[Function, Function, Function]:
        fused = self.linear(here + "self_attention.query_key_value")
        config = self.config
        self.n_kv_heads = config.num_kv_heads if config.new_decoder_architecture else self.n_heads
        if config.multi_query and not config.new_decoder_architecture:
            self.n_kv_heads = 1
        per_group = self.n_heads // self.n_kv_heads

        def part(which: int) -> Function:
            def project(x: Tensor) -> Tensor:
                groups = fused(x).unflatten(-1, (self.n_kv_heads, per_group + 2, self.d_head))
                cut = slice(0, per_group) if which == 0 else slice(per_group + which - 1, per_group + which)
                return groups[..., cut, :].flatten(-3)

            return project

        return part(0), part(1), part(2)

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], -1, self.d_head)

    def head_norm(self, here: str, path: str | None, x: Tensor) -> Tensor:
        if path is None:
            return x
        if self.names.is_norm_over_all_heads:
            return self.heads(self.norm(here + path)(x.flatten(-2)))
        if self.config.model_type == "stablelm":
            each = [self.norm(f"{here}{path}.norms.{h}")(x[:, :, h]) for h in range(x.shape[2])]
            return torch.stack(each, dim=2)
        return self.norm(here + path)(x)

    def score_scale(self) -> float:
        if self.config.model_type == "gpt_neo":
            return 1.0
        own = {"granite": "attention_multiplier", "mechscope_native": "attn_scale"}.get(
            self.config.model_type, ""
        )
        if self.setting(own) is not None:
            return self.setting(own)
        if self.config.model_type in ("gemma2", "gemma3_text"):
            return self.config.query_pre_attn_scalar**-0.5
        return self.d_head**-0.5

    def rotate(self, index: int, x: Tensor) -> Tensor:
        cos, sin = self.angles(index)
        n = cos.shape[-1]
        cos, sin = cos[:, :, None], sin[:, :, None]
        turned, passed = x[..., : 2 * n], x[..., 2 * n :]
        if self.names.is_rotary_adjacent:
            a, b = turned[..., ::2], turned[..., 1::2]
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = turned[..., :n], turned[..., n:]
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return torch.cat([turned, passed], -1)

    def angles(self, index: int) -> tuple[Tensor, Tensor]:
        if self.config.model_type == "mechscope_native":
            n = self.config.rotary_dim
            frequencies = self.config.rotary_base ** (-torch.arange(0, n, 2).double() / n)
        elif self.config.model_type == "gptj":
            table = self.buffers["transformer.h.0.attn.embed_positions"][self.position]
            sin, cos = table.chunk(2, -1)
            return cos, sin
        else:
            rope = self.config.rope_parameters
            rope = rope.get(self.config.layer_types[index], rope) if "rope_theta" not in rope else rope
            n = int(self.d_head * rope.get("partial_rotary_factor", 1.0))
            frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, n, 2).to(SINGLE) / n)
        angles = self.position[..., None].double() * frequencies.double()
        return angles.cos(), angles.sin()

    def visible(self, index: int) -> Tensor:
        """True where a query sees a key, [batch, 1, query, key]."""
        i, j = self.columns[:, None], self.columns[None, :]
        seen = (j <= i) if self.names.is_causal else torch.ones_like(j <= i)
        window = self.window(index)
        seen = seen if window is None else seen & (j > i - window)
        return (seen[None] & self.real[:, None, :])[:, None]

    def window(self, index: int) -> int | None:
        if self.config.model_type == "gpt_neo":
            return self.config.window_size if self.config.attention_layers[index] == "local" else None
        types = self.setting("layer_types")
        if types is not None:
            return self.config.sliding_window if types[index] == "sliding_attention" else None
        return self.setting("sliding_window")

    def mlp(self, index: int, x: Tensor, at: Callable[[str, Tensor], Tensor]) -> Tensor:
        names, here = self.names, self.names.layer.format(index)
        if here + "mlp.experts.down_proj" in self.weights:
            return self.mixture(here, x, at)
        if self.config.model_type == "phi3":
            both = self.linear(here + "mlp.gate_up_proj")(x)
            gate, up = both.chunk(2, -1)
        else:
            gate = None if names.gate is None else self.linear(here + names.gate)(x)
            up = self.linear(here + names.up)(x)
        if gate is None:
            inner = names.act(at("mlp_pre", up))
        else:
            inner = names.act(at("mlp_gate", gate)) * at("mlp_pre", up)
        return self.linear(here + names.down)(at("mlp_post", inner))

    def mixture(self, here: str, x: Tensor, at: Callable[[str, Tensor], Tensor]) -> Tensor:
        is_oss = self.config.model_type == "gpt_oss"
        router = here + ("mlp.router" if is_oss else "mlp.gate")
        logits = at("router_logits", self.linear(router)(x))
        n_chosen = self.config.num_experts_per_tok
        choice = at("expert_choice", logits.topk(n_chosen, -1).indices)
        if is_oss:
            weights = logits.gather(-1, choice).softmax(-1)
        else:
            weights = logits.softmax(-1).gather(-1, choice)
            weights = weights / weights.sum(-1, keepdim=True)
        weights = at("expert_weight", weights)
        every = torch.stack([self.expert(here, e, x) for e in range(logits.shape[-1])], dim=2)
        chosen = every.gather(2, choice[..., None].expand(*choice.shape, every.shape[-1]))
        return at("expert_out", chosen * weights[..., None]).sum(2)

    def expert(self, here: str, e: int, x: Tensor) -> Tensor:
        first, second = (
            self.weights[here + "mlp.experts.gate_up_proj"][e],
            self.weights[here + "mlp.experts.down_proj"][e],
        )
        if self.config.model_type != "gpt_oss":
            gate, up = (x @ first.T).chunk(2, -1)
            return (F.silu(gate) * up) @ second.T
        both = x @ first + self.weights[here + "mlp.experts.gate_up_proj_bias"][e]
        gate, up = both[..., ::2].clamp(max=self.config.swiglu_limit), both[..., 1::2]
        up = up.clamp(-self.config.swiglu_limit, self.config.swiglu_limit)
        inner = (up + 1) * gate * torch.sigmoid(gate * self.config.swiglu_alpha)
        return inner @ second + self.weights[here + "mlp.experts.down_proj_bias"][e]
