"""ACDC: remove edges one by one, readers from the logits down, wherever the output hardly notices.

    H <- all edges; for readers v from last to first, for writers w of v from last to first:
        H' = H less (w -> v);  keep H' if D(H') - D(H) < threshold

The order is exact and each decision is that of one edge at a time. The speed is in how decisions are evaluated: a
run of consecutive ones is guessed, evaluated in one batch as differences from the circuit so far, and kept up to the
first wrong guess. Edges into nodes from which the logits can't be reached any more change nothing and are not run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import CircuitRuns, Conventions, kl_to_model, split_to_search
from mechscope.circuits.registry import discovery
from mechscope.engine.edge_runs.block import State
from mechscope.engine.edge_runs.places import Places
from mechscope.models.model import Model
from mechscope.vocabulary.edges import Wiring
from mechscope.vocabulary.errors import ShapeError

NEAR = 1e-6
"""Decisions this close to the threshold, as a share of the distance's range, are listed as near ties."""

ROUNDINGS = 4
"""So many roundings of the largest logit are within reach too: a circuit that runs in another batch differs by less."""

FEWEST, MOST = 4, 48
TOKENS_A_BATCH = {"cpu": 1024, "cuda": 32768}
"""Beyond so many tokens a larger batch is no faster by the token, and a wrong guess throws more of it away."""


@dataclass(frozen=True, kw_only=True)
class Acdc:
    """Settings of ACDC.

    Args:
        threshold: Of the distance's increase; in its unit. None: a sweep, of which the largest circuit of at most
            `n_edges` is taken.
        n_edges: For the sweep.
        distance: "kl" (from the model's output, at the metric's position), "drop" (how much lower the mean metric
            is than the model's), or "change" (mean over pairs of the metric's absolute change).
        n_thresholds: Of the sweep.
        conventions: What removed edges carry.
    """

    threshold: float | None = None
    n_edges: int | None = None
    distance: Literal["kl", "drop", "change"] = "kl"
    n_thresholds: int = 20
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        problems = [] if self.distance in ("kl", "drop", "change") else ["distances are kl, drop and change"]
        if (self.threshold is None) == (self.n_edges is None):
            problems.append("it takes a threshold or a number of edges, and not both")
        if self.conventions.direction != "noising":
            problems.append("edges are removed from the clean run")
        if problems:
            raise ShapeError(
                "ACDC can't be run so.",
                got=f"threshold={self.threshold}, n_edges={self.n_edges}, distance={self.distance!r}",
                because="; ".join(problems),
                instead='ms.discover(model, behavior, method="acdc", threshold=0.01)',
            )


@dataclass
class Pruned:
    """What ACDC decided at one threshold.

    Args:
        threshold: Of the distance's increase.
        kept: [edge] truth values.
        increases: D(H') - D(H) of each edge when it was decided, [edge]; 0 where the node was dead already.
        near_ties: Edges whose increase is within rounding of the threshold.
        n_evaluations: Circuits that were run.
    """

    threshold: float
    kept: np.ndarray
    increases: np.ndarray
    near_ties: list[int] = field(default_factory=list)
    n_evaluations: int = 0


@discovery("acdc", Acdc)
def find_by_acdc(model: Model, split: Split, settings: Acdc) -> Circuit:
    """Remove edges one by one wherever the output hardly notices."""
    search = Search(model, split, settings)
    if settings.threshold is not None:
        return search.circuit(search.run(settings.threshold))
    assert settings.n_edges is not None
    found = search.sweep(search.thresholds(settings.n_thresholds))
    small = [pruned for pruned in found if 0 < pruned.kept.sum() <= settings.n_edges]
    best = max(small, key=lambda pruned: int(pruned.kept.sum()), default=found[-1])
    return search.circuit(best, scores=ranking(found))


def acdc_sweep(
    model: Model, behavior: Behavior | Split, thresholds: Sequence[float], *, settings: Acdc | None = None
) -> list[Circuit]:
    """ACDC at several thresholds, each as its own run would decide; what they share is run once.

    Args:
        model: An open model.
        behavior: Prompt pairs.
        thresholds: In any order.
        settings: Distance and conventions; its threshold is not read.

    Returns:
        One circuit a threshold, in the order given. Their scores are the largest threshold of the sweep that
        still keeps the edge (0 for one that none keeps).

    Cost: edges that two thresholds decide alike from the start are run once. Thresholds that rounding can't tell apart
        share all of their decisions, which are listed as near ties.
    """
    settings = settings or Acdc(threshold=0.0)
    search = Search(model, split_to_search(behavior, ablation=settings.conventions.ablation), settings)
    found = search.sweep(thresholds)
    return [search.circuit(pruned, scores=ranking(found)) for pruned in found]


def ranking(found: Sequence[Pruned]) -> np.ndarray:
    """For each edge the largest threshold that keeps it; 0 if none does."""
    return np.max([np.where(pruned.kept, pruned.threshold, 0.0) for pruned in found], axis=0)


