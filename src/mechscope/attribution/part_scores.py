"""PartScores: a predicted effect of removing each part of some sites: latents with their site's error, or experts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mechscope.figures.bars import Bars
from mechscope.figures.labelled import LabelledArray
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.edges import Node
from mechscope.vocabulary.sites import Site

Part = Literal["latent", "expert"]


class PartScoresRecord(Record):
    """Saved `PartScores`."""

    kind: ClassVar[str] = "part-scores"


@dataclass(frozen=True, kw_only=True, eq=False)
class PartScores:
    """Result of `attribute_latents` and `attribute_experts`.

    Args:
        part: What is scored.
        effects: By site, the predicted change of the metric if a part is exchanged, summed over tokens, mean over
            pairs: [n_latents + 1], the last for the error; [n_experts].
        unit: Of the metric.
        settings: Method, direction, what removed parts carry, linearization, metric, JSON.
        model: Which weights.
        data_sha256: Hash of the prompts.
    """

    part: Part
    effects: Mapping[str, np.ndarray]
    unit: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    def node(self, site: str, index: int) -> Node:
        """The node at a place of `effects`."""
        return node_of(self.part, site, index, len(self.effects[site]))

    @property
    def errors(self) -> dict[str, float]:
        """Effect of each site's error; {} for experts."""
        return {site: float(of[-1]) for site, of in self.effects.items()} if self.part == "latent" else {}

    def top(self, n: int = 10) -> list[tuple[Node, float]]:
        """The n strongest parts by magnitude, errors among them."""
        flat = np.concatenate(list(self.effects.values()))
        places = [(site, index) for site, of in self.effects.items() for index in range(len(of))]
        order = np.argsort(-np.abs(flat), kind="stable")[:n]
        return [(self.node(*places[i]), float(flat[i])) for i in order]

    def plot(self, n: int = 30) -> Bars:
        """The n strongest parts as bars."""
        strongest = self.top(n)
        array = LabelledArray(
            np.array([score for _, score in strongest]),
            ("node",),
            coords={"node": [str(node) for node, _ in strongest]},
            unit=self.unit,
            title="Predicted effect of exchanging a part",
            conventions={name: str(self.settings[name]) for name in _SHOWN if name in self.settings},
        )
        return Bars(array)

    def __repr__(self) -> str:
        shown = ", ".join(f"{node} {score:.3g}" for node, score in self.top(5))
        return f"<PartScores of {len(self.effects)} sites, {self.settings.get('method')}: {shown}, ...>"

    def save(self, path: str | Path) -> None:
        """Write a record."""
        PartScoresRecord(
            settings=dict(self.settings),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={"part": self.part, "unit": self.unit, "sites": list(self.effects)},
            arrays={site: np.asarray(of) for site, of in self.effects.items()},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "PartScores":
        """Read what `save` wrote."""
        record = PartScoresRecord.load(path)
        return cls(
            part=record.numbers["part"],
            effects={site: record.arrays[site] for site in record.numbers["sites"]},
            unit=record.numbers["unit"],
            settings=record.settings,
            model=record.model,
            data_sha256=record.data_sha256,
        )


_SHOWN = ("method", "direction", "removed", "routing")


def node_of(part: Part, site: str, index: int, n: int) -> Node:
    """A part as a node: "resid_post.2:417", "resid_post.2:error", "m3:5" (an expert)."""
    at = Site.parse(site)
    if part == "expert":
        return Node(kind="mlp", layer=at.layer, unit=index)
    if index == n - 1:
        return Node(kind="error", point=at.point, layer=at.layer)
    return Node(kind="latent", point=at.point, layer=at.layer, unit=index)
