"""Attribution graphs: our explicit transposed operator against one autograd backward per batch of rows.

The rival is how such graphs are built elsewhere: the prompt is replicated, the frozen model's graph is kept for the
whole batch, each batch of rows is one backward pass over all layers and positions, and gradients are gathered at every
active latent's position. Rows come in order of influence, so that a batch mixes layers. It gets the same frozen model,
and no MLP either. It is timed on every fourth batch of rows and scaled up, since all batches cost the same; that a
batch's rows are equal is checked first, and what both hold beyond what they began with is measured once.
"""

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lines import Line, line_of, peak_mb
from benchmarks.pairing import Pairs, time_pairs
from benchmarks.shapes import opened, random_ids
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.local import Local, open_local
from mechscope.graphs.replacement import random_transcoders, replacements_of

SHAPE = "gpt2-small"
N_LATENTS, K, N_TOKENS = 12_288, 16, 20
BATCH = 256
"""Rows of the rival's backward pass, as its published default for this size."""
EVERY = 4
CLOSE = 1e-3
"""Equal results: largest difference over the largest effect, both in single precision."""


@cache
def transcoders() -> tuple[Dictionary, ...]:
    """Random top-k transcoders of every layer."""
    return tuple(random_transcoders(opened(SHAPE), N_LATENTS, seed=0, k=K))


def ours(n_tokens: int = N_TOKENS, **options: object) -> AttributionGraph:
    """The whole graph, from token ids to matrix."""
    ids = random_ids(SHAPE, 1, n_tokens)[0].tolist()
    return attribution_graph(opened(SHAPE), transcoders(), ids, **options)  # type: ignore[arg-type]


class Rival:
    """Rows by autograd over a replicated prompt.

    Args:
        local: The frozen model, latents and errors; finding them is not timed.
        order: Latents in the order of their influence.
        n_batch: Rows of a backward pass.
    """

    def __init__(self, local: Local, order: np.ndarray, n_batch: int = BATCH) -> None:
        self.local = local
        self.n_batch = n_batch
        self.batches = [order[start : start + n_batch] for start in range(0, len(order), n_batch)]
        encoders = [active.part.encoder_rows(active.latents)[0] for active in local.actives]
        self.vectors = torch.cat(encoders)
        self.positions = torch.cat([active.positions for active in local.actives])
        self.layers = torch.cat(
            [torch.full((len(active.latents),), i) for i, active in enumerate(local.actives)]
        )

    def run(self, chosen: list[int]) -> list[Tensor]:
        """Rows of some batches, [row, source] each, after one forward pass of the replicated prompt."""
        leaves, reads = self._forward()
        return [self._batch(torch.from_numpy(self.batches[index]), leaves, reads) for index in chosen]

    def _forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """The frozen model on a replicated prompt with its graph: leaves are the embeddings and each MLP's output."""
        frozen = self.local.frozen

        def leaf(value: Tensor) -> Tensor:
            return value.expand(self.n_batch, *value.shape).clone().requires_grad_()

        leaves, reads = [leaf(self.local.tokens)], []
        stream = leaves[0]
        for index, layer in enumerate(frozen.layers):
            assert layer.norm1 is not None and layer.norm2 is not None
            read = layer.norm1.forward(stream, with_bias=True)
            values = torch.einsum("bsd,hde->bhse", read, layer.W_V)
            values = values if layer.b_V is None else values + layer.b_V[:, None]
            mixed = layer.pattern @ values
            added = torch.einsum("bhse,hed->bsd", mixed, layer.W_O)
            stream = stream + (added if layer.b_O is None else added + layer.b_O)
            reads.append(layer.norm2.forward(stream, with_bias=True))
            site = 8 * index + 7
            leaves.append(leaf(self.local.errors[site] + self.local.constants[site]))
            stream = stream + leaves[-1]
        return leaves, reads

    def _batch(self, latents: Tensor, leaves: list[Tensor], reads: list[Tensor]) -> Tensor:
        local, rows = self.local, torch.arange(len(latents))
        heads, towards = [], []
        for layer, read in enumerate(reads):
            mine = self.layers[latents] == layer
            if mine.any():
                toward = torch.zeros_like(read)
                toward[rows[mine], self.positions[latents[mine]]] = self.vectors[latents[mine]]
                heads.append(read)
                towards.append(toward)
        found = torch.autograd.grad(heads, leaves, towards, retain_graph=True, allow_unused=True)
        out = torch.zeros(len(latents), local.n_sources)
        for layer, gradient in enumerate(found[1:]):
            if gradient is None:
                continue
            site, source = 8 * layer + 7, local.actives[layer]
            gathered = gradient[: len(latents)][:, source.positions]
            columns = slice(source.first, source.first + len(source.latents))
            out[:, columns] = torch.einsum("bnd,nd->bn", gathered, source.written[site])
            column = local.error_columns[site]
            errors = torch.einsum("bsd,sd->bs", gradient[: len(latents)], local.errors[site])
            out[:, column : column + errors.shape[1]] = errors
        assert found[0] is not None
        tokens = torch.einsum("bsd,sd->bs", found[0][: len(latents)], local.tokens)
        out[:, local.token_column : local.token_column + tokens.shape[1]] = tokens
        return out