class Search:
    """One split ready for ACDC: the order of edges, the distance, and how runs of decisions are evaluated.

    Args:
        model: An open model.
        split: Prompt pairs.
        settings: Distance and conventions.
    """

    def __init__(self, model: Model, split: Split, settings: Acdc) -> None:
        self.model, self.split, self.settings = model, split, settings
        metric = kl_to_model(model, split) if settings.distance == "kl" else split.metric
        self.runs = CircuitRuns(model, split, conventions=settings.conventions, metric=metric).runs
        self.wiring = self.runs.wiring
        self.order, self.reader_of, self.layer_of = edge_order(self.wiring)
        fast = TOKENS_A_BATCH.get(model.device.type, 1024) // split.clean.ids.numel()
        self.batch = max(1, min(MOST, self.runs.batch_size, max(FEWEST, fast)))
        with self.runs.open():
            ends = self.runs.measure([self.runs.every, self.runs.none]).numpy()
            largest = float(self.runs.logits([self.runs.every]).abs().max())
        self.model_values = ends[0]
        self.low, high = self.distance(ends[0]), self.distance(ends[1])
        self.range = abs(high - self.low)
        self.near = max(NEAR * self.range, ROUNDINGS * torch.finfo(model.dtype).eps * largest)

    def distance(self, values: np.ndarray) -> float:
        """D of a circuit from its metric, [pair]."""
        match self.settings.distance:
            case "kl":
                return float(values.mean())
            case "drop":
                return float(self.model_values.mean() - values.mean())
            case _:
                return float(np.abs(values - self.model_values).mean())

    def thresholds(self, n: int) -> list[float]:
        """Thresholds from a millionth to a third of the distance's range, in equal ratios."""
        return (self.range * np.geomspace(1e-6, 1 / 3, n)).tolist()

    def circuit(self, pruned: Pruned, *, scores: np.ndarray | None = None) -> Circuit:
        """What was decided, as a circuit; its scores are each edge's increase unless others are given."""
        settings = {"method": "acdc", "distance": self.settings.distance, "threshold": pruned.threshold}
        settings |= self.settings.conventions.to_json() | {"split": self.split.name}
        settings["scores"] = (
            "increase of the distance" if scores is None else "largest threshold that keeps it"
        )
        return Circuit(
            wiring=self.wiring,
            kept=pruned.kept,
            scores=pruned.increases if scores is None else scores,
            settings=settings,
            numbers={"near_ties": pruned.near_ties, "n_evaluations": pruned.n_evaluations},
            model=self.model.fingerprint,
            data_sha256=self.split.data_hash,
        )

    def sweep(self, thresholds: Sequence[float]) -> list[Pruned]:
        """Every threshold, in the order given."""
        done: dict[float, Pruned] = {}
        with self.runs.open():
            for threshold in anchors_first(thresholds, self.near):
                done[threshold] = self.run(threshold, known=list(done.values()))
        return [done[threshold] for threshold in thresholds]

    def run(self, threshold: float, known: Sequence[Pruned] = ()) -> Pruned:
        """ACDC at one threshold.

        Args:
            threshold: Of the distance's increase.
            known: Runs at other thresholds of the same search: the decisions that the longest shares from the
                start, near ties among them, are taken over, and its later ones are the first guesses.
        """
        with self.runs.open():
            return _Pass(self, threshold, known).run()


