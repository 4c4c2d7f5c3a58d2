"""Late start: experiments that can't be packed, one forward pass each from the layer of their first change.

For families whose attention is out of reach, and for writes behind the last layer. Prompts go through in blocks that
fit into memory; experiments over the same prompts share one run of the layers before. Only the columns that a metric
reads are unembedded, unless something behind the last layer is written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.engine.changes import AFTER_LAYERS, Prepared
from mechscope.engine.experiment import Experiment, groups_of
from mechscope.engine.naive import measure_logits
from mechscope.engine.reading import Piece, measure_pieces, reads_of
from mechscope.models.frame import Frame
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.models.running import Order, forward
from mechscope.models.writing import writers_for
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True)
class Late:
    """An experiment that runs alone.

    Args:
        index: Its place in the list given.
        prepared: Its writes, ready, with sites.
        layer: First layer that it changes; 0 runs from the embeddings.
        reaches_the_end: Whether something behind the last layer is written.
        n_at_once: Prompts of a block; the same for experiments over the same prompts.
    """

    index: int
    prepared: Prepared
    layer: int
    reaches_the_end: bool
    n_at_once: int = 1

    @classmethod
    def of(cls, index: int, prepared: Prepared, n_layers: int) -> "Late":
        """Where an experiment may start, from the sites that it writes."""
        sites = [site for _, found in prepared for site in found]
        is_end = [site.point in AFTER_LAYERS for site in sites]
        layers = [
            n_layers - 1 if behind else site.layer or 0 for site, behind in zip(sites, is_end, strict=True)
        ]
        return cls(index, prepared, min(layers, default=0), any(is_end))


Start = tuple[int, Tensor]
"""A layer, and the residual stream at its input, [batch, pos, d_model]."""


def measure_late(
    model: Model, experiments: Sequence[Experiment], late: Sequence[Late]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Late experiments by place, each block of their prompts, [n], and its metric, [n] in float64 on the CPU.

    Cost: a forward pass from its layer on for each; one more, up to the last of these layers, for each set of prompts.
    """
    for members in groups_of([experiments[item.index] for item in late]).values():
        mine = [late[member] for member in members]
        whole = Frame.of(experiments[mine[0].index].inputs)
        layers = sorted({item.layer for item in mine} - {0})
        for rows in torch.arange(whole.n_rows).split(min(item.n_at_once for item in mine)):
            block = whole.part(rows)
            starts = _starts(model, block, layers)
            for item in mine:
                found = _measure(model, experiments[item.index], item, block, starts.get(item.layer))
                yield item.index, rows, found


def _starts(model: Model, block: Frame, layers: Sequence[int]) -> dict[int, Start]:
    """By layer, what arrives there in the untouched run of a block."""
    if not layers:
        return {}
    sites = [Site("resid_pre", layer) for layer in layers]
    with model.ready():
        kept = forward(model.binding, block, Order(capture=tuple(sites), stop_after=sites[-1]))
    return {layer: (layer, kept.tensors[site]) for layer, site in zip(layers, sites, strict=True)}


def _measure(model: Model, experiment: Experiment, item: Late, block: Frame, start: Start | None) -> Tensor:
    writers = writers_for(item.prepared, block)
    prompts = torch.arange(block.n_rows)
    metric = experiment.metric.select(block.in_batch(prompts).tolist())
    with model.ready():
        if item.reaches_the_end:
            logits = forward(model.binding, block, Order(writers=writers, start=start)).logits
            assert logits is not None
            return measure_logits(metric, block.as_batch(), logits).double().cpu()
        last = Site("resid_post", model.n_layers - 1)
        order = Order(capture=(last,), writers=writers, stop_after=last, start=start)
        final = forward(model.binding, block, order).tensors[last]
        reads = reads_of(experiment, block)
        residual = final[prompts[:, None].to(final.device), reads.to(final.device)]
        return measure_pieces(head_of(model.binding), [Piece(0, prompts, metric, residual)])[0]
