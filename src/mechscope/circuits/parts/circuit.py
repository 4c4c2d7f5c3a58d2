"""PartCircuit: some parts of some sites, kept, as a frozen value: what circuits of latents and of experts share.

Refuses parts that do not exist when it is made, and another model when it is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from mechscope.attribution.part_scores import Part, PartScores, node_of
from mechscope.figures.bars import Bars
from mechscope.models.model import Model
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.edges import Node
from mechscope.vocabulary.errors import BadFile, NotEnoughEvidence, UnknownEdge

OfParts = TypeVar("OfParts", bound="PartCircuit")


@dataclass(frozen=True, kw_only=True, eq=False)
class PartCircuit:
    """Some parts of some sites.

    Args:
        kept: By site in the order of the forward pass, truth values: one for each part.
        scores: What a method gave each part, by site, or None.
        unit: Of the scores.
        settings: How parts were chosen, JSON.
        model: Which weights it was found in; None for a circuit that somebody wrote down.
        data_sha256: Hash of the prompts that it was found on.
    """

    part: ClassVar[Part]
    record: ClassVar[type[Record]]

    kept: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray] | None = None
    unit: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    def __post_init__(self) -> None:
        frozen: dict[str, np.ndarray] = {}
        for site, which in self.kept.items():
            frozen[site] = np.array(which, dtype=bool)
            frozen[site].setflags(write=False)
        object.__setattr__(self, "kept", frozen)
        scored = None if self.scores is None else {site: len(of) for site, of in self.scores.items()}
        if scored not in (None, {site: len(which) for site, which in frozen.items()}):
            raise UnknownEdge(
                "Scores are not those of these parts.",
                got=str(scored)[:120],
                because=f"the circuit has {', '.join(f'{len(w)} at {s}' for s, w in frozen.items())}"[:160],
                instead="one score a part, site by site",
            )

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Its parts as nodes: "resid_post.2:417", "resid_post.2:error", "m3:5" (an expert)."""
        return tuple(
            node_of(self.part, site, int(index), len(which))
            for site, which in self.kept.items()
            for index in np.flatnonzero(which)
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Parts that are kept, by site; errors are not counted."""
        return {site: int(self._counted(which).sum()) for site, which in self.kept.items()}

    @property
    def name(self) -> str:
        """Short text for reports."""
        n, every = len(self), sum(len(self._counted(which)) for which in self.kept.values())
        return f"{n} of {every} {self.part}s at {len(self.kept)} sites"

    @property
    def conventions(self) -> dict[str, Any]:
        """What an evaluation says of it beside its own conventions, JSON."""
        return {}

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(tuple((site, which.tobytes()) for site, which in self.kept.items()))

    def __contains__(self, node: object) -> bool:
        return isinstance(node, str | Node) and Node.parse(node) in self.nodes

    def __invert__(self: OfParts) -> OfParts:
        """All other parts."""
        return replace(self, kept={site: ~which for site, which in self.kept.items()})

    def top(self, n: int | None = None) -> list[tuple[Node, float]]:
        """Its parts by magnitude of score, largest first; zeros where there are no scores."""
        found = [
            (node, 0.0 if self.scores is None else float(self.scores[site][index]))
            for (site, index), node in zip(self._places(), self.nodes, strict=True)
        ]
        return sorted(found, key=lambda one: -abs(one[1]))[:n]

    def plot(self, n: int = 30) -> Bars:
        """Its n strongest parts as bars.

        Raises:
            NotEnoughEvidence: it has no scores.
        """
        scores = {site: np.where(self.kept[site], of, 0.0) for site, of in self._scored().items()}
        shown = PartScores(part=self.part, effects=scores, unit=self.unit, settings=self.settings)
        return shown.plot(min(n, len(self.nodes)))

    def refuse_unless_of(self, model: Model) -> None:
        """Refuse to be run in another model, or empty.

        Raises:
            UnknownEdge: the model has other weights than the circuit was found in.
            NotEnoughEvidence: nothing is kept.
        """
        if self.model is not None and self.model.weights_sha256 != model.fingerprint.weights_sha256:
            raise UnknownEdge(
                "This circuit was found in another model.",
                got=f"weights {self.model.weights_sha256[:12]} ({self.model.name})",
                because=f"this model's weights are {model.fingerprint.weights_sha256[:12]}",
                instead="dataclasses.replace(circuit, model=None), to try it on purpose",
            )
        if not self.nodes:
            raise NotEnoughEvidence(
                "This circuit is empty.",
                got=self.name,
                because="without a part it is the run that removed parts' values come from",
                instead="one part or more",
            )

    def __repr__(self) -> str:
        shown = ", ".join(str(node) for node, _ in self.top(6))
        return f"<{type(self).__name__} of {self.name}: {shown}{', ...' if len(self.nodes) > 6 else ''}>"

    def to_json(self) -> dict[str, Any]:
        """What identifies it: sites, how many parts each has, and which are kept."""
        parts = {
            site: {"n": len(which), "kept": np.flatnonzero(which).tolist()}
            for site, which in self.kept.items()
        }
        return {"kind": self.record.kind, "parts": parts}

    @classmethod
    def from_json(cls: type[OfParts], saved: Mapping[str, Any], **more: Any) -> OfParts:
        """Inverse of `to_json`.

        Raises:
            BadFile: not what `to_json` writes.
        """
        try:
            kept: dict[str, np.ndarray] = {}
            for site, part in saved["parts"].items():
                kept[site] = np.zeros(part["n"], dtype=bool)
                kept[site][part["kept"]] = True
            return cls(kept=kept, **cls._rest_of(saved), **more)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise BadFile(
                f"This is not a circuit of {cls.part}s.", got=str(saved)[:80], because=str(error)
            ) from error

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, scores as safetensors beside it."""
        self.record(
            settings=dict(self.settings),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={"circuit": self.to_json(), "unit": self.unit},
            arrays={} if self.scores is None else {site: np.asarray(of) for site, of in self.scores.items()},
        ).save(path)

    @classmethod
    def load(cls: type[OfParts], path: str | Path) -> OfParts:
        """Read what `save` wrote."""
        record = cls.record.load(path)
        return cls.from_json(
            record.numbers["circuit"],
            scores=record.arrays or None,
            unit=record.numbers["unit"],
            settings=record.settings,
            model=record.model,
            data_sha256=record.data_sha256,
        )

    @classmethod
    def _rest_of(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """More fields out of `to_json`."""
        return {}

    def _counted(self, which: np.ndarray) -> np.ndarray:
        return which[:-1] if self.part == "latent" else which

    def _places(self) -> list[tuple[str, int]]:
        return [(site, int(i)) for site, which in self.kept.items() for i in np.flatnonzero(which)]

    def _scored(self) -> Mapping[str, np.ndarray]:
        if self.scores is None:
            raise NotEnoughEvidence(
                "This circuit's parts have no scores.",
                got=self.name,
                because="it was written down, and not chosen by a method",
                instead=f"ms.circuits.choose_{self.part}s",
            )
        return self.scores


def strongest(scores: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """The n strongest parts by magnitude over all sites together, as truth values; none that scores nothing.

    Raises:
        NotEnoughEvidence: n is less than one.
    """
    if n < 1:
        raise NotEnoughEvidence(
            "A circuit keeps one part at least.",
            got=n,
            because="without a part it is the run that removed parts' values come from",
            instead="1 or more",
        )
    flat = np.abs(np.concatenate(list(scores.values())))
    order = np.argsort(-flat, kind="stable")[:n]
    kept = np.zeros(len(flat), dtype=bool)
    kept[order[flat[order] > 0]] = True
    cuts = np.cumsum([len(of) for of in scores.values()])[:-1]
    return dict(zip(scores, np.split(kept, cuts), strict=True))
