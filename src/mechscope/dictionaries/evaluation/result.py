"""Evaluation: the figures of a dictionary on a text, with intervals, and what is needed to measure them again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.dictionaries.evaluation.estimates import Estimate
from mechscope.figures.labelled import LabelledArray
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record

NEVER = -10.0
"""Shown on the logarithmic axis of densities for latents that never fired."""


_LATENTS = "latents_"


class EvaluationRecord(Record):
    """A saved `Evaluation`."""

    kind: ClassVar[str] = "dictionary-evaluation"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` measured. Never holds the model or the dictionary.

    Args:
        figures: By name, each with its interval: "l0", "fvu", "r2", "ce_recovered", "kl_recovered", "shrinkage", ...
        density: Share of tokens at which each latent is active, [n_latents].
        token_error: Squared error of each token over the mean squared distance from the mean, in reading order;
            empty unless it was asked for.
        n_tokens: Tokens measured.
        settings: What was told, and the conventions: sites, ablation, from which run values were read.
        dictionary: Its settings, as JSON.
        model: Which weights.
        data_sha256: Hash of the tokens.
        latents: More numbers of each latent, by name; see `numbers_per_latent`. Records of before have none.
    """

    figures: Mapping[str, Estimate]
    density: np.ndarray
    token_error: np.ndarray
    n_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    dictionary: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None
    latents: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Estimate:
        return self.figures[name]

    @property
    def dead(self) -> np.ndarray:
        """Indices of latents that never fired on this text."""
        return np.flatnonzero(self.density == 0)

    def __repr__(self) -> str:
        shown = ("l0", "fvu", "ce_recovered", "kl_recovered", "shrinkage", "dead")
        lines = [f"  {name:<13} {self.figures[name]!r}" for name in shown if name in self.figures]
        if "ce_gap" in self.figures and not self.figures["ce_gap"].low > 0:
            lines.append(f"  the ablation is not shown to raise the loss: ce_gap {self.figures['ce_gap']!r}")
        return "\n".join([f"<Evaluation on {self.n_tokens} tokens", *lines, ">"])

    def histogram(self, n_bins: int = 40) -> LabelledArray:
        """Latents by density, log10; those that never fired are the first bin."""
        with np.errstate(divide="ignore"):
            logs = np.where(self.density > 0, np.log10(self.density), NEVER)
        low = max(NEVER, float(np.floor(logs[logs > NEVER].min()))) if (logs > NEVER).any() else NEVER
        edges = np.linspace(low, 0, n_bins + 1)
        counts = np.histogram(logs, bins=edges)[0].astype(np.float64)
        values = np.concatenate([[float((logs == NEVER).sum())], counts])
        labels = ["never", *(f"{edge:.2f}" for edge in edges[:-1])]
        return LabelledArray(
            values,
            dims=("log10_density",),
            coords={"log10_density": labels},
            unit="latents",
            title=f"How often latents fire, over {self.n_tokens} tokens",
        )

    def plot(self) -> Any:
        """A Plotly figure of the densities."""
        return self.histogram().plot()

    def to_saebench(self) -> dict[str, Any]:
        """The same figures as the JSON of SAEBench's core evaluation."""
        from mechscope.dictionaries.evaluation.saebench import to_saebench

        return to_saebench(self)

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, densities as safetensors beside it."""
        EvaluationRecord(
            settings=dict(self.settings),
            seed=int(self.settings.get("seed", 0)),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={
                "figures": {name: one.to_json() for name, one in self.figures.items()},
                "n_tokens": self.n_tokens,
                "dictionary": dict(self.dictionary),
            },
            arrays={
                "density": self.density,
                "token_error": self.token_error,
                **{_LATENTS + name: values for name, values in self.latents.items()},
            },
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            BadFile, ChecksumMismatch: not a record of this kind, or changed.
        """
        record = EvaluationRecord.load(path)
        return cls(
            figures={name: Estimate(**one) for name, one in record.numbers["figures"].items()},
            density=record.arrays["density"],
            token_error=record.arrays["token_error"],
            n_tokens=int(record.numbers["n_tokens"]),
            settings=record.settings,
            dictionary=record.numbers["dictionary"],
            model=record.model,
            data_sha256=record.data_sha256,
            latents={
                name.removeprefix(_LATENTS): values
                for name, values in record.arrays.items()
                if name.startswith(_LATENTS)
            },
        )
