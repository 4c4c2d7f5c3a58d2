"""patch_grid: one activation patch a cell, over layers and positions, heads or neurons, as one plan of the engine.

Owns: which experiments a grid is made of. Refuses patterns that name several points, points that cannot be
written, and pairs that do not line up.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import torch

from mechscope.engine.cells import GridLayout, lay_out_grid
from mechscope.engine.execute import Progress, run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.engine.pairs import Pairs, hash_of_prompts, metric_facts, refuse_unless_pairs
from mechscope.engine.places import Places
from mechscope.figures.labelled import LabelledArray
from mechscope.interventions.metrics import Metric
from mechscope.interventions.replace import Patch, patch
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.patching.donors import Source, bytes_per_row, run_source
from mechscope.patching.grid_result import PatchGrid, per_pair_metric
from mechscope.vocabulary.errors import InterventionMismatch
from mechscope.vocabulary.sites import routing_at

DONOR_BYTES = 2**30
"""Values of donors held at once; more pairs than fit are patched in several plans."""

Direction = Literal["denoising", "noising"]


def patch_grid(
    model: Model,
    pairs: Pairs,
    *,
    site: str = "resid_pre",
    direction: Direction = "denoising",
    positions: Any = None,
    units: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> PatchGrid:
    """Replace one activation a cell by its value in the other run of each pair; measure the metric.

    Patching a run with its own values changes nothing, and a cell where the two runs agree is exactly the patched
    run's metric.

    Args:
        model: An open model.
        pairs: A behavior, one of its splits, or anything with `clean`, `corrupt` and `metric`. Of a behavior, the
            train split: a grid is a search.
        site: A point ("resid_pre", "attn_out", "mlp_out": layer x position; "z", "q", "k", "v", "pattern": layer x
            head, key/value heads for k and v; "mlp_post": layer x unit), or a point at some layers ("z.9",
            "mlp_post.2-3").
        direction: "denoising" puts clean values into the corrupt run (is it enough?); "noising" puts corrupt values
            into the clean run (is it needed?).
        positions: "each": one column a position. "from-end": the same, counted from the end, over the shortest
            prompt's length. "all": all at once. A mapping from names to positions: one column a name. Anything else
            selects positions patched together. None is "all" for heads and units; for whole vectors "each", or
            "from-end" where prompts differ in length. For "pattern" these are the positions that attend.
        units: For neurons: which of them; None is every one.
        progress: Told rows done and rows in all.

    Returns:
        `values` [layer, ...] in the metric's own unit, `recovered` (0 corrupt, 1 clean), `effects`, `per_pair`.

    Raises:
        BadPairs, PairLengthMismatch, ShapeError: prompts that cannot be patched token by token.
        AmbiguousSite, PointUnavailable: a site that is several points, or that cannot be written.

    Cost: one experiment a cell and pair, less what the pair shares; one run of the donor prompts. The fingerprint
        of the weights is taken once for each open model.
    Caveat: shows where the difference between the two prompts is *carried*, for these pairs; neighbouring layers
        of the residual stream carry the same thing. docs/methods/activation_patching.md.
    """
    refuse_unless_pairs(pairs)
    if direction not in ("denoising", "noising"):
        raise InterventionMismatch(
            f'"{direction}" is no direction.', got=direction, instead="denoising, or noising"
        )
    clean, corrupt, metric = pairs.clean, pairs.corrupt, pairs.metric
    layout = lay_out_grid(model, site, batches=(clean, corrupt), positions=positions, units=units)
    recipient, source = (corrupt, clean) if direction == "denoising" else (clean, corrupt)
    tables = [
        _measure_block(model, (recipient, source), metric, layout, rows=rows, progress=progress)
        for rows in _blocks(model, layout, recipient)
    ]
    table = np.concatenate(tables, axis=1)
    settings = {
        "site": site,
        "direction": direction,
        "positions": layout.places.described,
        "metric": metric_facts(metric),
        "n_pairs": len(clean),
        "bos": clean.bos,
    } | ({"routing": routing} if (routing := routing_at(site)) else {})
    return _result(model, layout, table, metric, settings, data_sha256=hash_of_prompts(clean, corrupt))


def _blocks(model: Model, layout: GridLayout, recipient: TokenBatch) -> list[torch.Tensor]:
    """Rows of the pairs, cut so that a block's donor values fit into `DONOR_BYTES`."""
    per_row = bytes_per_row(model, layout.sites, recipient.shape[1])
    return list(torch.arange(len(recipient)).split(max(1, DONOR_BYTES // max(1, per_row))))


def _measure_block(
    model: Model,
    prompts: tuple[TokenBatch, TokenBatch],
    metric: Metric,
    layout: GridLayout,
    *,
    rows: torch.Tensor,
    progress: Progress | None,
) -> np.ndarray:
    """Metrics [recipient, source, *cells; pair] of some pairs: one plan."""
    recipient, source = prompts
    places = layout.places
    if len(rows) < len(recipient):
        recipient, source = recipient.select(rows), source.select(rows)
        metric, places = metric.select(rows.tolist()), places.select(rows.tolist())
    given = run_source(model, source, sites=layout.sites, metric=metric)
    experiments = [Experiment(inputs=recipient, metric=metric, name="as it is")]
    for write in _writes(layout, places, given):
        experiments.append(Experiment(inputs=recipient, writes=(write,), metric=metric, name=write.at))
    found = run_experiments(model, experiments, progress=progress).table()
    return torch.cat([found[:1], given.measured[None], found[1:]]).numpy()


def _writes(layout: GridLayout, places: Places, given: Source) -> list[Patch]:
    """One patch a cell, in the order of the grid."""
    name = "units" if layout.component == "unit" else "heads"
    return [
        patch(
            site,
            given.donors[site],
            positions=selection,
            **({} if index is None else {name: [index]}),  # pyright: ignore[reportArgumentType]
        )
        for site, index, selection in product(layout.sites, layout.indices, places.selections)
    ]


def _result(
    model: Model,
    layout: GridLayout,
    table: np.ndarray,
    metric: Metric,
    settings: dict[str, Any],
    *,
    data_sha256: str,
) -> PatchGrid:
    is_denoising = settings["direction"] == "denoising"
    clean, corrupt = (table[1], table[0]) if is_denoising else (table[0], table[1])
    coords = layout.coords
    n_pairs = table.shape[1]
    conventions = {
        "direction": settings["direction"],
        "metric": metric.kind,
        "positions": settings["positions"],
        "pairs": n_pairs,
    }
    per_pair = LabelledArray(
        table[2:].reshape(*(len(labels) for labels in coords.values()), n_pairs),
        (*coords, "pair"),
        coords=coords,
        texts={"pos": layout.places.texts} if layout.places.texts else {},
        unit=metric.unit,
        title=f"{settings['site']}: metric under the patch, pair by pair",
        conventions=conventions,
    )
    return PatchGrid(
        per_pair=per_pair,
        clean=per_pair_metric(clean, metric.unit, "clean"),
        corrupt=per_pair_metric(corrupt, metric.unit, "corrupt"),
        settings=settings,
        model=model.fingerprint,
        data_sha256=data_sha256,
    )
