"""Stability: discovery run again on resampled units, and the edges that keep being found.

Units are drawn with replacement and the whole discovery is repeated; resampling edges or scores would say nothing of
what other prompts would have given. The edges found in at least `share` of the runs make the stable circuit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit, all_edges
from mechscope.figures.labelled import LabelledArray
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.edges import Edge
from mechscope.vocabulary.errors import NotEnoughEvidence

N_RUNS = 100
SHARE = 0.8


class StabilityRecord(Record):
    """A saved `Stability`."""

    kind: ClassVar[str] = "circuit-stability"


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How often each edge was found, and how alike the circuits were.

    Args:
        circuit: Found on all units.
        frequencies: Share of runs that found each edge, [edge], 0 to 1.
        jaccard: Mean overlap of two runs' circuits, 0 to 1.
        jaccard_interval: 95%, by the jackknife over runs (a mean over pairs of runs is a U-statistic).
        sizes: Edges of each run's circuit, [run].
        share: Of runs in which an edge of the stable circuit was found.
        settings: Seed and number of units, JSON.
        model: Which weights.
        data_sha256: Hash of the prompts.
    """

    circuit: Circuit
    frequencies: np.ndarray
    jaccard: float
    jaccard_interval: tuple[float, float]
    sizes: np.ndarray
    share: float = SHARE
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    @property
    def stable(self) -> Circuit:
        """Edges found in at least `share` of the runs, those on a path from the embedding to the logits."""
        kept = self.frequencies >= self.share
        settings = {**self.circuit.settings, "stable": self.share}
        found = Circuit(
            wiring=self.circuit.wiring,
            kept=kept,
            scores=self.frequencies,
            settings=settings,
            model=self.circuit.model,
            data_sha256=self.circuit.data_sha256,
        )
        return found.connected()

    def top(self, n: int = 10) -> list[tuple[Edge, float]]:
        """The edges found most often."""
        order = np.argsort(-self.frequencies, kind="stable")[:n]
        edges = all_edges(self.circuit.wiring)
        return [(edges[i], float(self.frequencies[i])) for i in order if self.frequencies[i] > 0]

    def plot(self) -> Any:
        """Frequencies of the edges that were ever found, falling."""
        found = np.sort(self.frequencies[self.frequencies > 0])[::-1]
        labelled = LabelledArray(found, ("edge",), {"edge": list(range(len(found)))}, unit="share of runs")
        return labelled.plot()

    def __repr__(self) -> str:
        low, high = self.jaccard_interval
        return (
            f"<Stability of {self.circuit.name}: mean Jaccard {self.jaccard:.2f} [{low:.2f}, {high:.2f}] over "
            f"{len(self.sizes)} runs, {len(self.stable)} stable edges>"
        )

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, arrays beside it."""
        StabilityRecord(
            settings=dict(self.settings),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={
                "circuit": self.circuit.to_json(),
                "jaccard": self.jaccard,
                "jaccard_interval": list(self.jaccard_interval),
                "share": self.share,
            },
            arrays={"frequencies": self.frequencies, "sizes": self.sizes},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "Stability":
        """Read what `save` wrote."""
        record = StabilityRecord.load(path)
        low, high = record.numbers["jaccard_interval"]
        return cls(
            circuit=Circuit.from_json(record.numbers["circuit"], model=record.model),
            frequencies=record.arrays["frequencies"],
            jaccard=record.numbers["jaccard"],
            jaccard_interval=(low, high),
            sizes=record.arrays["sizes"],
            share=record.numbers["share"],
            settings=record.settings,
            model=record.model,
            data_sha256=record.data_sha256,
        )


def measure_stability(
    split: Split,
    find: Callable[[Split], Circuit],
    *,
    n_runs: int = N_RUNS,
    share: float = SHARE,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Stability:
    """Run a discovery again on resampled units.

    Args:
        split: Where the circuit was found, usually `behavior.train`.
        find: The whole discovery, from a split to a circuit:
            `lambda split: ms.discover(model, split, method="eap-ig", n_edges=50)`.
        n_runs: Resamples; 100 is what the field's reporting bar asks for.
        share: Of runs that an edge of the stable circuit was found in.
        seed: Of the draws of units.
        progress: Told "stability", runs done, runs in all.

    Raises:
        NotEnoughEvidence: one unit, which resampling can't vary.

    Cost: one discovery for each run, and one on all units.
    """
    units = split.units
    labels = np.unique(units)
    if len(labels) < 2 or n_runs < 2:
        raise NotEnoughEvidence(
            "Stability needs several units and runs.",
            got=f"{len(labels)} units, {n_runs} runs",
            because="resampling one unit gives the same prompts again",
            instead="prompts about different entities, n_runs=100",
        )
    members = {label: np.flatnonzero(units == label) for label in labels}
    circuit = find(split)
    masks = []
    for run in range(n_runs):
        drawn = generator_for(seed, "stability", run).choice(labels, size=len(labels))
        rows = np.concatenate([members[label] for label in drawn])
        masks.append(find(split.select(rows.tolist())).kept)
        if progress is not None:
            progress("stability", run + 1, n_runs)
    found = np.stack(masks)
    mean, interval = mean_jaccard(found)
    return Stability(
        circuit=circuit,
        frequencies=found.mean(0),
        jaccard=mean,
        jaccard_interval=interval,
        sizes=found.sum(1),
        share=share,
        settings={**circuit.settings, "n_runs": n_runs, "seed": seed, "n_units": len(labels)},
        model=circuit.model,
        data_sha256=split.data_hash,
    )


def mean_jaccard(masks: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean overlap over pairs of runs, and its 95% interval by the jackknife over runs.

    Args:
        masks: [run, edge] truth values.
    """
    counts = masks.astype(np.float64)
    both = counts @ counts.T
    sizes = counts.sum(1)
    either = sizes[:, None] + sizes[None] - both
    overlap = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    n = len(masks)
    sums = overlap.sum(1) - overlap.diagonal()
    mean = sums.sum() / (n * (n - 1))
    if n == 2:
        return float(mean), (0.0, 1.0)
    left_out = (sums.sum() - 2 * sums) / ((n - 1) * (n - 2))
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    low, high = mean - 1.96 * error, mean + 1.96 * error
    return float(mean), (float(max(low, 0.0)), float(min(high, 1.0)))
