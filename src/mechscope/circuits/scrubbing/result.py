"""ScrubResult: what is left of the output under a hypothesis, example by example and draw by draw."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.data.intervals import Bootstrap, Resamples, ratio_bootstrap
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.prose import Table
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.errors import NotEnoughEvidence

N_RESAMPLES = 2000
FEW = 0.5
"""Share of draws that take another prompt, below which an edge's feature is hardly tested."""


class ScrubRecord(Record):
    """A saved `ScrubResult`."""

    kind: ClassVar[str] = "causal-scrubbing"


@dataclass(frozen=True, kw_only=True, eq=False)
class ScrubResult:
    """Result of `scrub`. Never holds the model.

    Args:
        model_values: The metric of the model as it is, [example].
        scrubbed: Under the hypothesis, [draw, example].
        shuffled: Under the hypothesis with its features given to other examples, [draw, example].
        random: With the output of a random other prompt, [draw, example].
        units: Number of each example's unit.
        draws: By edge: `n_classes` of its feature, and the share of draws that were `resampled` to another prompt.
        settings: Hypothesis, metric, conventions; JSON.
        unit: Of the metric.
        model: Which weights.
        data_sha256: Hash of the prompts.
    """

    model_values: np.ndarray
    scrubbed: np.ndarray
    shuffled: np.ndarray
    random: np.ndarray
    units: np.ndarray
    draws: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    unit: str = ""
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    @cached_property
    def recovered(self) -> float:
        """(scrubbed - random) / (model - random), a ratio of means: 1 is all, 0 what a random prompt's output gives."""
        return float((self.scrubbed - self.random).mean() / (self.model_values - self.random).mean())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% interval of `recovered`, by resampling the units of the examples that are explained.

        Raises:
            NotEnoughEvidence: model and random output can't be told apart.

        Caveat: what is drawn from stays the same, so the choice of examples to resample from is not in it.
        """
        found = self._bootstrap(self.scrubbed).interval(0.95)
        return found.low, found.high

    @cached_property
    def recovered_shuffled(self) -> float:
        """What the same edges recover when features group other examples: a hypothesis that says nothing true."""
        return float((self.shuffled - self.random).mean() / (self.model_values - self.random).mean())

    @property
    def by_draw(self) -> np.ndarray:
        """`recovered` of each draw, [draw]."""
        gap = (self.model_values - self.random).mean()
        return (self.scrubbed - self.random).mean(1) / gap

    @property
    def hardly_tested(self) -> tuple[str, ...]:
        """Edges whose feature left most draws at the prompt itself."""
        return tuple(name for name, own in self.draws.items() if own["resampled"] < FEW)

    @cached_property
    def values(self) -> LabelledArray:
        """The metric under each condition, mean over examples and draws, in its own unit."""
        found = {
            "model": self.model_values,
            "scrubbed": self.scrubbed.mean(0),
            "shuffled": self.shuffled.mean(0),
            "random": self.random.mean(0),
        }
        return LabelledArray(
            np.array([own.mean() for own in found.values()]),
            ("condition",),
            coords={"condition": list(found)},
            unit=self.unit,
            title=f"scrubbing: {self.settings.get('hypothesis', {}).get('name', '')}",
            conventions={"unimportant": self.settings.get("unimportant", ""), "draws": len(self.scrubbed)},
        )

    def table(self) -> Table:
        """Edges in rows: what each carries, by hypothesis, and how much of it was resampled."""
        told = self.settings.get("hypothesis", {}).get("edges", {})
        rows = [
            (name, str(told.get(name, "")), own["n_classes"], own["resampled"])
            for name, own in self.draws.items()
        ]
        return Table(("edge", "carries", "classes", "resampled"), rows)

    def plot(self) -> Any:
        """A Plotly figure of `values`."""
        return self.values.plot()

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, the tables as safetensors beside it."""
        names = ("model_values", "scrubbed", "shuffled", "random", "units")
        ScrubRecord(
            settings=dict(self.settings),
            seed=int(self.settings.get("seed", 0)),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={"draws": [[name, dict(own)] for name, own in self.draws.items()], "unit": self.unit},
            arrays={name: getattr(self, name) for name in names},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "ScrubResult":
        """Read what `save` wrote."""
        record = ScrubRecord.load(path)
        return cls(
            **record.arrays,
            draws=dict(record.numbers["draws"]),
            unit=record.numbers["unit"],
            settings=record.settings,
            model=record.model,
            data_sha256=record.data_sha256,
        )

    def __repr__(self) -> str:
        name = self.settings.get("hypothesis", {}).get("name", "")
        try:
            low, high = self.interval
            said = f"{self.recovered:.4f} [{low:.4f}, {high:.4f}], shuffled {self.recovered_shuffled:.4f}"
        except NotEnoughEvidence as error:
            said = f"not to be told: {error.what}"
        lines = [f'ScrubResult of "{name}" over {len(self.model_values)} examples: recovered {said}']
        lines += [
            f"  {edge}: {own['n_classes']} classes, {own['resampled']:.2f} resampled"
            for edge, own in self.draws.items()
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.values._repr_html_()

    def _bootstrap(self, values: np.ndarray) -> Bootstrap:
        resamples = Resamples(self.units, seed=0, n_resamples=N_RESAMPLES)
        below = self.random.mean(0)
        return ratio_bootstrap(resamples, values.mean(0) - below, self.model_values - below)