def graph_lines(n_pairs: int) -> list[Line]:
    """Speed and extra memory at equal results."""
    model = opened(SHAPE)
    ids = random_ids(SHAPE, 1, N_TOKENS)[0].tolist()
    with torch.no_grad():
        local = open_local(model, replacements_of(model, transcoders()), batch=model.tokens(ids))
        local.arriving_constants  # noqa: B018  found once, outside of what is timed
        for active in local.actives:
            active.written  # noqa: B018
    ours(4)
    graph: list[AttributionGraph] = []
    own_mb = extra_mb(lambda: graph.append(ours()))
    rival = Rival(local, np.argsort(-graph[0].influence[: local.n_latents], kind="stable"))
    rival_mb = extra_mb(lambda: rival.run([0]))
    difference = largest_difference(graph[0], rival)
    chosen = list(range(EVERY // 2, len(rival.batches), EVERY))
    share = sum(len(rival.batches[i]) for i in chosen) / local.n_latents
    times = time_pairs(ours, lambda: rival.run(chosen), n_pairs=n_pairs, n_warmups=1)
    times = Pairs(times.ours, times.baseline / share, times.again / share, times.others_cpu)
    speed = line_of(
        "attribution graph: against one backward pass per batch of rows",
        times,
        limit_ratio=1 / 10,
        speedup=float(np.median(1 / times.ratios)),
        limit_speedup=10.0,
        n_latents=local.n_latents,
        n_edges=graph[0].adjacency.n_edges,
        share_of_rows_timed=share,
        largest_difference=difference,
    )
    return [
        speed,
        _memory_line("attribution graph: extra memory", own_mb, rival_mb, limit=1 / 5, n_pairs=n_pairs),
    ]


def long_lines(
    n_pairs: int, n_tokens: int = 200, max_latents: int | None = None, most_mb: float = 8192
) -> list[Line]:
    """A long prompt within a fixed memory. Cost: some minutes, once."""
    ours(4)
    graph: list[AttributionGraph] = []
    start = time.perf_counter()
    own_mb = extra_mb(lambda: graph.append(ours(n_tokens, max_latents=max_latents)))
    seconds = time.perf_counter() - start
    line = _memory_line(
        f"attribution graph of {n_tokens} tokens: extra memory", own_mb, most_mb, limit=1.0, n_pairs=1
    )
    line.details.update(
        graph_seconds=seconds,
        n_active=graph[0].n_active,
        n_latents=len(graph[0].nodes.of("latent")),
        n_edges=graph[0].adjacency.n_edges,
    )
    return [line]


def extra_mb(work: Callable[[], object]) -> float:
    """Most memory that `work` held beyond what was held before, in MiB. Linux: the peak's mark is set back first."""
    gc.collect()
    if sys.platform.startswith("linux"):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = _status_mb("VmRSS")
    work()
    return _status_mb("VmHWM") - before


def _status_mb(field: str) -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        return peak_mb()
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _memory_line(name: str, own_mb: float, other_mb: float, *, limit: float, n_pairs: int) -> Line:
    ratio = own_mb / other_mb
    return Line(
        name=name,
        seconds=0.0,
        limit_seconds=0.0,
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio,
        limit_ratio=limit,
        aa_ratio=None,
        passed=ratio <= limit,
        peak_mb=peak_mb(),
        n_pairs=n_pairs,
        details={"ours_mb": own_mb, "held_against_mb": other_mb},
    )


def largest_difference(graph: AttributionGraph, rival: Rival) -> float:
    """Largest difference of some rows of a middle and the last batch, over the largest effect.

    Raises:
        RuntimeError: the two ways differ.
    """
    worst = 0.0
    for index in (len(rival.batches) // 2, len(rival.batches) - 1):
        (rows,) = rival.run([index])
        for i in range(0, len(rows), 37):
            sources, values = graph.adjacency.row(int(rival.batches[index][i]))
            own = np.zeros(rows.shape[1])
            own[sources] = values
            worst = max(worst, float(np.abs(own - rows[i].numpy()).max() / rows.abs().max()))
    if worst > CLOSE:
        raise RuntimeError(f"the two ways differ by {worst:.2g} of the largest effect")
    return worst
