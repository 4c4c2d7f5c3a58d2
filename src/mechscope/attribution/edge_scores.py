"""EdgeScores: a predicted effect for every edge of a model, in the order of its wiring, with the whole convention."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mechscope.attribution.contraction import Offsets
from mechscope.engine.places import Label
from mechscope.figures.labelled import LabelledArray
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.edges import Edge, Wiring
from mechscope.vocabulary.errors import NotEnoughEvidence, ShapeError

By = Literal["magnitude", "largest", "smallest"]
_SHOWN = 30


class EdgeScoresRecord(Record):
    """Saved `EdgeScores`."""

    kind: ClassVar[str] = "edge-scores"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EdgeScores:
    """Result of `attribute_edges`.

    A score predicts, to first order, by how much the metric changes if this edge alone carries the donor's value.

    Args:
        scores: Mean over pairs, [edge]; where positions were asked for, their sum.
        wiring: Which edges, in which order.
        has_no_gradient: Edges whose reader no gradient reaches, [edge] truth values: their zero says nothing.
        pairs: Each pair's scores, [pair, edge]; None if they were not kept.
        by_place: Mean over pairs at each place, [place, edge]; None where positions were taken together.
        places: Names of the places.
        settings: Method, direction, steps, linearization, metric, as JSON.
        unit: The metric's.
        model: Which weights.
        data_sha256: Hash of the prompts.
    """

    scores: Tensor
    wiring: Wiring
    has_no_gradient: Tensor
    pairs: Tensor | None = None
    by_place: Tensor | None = None
    places: tuple[Label, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    unit: str = ""
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge, in the order of the scores."""
        return tuple(self.wiring.edges())

    @property
    def n_without_gradient(self) -> int:
        """How many edges end in a reader that no gradient reaches."""
        return int(self.has_no_gradient.sum())

    @property
    def importance(self) -> Tensor:
        """Scores as what the edge's clean value adds to the metric, [edge]: the sign of published circuits."""
        return self.scores if self.settings.get("direction") == "denoising" else -self.scores

    def score(self, edge: str | Edge) -> float:
        """The score of one edge.

        Raises:
            UnknownEdge: not of the form of an edge, or not in this model.
        """
        return float(self.scores[self.index(edge)])

    def index(self, edge: str | Edge) -> int:
        """Where an edge stands in the scores."""
        edge = Edge.parse(edge)
        self.wiring.refuse_unless_it_has(edge)
        place = self.wiring.readers.index((edge.target.whole, edge.input))
        return Offsets.of(self.wiring).first[place] + self.wiring.writers.index(edge.source.whole)

    def top(self, n: int = 10, by: By = "magnitude") -> list[tuple[Edge, float]]:
        """The n strongest edges with their scores; ties keep the order of the wiring."""
        strength = {"magnitude": self.scores.abs(), "largest": self.scores, "smallest": -self.scores}[by]
        order = torch.sort(strength, descending=True, stable=True).indices[:n].tolist()
        return [(self.edges[i], float(self.scores[i])) for i in order]

    def resampled(self, weights: Tensor) -> Tensor:
        """Scores under weights of pairs, [resample, pair] to [resample, edge]: a bootstrap of the discovery itself.

        Raises:
            NotEnoughEvidence: the pairs' scores were not kept.
            ShapeError: other weights than pairs.
        """
        if self.pairs is None:
            raise NotEnoughEvidence(
                "Each pair's scores were not kept.",
                because="resampling pairs needs them",
                instead="EdgeSettings(keeps_pairs=True)",
            )
        if weights.shape[-1] != len(self.pairs):
            raise ShapeError(
                "Each pair needs a weight.",
                got=f"{weights.shape[-1]} weights",
                instead=f"{len(self.pairs)} weights",
            )
        weights = weights.to(self.pairs)
        return weights @ self.pairs / weights.sum(-1, keepdim=True)

    def labelled(self, edges: Sequence[str | Edge] | None = None) -> LabelledArray:
        """Scores as a labelled array, of all edges or of some."""
        chosen = list(range(self.wiring.n_edges)) if edges is None else [self.index(edge) for edge in edges]
        names = [str(self.edges[i]) for i in chosen]
        facts = {
            name: self.settings.get(name) for name in ("method", "direction", "rule", "steps", "n_pairs")
        }
        conventions = {name: value for name, value in facts.items() if value is not None}
        dims, values, coords = ("edge",), self.scores[chosen], {"edge": names}
        if self.by_place is not None:
            dims, values = ("pos", "edge"), self.by_place[:, chosen]
            coords = {"pos": list(self.places), "edge": names}
        return LabelledArray(
            values.double().cpu().numpy(),
            dims,
            coords=coords,
            unit=self.unit,
            title=f"{self.settings.get('method', '')}: predicted effect of each edge",
            conventions=conventions,
        )

    def plot(self, n: int = _SHOWN) -> Any:
        """A Plotly figure of the n strongest edges."""
        return self.labelled([edge for edge, _ in self.top(n)]).plot()

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, the numbers as safetensors beside it."""
        tensors = {
            "scores": self.scores,
            "has_no_gradient": self.has_no_gradient,
            "pairs": self.pairs,
            "by_place": self.by_place,
        }
        EdgeScoresRecord(
            settings=dict(self.settings),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={"wiring": asdict(self.wiring), "places": list(self.places), "unit": self.unit},
            arrays={name: _array(tensor) for name, tensor in tensors.items() if tensor is not None},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "EdgeScores":
        """Read what `save` wrote."""
        record = EdgeScoresRecord.load(path)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in record.arrays.items()}
        return cls(
            **tensors,
            wiring=Wiring(**record.numbers["wiring"]),
            places=tuple(record.numbers["places"]),
            unit=record.numbers["unit"],
            settings=record.settings,
            model=record.model,
            data_sha256=record.data_sha256,
        )

    def __repr__(self) -> str:
        lines = [f"  {score:+.4g}  {edge}" for edge, score in self.top()]
        head = (
            f"EdgeScores of {self.wiring.n_edges} edges by {self.settings.get('method')}, "
            f"{self.settings.get('direction')}, in {self.unit}; {self.n_without_gradient} without gradient"
        )
        return "\n".join([head, *lines])

    def _repr_html_(self) -> str:
        return self.labelled([edge for edge, _ in self.top(_SHOWN)])._repr_html_()


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
