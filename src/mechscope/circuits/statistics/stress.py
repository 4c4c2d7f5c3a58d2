"""Stress: a circuit under parts of its complement removed, drawn at random and chosen against it.

Removing all of the complement lets its parts cancel: a circuit can look faithful because two harmful edges outside it
are both gone. So the circuit stays whole and only some of the rest is removed: at random, and by the worst set that a
greedy search finds. A circuit that carries the behaviour keeps it under all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit, all_edges
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.faithfulness import refuse_without_gap
from mechscope.circuits.single_edges import metric_without_each
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import ShapeError

_SIZES = 16


@dataclass(frozen=True, kw_only=True)
class Stress:
    """Faithfulness of a circuit with some of its complement gone.

    Args:
        circuit: The circuit.
        faithfulness: With all of the complement gone.
        shares: Of the complement that was removed at random, [draw].
        random: Faithfulness then, [draw].
        worst: Lowest faithfulness found by the greedy search.
        worst_removed: Names of the edges removed in it.
        settings: JSON.
        data_sha256: Hash of the prompts.
    """

    circuit: Circuit
    faithfulness: float
    shares: np.ndarray
    random: np.ndarray
    worst: float
    worst_removed: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    data_sha256: str | None = None

    @property
    def lowest_random(self) -> float:
        """Lowest faithfulness over the random draws."""
        return float(self.random.min())

    def __repr__(self) -> str:
        return (
            f"<Stress of {self.circuit.name}: {self.faithfulness:.2f} with its complement gone, at least "
            f"{self.lowest_random:.2f} over {len(self.random)} random parts, {self.worst:.2f} at worst>"
        )


def stress_circuit(
    model: Model,
    circuit: Circuit,
    *,
    split: Split,
    conventions: Conventions | None = None,
    n_random: int = 64,
    n_rounds: int = 3,
    seed: int = 0,
) -> Stress:
    """Measure a circuit with random and with adversarial parts of its complement removed.

    Args:
        model: The model that it was found in.
        circuit: The circuit.
        split: Prompt pairs.
        conventions: What removed edges carry.
        n_random: Random parts, of shares spread evenly from 0 to 1.
        n_rounds: Of the search: effects of single edges are measured again after each.
        seed: Of the random parts.

    Raises:
        UnknownEdge: a circuit of another model.
        NotEnoughEvidence: no gap to explain.

    Cost: one run a random part; one for each edge outside the circuit and round.
    Caveat: the search is greedy, so the worst case may be worse.
    """
    circuit.refuse_unless_of(model)
    if n_random < 1:
        raise ShapeError(
            "Stress needs at least one random part.", got=f"n_random={n_random}", instead="n_random=64"
        )
    conventions = conventions or Conventions()
    runs = CircuitRuns(model, split, conventions=conventions)
    whole = np.ones_like(circuit.kept)
    shares, parts = random_parts(circuit, n_random, seed=seed)
    with runs.hold():
        ends = runs.measure(np.stack([whole, ~whole, circuit.kept]))
        refuse_without_gap(ends[0], ends[1])
        none, gap = ends[1].mean(), ends[0].mean() - ends[1].mean()
        values = (runs.measure(parts).mean(1) - none) / gap
        kept, worst = worst_part(runs, circuit, n_rounds=n_rounds)
    edges = all_edges(circuit.wiring)
    return Stress(
        circuit=circuit,
        faithfulness=float((ends[2].mean() - none) / gap),
        shares=shares,
        random=values,
        worst=float((worst - none) / gap),
        worst_removed=tuple(str(edges[i]) for i in np.flatnonzero(~kept)),
        settings={**conventions.to_json(), "n_rounds": n_rounds, "seed": seed, "split": split.name},
        data_sha256=split.data_hash,
    )


def random_parts(circuit: Circuit, n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The model less random parts of a circuit's complement: shares removed, [draw], and edges kept, [draw, edge].

    Args:
        circuit: Kept whole in each.
        n: Draws, of shares spread evenly from 0 to 1.
        seed: Root of the tree of seeds; draw i depends on its share and i only.
    """
    outside = np.flatnonzero(~circuit.kept)
    shares = (np.arange(n) + 0.5) / n
    kept = np.ones((n, len(circuit.kept)), dtype=bool)
    for index, share in enumerate(shares):
        kept[index, outside[generator_for(seed, "stress", index).random(len(outside)) < share]] = False
    return shares, kept


def worst_part(
    runs: CircuitRuns,
    circuit: Circuit,
    *,
    n_rounds: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, float]:
    """The part of a circuit's complement whose removal lowers the mean metric most, as a greedy search finds it.

    Args:
        runs: Prompts under some conventions.
        circuit: Kept whole.
        n_rounds: Effects of single edges are measured again after each.
        progress: Told edges done and edges in all, round by round.

    Returns:
        Edges kept then, [edge], and the mean metric.
    """
    best = np.ones_like(circuit.kept)
    lowest = float(runs.measure(best[None]).mean())
    for _ in range(n_rounds):
        outside = np.flatnonzero(~circuit.kept & best)
        if not len(outside):
            break
        own, without = metric_without_each(runs, best, edges=outside, progress=progress)
        falls = own - without
        order = outside[np.argsort(-falls, kind="stable")]
        n_harmful = int((falls > 0).sum())
        if n_harmful == 0:
            break
        sizes = np.unique(np.geomspace(1, n_harmful, _SIZES).astype(int))
        tried = np.repeat(best[None], len(sizes), axis=0)
        for row, size in enumerate(sizes):
            tried[row, order[:size]] = False
        values = runs.measure(tried).mean(1)
        if values.min() >= lowest:
            break
        best, lowest = tried[int(values.argmin())], float(values.min())
    return best, lowest
