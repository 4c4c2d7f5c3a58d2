"""The oracle: a forward in plain arithmetic in which every reader reads a copy of the stream of its own.

The gradient at those copies is what edge attribution is defined by; nothing here is shared with the fast path.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from arithmetic_forward import Arithmetic, Function


def _same(x: Tensor) -> Tensor:
    return x


class SplitInputs(Arithmetic):
    """`changes` are added to what each reader reads, before its norm; they are zero, and gradients are taken there."""

    def __init__(self, hf: nn.Module) -> None:
        super().__init__(hf)
        self.changes: dict[tuple[int, str, int], Tensor] = {}
        self.streams: dict[int, Tensor] = {}

    def change(self, layer: int, which: str, head: int = 0) -> Tensor:
        key = (layer, which, head)
        if key not in self.changes:
            self.changes[key] = torch.zeros_like(self.streams[layer]).requires_grad_()
        return self.changes[key]

    def run(self, ids: Tensor, n_pad: Tensor, edits: Any = None) -> dict[str, Tensor]:
        self.changes, self.streams = {}, {}
        last = f"resid_post.{self.n_layers - 1}"

        def at_the_end(value: Tensor) -> Tensor:
            self.streams[self.n_layers] = value
            return value + self.change(self.n_layers, "logits")

        return super().run(ids, n_pad, {**(edits or {}), last: at_the_end})

    def layer(self, index: int, x: Tensor) -> Tensor:
        self.index, self.streams[index] = index, self.edits.get(f"resid_pre.{index}", _same)(x)
        return super().layer(index, x)

    def normed(self, path: str | None, x: Tensor) -> Tensor:
        return x if path is None else self.norm(self.names.layer.format(self.index) + path)(x)

    def projections(self, here: str) -> tuple[Function, Function, Function]:
        whole = super().projections(here)
        found = [self.split(f, which) for f, which in zip(whole, "qkv", strict=True)]
        return found[0], found[1], found[2]

    def split(self, project: Function, which: str) -> Function:
        index, n = self.index, self.n_heads if which == "q" else self.n_kv_heads

        def by_head(_: Tensor) -> Tensor:
            parts: list[Tensor] = []
            for head in range(n):
                x = self.normed(self.names.ln1, self.streams[index] + self.change(index, which, head))
                if (
                    self.names.is_position_for_queries_and_keys_only
                    and self.learned is not None
                    and which != "v"
                ):
                    x = x + self.learned
                parts.append(self.heads(project(x))[:, :, head])
            return torch.stack(parts, dim=2).flatten(-2)

        return by_head

    def mlp(self, index: int, x: Tensor, at: Callable[[str, Tensor], Tensor]) -> Tensor:
        names = self.names
        stream = self.streams[index] if names.is_parallel else self.values[f"resid_mid.{index}"]
        path = names.ln2 or (names.ln1 if names.is_mlp_fed_by_ln1 else None)
        return super().mlp(index, self.normed(path, stream + self.change(index, "mlp")), at)


def written(arithmetic: Arithmetic, values: dict[str, Tensor], layer: int) -> list[Tensor]:
    """What each head of a layer adds to the stream: its share behind a norm, which divides by the whole's size."""
    names, here = arithmetic.names, arithmetic.names.layer.format(layer)
    z = values[f"z.{layer}"]
    project = arithmetic.linear(here + names.o)
    nothing = project(torch.zeros_like(z.flatten(-2)))
    raw = []
    for head in range(arithmetic.n_heads):
        alone = torch.zeros_like(z)
        alone[:, :, head] = z[:, :, head]
        raw.append(project(alone.flatten(-2)) - nothing + nothing / arithmetic.n_heads)
    multiplier = arithmetic.setting("residual_multiplier", default=1.0)
    if names.post1 is None:
        return [part * multiplier for part in raw]
    whole = sum(raw)
    size = (whole.pow(2).mean(-1, keepdim=True) + arithmetic.eps).sqrt()  # type: ignore[union-attr]
    weight = arithmetic.weights[here + names.post1 + ".weight"] + names.offset
    return [part / size * weight * multiplier for part in raw]


Metric = Callable[[Tensor], Tensor]


def gradients_at(
    arithmetic: SplitInputs, batch: Any, metric: Metric, edits: Any = None
) -> tuple[dict[str, Tensor], list[tuple[int, Tensor]]]:
    """Points of a run, and for each reader how many writers it sees and the gradient at its own copy."""
    values = arithmetic.run(batch.ids, batch.n_pad, edits)
    metric(values["logits"]).sum().backward()
    found: list[tuple[int, Tensor]] = []
    n_seen = 1

    def gradient(layer: int, which: str, head: int = 0) -> Tensor:
        change = arithmetic.changes[layer, which, head]
        return torch.zeros_like(change) if change.grad is None else change.grad  # behind a value written over

    for layer in range(arithmetic.n_layers):
        for which, n in (
            ("q", arithmetic.n_heads),
            ("k", arithmetic.n_kv_heads),
            ("v", arithmetic.n_kv_heads),
        ):
            found += [(n_seen, gradient(layer, which, head)) for head in range(n)]
        after = n_seen + arithmetic.n_heads
        if f"mlp_out.{layer}" in values:
            found.append((n_seen if arithmetic.names.is_parallel else after, gradient(layer, "mlp")))
            after += 1
        n_seen = after
    found.append((n_seen, gradient(arithmetic.n_layers, "logits")))
    return values, found


def changes_of(arithmetic: SplitInputs, donor: Any, recipient: Any) -> Tensor:
    """What every writer changes, [writer, batch, pos, d_model]."""
    given = dict(arithmetic.run(donor.ids, donor.n_pad))
    own = dict(arithmetic.run(recipient.ids, recipient.n_pad))
    changed = [given["resid_pre.0"] - own["resid_pre.0"]]
    for layer in range(arithmetic.n_layers):
        heads = zip(written(arithmetic, given, layer), written(arithmetic, own, layer), strict=True)
        changed += [a - b for a, b in heads]
        if f"mlp_out.{layer}" in own:
            changed.append(given[f"mlp_out.{layer}"] - own[f"mlp_out.{layer}"])
    return torch.stack(changed).detach()


def edge_scores(changes: Tensor, gradients: list[tuple[int, Tensor]]) -> Tensor:
    """Scores by definition, [pair, edge], in the order of the wiring."""
    return torch.cat([torch.einsum("ubpd,bpd->bu", changes[:n], g) for n, g in gradients], dim=1)
