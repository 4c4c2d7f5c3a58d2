"""The treeified model: each node computed from inputs that come from prompts of their own, many runs at once.

What a reader sees is the sum of what its sources add, each from its own prompt; the reader's norm is recomputed and
everything else follows. Owns: the values of all nodes on all examples, recorded once. Where a norm joins what heads
add (or their queries), a head's neighbours stand in it as they are on the head's own prompt. Refuses families whose
attention is out of reach, and prompts of several lengths. Oracle: one run at a time in plain arithmetic
(tests/circuits).
"""

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mechscope.circuits.abstraction.examples import Examples
from mechscope.circuits.scrubbing.resampling import Branch, Read
from mechscope.engine.edge_runs.layer_parts import Attention, LayerParts
from mechscope.engine.edge_runs.measuring import Measuring
from mechscope.engine.edge_runs.recording import Recorded, record_run
from mechscope.engine.naive import read_columns
from mechscope.interventions.metrics import Metric
from mechscope.models.frame import Frame
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.models.wiring import wiring_of
from mechscope.vocabulary.edges import Input, Node
from mechscope.vocabulary.errors import PairLengthMismatch, PointUnavailable

BATCH_BYTES = 2**27
"""Streams that are held at once; more runs than fit are computed one part after another."""


class Treeified:
    """A model taken apart on some examples.

    Args:
        model: An open model.
        examples: Prompts of one length.

    Raises:
        PointUnavailable: the family's attention is out of reach.
        PairLengthMismatch: prompts of several lengths.

    Cost: one forward pass over the examples; memory for what every node adds, nodes x tokens x d_model, and where heads
        are coupled for what they project.
    """

    def __init__(self, model: Model, examples: Examples) -> None:
        self.model, self.examples = model, examples
        self.wiring = wiring_of(model)
        self._layers = [LayerParts(model.binding, layer) for layer in range(model.n_layers)]
        _refuse_unusable(model, examples)
        self._attention = Attention(model.binding)
        with model.ready():
            run = record_run(model.binding, self._layers, frame=Frame.of(examples.prompts))
            # Prompts have one length, so what depends on the position alone is taken from the first.
            one = record_run(model.binding, self._layers, frame=Frame.of(examples.prompts.select([0])))
        self._constants, self._arguments = one.constants, one.arguments
        shape = examples.prompts.shape
        added: list[Tensor] = [run.embed[None]]
        for layer, heads in enumerate(run.heads):
            added += [heads, run.mlps[layer][None]] if run.mlps else [heads]
        self._added = torch.cat(added).unflatten(1, shape)
        self._rest = run.rest
        self._index = {node: index for index, node in enumerate(self.wiring.writers)}
        self._frame = Frame.of(examples.prompts)
        self._projections, self._z = self._beside_heads(run) if self._is_coupled else ([], [])

    @property
    def _is_coupled(self) -> bool:
        return any(part.heads_are_coupled for part in self._layers)

    def _beside_heads(self, run: Recorded) -> tuple[list[Tensor], list[Tensor]]:
        """Projections and z of every head on every example, a layer: [example, pos, reader or head, d_head]."""
        shape, wiring = self.examples.prompts.shape, self.wiring
        counts = [wiring.n_heads, wiring.n_kv_heads, wiring.n_kv_heads]
        projections = [layer.permute(1, 0, 2).unflatten(0, shape) for layer in run.projections]
        found: list[Tensor] = []
        with self.open():
            for layer, every in enumerate(projections):
                q, k, v = every.split(counts, dim=2)
                found.append(self._attention.mix(layer, q=q, k=k, v=v, arguments=self._arguments[layer]))
        return projections, found

    @contextmanager
    def open(self) -> Generator[None]:
        """Hold the model for a series of runs."""
        with self.model.ready(), self._attention.standing(), torch.no_grad():
            yield

    def measure(self, tree: Branch, metric: Metric) -> np.ndarray:
        """The metric of the tree's runs, [run]; inside `open`.

        Args:
            tree: Its root is the logits.
            metric: One answer a run.
        """
        n, size = len(tree.rows), self._runs_at_once()
        found: list[np.ndarray] = []
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            ((key, read),) = tree.inputs.items()
            stream = self._stream(key[0], read, part)
            columns = read_columns(self._frame, metric.reading().positions)[:1].to(stream.device)
            residual = stream[:, columns[0]]
            rows = list(range(part.start, part.stop))
            measuring = Measuring(metric.select(rows), len(rows), head_of(self.model.binding))
            found.append(measuring.of(residual.reshape(1, -1, residual.shape[-1]))[0].double().cpu().numpy())
        return np.concatenate(found)

    def _added_by(self, branch: Branch, part: slice) -> Tensor:
        """What a branch's node adds, [run, pos, d_model]."""
        node, layer = branch.node, branch.node.layer
        if not branch.inputs or layer is None:
            return self._recorded(node, branch.rows[part])
        streams = {key: self._stream(key[0], read, part) for key, read in branch.inputs.items()}
        if node.kind == "mlp":
            (stream,) = streams.values()
            return self._layers[layer].added_by_mlp(stream)
        return self._added_by_head(node, streams, branch.rows[part])

    def _added_by_head(
        self, node: Node, streams: dict[tuple[Node, Input], Tensor], rows: np.ndarray
    ) -> Tensor:
        layer, head, wiring = node.layer, node.head, self.wiring
        assert layer is not None and head is not None
        part = self._layers[layer]
        counts = {"q": wiring.n_heads, "k": wiring.n_kv_heads, "v": wiring.n_kv_heads}
        beside: dict[str, Tensor] = {}
        if part.heads_are_coupled:
            every = self._gathered(self._projections[layer], rows).split(list(counts.values()), dim=2)
            beside = dict(zip(counts, every, strict=True))
        group = head * wiring.n_kv_heads // wiring.n_heads
        places = {"q": head, "k": wiring.n_heads + group, "v": wiring.n_heads + wiring.n_kv_heads + group}
        projected: dict[str, Tensor] = {}
        for (_, which), stream in streams.items():
            n, tokens, _ = stream.shape
            reader = torch.tensor([places[which]], device=stream.device)
            one = part.project(stream[None], reader, self._constants[layer])[0]
            slots = (
                beside[which].clone()
                if part.heads_are_coupled
                else one.new_zeros(n, tokens, counts[which], one.shape[-1])
            )
            slots[:, :, head if which == "q" else group] = one
            projected[which] = slots
        z = self._attention.mix(
            layer, q=projected["q"], k=projected["k"], v=projected["v"], arguments=self._arguments[layer]
        )[:, :, head]
        n, tokens, _ = z.shape
        if part.heads_are_coupled:
            every_z = self._gathered(self._z[layer], rows).clone()
            every_z[:, :, head] = z
            return part.added_by_heads(every_z)[head]
        added = part.added_by_heads(z.reshape(1, n * tokens, 1, -1), torch.tensor([head], device=z.device))
        return added.reshape(n, tokens, -1)

    def _stream(self, target: Node, read: Read, part: slice) -> Tensor:
        """What a reader sees, [run, pos, d_model]."""
        sources = self.wiring.sources(target)
        n_before = self.model.n_layers if target.layer is None else target.layer
        own_attention = target.kind == "mlp" and not self.wiring.is_parallel
        stream = sum(self._rest[: n_before + own_attention], torch.zeros_like(self._added[0, :1]))
        for place, source in enumerate(sources):
            if source in read.important:
                stream = stream + self._added_by(read.important[source], part)
            else:
                rows = read.others if read.others.ndim == 1 else read.others[place]
                stream = stream + self._recorded(source, rows[part])
        return stream

    def _recorded(self, node: Node, rows: np.ndarray) -> Tensor:
        """What a node adds on examples as they are; on another one at each position where rows say so."""
        return self._gathered(self._added[self._index[node]], rows)

    def _gathered(self, own: Tensor, rows: np.ndarray) -> Tensor:
        """Values [example, pos, ...] of some examples; of another one at each position where rows say so."""
        index = torch.from_numpy(np.ascontiguousarray(rows)).to(own.device)
        if index.ndim == 1:
            return own[index]
        return own[index, torch.arange(own.shape[1], device=own.device)]

    def _runs_at_once(self) -> int:
        a_run = self._added[0, 0].numel() * self._added.element_size() * 4 * (1 + self.wiring.n_heads)
        return max(1, BATCH_BYTES // max(1, a_run))


def _refuse_unusable(model: Model, examples: Examples) -> None:
    anatomy = model.binding.anatomy
    if not anatomy.attention.has_interface:
        raise PointUnavailable(
            f"The heads of {anatomy.family} can't be computed apart.",
            got=type(model.hf).__name__,
            because="its attention does not call the library's attention interface",
            instead="a family that does (mechscope doctor MODEL); ms.interchange works on any",
        )
    lengths = sorted({int(n) for n in examples.prompts.n_real})
    if len(lengths) > 1:
        raise PairLengthMismatch(
            "Scrubbing needs prompts of one length.",
            got=f"lengths {lengths}",
            because="a node's value on one prompt stands beside another's on another prompt, position by position",
            instead="examples.select(rows of one length)",
        )
