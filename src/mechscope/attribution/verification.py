"""Verification: the strongest predicted nodes patched for real, and a bound for the rest from random halves of it.

Halves of the rest are patched together. A node's effect is estimated as the mean effect of the halves with it less
that of those without it; the bound is the largest of these, with the width of their joint 95% intervals added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from scipy.stats import norm

from mechscope.attribution.settings import NodeSettings
from mechscope.engine.cells import GridLayout
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.interventions.donor import Donor
from mechscope.interventions.metrics import Metric
from mechscope.interventions.replace import Patch, patch
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cell:
    """One node: places in the layout's lists."""

    layer: int
    component: int
    place: int


@dataclass(frozen=True)
class Verified:
    """What real patches said.

    Args:
        measured: Effects, mean over pairs, [layer, component, place]; NaN where nothing was patched.
        bound: For every other node; None if none was left or no halves were asked for.
    """

    measured: np.ndarray
    bound: float | None


def verify(
    model: Model,
    prompts: tuple[TokenBatch, TokenBatch],
    *,
    metric: Metric,
    layout: GridLayout,
    predicted: np.ndarray,
    settings: NodeSettings,
) -> Verified:
    """Patch the strongest nodes one by one, and random halves of the rest.

    Args:
        model: An open model.
        prompts: Donor and recipient.
        metric: What is measured.
        layout: Axes of the nodes.
        predicted: Magnitudes, [layer, component, place].
        settings: How many nodes are patched one by one, how many halves, and their seed.

    Cost: one experiment a node verified and a half, in one plan of the engine.
    """
    donor, recipient = prompts
    n_verified, n_subsets, seed = settings.n_verified, settings.n_subsets, settings.seed
    run = model.run(donor, capture=list(layout.sites), stop_after=layout.sites[-1])
    donors = [Donor.of(run, site) for site in layout.sites]
    order = np.argsort(-predicted.ravel(), kind="stable")
    cells = [Cell(*(int(i) for i in np.unravel_index(flat, predicted.shape))) for flat in order]
    chosen, rest = cells[:n_verified], cells[n_verified:]
    members = generator_for(seed, "attribution", "halves").random((n_subsets, len(rest))) < 0.5
    sets = [[cell] for cell in chosen]
    sets += [[c for c, inside in zip(rest, row, strict=True) if inside] for row in members if len(rest)]
    plain = Experiment(inputs=recipient, metric=metric, name="as it is")
    experiments = [
        Experiment(inputs=recipient, writes=_writes(layout, donors, some), metric=metric) for some in sets
    ]
    table = run_experiments(model, [plain, *experiments]).table().numpy()
    effects = (table[1:] - table[:1]).mean(1)
    measured = np.full(predicted.shape, np.nan)
    for cell, effect in zip(chosen, effects, strict=False):
        measured[cell.layer, cell.component, cell.place] = effect
    has_bound = len(rest) > 0 and n_subsets > 3
    return Verified(measured, bound_of(effects[len(chosen) :], members) if has_bound else None)


def bound_of(effects: np.ndarray, members: np.ndarray) -> float:
    """The largest effect that a member may have, jointly at 95%, if effects add up.

    Args:
        effects: Of each set, [set].
        members: Who was in it, [set, node] truth values.
    """
    inside = members.astype(float)
    n_in, n_out = inside.sum(0), (1 - inside).sum(0)
    usable = (n_in > 1) & (n_out > 1)
    if not usable.any():
        return float("inf")

    def moments(weights: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = np.maximum(n, 2)
        mean = effects @ weights / n
        spread = ((effects[:, None] - mean) ** 2 * weights).sum(0) / (n - 1)
        return mean, spread / n

    (mean_in, var_in), (mean_out, var_out) = moments(inside, n_in), moments(1 - inside, n_out)
    width = norm.ppf(1 - (1 - CONFIDENCE) / (2 * members.shape[1])) * np.sqrt(var_in + var_out)
    bounds = np.abs(mean_in - mean_out) + width
    return float(bounds[usable].max()) if usable.all() else float("inf")


def _writes(layout: GridLayout, donors: Sequence[Donor], cells: Sequence[Cell]) -> tuple[Patch, ...]:
    """One patch for each layer and place, with all its heads or units."""
    name = "units" if layout.component == "unit" else "heads"
    found: list[Patch] = []
    for (layer, place), some in groupby(
        sorted(cells, key=lambda c: (c.layer, c.place, c.component)), key=lambda c: (c.layer, c.place)
    ):
        indices = [layout.indices[cell.component] for cell in some]
        which: dict[str, Any] = {} if indices[0] is None else {name: indices}
        found.append(
            patch(layout.sites[layer], donors[layer], positions=layout.places.selections[place], **which)
        )
    return tuple(found)
