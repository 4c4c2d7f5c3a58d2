"""PatchGrid: the metric under each patch, pair by pair, with what is needed to read it and to run it again.

Invariant: `values`, `effects` and `recovered` are computed from the same table; `recovered` is 0 at the corrupt
run and 1 at the clean run in both directions, a ratio of means over pairs, refused where that would be noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mechscope.figures.labelled import Label, LabelledArray
from mechscope.patching.resampling import interval_of_means, interval_of_ratios
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.errors import NotEnoughEvidence

Shown = Literal["auto", "recovered", "effects", "values"]


class PatchGridRecord(Record):
    """A saved `PatchGrid`."""

    kind: ClassVar[str] = "patch-grid"


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """Result of `patch_grid`.

    Args:
        per_pair: The metric under each patch, [*axes, pair]; the last axis is the pair.
        clean: The metric of the clean run, [pair].
        corrupt: The metric of the corrupt run, [pair].
        settings: Site, direction, positions and metric, as JSON.
        model: Which weights.
        data_sha256: Hash of the prompts.
    """

    per_pair: LabelledArray
    clean: LabelledArray
    corrupt: LabelledArray
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    @property
    def n_pairs(self) -> int:
        return self.per_pair.shape[-1]

    @property
    def unit(self) -> str:
        """Of the metric."""
        return self.per_pair.unit

    @cached_property
    def values(self) -> LabelledArray:
        """The metric under each patch, mean over pairs, in its own unit; 95% intervals from two pairs on."""
        return self._over_cells(self._table, "metric under the patch", self.unit)

    @cached_property
    def effects(self) -> LabelledArray:
        """Change of the metric from the run that was patched, mean over pairs, in its own unit."""
        return self._over_cells(self._table - self._recipient, "effect of the patch", self.unit)

    @property
    def gap(self) -> tuple[float, float, float]:
        """Clean less corrupt: the mean over pairs and its 95% interval (a point if there is one pair)."""
        gaps = (self.clean.values - self.corrupt.values)[None]
        low, high = interval_of_means(gaps)
        return float(gaps.mean()), float(low[0]), float(high[0])

    @cached_property
    def recovered(self) -> LabelledArray:
        """The metric rescaled: 0 at the corrupt run, 1 at the clean run; not limited to that range.

        A ratio of means over pairs. Intervals resample numerator and gap together.

        Raises:
            NotEnoughEvidence: the interval of the gap includes 0.
        """
        mean, low, high = self.gap
        if low <= 0 <= high:
            raise NotEnoughEvidence(
                "The clean and the corrupt runs cannot be told apart.",
                got=f"clean less corrupt {mean:.3g}, 95% interval [{low:.3g}, {high:.3g}] over {self.n_pairs} pairs",
                because="a fraction of a gap that may be 0 is noise over noise",
                instead="grid.values in the metric's own unit, more pairs, or a behaviour that the model has",
            )
        table = self._table - self.corrupt.values
        below = self.clean.values - self.corrupt.values
        ends = interval_of_ratios(table, below) if self.n_pairs > 1 else None
        return self._labelled(table.mean(1) / mean, ends, "recovered by the patch", "recovered")

    def top(
        self, k: int = 10, by: Literal["magnitude", "largest", "smallest"] = "magnitude"
    ) -> list[tuple[dict[str, Label], float]]:
        """The k strongest effects as (coordinates, effect in the metric's unit), strongest first."""
        return self.effects.top(k, by)

    def plot(self, what: Shown = "auto") -> Any:
        """A Plotly figure; "auto" shows `recovered`, or `effects` where that is refused."""
        return self._shown(what).plot()

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, the numbers as safetensors beside it."""
        axes = {
            "dims": list(self.per_pair.dims[:-1]),
            "coords": {dim: list(self.per_pair.coords[dim]) for dim in self.per_pair.dims[:-1]},
            "texts": {dim: list(texts) for dim, texts in self.per_pair.texts.items()},
            "unit": self.unit,
            "title": self.per_pair.title,
            "conventions": dict(self.per_pair.conventions),
        }
        PatchGridRecord(
            settings=dict(self.settings),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={"axes": axes},
            arrays={
                "per_pair": self.per_pair.values,
                "clean": self.clean.values,
                "corrupt": self.corrupt.values,
            },
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "PatchGrid":
        """Read what `save` wrote."""
        record = PatchGridRecord.load(path)
        axes = record.numbers["axes"]
        per_pair = LabelledArray(
            record.arrays["per_pair"],
            [*axes["dims"], "pair"],
            coords=axes["coords"],
            texts=axes["texts"],
            unit=axes["unit"],
            title=axes["title"],
            conventions=axes["conventions"],
        )
        return cls(
            per_pair=per_pair,
            clean=per_pair_metric(record.arrays["clean"], axes["unit"], "clean"),
            corrupt=per_pair_metric(record.arrays["corrupt"], axes["unit"], "corrupt"),
            settings=record.settings,
            model=record.model,
            data_sha256=record.data_sha256,
        )

    def __repr__(self) -> str:
        mean, low, high = self.gap
        gap = f"clean less corrupt {mean:.4g} {self.unit}, 95% interval [{low:.4g}, {high:.4g}]"
        return f"PatchGrid over {self.n_pairs} pairs, {gap}\n{self._shown('auto')!r}"

    def _repr_html_(self) -> str:
        return self._shown("auto")._repr_html_()

    @property
    def _table(self) -> np.ndarray:
        """[cell, pair]."""
        return self.per_pair.values.reshape(-1, self.n_pairs)

    @property
    def _recipient(self) -> np.ndarray:
        is_denoising = self.settings.get("direction") == "denoising"
        return self.corrupt.values if is_denoising else self.clean.values

    def _shown(self, what: Shown) -> LabelledArray:
        if what != "auto":
            return {"recovered": lambda: self.recovered, "effects": lambda: self.effects}.get(
                what, lambda: self.values
            )()
        try:
            return self.recovered
        except NotEnoughEvidence:
            return self.effects

    def _over_cells(self, table: np.ndarray, title: str, unit: str) -> LabelledArray:
        ends = interval_of_means(table) if self.n_pairs > 1 else None
        return self._labelled(table.mean(1), ends, title, unit)

    def _labelled(
        self, cells: np.ndarray, ends: tuple[np.ndarray, np.ndarray] | None, title: str, unit: str
    ) -> LabelledArray:
        dims = self.per_pair.dims[:-1]
        shape = self.per_pair.shape[:-1]
        low, high = (None, None) if ends is None else (end.reshape(shape) for end in ends)
        return LabelledArray(
            cells.reshape(shape),
            dims,
            coords={dim: self.per_pair.coords[dim] for dim in dims},
            texts=self.per_pair.texts,
            unit=unit,
            title=f"{self.settings.get('site', '')}: {title}",
            conventions=self.per_pair.conventions,
            low=low,
            high=high,
        )


def per_pair_metric(values: np.ndarray, unit: str, title: str) -> LabelledArray:
    """The metric of each pair in one run, [pair]."""
    return LabelledArray(values, ("pair",), unit=unit, title=title)
