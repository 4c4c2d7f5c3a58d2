"""The score of one dictionary on planted data: all measures together, as a frozen result that can be saved."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.data.intervals import (
    Interval,
    Resamples,
    bootstrap,
    mean_bootstrap,
    share_interval,
)
from mechscope.records.record import Record
from mechscope.specimens.planted.firings import Firings
from mechscope.specimens.planted.scoring import (
    RECOVERED_ABOVE,
    absorbed_share,
    detect_features,
    direction_precision,
    match_directions,
    measure_absorption,
    own_latents,
    split_features,
)
from mechscope.specimens.planted.truth import Truth

if TYPE_CHECKING:
    from mechscope.figures.labelled import LabelledArray

N_RESAMPLES = 1_000


class PlantedScoreRecord(Record):
    """A score on disk."""

    kind: ClassVar[str] = "planted-score"


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedScore:
    """What a dictionary recovered of a planted truth. Shares are 0 to 1; intervals are of 95%.

    Args:
        recovered: Share of features with a latent of their own at a cosine above 0.9 (Hungarian, one to one).
        recovered_low: Lower end of its interval, over features.
        recovered_high: Upper end.
        precision: Share of live latents that are some feature's own.
        live: Share of latents that fired at all; 1 where no codes were given.
        split: Share of features with two or more live latents above 0.9.
        firing_precision: Mean over recovered features; None without codes.
        firing_recall: Mean over recovered features; None without codes.
        absorption: Share of parents' firings that a child's latent swallowed; None without codes or parents.
        cosine: Matched cosine of each feature.
        settings: Of the truth.
        intervals: Ends by name: of precision over live latents, live over latents, split over features, firing
            precision and recall over recovered features, absorption over parents. Records of before have none.
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
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

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
        numbers: dict[str, Any] = dict(record.numbers)
        ends = {name: (float(low), float(high)) for name, (low, high) in numbers.pop("intervals", {}).items()}
        return cls(settings=record.settings, cosine=record.arrays["cosine"], intervals=ends, **numbers)

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
        seed: Of the resamples.

    Cost: the Hungarian assignment; see `match_directions`.
    """
    live = torch.ones(len(decoder), dtype=torch.bool) if codes is None else codes.counts.cpu() > 0
    seen = torch.where(live[:, None], decoder.detach().cpu().float(), torch.zeros(1))
    matching = match_directions(seen, truth.directions)
    recovered = matching.recovered()
    interval = share_interval(recovered.numpy(), seed=seed)
    split = split_features(matching, live) >= 2
    own = own_latents(matching)[live]
    intervals = {
        "precision": share_interval(own.numpy(), seed=seed),
        "live": share_interval(live.numpy(), seed=seed),
        "split": share_interval(split.numpy(), seed=seed),
    }
    firing_precision = firing_recall = absorption = None
    if codes is not None and features is not None:
        detection = detect_features(codes, features, matching)
        seen_on = recovered & (features.counts > 0)
        if bool(seen_on.any()):
            precisions, recalls = detection.precision[seen_on].double(), detection.recall[seen_on].double()
            firing_precision, firing_recall = float(precisions.mean()), float(recalls.mean())
            intervals["firing_precision"] = _of_mean(precisions, seed)
            intervals["firing_recall"] = _of_mean(recalls, seed)
        if bool((truth.parents >= 0).any()):
            found = measure_absorption(
                codes,
                features,
                matching=matching,
                decoder=seen,
                directions=truth.directions,
                parents=truth.parents,
            )
            absorption = found.rate
            intervals["absorption"] = _of_absorption(found.by_parent, seed)
    return PlantedScore(
        recovered=float(recovered.double().mean()),
        recovered_low=interval.low,
        recovered_high=interval.high,
        precision=direction_precision(matching, live),
        live=float(live.double().mean()),
        split=float(split.double().mean()),
        firing_precision=firing_precision,
        firing_recall=firing_recall,
        absorption=absorption,
        cosine=matching.cosine.numpy(),
        settings=asdict(truth.settings),
        intervals={name: (one.low, one.high) for name, one in intervals.items() if np.isfinite(one.low)},
    )


def _of_mean(values: Float[Tensor, " unit"], seed: int) -> Interval:
    resamples = Resamples(np.arange(len(values)), seed=seed, n_resamples=N_RESAMPLES)
    return mean_bootstrap(resamples, values.numpy()).interval()


def _of_absorption(by_parent: Int[Tensor, "parent 4"], seed: int) -> Interval:
    """Firings of one parent's children are one observation: what absorbs them is one latent's doing."""
    resamples = Resamples(np.arange(len(by_parent)), seed=seed, n_resamples=N_RESAMPLES)
    table = by_parent.double().numpy()
    return bootstrap(resamples, table, lambda sums: absorbed_share(torch.from_numpy(sums)).numpy()).interval()
