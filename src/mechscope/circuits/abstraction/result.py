"""InterchangeResult: what the model answered under each condition, and what each causal model predicted.

Invariant: every share is counted from the same two tables, answers by condition and labels by causal model, so that
a control and the thing itself are always about the same pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.data.intervals import Interval, Resamples, clopper_pearson, mean_bootstrap
from mechscope.data.units import Units
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.prose import Table
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.errors import PositionOutOfRange

ALIGNED, UNTOUCHED, WHOLE, ROW_SPACE, RANDOM = "aligned", "untouched", "whole place", "row space", "random"
PREDICTED, RELABELLED = "predicted", "relabelled"
N_RESAMPLES = 2000


class InterchangeRecord(Record):
    """A saved `InterchangeResult`."""

    kind: ClassVar[str] = "interchange"


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of pairs.

    Args:
        value: 0 to 1; NaN of no pairs.
        interval: 95%: exact (Clopper-Pearson) where pairs are independent, else by resampling examples.
        n: Pairs.
    """

    value: float
    interval: Interval
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.interval.low:.3f}, {self.interval.high:.3f}]"


@dataclass(frozen=True, kw_only=True, eq=False)
class InterchangeResult:
    """Result of `interchange`. Never holds the model.

    Args:
        answers: Token ids that the model said, by condition, [pair] each: "aligned"; "untouched" (nothing patched);
            with a subspace "whole place", "random 0" ... of its dimension, and "row space" where it is known.
        labels: Token ids predicted by causal model, [pair] each: "predicted"; "relabelled" (with the wrong sources);
            each rival by its name, -1 where it has no answer.
        unchanged: Right answers of the bases, [pair].
        units: What is resampled.
        settings: Alignment, causal model, conventions; JSON.
        notes: What a reader should know.
        model: Which weights.
        data_sha256: Hash of the prompts and of which were put together.
    """

    answers: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    unchanged: np.ndarray
    units: Units
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    def iia(self, condition: str = ALIGNED, *, labels: str = PREDICTED, decisive: bool = False) -> Share:
        """Interchange intervention accuracy.

        Args:
            condition: One of `answers`.
            labels: One of `labels`; pairs without an answer are left out.
            decisive: Only pairs for which the causal model predicts another answer than the base's own.

        Caveat: where pairs share examples and all of them are hits, the resampled interval is a point.
        """
        _refuse_unknown(condition, self.answers, "condition")
        _refuse_unknown(labels, self.labels, "causal model")
        wanted = self.labels[labels]
        kept = (wanted >= 0) & (self.decisive if decisive else True)
        return share_of(self.answers[condition] == wanted, self.units, among=kept)

    @property
    def decisive(self) -> np.ndarray:
        """Pairs whose prediction is not the base's own answer, [pair] truth values."""
        return self.labels[PREDICTED] != self.unchanged

    @property
    def base_accuracy(self) -> Share:
        """How often the model answers the bases rightly when nothing is patched."""
        return share_of(self.answers[UNTOUCHED] == self.unchanged, self.units)

    @property
    def random(self) -> np.ndarray:
        """IIA of each random subspace, [draw]; empty without a subspace."""
        names = [name for name in self.answers if name.startswith(f"{RANDOM} ")]
        return np.array([self.iia(name).value for name in names])

    def __len__(self) -> int:
        return len(self.unchanged)

    @cached_property
    def shares(self) -> LabelledArray:
        """IIA by condition, over all and over decisive pairs; controls last."""
        rows: list[tuple[str, Share, Share]] = []
        for condition in self.answers:
            rows.append((condition, self.iia(condition), self.iia(condition, decisive=True)))
        for name in self.labels:
            if name != PREDICTED:
                every, only = self.iia(labels=name), self.iia(labels=name, decisive=True)
                rows.append((f"aligned, labels: {name}", every, only))
        values = np.array([[share.value for share in row[1:]] for row in rows])
        low = np.array([[share.interval.low for share in row[1:]] for row in rows])
        high = np.array([[share.interval.high for share in row[1:]] for row in rows])
        return LabelledArray(
            values,
            ("condition", "pairs"),
            coords={"condition": [row[0] for row in rows], "pairs": ["all", "decisive"]},
            unit="IIA",
            title=f"interchange of {', '.join(self.settings.get('alignment', {}))}",
            conventions={"pairs": len(self), "choice": self.settings.get("choice", "")},
            low=low,
            high=high,
        )

    def table(self) -> Table:
        """Conditions in rows."""
        array = self.shares
        low, high = np.asarray(array.low), np.asarray(array.high)
        rows = [
            (
                str(name),
                *(
                    f"{array.values[i, j]:.3f} [{low[i, j]:.3f}, {high[i, j]:.3f}]"
                    for j in range(array.shape[1])
                ),
            )
            for i, name in enumerate(array.coords["condition"])
        ]
        return Table(("condition", "IIA", "IIA of decisive pairs"), rows)

    def plot(self) -> Any:
        """A Plotly figure of `shares`."""
        return self.shares.plot()

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, the tables as safetensors beside it."""
        numbers, arrays = self.parts()
        InterchangeRecord(
            settings=dict(self.settings),
            seed=int(self.settings.get("seed", 0)),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers=numbers,
            arrays=arrays,
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "InterchangeResult":
        """Read what `save` wrote."""
        record = InterchangeRecord.load(path)
        facts = {"settings": record.settings, "model": record.model, "data_sha256": record.data_sha256}
        return cls.of_parts(record.numbers, record.arrays, **facts)

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Numbers and arrays for a record; `of_parts` is the inverse."""
        arrays = {f"answers: {name}": own for name, own in self.answers.items()}
        arrays |= {f"labels: {name}": own for name, own in self.labels.items()}
        units = {"pools": list(self.units.pools), "basis": self.units.basis}
        numbers = {"units": units, "notes": list(self.notes), "order": list(arrays)}
        return numbers, arrays | {"unchanged": self.unchanged, "units": self.units.levels}

    @classmethod
    def of_parts(
        cls, numbers: Mapping[str, Any], arrays: Mapping[str, np.ndarray], **facts: Any
    ) -> "InterchangeResult":
        """What `parts` gave; settings, model and hash are further facts."""
        tables: dict[str, dict[str, np.ndarray]] = {"answers": {}, "labels": {}}
        for key in numbers["order"]:
            kind, _, name = key.partition(": ")
            tables[kind][name] = arrays[key]
        units = numbers["units"]
        return cls(
            answers=tables["answers"],
            labels=tables["labels"],
            unchanged=arrays["unchanged"],
            units=Units(arrays["units"], tuple(units["pools"]), units["basis"]),
            notes=tuple(numbers["notes"]),
            **facts,
        )

    def __repr__(self) -> str:
        said = [f"InterchangeResult over {len(self)} pairs, {int(self.decisive.sum())} of them decisive"]
        said += [f"  {' | '.join(map(str, row))}" for row in self.table().rows]
        return "\n".join([*said, *(f"  note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        return self.shares._repr_html_()


def _refuse_unknown(name: str, known: Mapping[str, np.ndarray], what: str) -> None:
    if name not in known:
        raise PositionOutOfRange(f'There is no {what} "{name}" here.', got=name, instead=", ".join(known))


def share_of(hits: np.ndarray, units: Units, *, among: np.ndarray | None = None) -> Share:
    """The share of hits among some pairs, with its 95% interval.

    Args:
        hits: [pair] truth values.
        units: What is resampled; of basis "pairs" where all are independent.
        among: Which pairs count, [pair] truth values; None is all.
    """
    kept = np.ones(len(hits), dtype=bool) if among is None else among
    n = int(kept.sum())
    if n == 0:
        return Share(value=float("nan"), interval=Interval(0.0, 1.0, 0.95, "none"), n=0)
    own = hits[kept].astype(np.float64)
    if units.basis == "pairs":
        return Share(value=float(own.mean()), interval=clopper_pearson(int(own.sum()), n), n=n)
    part = Units(units.levels[:, kept], units.pools, units.basis)
    found = mean_bootstrap(Resamples(part, seed=0, n_resamples=N_RESAMPLES), own)
    return Share(value=float(own.mean()), interval=found.interval(0.95), n=n)
