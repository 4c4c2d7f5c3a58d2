"""The score of one dictionary on planted data: all measures together, as a frozen result that can be saved."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.data.intervals import Interval, Resamples, mean_bootstrap
from mechscope.records.record import Record
from mechscope.specimens.planted.firings import Firings
from mechscope.specimens.planted.scoring import (
    RECOVERED_ABOVE,
    detect_features,
    direction_precision,
    match_directions,
    measure_absorption,
    split_features,
)
from mechscope.specimens.planted.truth import Truth

if TYPE_CHECKING:
    from mechscope.figures.labelled import LabelledArray


class PlantedScoreRecord(Record):
    """A score on disk."""

    kind: ClassVar[str] = "planted-score"


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedScore:
    """What a dictionary recovered of a planted truth. Shares are 0 to 1; intervals are of 95%, over features.

    Args:
        recovered: Share of features with a latent of their own at a cosine above 0.9 (Hungarian, one to one).
        recovered_low: Lower end of its interval.
        recovered_high: Upper end.
        precision: Share of live latents that are some feature's own.
        live: Share of latents that fired at all; 1 where no codes were given.
        split: Share of features with two or more live latents above 0.9.
        firing_precision: Mean over recovered features; None without codes.
        firing_recall: Mean over recovered features; None without codes.
        absorption: Share of parents' firings that a child's latent swallowed; None without codes or parents.
        cosine: Matched cosine of each feature.
        settings: Of the truth.
    """

    recovered: float
    recovered_low: float
    recovered_high: float
    precision: float
    live: float
    split: float
    firing_precision: float | None
    firing_recall: float | None
    absorption: float | None
    cosine: Float[np.ndarray, " feature"]
    settings: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the score as a record."""
        numbers = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("cosine", "settings")
        }
        PlantedScoreRecord(
            settings=self.settings,
            seed=self.settings["seed"],
            numbers=numbers,
            arrays={"cosine": self.cosine},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "PlantedScore":
        """Read what `save` wrote."""
        record = PlantedScoreRecord.load(path)
        return cls(settings=record.settings, cosine=record.arrays["cosine"], **record.numbers)

    def histogram(self, n_bins: int = 40) -> "LabelledArray":
        """Features by matched cosine, from -1 to 1."""
        from mechscope.figures.labelled import LabelledArray

        counts, edges = np.histogram(self.cosine, bins=n_bins, range=(-1, 1))
        return LabelledArray(
            counts,
            ("matched cosine",),
            coords={"matched cosine": [round(float(edge), 3) for edge in edges[:-1]]},
            unit="features",
            title=f"{self.recovered:.1%} of {len(self.cosine)} planted features recovered",
            conventions={"matching": "Hungarian, one to one", "recovered": f"cosine > {RECOVERED_ABOVE}"},
        )

    def plot(self) -> Any:
        """The histogram of matched cosines (Plotly)."""
        return self.histogram().plot("bars")


def score_dictionary(
    truth: Truth,
    decoder: Float[Tensor, "latent d_model"],
    *,
    codes: Firings | None = None,
    features: Firings | None = None,
    seed: int = 0,
) -> PlantedScore:
    """Score decoder rows, and codes if there are any, against the truth.

    Args:
        truth: What was planted.
        decoder: Rows that the dictionary writes, in the basis of the activations.
        codes: What it encoded held-out tokens as; latents that never fire count as dead and are not matched.
        features: The true codes of the same tokens, `batch.codes`.
        seed: Of the bootstrap over features.

    Cost: the Hungarian assignment; see `match_directions`.
    """
    live = torch.ones(len(decoder), dtype=torch.bool) if codes is None else codes.counts.cpu() > 0
    seen = torch.where(live[:, None], decoder.detach().cpu().float(), torch.zeros(1))
    matching = match_directions(seen, truth.directions)
    recovered = matching.recovered()
    interval = _interval(recovered.numpy().astype(float), seed)
    firing_precision = firing_recall = absorption = None
    if codes is not None and features is not None:
        detection = detect_features(codes, features, matching)
        seen_on = recovered & (features.counts > 0)
        if bool(seen_on.any()):
            firing_precision = float(detection.precision[seen_on].mean())
            firing_recall = float(detection.recall[seen_on].mean())
        if bool((truth.parents >= 0).any()):
            absorption = measure_absorption(
                codes,
                features,
                matching=matching,
                decoder=seen,
                directions=truth.directions,
                parents=truth.parents,
            ).rate
    return PlantedScore(
        recovered=float(recovered.double().mean()),
        recovered_low=interval.low,
        recovered_high=interval.high,
        precision=direction_precision(matching, live),
        live=float(live.double().mean()),
        split=float((split_features(matching, live) >= 2).double().mean()),
        firing_precision=firing_precision,
        firing_recall=firing_recall,
        absorption=absorption,
        cosine=matching.cosine.numpy(),
        settings=asdict(truth.settings),
    )


def _interval(recovered: np.ndarray, seed: int) -> Interval:
    resamples = Resamples(np.arange(len(recovered)), seed=seed, n_resamples=1000)
    return mean_bootstrap(resamples, recovered).interval()