class _Pass:
    """One pass over the edges at one threshold."""

    def __init__(self, search: Search, threshold: float, known: Sequence[Pruned]) -> None:
        self.search, self.runs, self.threshold = search, search.runs, threshold
        n = search.wiring.n_edges
        self.kept = np.ones(n, dtype=bool)
        self.increases = np.zeros(n)
        self.guess = np.ones(n, dtype=bool)  # True: removed
        self.distance = search.low
        self.place, self.size, self.before = 0, min(16, search.batch), search.runs.n_walked
        self.state: list[State] | None = None
        self.layer = -1
        self._take_over(known)

    def run(self) -> Pruned:
        order = self.search.order
        while self.place < len(order):
            self._skip_dead()
            if self.place < len(order):
                self._decide(self._next())
        near = np.abs(self.increases - self.threshold) <= self.search.near
        return Pruned(
            threshold=self.threshold,
            kept=self.kept,
            increases=self.increases,
            near_ties=np.flatnonzero(near).tolist(),
            n_evaluations=self.runs.n_walked - self.before,
        )

    def _take_over(self, known: Sequence[Pruned]) -> None:
        """Decisions that this threshold makes alike or can't tell apart, up to the first that it makes otherwise."""
        order, best = self.search.order, 0
        for other in known:
            increases = other.increases[order]
            is_tie = np.abs(increases - self.threshold) <= self.search.near
            differs = np.flatnonzero(((increases < self.threshold) == other.kept[order]) & ~is_tie)
            shared = int(differs[0]) if len(differs) else len(order)
            if shared >= best:
                best, self.guess = shared, other.increases < self.threshold
                self.kept[:] = True
                self.kept[order[:shared]] = other.kept[order[:shared]]
                self.increases[:] = 0.0
                self.increases[order[:shared]] = other.increases[order[:shared]]
        self.place = best
        if best:
            self.distance = self.search.distance(self.runs.measure([self.kept])[0].numpy())

    def _skip_dead(self) -> None:
        """Edges into readers of dead nodes are removed: they change nothing."""
        order = self.search.order
        alive = readers_alive(self.runs.needed(self.kept), self.search.wiring)
        rest = order[self.place :]
        living = alive[self.search.reader_of[rest]]
        n_dead = int(np.argmax(living)) if living.any() else len(rest)
        self.kept[rest[:n_dead]] = False
        self.place += n_dead

    def _next(self) -> np.ndarray:
        """The next live edges of one layer."""
        order, search = self.search.order, self.search
        rest = order[self.place : self.place + self.size]
        return rest[search.layer_of[rest] == search.layer_of[rest[0]]]

    def _decide(self, edges: np.ndarray) -> None:
        self._refresh(int(self.search.layer_of[edges[0]]))
        masks = np.repeat(self.kept[None], len(edges), axis=0)
        for row, edge in enumerate(edges):
            masks[row:, edge] = False
            if not self.guess[edge]:
                masks[row + 1 :, edge] = True
        assert self.state is not None
        walked = self.runs.walk(masks, self.state)
        distances = [self.search.distance(values) for values in walked.values.numpy()]
        references = self._references(edges, distances)
        last, n_decided = None, 0
        for row, edge in enumerate(edges):
            increase = distances[row] - references[row]
            is_removed = increase < self.threshold
            self.increases[edge] = increase
            n_decided += 1
            if is_removed:
                self.kept[edge] = False
                self.distance = distances[row]
                last = row
            if is_removed != self.guess[edge]:
                break
        if last is not None:
            self.state = walked.state(last, in_place=True)
        # Rows after a wrong guess still tell what their edge did there: better guesses for the next batch.
        for row in range(n_decided, len(edges)):
            self.guess[edges[row]] = distances[row] - references[row] < self.threshold
        is_right = n_decided == len(edges)
        size = self.size * 2 if is_right else max(FEWEST, 2 * n_decided, self.size // 2)
        self.size = min(self.search.batch, size)
        self.place += n_decided

    def _references(self, edges: np.ndarray, distances: Sequence[float]) -> list[float]:
        """The distance of the circuit that each row takes one more edge from."""
        found, reference = [], self.distance
        for edge, distance in zip(edges, distances, strict=True):
            found.append(reference)
            reference = distance if self.guess[edge] else reference
        return found

    def _refresh(self, layer: int) -> None:
        """The circuit so far, computed anew for each layer, so that rounding does not add up."""
        if self.layer != layer or self.state is None:
            self.state = self.runs.state(self.kept)
            self.layer = layer


def anchors_first(thresholds: Sequence[float], near: float) -> list[float]:
    """Thresholds in the order of a sweep: first those that stand for all within rounding of them.

    >>> anchors_first([4.0, 1.0, 2.0, 3.0, 9.0], near=1.0)
    [2.0, 4.0, 9.0, 1.0, 3.0]
    """
    rest, anchors, others = sorted(set(thresholds)), [], []
    while rest:
        anchor = max(one for one in rest if one <= rest[0] + near)
        anchors.append(anchor)
        others += [one for one in rest if one != anchor and one <= anchor + near]
        rest = [one for one in rest if one > anchor + near]
    return anchors + others


def edge_order(wiring: Wiring) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges in the order in which ACDC takes them; and of each edge its reader's index and layer."""
    counts = np.array([wiring.n_sources(target) for target, _ in wiring.readers])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    order = np.concatenate(
        [np.arange(s + n - 1, s - 1, -1) for s, n in zip(starts[::-1], counts[::-1], strict=True)]
    )
    reader_of = np.repeat(np.arange(len(counts)), counts)
    layers = np.array(
        [
            2 * wiring.n_layers if t.layer is None else 2 * t.layer + (t.kind == "mlp")
            for t, _ in wiring.readers
        ]
    )
    return order, reader_of, layers[reader_of]


def readers_alive(needed: np.ndarray, wiring: Wiring) -> np.ndarray:
    """Readers whose node can reach the logits, [reader] truth values, from the same of writers."""
    places = Places(wiring, (False,) * wiring.n_layers)
    found: list[np.ndarray] = []
    for layer in range(wiring.n_layers):
        first = places.head(layer)
        found.append(places.readers_of(needed[first : first + wiring.n_heads]))
        if wiring.has_mlps:
            found.append(needed[places.mlp(layer)][None])
    return np.concatenate([*found, np.ones(1, dtype=bool)])
