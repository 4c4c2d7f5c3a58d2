"""Grids: activation patching over layers x positions and layers x heads, against one forward pass per patch.

The baseline is what people write by hand: a forward hook on the stock model, one whole forward for each patch. It
is timed on some of the cells and scaled up, since every forward costs the same; that all cells are equal is
checked once before any timing.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lines import Line, line_of
from benchmarks.pairing import Pairs, time_pairs
from benchmarks.product_rate import seconds_of_products
from benchmarks.shapes import opened, random_model, random_pair
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.engine.plan import make_plan
from mechscope.interventions.metrics import LogitDifference, answer_sets
from mechscope.interventions.replace import patch
from mechscope.patching.grid import patch_grid

SHAPE = "gpt2-small"
N_TOKENS = 20
N_TIMED = 12
"""Cells of the baseline that are timed in each turn."""

CLOSE = 1e-5
"""Equal results: largest difference over the range of the logits."""


@dataclass(frozen=True)
class Cell:
    """One patch: a layer, and a position ("resid_pre") or a head ("z") that takes its value from the donor."""

    layer: int
    index: int


class Grid:
    """One grid, as the engine does it and as people do it by hand.

    Args:
        site: "resid_pre" or "z".
        n_shared: First tokens that the two prompts share.
    """

    def __init__(self, site: str, n_shared: int) -> None:
        self.site = site
        self.model, self.hf = opened(SHAPE), random_model(SHAPE)
        clean, corrupt = random_pair(SHAPE, N_TOKENS, n_shared=n_shared)
        self.metric = LogitDifference(answers=answer_sets([11]), wrong=answer_sets([22]))
        self.pairs: Any = SimpleNamespace(clean=clean, corrupt=corrupt, metric=self.metric)
        n_columns = N_TOKENS if site == "resid_pre" else self.model.n_heads
        self.cells = [Cell(la, i) for la in range(self.model.n_layers) for i in range(n_columns)]
        self.donor = self._donor()

    def packed(self) -> np.ndarray:
        """The whole grid by `patch_grid`, flattened."""
        return patch_grid(self.model, self.pairs, site=self.site).values.values.ravel()

    def by_hand(self, cells: Sequence[Cell]) -> np.ndarray:
        """Some cells by hooks, one forward each, full logits."""
        return np.array([self._one(cell) for cell in cells])

    def experiments(self) -> list[Experiment]:
        """The cells as the engine takes them, for its plan."""
        run = self.model.run(self.pairs.clean, capture=[f"{self.site}.*"])
        name = "positions" if self.site == "resid_pre" else "heads"
        return [
            Experiment(
                inputs=self.pairs.corrupt,
                writes=(
                    patch(f"{self.site}.{cell.layer}", run, **{name: cell.index}),  # pyright: ignore[reportArgumentType]
                ),
                metric=self.metric,
            )
            for cell in self.cells
        ]

    def _one(self, cell: Cell) -> float:
        with torch.no_grad(), self._hooked(cell):
            logits = self.hf(self.pairs.corrupt.ids, use_cache=False).logits[0, -1]
        return float(logits[11] - logits[22])

    @contextmanager
    def _hooked(self, cell: Cell) -> Generator[None, None, None]:
        given = self.donor[cell.layer]
        block: Any = self.hf.transformer.h[cell.layer]
        d_head = self.model.d_head
        mine = slice(cell.index * d_head, (cell.index + 1) * d_head)

        def put_position(_module: Any, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
            value = args[0].clone()
            value[:, cell.index] = given[:, cell.index]
            return (value, *args[1:])

        def put_head(_module: Any, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
            value = args[0].clone()
            value[..., mine] = given[..., mine]
            return (value, *args[1:])

        module, hook = (block, put_position) if self.site == "resid_pre" else (block.attn.c_proj, put_head)
        handle = module.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _donor(self) -> list[Tensor]:
        kept: list[Tensor] = []
        blocks: Any = self.hf.transformer.h
        modules = blocks if self.site == "resid_pre" else [block.attn.c_proj for block in blocks]
        handles = [m.register_forward_pre_hook(lambda _m, args: kept.append(args[0])) for m in modules]
        with torch.no_grad():
            self.hf(self.pairs.clean.ids, use_cache=False)
        for handle in handles:
            handle.remove()
        return kept


def grid_lines(site: str, *, shares_quarter: bool, limit_speedup: float, n_pairs: int) -> list[Line]:
    """Two lines: the grid against one forward per patch, and against its own products' arithmetic."""
    grid = Grid(site, N_TOKENS // 4 if shares_quarter else 0)
    name = f"{'residual' if site == 'resid_pre' else 'heads'} grid{', first quarter shared' * shares_quarter}"
    difference = equality(grid)
    step = max(1, len(grid.cells) // N_TIMED)
    timed = grid.cells[step // 2 :: step]
    scale = len(grid.cells) / len(timed)
    times = time_pairs(grid.packed, lambda: grid.by_hand(timed), n_pairs=n_pairs, n_warmups=1)
    times = Pairs(times.ours, times.baseline * scale, times.again * scale, times.others_cpu)
    against_naive = line_of(
        f"{name}: against one forward per patch",
        times,
        limit_ratio=1 / limit_speedup,
        speedup=float(np.median(1 / times.ratios)),
        limit_speedup=limit_speedup,
        n_cells=len(grid.cells),
        n_cells_timed=len(timed),
        largest_difference=difference,
    )
    return [against_naive, _against_products(grid, name, n_pairs)]


def equality(grid: Grid) -> float:
    """Largest difference between the two ways over all cells, as a fraction of the logits' range.

    Raises:
        ArithmeticError: it exceeds `CLOSE`; a speed at other results means nothing.
    """
    with torch.no_grad():
        logits = grid.hf(grid.pairs.corrupt.ids, use_cache=False).logits
    span = float(logits.max() - logits.min())
    worst = float(np.abs(grid.packed() - grid.by_hand(grid.cells)).max()) / span
    if worst > CLOSE:
        raise ArithmeticError(
            f"the grid differs from one forward per patch by {worst:.2g} of the logits' range"
        )
    return worst


def _against_products(grid: Grid, name: str, n_pairs: int) -> Line:
    """Seconds over what the plan's products take at the rate of one large product, measured in the same turns."""
    experiments = grid.experiments()
    foretold = make_plan(grid.model, experiments).cost.flops
    with FlopCounterMode(display=False) as counter:
        run_experiments(grid.model, experiments)
    counted = float(counter.get_total_flops())
    flops = min(foretold, counted)
    times = time_pairs(
        lambda: run_experiments(grid.model, experiments), _product_clock(flops), n_pairs=n_pairs, n_warmups=1
    )
    times = scaled_to_products(times, flops)
    return line_of(
        f"{name}: against its own products",
        times,
        limit_ratio=1.4,
        plan_gflop=foretold / 1e9,
        counted_gflop=counted / 1e9,
        gflop_per_second=flops / float(np.median(times.baseline)) / 1e9,
    )


_PRODUCT_SHARE = 8
"""The clock computes one part in so many of the plan's products, since its rate does not depend on how many."""


def _product_clock(flops: float) -> Callable[[], float]:
    return lambda: seconds_of_products(flops / _PRODUCT_SHARE)


def scaled_to_products(times: Pairs, flops: float) -> Pairs:
    """Baselines of whole products: a clock that did part of the work, scaled to all of it."""
    from benchmarks.product_rate import flops_done

    factor = flops / flops_done(flops / _PRODUCT_SHARE)
    return Pairs(times.ours, times.baseline * factor, times.again * factor, times.others_cpu)


def whole_naive_seconds(grid: Grid) -> float:
    """One forward per patch for every cell, unscaled."""
    start = perf_counter()
    grid.by_hand(grid.cells)
    return perf_counter() - start
