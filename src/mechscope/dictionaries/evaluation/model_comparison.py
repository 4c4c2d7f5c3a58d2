"""What a crosscoder over models says of each latent: in which models it is written, and how much of it each carries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechscope.dictionaries.evaluation.estimates import Estimate
from mechscope.figures.labelled import LabelledArray
from mechscope.records.record import Record
from mechscope.vocabulary.errors import DictionaryMismatch


class ModelComparisonRecord(Record):
    """A saved `ModelComparison`."""

    kind: ClassVar[str] = "model-comparison"


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelComparison:
    """What `compare_models` found. Holds neither the models nor the crosscoder.

    Args:
        labels: The models.
        norms: Norm of each latent's decoder in each model, in units of that model's root mean square.
        presence: How much of the latent each model carries: the projection of what the other latents leave of its
            values on the latent's strongest decoder, in units of the code. 1: all of it; 0: none; NaN of a latent that
            never fired, or where models differ in width.
        cosine: Between the latent's decoders; the smallest over pairs of models, NaN where widths differ.
        density: Share of tokens at which each latent fires.
        fvu: Fraction of variance unexplained, by model.
        l0: Active latents per token.
        n_tokens: Tokens measured.
        settings: How, with what was done about the beginning-of-sequence token.
        dictionary: The crosscoder's settings, as JSON; the models' fingerprints are in its source.
        data_sha256: Hash of the tokens.
    """

    labels: tuple[str, ...]
    norms: Float[np.ndarray, "model latent"]
    presence: Float[np.ndarray, "model latent"]
    cosine: Float[np.ndarray, " latent"]
    density: Float[np.ndarray, " latent"]
    fvu: Mapping[str, Estimate]
    l0: Estimate
    n_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    dictionary: Mapping[str, Any] = field(default_factory=dict)
    data_sha256: str | None = None

    @property
    def shares(self) -> Float[np.ndarray, "model latent"]:
        """Each model's share of a latent's decoder norms: of two models 1/2 is shared, 0 or 1 one's own."""
        return self.norms / np.maximum(self.norms.sum(0), np.finfo(np.float64).tiny)

    def only_in(
        self, label: str, *, least_share: float = 0.9, most_elsewhere: float = 0.25
    ) -> Int[np.ndarray, " found"]:
        """Latents that are one model's own, the most frequent first.

        Args:
            label: The model.
            least_share: Of the decoder norms that is the model's.
            most_elsewhere: Presence in any other model. A latent whose norm alone is one model's may be one that
                training shrank in the others.

        Raises:
            DictionaryMismatch: no such model.
        """
        if label not in self.labels:
            raise DictionaryMismatch(
                f'There is no model "{label}" here.', got=label, instead=", ".join(self.labels)
            )
        mine = self.labels.index(label)
        others = np.delete(self.presence, mine, axis=0)
        known = np.isfinite(others).all(0)
        is_absent = ~known | (np.where(known, np.abs(others), 0).max(0) <= most_elsewhere)
        found = np.flatnonzero((self.shares[mine] >= least_share) & is_absent & (self.density > 0))
        return found[np.argsort(-self.density[found], kind="stable")]

    def histogram(self, n_bins: int = 20) -> LabelledArray:
        """Latents that fire, by the last model's share of their decoder norms."""
        counts, edges = np.histogram(self.shares[-1][self.density > 0], bins=n_bins, range=(0, 1))
        return LabelledArray(
            counts.astype(np.float64),
            dims=("share",),
            coords={"share": [f"{edge:.2f}" for edge in edges[:-1]]},
            unit="latents",
            title=f"Share of {self.labels[-1]} in the decoder norms of latents that fire",
            conventions=dict(self.settings),
        )

    def plot(self) -> Any:
        """A Plotly figure of the shares."""
        return self.histogram().plot()

    def __repr__(self) -> str:
        lines = [
            f"  {label:<12} fvu {self.fvu[label]!r}   {len(self.only_in(label))} latents of its own"
            for label in self.labels
        ]
        alive = int((self.density > 0).sum())
        head = f"<ModelComparison on {self.n_tokens} tokens: {alive} of {len(self.density)} latents fire"
        return "\n".join([head, *lines, ">"])

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, what is known of each latent as safetensors beside it."""
        ModelComparisonRecord(
            settings=dict(self.settings),
            data_sha256=self.data_sha256,
            numbers={
                "labels": list(self.labels),
                "fvu": {label: one.to_json() for label, one in self.fvu.items()},
                "l0": self.l0.to_json(),
                "n_tokens": self.n_tokens,
                "dictionary": dict(self.dictionary),
            },
            arrays={name: getattr(self, name) for name in _ARRAYS},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "ModelComparison":
        """Read what `save` wrote.

        Raises:
            BadFile, ChecksumMismatch: not a record of this kind, or changed.
        """
        record = ModelComparisonRecord.load(path)
        return cls(
            labels=tuple(record.numbers["labels"]),
            fvu={label: Estimate(**one) for label, one in record.numbers["fvu"].items()},
            l0=Estimate(**record.numbers["l0"]),
            n_tokens=int(record.numbers["n_tokens"]),
            settings=record.settings,
            dictionary=record.numbers["dictionary"],
            data_sha256=record.data_sha256,
            **{name: record.arrays[name] for name in _ARRAYS},
        )


_ARRAYS = ("norms", "presence", "cosine", "density")
