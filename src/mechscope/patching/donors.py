"""Donors: one run of the prompts that values are taken from, cut off behind the last of them that is needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mechscope.engine.naive import read_columns, refuse_unreadable
from mechscope.engine.reading import Piece, measure_pieces
from mechscope.interventions.donor import Donor
from mechscope.interventions.metrics import Metric
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True)
class Source:
    """What one run of the donor prompts gave.

    Args:
        donors: Values at each site, ready for `patch`.
        measured: The metric of this run, [row], float64.
    """

    donors: dict[Site, Donor]
    measured: torch.Tensor


def run_source(model: Model, prompts: TokenBatch, *, sites: Sequence[Site], metric: Metric) -> Source:
    """Run the donor prompts once: keep the sites, and measure the metric as the run stands.

    Cost: one forward pass up to the last layer; only the positions and columns that the metric reads are unembedded.
    """
    refuse_unreadable(model, prompts, metric)
    last = Site("resid_post", model.n_layers - 1)
    run = model.run(prompts, capture=[*sites, last], stop_after=last)
    columns = read_columns(Frame.of(prompts), metric.reading().positions)
    final = run.cache[last]
    rows = torch.arange(len(prompts))
    residual = final[rows[:, None].to(final.device), columns.to(final.device)]
    measured = measure_pieces(head_of(model.binding), [Piece(0, rows, metric, residual)])[0]
    return Source({site: Donor.of(run, site) for site in sites}, measured)


def bytes_per_row(model: Model, sites: Sequence[Site], n_columns: int) -> int:
    """Bytes that the values of one prompt take at these sites."""
    sizes = model.sizes | {"pos": n_columns, "query": n_columns, "key": n_columns, "batch": 1}
    total = 0
    for site in sites:
        n_values = 1
        for axis in site.row.axes:
            n_values *= sizes.get(axis, 1)
        total += n_values
    return total * model.dtype.itemsize
