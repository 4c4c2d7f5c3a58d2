"""Circuits: ACDC over every edge, a sweep of thresholds, and the evaluation of ten sizes.

ACDC is held against one plain forward pass of the stock model for each edge, which is what one decision costs at
least when it is made alone; a sweep against our own single runs; ten circuits against ten evaluations of one.
Decisions are compared before anything is timed: with one edge at a time, and each threshold's with its own run's.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks.lines import Line, line_of
from benchmarks.pairing import Pairs, time_pairs
from benchmarks.shapes import opened, random_ids, random_model
from mechscope.behaviors.own import from_tokens
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.discover import discover
from mechscope.circuits.evaluation import evaluate_circuits
from mechscope.circuits.measures import Measures
from mechscope.circuits.methods.acdc import Acdc, Pruned, Search, edge_order
from mechscope.circuits.size_curve import FRACTIONS

SHAPE = "4-layer-256-wide"
N_PAIRS, N_SWEPT, N_TOKENS, N_FORWARDS = 4, 1, 20, 40
SHARE = 0.001
"""ACDC's threshold, as a share of the distance's range: about nine edges in ten are removed."""


@cache
def split(n_pairs: int = N_PAIRS) -> Split:
    """Random pairs of which every token but the first five differs."""
    clean, corrupt = (random_ids(SHAPE, n_pairs, N_TOKENS, seed) for seed in (0, 1))
    corrupt[:, :5] = clean[:, :5]
    return from_tokens(clean, corrupt, answers=[11] * n_pairs, wrong=[22] * n_pairs).train


def acdc_line(limit_speedup: float, *, n_pairs: int) -> Line:
    """One threshold over all 1,519 edges, against one plain forward for each edge."""
    search = Search(opened(SHAPE), split(), Acdc(threshold=0.0))
    threshold = SHARE * search.range
    found, slow = search.run(threshold), _one_edge_at_a_time(search, threshold)
    if part_without_a_tie(search, found, slow):
        raise ArithmeticError(
            "the decisions part from those of one edge at a time where there is no near tie"
        )
    hf, ids = random_model(SHAPE), split().clean.ids

    def forwards() -> None:
        with torch.no_grad():
            for _ in range(N_FORWARDS):
                hf(ids, use_cache=False)

    def whole() -> None:
        Search(opened(SHAPE), split(), Acdc(threshold=0.0)).run(threshold)

    times = time_pairs(whole, forwards, n_pairs=n_pairs, n_warmups=1)
    scale = search.wiring.n_edges / N_FORWARDS
    times = Pairs(times.ours, times.baseline * scale, times.again * scale, times.others_cpu)
    return line_of(
        "ACDC: against one plain forward per edge",
        times,
        limit_ratio=1 / limit_speedup,
        speedup=float(np.median(1 / times.ratios)),
        limit_speedup=limit_speedup,
        n_edges=search.wiring.n_edges,
        n_kept=int(found.kept.sum()),
        n_evaluations=found.n_evaluations,
        n_near_ties=len(found.near_ties),
        n_different=int((found.kept != slow).sum()),
    )


def part_without_a_tie(search: Search, found: Pruned, other: np.ndarray) -> bool:
    """Whether the first decision that differs, in the order they are made, is one that rounding does not excuse.

    Decisions behind it are about another circuit and can differ for that reason alone.
    """
    differs = np.flatnonzero((found.kept != other)[search.order])
    return bool(len(differs)) and int(search.order[differs[0]]) not in found.near_ties


def sweep_line(limit_ratio: float, *, n_pairs: int, n_thresholds: int = 20) -> Line:
    """Twenty thresholds together, against each alone; of one prompt pair, as it takes so long."""
    search = Search(opened(SHAPE), split(N_SWEPT), Acdc(threshold=0.0))
    thresholds = search.thresholds(n_thresholds)

    def alone() -> list[Any]:
        return [search.run(threshold) for threshold in thresholds]

    together = search.sweep(thresholds)
    both = list(zip(together, alone(), strict=True))
    parted = [one.threshold for one, other in both if part_without_a_tie(search, one, other.kept)]
    if parted:
        raise ArithmeticError(f"decisions part from each run's own where there is no near tie, at {parted}")
    times = time_pairs(lambda: search.sweep(thresholds), alone, n_pairs=n_pairs, n_warmups=0)
    return line_of(
        f"ACDC: {n_thresholds} thresholds together, against each alone",
        times,
        limit_ratio=limit_ratio,
        n_evaluations=sum(one.n_evaluations for one in together),
        n_kept=[int(one.kept.sum()) for one in together],
        n_different=[int((one.kept != other.kept).sum()) for one, other in both],
        n_near_ties=[len(one.near_ties) for one in together],
    )


def evaluation_line(limit_speedup: float, *, n_pairs: int) -> Line:
    """The ten sizes of the MIB grid evaluated together, against one evaluation for each.

    As that benchmark takes them: the strongest edges by a score (EAP), pruned to those on a path, so that small
    circuits have something to compute too.
    """
    model = opened(SHAPE)
    scores = discover(model, split(), method="eap", n_edges=50).scores
    assert scores is not None
    order = np.argsort(-np.abs(scores), kind="stable")
    circuits = []
    for fraction in FRACTIONS:
        kept = np.zeros(len(order), dtype=bool)
        kept[order[: max(1, round(fraction * len(order)))]] = True
        circuits.append(Circuit(wiring=Circuit.whole(model).wiring, kept=kept).connected())
    circuits = [circuit for circuit in circuits if len(circuit)]
    measures = Measures(parts=())

    def evaluated(some: list[Circuit]) -> list[float]:
        return [one.faithfulness for one in evaluate_circuits(model, some, split(), measures=measures)]

    def separately() -> list[float]:
        return [evaluated([circuit])[0] for circuit in circuits]

    if not np.allclose(evaluated(circuits), separately(), atol=1e-4):
        raise ArithmeticError("circuits evaluated together differ from each alone")
    times = time_pairs(lambda: evaluated(circuits), separately, n_pairs=n_pairs, n_warmups=1)
    return line_of(
        "evaluation: ten circuit sizes together, against one by one",
        times,
        limit_ratio=1 / limit_speedup,
        speedup=float(np.median(1 / times.ratios)),
        limit_speedup=limit_speedup,
        n_edges=[len(circuit) for circuit in circuits],
    )


def _one_edge_at_a_time(search: Search, threshold: float) -> np.ndarray:
    """The decisions made one by one, each edge by a run of its own."""
    kept = search.runs.every
    measure: Callable[[np.ndarray], float] = lambda edges: search.distance(  # noqa: E731
        search.runs.measure(edges[None])[0].numpy()
    )
    with search.runs.open():
        before = measure(kept)
        for edge in edge_order(search.wiring)[0]:
            without = kept.copy()
            without[edge] = False
            distance = measure(without)
            if distance - before < threshold:
                kept, before = without, distance
    return kept
