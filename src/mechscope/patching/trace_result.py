"""CausalTrace: what restoring each place brings back of an answer that noise on the subject has destroyed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mechscope.figures.labelled import Label, LabelledArray
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record


class CausalTraceRecord(Record):
    """A saved `CausalTrace`."""

    kind: ClassVar[str] = "causal-trace"


@dataclass(frozen=True, kw_only=True)
class CausalTrace:
    """Result of `causal_trace`; probabilities are 0 to 1, means over draws.

    Args:
        per_prompt: Indirect effect, [layer, pos, prompt]: probability of the answer with the place restored, less
            that of the corrupted run.
        clean: Probability of the answer in the clean run, [prompt].
        corrupted: The same under noise, nothing restored, [prompt].
        settings: Site, noise level and seed, as JSON.
        model: Which weights.
        data_sha256: Hash of the prompts.
    """

    per_prompt: LabelledArray
    clean: LabelledArray
    corrupted: LabelledArray
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    @property
    def values(self) -> LabelledArray:
        """Indirect effect, mean over prompts, [layer, pos]."""
        cells = self.per_prompt
        return LabelledArray(
            cells.values.mean(-1),
            cells.dims[:-1],
            coords={dim: cells.coords[dim] for dim in cells.dims[:-1]},
            texts=cells.texts,
            unit=cells.unit,
            title=cells.title,
            conventions=cells.conventions,
        )

    @property
    def total_effect(self) -> float:
        """Probability lost to the noise: clean less corrupted, mean over prompts."""
        return float((self.clean.values - self.corrupted.values).mean())

    def top(
        self, k: int = 10, by: Literal["magnitude", "largest", "smallest"] = "magnitude"
    ) -> list[tuple[dict[str, Label], float]]:
        """The k places with the strongest indirect effects."""
        return self.values.top(k, by)

    def plot(self) -> Any:
        """A Plotly heatmap of the indirect effects."""
        return self.values.plot()

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`."""
        numbers = {name: getattr(self, name).to_json() for name in ("per_prompt", "clean", "corrupted")}
        CausalTraceRecord(
            settings=dict(self.settings),
            seed=int(self.settings.get("seed", 0)),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers=numbers,
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "CausalTrace":
        """Read what `save` wrote."""
        record = CausalTraceRecord.load(path)
        arrays = {name: LabelledArray.from_json(saved) for name, saved in record.numbers.items()}
        return cls(**arrays, settings=record.settings, model=record.model, data_sha256=record.data_sha256)

    def __repr__(self) -> str:
        return f"CausalTrace, total effect {self.total_effect:.4g}\n{self.values!r}"

    def _repr_html_(self) -> str:
        return self.values._repr_html_()
