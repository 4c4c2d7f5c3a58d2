"""How a sender's change travels: what each receiver of a layer sees of it, for many senders at once.

The residual stream of the patched run is taken apart into what each node adds. A change enters where its sender
writes; nodes of a frozen class add nothing to it, all others are recomputed on the changed stream.
Tokens are flat: [tokens] is rows times columns. Holds a model that is open and standing (`Attention.standing`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.engine.edge_runs.layer_parts import Attention, LayerParts
from mechscope.engine.edge_runs.recording import Recorded, repeated
from mechscope.models.anatomy import Norm
from mechscope.models.binding import Binding
from mechscope.models.derived import centred, norm_scale, norm_weight
from mechscope.patching.path_settings import PathConvention
from mechscope.vocabulary.edges import Node


@dataclass(frozen=True)
class Streams:
    """The residual stream of a run, taken apart.

    Args:
        before: Before each layer, and after the last, [layer + 1][tokens, d_model].
        between: What each MLP reads, [layer][tokens, d_model].
    """

    before: list[Tensor]
    between: list[Tensor]

    @classmethod
    def of(cls, run: Recorded, *, is_parallel: bool) -> "Streams":
        """Add up what the nodes add."""
        before, between = [run.embed], []
        for layer, heads in enumerate(run.heads):
            above = before[-1] + heads.sum(0) + run.rest[layer]
            between.append(before[-1] if is_parallel else above)
            before.append(above + run.mlps[layer] if run.mlps else above)
        return cls(before, between)


@dataclass(frozen=True)
class Arriving:
    """What arrives at one place.

    Args:
        kind: "attention", "mlp" or "end".
        layer: Which layer; the number of layers for the end.
        senders: Indices of the senders whose change may have arrived.
        change: Of the stream there, [sender, tokens, d_model].
    """

    kind: str
    layer: int
    senders: list[int]
    change: Tensor


@dataclass
class Travel:
    """One block of prompts, ready to send changes through.

    Args:
        binding: The open model.
        layers: Its layers.
        attention: Its attention modules, standing.
        run: The patched run.
        shape: (rows, columns).
        convention: What is held.
        scales_from: The run whose norm denominators are used, if norms are not recomputed.
    """

    binding: Binding
    layers: list[LayerParts]
    attention: Attention
    run: Recorded
    shape: tuple[int, int]
    convention: PathConvention
    scales_from: Recorded | None = None

    def __post_init__(self) -> None:
        self.is_parallel = self.binding.anatomy.is_parallel
        self.own = Streams.of(self.run, is_parallel=self.is_parallel)
        given = self.scales_from
        self.scales = None if given is None else Streams.of(given, is_parallel=self.is_parallel)

    def send(self, senders: list[Node], changes: Tensor) -> Iterator[Arriving]:
        """Each place in the order of the forward pass, with what has arrived there.

        Args:
            senders: Nodes that write.
            changes: What each adds less what it adds in the patched run, [sender, tokens, d_model].
        """
        total = torch.zeros_like(changes)
        arrived = [i for i, node in enumerate(senders) if node.kind == "embed"]
        total[arrived] = changes[arrived]
        for layer in range(len(self.layers)):
            yield Arriving("attention", layer, arrived, total[arrived])
            heads = [i for i, node in enumerate(senders) if node.kind == "head" and node.layer == layer]
            after = total.clone()
            if "heads" not in self.convention.frozen and arrived:
                after[arrived] += self._heads_change(layer, total[arrived])
            after[heads] += changes[heads]
            seen = arrived if self.is_parallel else [*arrived, *heads]
            read = total if self.is_parallel else after
            if self.layers[layer].has_mlp:
                yield Arriving("mlp", layer, seen, read[seen])
                if "mlps" not in self.convention.frozen and seen:
                    added = self._mlp_change(layer, read[seen])
                    after = after.clone()
                    after[seen] += added
            mlps = [i for i, node in enumerate(senders) if node.kind == "mlp" and node.layer == layer]
            after[mlps] += changes[mlps]
            arrived, total = [*arrived, *heads, *mlps], after
        yield Arriving("end", len(self.layers), arrived, total[arrived])

    def z_of(self, layer: int, change: Tensor, readers: list[int] | None) -> Tensor:
        """z of all heads where some readers see a change, [sender, tokens, head, d_head]; None for all readers."""
        found = self.projections_of(layer, change, readers)
        n_readers, n = found.shape[:2]
        anatomy = self.binding.anatomy.attention
        rows, columns = self.shape
        # [reader, sender, tokens, d_head] -> [sender x row, column, reader, d_head]
        every = found.permute(1, 2, 0, 3).reshape(n * rows, columns, n_readers, -1)
        n_kv = (n_readers - anatomy.n_heads) // 2
        q, k, v = every.split([anatomy.n_heads, n_kv, n_kv], dim=2)
        arguments = repeated(self.run.arguments[layer], rows, n)
        z = self.attention.mix(layer, q=q, k=k, v=v, arguments=arguments)
        return z.reshape(n, rows * columns, anatomy.n_heads, -1)

    def projections_of(self, layer: int, change: Tensor, readers: list[int] | None) -> Tensor:
        """Queries, keys and values where some readers see a change, [reader, sender, tokens, d_head]."""
        normed = self.normed("ln1", layer, self.own.before[layer], change)
        own = self.run.projections[layer]
        which = list(range(len(own))) if readers is None else readers
        streams = normed[None].expand(len(which), *normed.shape)
        index = torch.tensor(which, device=own.device)
        found = own[:, None].repeat(1, len(change), 1, 1)
        constants = self.run.constants[layer]
        found[index] = self.layers[layer].project_normed(streams, index, constants).to(own)
        return found

    def mlp_of(self, layer: int, change: Tensor) -> Tensor:
        """What an MLP adds where it sees a change, [sender, tokens, d_model]."""
        part = self.layers[layer]
        name = "ln2" if "ln2" in part.parts else "ln1" if self.is_parallel else ""
        normed = self.normed(name, layer, self.own.between[layer], change)
        columns = self.shape[1]
        added = part.added_by_normed_mlp(normed.reshape(-1, columns, normed.shape[-1]))
        return added.reshape(change.shape)

    def end_of(self, change: Tensor) -> tuple[str, Tensor]:
        """What the logits see: a point to write, and its values [sender, tokens, d_model]."""
        norm = self.binding.anatomy.norms.get("ln_final")
        if self.scales is None or norm is None or self.binding.final_norm is None:
            return "", self.own.before[-1] + change
        return "ln_final", self._linear(self.binding.final_norm, norm, change, (self.own.before[-1], -1))

    def normed(self, name: str, layer: int, stream: Tensor, change: Tensor) -> Tensor:
        """A norm's output on a changed stream, as the convention says, [sender, tokens, d_model]."""
        part = self.layers[layer]
        if name not in part.parts:
            return stream + change
        module = part.module(name)
        if self.scales is None:
            return module(stream + change)
        return self._linear(module, self.binding.anatomy.norms[name], change, (stream, layer))

    def _linear(self, module: torch.nn.Module, norm: Norm, change: Tensor, at: tuple[Tensor, int]) -> Tensor:
        stream, layer = at
        assert self.scales is not None
        is_between = any(stream is one for one in self.own.between) and stream is not self.own.before[layer]
        other = (self.scales.between if is_between else self.scales.before)[layer]
        weight = norm_weight(module, norm)["weight"]
        moved = centred(change, norm) / norm_scale(other, norm)
        return module(stream) + (moved if weight is None else moved * weight.detach())

    def _heads_change(self, layer: int, change: Tensor) -> Tensor:
        z = self.z_of(layer, change, None)
        added = self.layers[layer].added_by_heads(z)
        return added.sum(0) - self.run.heads[layer].sum(0)

    def _mlp_change(self, layer: int, change: Tensor) -> Tensor:
        return self.mlp_of(layer, change) - self.run.mlps[layer]
