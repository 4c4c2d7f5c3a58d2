"""Late start: experiments that can't be packed, one forward pass each from the layer of their first change.

For families whose attention is out of reach, and for writes behind the last layer. Experiments over the same prompts
share one run of the layers before. Only the columns that a metric reads are unembedded, unless logits are written.
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
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True)
class Late:
    """An experiment that runs alone.

    Args:
        index: Its place in the list given.
        layer: First layer that it changes; 0 runs from the embeddings.
        reaches_the_end: Whether something behind the last layer is written.
    """

    index: int
    layer: int
    reaches_the_end: bool

    @classmethod
    def of(cls, index: int, prepared: Prepared, n_layers: int) -> "Late":
        """Where an experiment may start, from the sites that it writes."""
        sites = [site for _, found in prepared for site in found]
        is_end = [site.point in AFTER_LAYERS for site in sites]
        layers = [
            n_layers - 1 if behind else site.layer or 0 for site, behind in zip(sites, is_end, strict=True)
        ]
        return cls(index, min(layers, default=0), any(is_end))


def measure_late(
    model: Model, experiments: Sequence[Experiment], late: Sequence[Late]
) -> Iterator[tuple[int, Tensor]]:
    """Each late experiment's place and metric, [rows] in float64 on the CPU.

    Cost: a forward pass from its layer on for each; one more, up to the last of these layers, for each set of prompts.
    """
    for members in groups_of([experiments[item.index] for item in late]).values():
        mine = [late[member] for member in members]
        arriving = _arriving(model, experiments[mine[0].index], sorted({item.layer for item in mine} - {0}))
        for item in mine:
            start = None if item.layer == 0 else (Site("resid_pre", item.layer), arriving[item.layer])
            yield item.index, _measure(model, experiments[item.index], item, start)


def _arriving(model: Model, experiment: Experiment, layers: Sequence[int]) -> dict[int, Tensor]:
    """The residual stream of the untouched run at the inputs of layers, [batch, pos, d_model] each."""
    if not layers:
        return {}
    sites = [Site("resid_pre", layer) for layer in layers]
    run = model.run(experiment.inputs, capture=sites, stop_after=sites[-1])
    return {layer: run.cache[site] for layer, site in zip(layers, sites, strict=True)}


def _measure(model: Model, experiment: Experiment, item: Late, start: tuple[Site, Tensor] | None) -> Tensor:
    if item.reaches_the_end:
        run = model.run(experiment.inputs, interventions=experiment.writes, start=start)
        assert run.logits is not None
        return measure_logits(experiment.metric, experiment.inputs, run.logits).double().cpu()
    last = Site("resid_post", model.n_layers - 1)
    run = model.run(
        experiment.inputs, interventions=experiment.writes, start=start, capture=[last], stop_after=last
    )
    final = run.cache[last]
    rows = torch.arange(len(experiment.inputs))
    reads = reads_of(experiment, Frame.of(experiment.inputs))
    residual = final[rows[:, None].to(final.device), reads.to(final.device)]
    with model.ready():
        return measure_pieces(head_of(model.binding), [Piece(0, rows, experiment.metric, residual)])[0]
