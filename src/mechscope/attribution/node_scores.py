"""NodeScores: a predicted effect for every node at one point of a model, pair by pair, with the whole convention."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from mechscope.figures.labelled import Label, LabelledArray
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record

By = Literal["magnitude", "largest", "smallest"]


class NodeScoresRecord(Record):
    """Saved `NodeScores`."""

    kind: ClassVar[str] = "node-scores"


@dataclass(frozen=True, kw_only=True)
class NodeScores:
    """Result of `attribute`.

    A score predicts, to first order, the effect that `patch_grid` would measure at the same cell; of "atp*" it is a
    magnitude.

    Args:
        per_pair: Scores, [*axes, pair].
        measured: Effects of real patches where a node was verified, NaN elsewhere, [*axes]; None if none was.
        bound: What no node that was not verified exceeds, with 95% confidence for all of them together, if effects of
            patches add up; None where it was not measured.
        settings: Method, site, direction, positions, linearization and metric, as JSON.
        model: Which weights.
        data_sha256: Hash of the prompts.
    """

    per_pair: LabelledArray
    measured: LabelledArray | None = None
    bound: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    @property
    def unit(self) -> str:
        """Of the metric."""
        return self.per_pair.unit

    @cached_property
    def scores(self) -> LabelledArray:
        """Mean over pairs, [layer, head or unit, position], as many of these axes as there are."""
        cells = self.per_pair
        dims = cells.dims[:-1]
        return LabelledArray(
            cells.values.mean(-1),
            dims,
            coords={dim: cells.coords[dim] for dim in dims},
            texts=cells.texts,
            unit=cells.unit,
            title=cells.title.removesuffix(", pair by pair"),
            conventions=cells.conventions,
        )

    def top(self, n: int = 10, by: By = "magnitude") -> list[tuple[dict[str, Label], float]]:
        """The n strongest nodes as (coordinates, score)."""
        return self.scores.top(n, by)

    def plot(self) -> Any:
        """A Plotly figure of the scores."""
        return self.scores.plot()

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`."""
        numbers: dict[str, Any] = {"per_pair": self.per_pair.to_json(), "bound": self.bound}
        numbers["measured"] = None if self.measured is None else self.measured.to_json()
        NodeScoresRecord(
            settings=dict(self.settings),
            seed=int(self.settings.get("seed", 0)),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers=numbers,
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "NodeScores":
        """Read what `save` wrote."""
        record = NodeScoresRecord.load(path)
        measured = record.numbers["measured"]
        return cls(
            per_pair=LabelledArray.from_json(record.numbers["per_pair"]),
            measured=None if measured is None else LabelledArray.from_json(measured),
            bound=record.numbers["bound"],
            settings=record.settings,
            model=record.model,
            data_sha256=record.data_sha256,
        )

    def __repr__(self) -> str:
        names = [str(self.settings.get(name)) for name in ("site", "method", "direction")]
        bound = "" if self.bound is None else f"; not verified: at most {self.bound:.3g} {self.unit}"
        said = "NodeScores at {}, {}, {}".format(*names)
        return f"{said}{bound}\n{self.scores!r}"

    def _repr_html_(self) -> str:
        return self.scores._repr_html_()
