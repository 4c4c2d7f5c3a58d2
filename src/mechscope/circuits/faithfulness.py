"""Faithfulness: how much of a behaviour is left under a circuit, pair by pair, whatever the circuit's parts are.

    F(C) = (m(C) - m(none)) / (m(model) - m(none))

Given both ways, as a ratio of means with its interval and as the mean of ratios. Refuses a gap of nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mechscope.data.intervals import Interval, Resamples, ratio_bootstrap
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.prose import Cell
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.errors import NotEnoughEvidence

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TOLD = ("ablation", "direction", "routing", "split")


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """The metric under a circuit, the model and nothing.

    Args:
        values: The metric under the circuit, [pair].
        model_values: With all parts, [pair].
        none_values: With none, [pair].
        units: Number of each pair's unit; pairs of one unit are one observation.
        settings: Conventions and measures, JSON.
        model: Which weights.
        data_sha256: Hash of the prompts.
    """

    values: np.ndarray
    model_values: np.ndarray
    none_values: np.ndarray
    units: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    @property
    def gap(self) -> float:
        """m(model) less m(none), mean over pairs."""
        return float((self.model_values - self.none_values).mean())

    @property
    def faithfulness(self) -> float:
        """Ratio of means; 1 is the whole model's, 0 none, and it may leave that range."""
        return float((self.values - self.none_values).mean() / self.gap)

    @cached_property
    def per_pair(self) -> np.ndarray:
        """Faithfulness of each pair whose gap is not zero, [pair]; NaN where it is."""
        gap = self.model_values - self.none_values
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gap == 0, np.nan, (self.values - self.none_values) / gap)

    @property
    def mean_of_ratios(self) -> float:
        """Mean of `per_pair`; a few pairs with a small gap can carry it away."""
        return float(np.nanmean(self.per_pair))

    @property
    def quantiles(self) -> dict[float, float]:
        """Quantiles of `per_pair`."""
        found = np.nanquantile(self.per_pair, QUANTILES)
        return {q: float(value) for q, value in zip(QUANTILES, found, strict=True)}

    @cached_property
    def interval(self) -> Interval:
        """95% interval of `faithfulness`, by resampling units.

        Raises:
            NotEnoughEvidence: the gap's interval includes zero.
        """
        resamples = Resamples(self.units, seed=0, n_resamples=int(self.settings.get("n_resamples", 2000)))
        found = ratio_bootstrap(
            resamples, self.values - self.none_values, self.model_values - self.none_values
        )
        return found.interval(0.95)

    def share(self, values: np.ndarray) -> float:
        """Faithfulness of other values of the same pairs."""
        return float((values - self.none_values).mean() / self.gap)

    def summary(self) -> dict[str, Any]:
        """Numbers for a machine."""
        try:
            interval: list[float] | None = [self.interval.low, self.interval.high]
        except NotEnoughEvidence:
            interval = None
        return {
            "n_pairs": len(self.values),
            "metric": {
                "circuit": float(self.values.mean()),
                "model": float(self.model_values.mean()),
                "none": float(self.none_values.mean()),
            },
            "faithfulness": self.faithfulness,
            "faithfulness_interval": interval,
            "mean_of_ratios": self.mean_of_ratios,
            "quantiles": {str(q): value for q, value in self.quantiles.items()},
        }

    def rows(self, nothing: str) -> list[list[Cell]]:
        """The same for a report's table."""
        numbers = self.summary()
        interval = numbers["faithfulness_interval"]
        ends = "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
        return [
            [
                f"metric: circuit, model, {nothing}",
                " , ".join(f"{v:.4g}" for v in numbers["metric"].values()),
            ],
            ["faithfulness (ratio of means), 95% interval", f"{self.faithfulness:.3f}, {ends}"],
            ["faithfulness (mean of ratios)", f"{self.mean_of_ratios:.3f}"],
            ["5% to 95% of pairs", f"{self.quantiles[0.05]:.3f} to {self.quantiles[0.95]:.3f}"],
        ]

    def labelled(self) -> LabelledArray:
        """The metric of each pair in the model, under the circuit and with nothing kept, as the model orders them."""
        order = np.argsort(-self.model_values, kind="stable")
        series = {"model": self.model_values, "circuit": self.values, "nothing": self.none_values}
        return LabelledArray(
            np.stack([values[order] for values in series.values()]),
            ("run", "pair"),
            coords={"run": list(series), "pair": order.tolist()},
            unit=str(self.settings.get("metric", "metric")),
            title=f"Pair by pair, faithfulness {self.faithfulness:.3f}",
            conventions={name: value for name, value in self.settings.items() if name in _TOLD},
        )

    def plot(self) -> Any:
        """A Plotly figure: a circuit that does what the model does lies on its line."""
        return self.labelled().plot("lines")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a record keeps of it, [pair] each; `saved_fields` reads them."""
        return {
            "values": self.values,
            "model": self.model_values,
            "none": self.none_values,
            "units": self.units,
        }

    @property
    def said(self) -> str:
        """Its conventions in a few words."""
        return ", ".join(f"{name} {value}" for name, value in self.settings.items() if name in _TOLD)


def saved_fields(record: Record) -> dict[str, Any]:
    """The fields that evaluations share, from a record; how the circuit was found is the circuit's."""
    return {
        "values": record.arrays["values"],
        "model_values": record.arrays["model"],
        "none_values": record.arrays["none"],
        "units": record.arrays["units"],
        "settings": {name: value for name, value in record.settings.items() if name != "found_by"},
        "model": record.model,
        "data_sha256": record.data_sha256,
    }


def refuse_without_gap(model: np.ndarray, none: np.ndarray) -> None:
    """Refuse ratios of a gap that rounding alone explains.

    Raises:
        NotEnoughEvidence: the metric is the same with all edges and with none.
    """
    gaps, size = model - none, float(np.abs(np.concatenate([model, none])).max())
    if not np.isfinite(gaps).all() or abs(gaps.mean()) <= 1e-5 * size:
        raise NotEnoughEvidence(
            "The model and the circuit without edges cannot be told apart.",
            got=f"mean gap {float(gaps.mean()):.3g} over {len(gaps)} pairs",
            because="faithfulness is a share of that gap",
            instead="a behaviour that the model has, or another ablation",
        )
