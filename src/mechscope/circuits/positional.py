"""PositionalCircuit: edges of a model kept at some positions of the prompt and removed at the others.

An edge is local to a position: it adds what its writer writes there to what its reader reads there. Values move
between positions inside heads only, from where keys and values are read to where queries are. Positions are taken
together in *spans*: every position by itself, or named ones; tokens of no span are the span "elsewhere".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit, all_edges, edge_index
from mechscope.engine.edge_runs.block import TokenSpans
from mechscope.engine.edge_runs.places import Places as EdgePlaces
from mechscope.engine.places import places_of
from mechscope.figures.labelled import LabelledArray
from mechscope.models.frame import Frame
from mechscope.models.model import Model
from mechscope.models.wiring import wiring_of
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.edges import Edge, Node, Wiring
from mechscope.vocabulary.errors import BadFile, ShapeError, UnknownEdge
from mechscope.vocabulary.where import Where

if TYPE_CHECKING:
    from mechscope.circuits.evaluation import CircuitEvaluation

ELSEWHERE = "elsewhere"
_SHOWN = 40
_WIRING = ("n_layers", "n_heads", "n_kv_heads", "is_parallel", "has_mlps")

Label = str | int


class PositionalCircuitRecord(Record):
    """A saved `PositionalCircuit`."""

    kind: ClassVar[str] = "positional-circuit"


@dataclass(frozen=True)
class PlacedEdge:
    """An edge in a span: "a0.5->a1.11.k@subject"."""

    edge: Edge
    span: Label

    def __str__(self) -> str:
        return f"{self.edge}@{self.span}"


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionalCircuit:
    """Some edges of a model in some spans.

    Args:
        wiring: Of the model.
        spans: Names of the spans; the last is "elsewhere".
        positions: What they stand for: "each", "from-end", or a mapping from names to positions, as in
            `ms.attribute_edges`.
        kept: Which edges where, [span, edge] truth values in the order of `Wiring.edges`.
        scores: What the method gave each of them, [span, edge], or None.
        settings: Method and conventions, JSON.
        model: Which weights it was found in; None for a circuit that somebody wrote down.
        data_sha256: Hash of the prompts that it was found on.
    """

    wiring: Wiring
    spans: tuple[Label, ...]
    positions: Any
    kept: np.ndarray
    scores: np.ndarray | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    def __post_init__(self) -> None:
        for name in ("kept", "scores"):
            array = getattr(self, name)
            if array is None:
                continue
            array = np.array(array, dtype=bool if name == "kept" else np.float64)
            if array.shape != (len(self.spans), self.wiring.n_edges):
                raise UnknownEdge(
                    f"{name} are not those of this wiring and these spans.",
                    got=f"shape {list(array.shape)}",
                    because=f"there are {len(self.spans)} spans and {self.wiring.n_edges} edges",
                    instead="[span, edge], in the order of Wiring.edges()",
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def of(
        cls,
        model: Model | Wiring,
        edges: Mapping[Label, Sequence[str | Edge]],
        /,
        *,
        positions: Any,
        **more: Any,
    ) -> "PositionalCircuit":
        """The circuit of some edges by name, span by span.

        Args:
            model: A model or its wiring.
            edges: Names of edges for each span; "elsewhere" is every token in none of them.
            positions: "each" or "from-end", with the positions as spans; or a mapping with the spans' names.
            more: Other fields.

        Raises:
            UnknownEdge: a name that is none, or an edge that the model does not have.
            ShapeError: a span that `positions` does not name.
        """
        wiring = model if isinstance(model, Wiring) else wiring_of(model)
        named = (
            tuple(positions) if isinstance(positions, Mapping) else tuple(sorted(set(edges) - {ELSEWHERE}))
        )
        spans, index = (*named, ELSEWHERE), edge_index(wiring)
        unknown = [span for span in edges if span not in spans]
        if unknown:
            raise ShapeError(
                "Edges in spans that no positions are given for.",
                got=", ".join(map(str, unknown)),
                instead=", ".join(map(str, spans)),
            )
        kept = np.zeros((len(spans), wiring.n_edges), dtype=bool)
        for span, names in edges.items():
            for name in names:
                edge = Edge.parse(name)
                wiring.refuse_unless_it_has(edge)
                kept[spans.index(span), index[edge]] = True
        return cls(wiring=wiring, spans=spans, positions=positions, kept=kept, **more)

    @cached_property
    def edges(self) -> tuple[PlacedEdge, ...]:
        """Its edges, span by span, in the order of the wiring."""
        every = all_edges(self.wiring)
        where = zip(*np.nonzero(self.kept), strict=True)
        return tuple(PlacedEdge(every[edge], self.spans[span]) for span, edge in where)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes that an edge touches in any span."""
        return self.anywhere.nodes

    @cached_property
    def anywhere(self) -> Circuit:
        """The circuit of edges that are kept in any span, without positions."""
        scores = None if self.scores is None else np.abs(self.scores).max(0)
        return Circuit(
            wiring=self.wiring,
            kept=np.any(self.kept, 0),
            scores=scores,
            settings=self.settings,
            model=self.model,
            data_sha256=self.data_sha256,
        )

    @property
    def name(self) -> str:
        """For plots."""
        return f"{len(self)} placed edges"

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PositionalCircuit):
            return NotImplemented
        same = self.wiring == other.wiring and self.spans == other.spans
        return same and bool((self.kept == other.kept).all())

    __hash__ = None  # pyright: ignore[reportAssignmentType] - arrays of truth values have no cheap hash

    def connected(self) -> "PositionalCircuit":
        """Only edges on a path from the embedding to the logits."""
        return replace(self, kept=connected_in_spans(self.wiring, self.kept))

    def top(self, n: int | None = None) -> list[tuple[PlacedEdge, float]]:
        """Its edges by magnitude of score, largest first; zeros where there are no scores."""
        scores = np.zeros(self.kept.shape) if self.scores is None else self.scores
        at = np.nonzero(self.kept)
        found = zip(self.edges, scores[at].tolist(), strict=True)
        return sorted(found, key=lambda one: -abs(one[1]))[:n]

    def refuse_unless_of(self, model: Model) -> None:
        """Refuse to be run in another model, or empty; as `Circuit.refuse_unless_of`."""
        self.anywhere.refuse_unless_of(model)

    def evaluate(self, model: Model, split: Split, **settings: Any) -> "CircuitEvaluation":
        """Faithfulness, completeness and minimality on a split; see `ms.evaluate_circuits`."""
        from mechscope.circuits.evaluation import evaluate_circuits  # it builds on this class

        return evaluate_circuits(model, [self], split, **settings)[0]

    def labelled(self, n: int = _SHOWN) -> LabelledArray:
        """Its strongest edges by span: scores, or 1 where there are none; 0 where an edge is removed."""
        strength = np.where(self.kept, 1.0 if self.scores is None else self.scores, 0.0)
        touched = np.flatnonzero(self.kept.any(0))
        shown = touched[np.argsort(-np.abs(strength[:, touched]).max(0), kind="stable")[:n]]
        names = [str(all_edges(self.wiring)[edge]) for edge in shown]
        return LabelledArray(
            strength[:, shown],
            ("span", "edge"),
            coords={"span": [str(span) for span in self.spans], "edge": names},
            unit="kept" if self.scores is None else "score",
            title=f"{self.name}: which edges, where",
        )

    def plot(self, n: int = _SHOWN) -> Any:
        """A Plotly figure: spans by the n strongest edges."""
        return self.labelled(n).plot(kind="heatmap")

    def __repr__(self) -> str:
        shown = ", ".join(str(edge) for edge, _ in self.top(5))
        return f"<PositionalCircuit of {self.name}: {shown}{', ...' if len(self) > 5 else ''}>"

    def to_json(self) -> dict[str, Any]:
        """What identifies it: wiring, positions and edges."""
        return {
            "kind": PositionalCircuitRecord.kind,
            "wiring": {name: getattr(self.wiring, name) for name in _WIRING},
            "spans": list(self.spans),
            "positions": dict(self.positions) if isinstance(self.positions, Mapping) else self.positions,
            "edges": [[str(edge.edge), edge.span] for edge in self.edges],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], **more: Any) -> "PositionalCircuit":
        """Inverse of `to_json`.

        Raises:
            BadFile: not what `to_json` writes.
        """
        try:
            wiring, spans = Wiring(**saved["wiring"]), tuple(saved["spans"])
            kept, index = np.zeros((len(spans), wiring.n_edges), dtype=bool), edge_index(wiring)
            for name, span in saved["edges"]:
                kept[spans.index(span), index[Edge.parse(name)]] = True
            return cls(wiring=wiring, spans=spans, positions=saved["positions"], kept=kept, **more)
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile(
                "This is not a positional circuit.", got=str(saved)[:80], because=str(error)
            ) from error

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, scores as safetensors beside it."""
        PositionalCircuitRecord(
            settings=dict(self.settings),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={"circuit": self.to_json()},
            arrays={} if self.scores is None else {"scores": self.scores},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "PositionalCircuit":
        """Read what `save` wrote."""
        record = PositionalCircuitRecord.load(path)
        return cls.from_json(
            record.numbers["circuit"],
            scores=record.arrays.get("scores"),
            settings=record.settings,
            model=record.model,
            data_sha256=record.data_sha256,
        )


def spans_of(model: Model, split: Split, circuit: PositionalCircuit) -> TokenSpans:
    """The span of each token of a split.

    Raises:
        ShapeError: positions that the split's prompts do not have, or a token in two spans.
    """
    places = places_of(circuit.positions, model, split.clean, split.corrupt)
    absent = [span for span in circuit.spans[:-1] if span not in places.labels]
    if absent or not places.labels:
        raise ShapeError(
            "These prompts have other positions than the circuit.",
            got=f"spans {', '.join(map(str, places.labels)) or 'without names'}",
            because=f"it keeps edges in {', '.join(map(str, absent or circuit.spans))}",
            instead='prompts of the length that it was found on, or named positions: {"end": -1}',
        )
    frame, columns = Frame.of(split.clean), split.clean.shape[1]
    numbers = torch.full(tuple(split.clean.shape), len(circuit.spans) - 1, dtype=torch.long)
    taken = torch.zeros_like(numbers, dtype=torch.bool)
    for label, selection in zip(places.labels, places.selections, strict=True):
        chosen = frame.selected(Where.of(selection), frame.last_columns(columns))
        chosen = split.clean.mask.bool() if chosen is None else chosen.cpu()
        if bool((chosen & taken).any()):
            raise ShapeError(
                "A token is in two spans.",
                got=f'"{label}" and another one',
                because="an edge is kept or removed once at each token",
                instead="spans without a token in common",
            )
        taken |= chosen
        if label in circuit.spans:
            numbers[chosen] = circuit.spans.index(label)
    return TokenSpans(len(circuit.spans), numbers)


def connected_in_spans(wiring: Wiring, kept: np.ndarray) -> np.ndarray:
    """Those of some placed edges that lie on a path from the embedding to the logits, [span, edge] truth values.

    A head's keys and values are taken to reach its output in every span, its queries in their own.
    """
    places = EdgePlaces(wiring, (False,) * wiring.n_layers)
    n_spans, group = len(kept), wiring.n_heads // wiring.n_kv_heads
    needed = np.zeros((n_spans, places.n_writers), dtype=bool)
    needed |= kept[:, places.logits_edges]
    alive: dict[int, np.ndarray] = {}  # readers of a layer's attention from which the logits can be reached
    for layer in reversed(range(wiring.n_layers)):
        if wiring.has_mlps:
            n = places.n_sources(layer, mlp=True)
            needed[:, :n] |= kept[:, places.mlp_edges(layer)] & needed[:, [places.mlp(layer)]]
        first = places.head(layer)
        heads = needed[:, first : first + wiring.n_heads]
        shared = np.repeat(np.any(np.any(heads, 0).reshape(-1, group), 1)[None], n_spans, axis=0)
        alive[layer] = np.concatenate([heads, shared, shared], axis=1)
        block = kept[:, places.attention_edges(layer)].reshape(n_spans, places.n_readers, -1)
        needed[:, : block.shape[2]] |= (block & alive[layer][..., None]).any(1)
    reached = np.zeros_like(needed)
    reached[:, 0] = True
    found = np.zeros_like(kept)
    n, n_kv = wiring.n_heads, wiring.n_kv_heads
    for layer in range(wiring.n_layers):
        at, first = places.attention_edges(layer), places.head(layer)
        block = kept[:, at].reshape(n_spans, places.n_readers, -1)
        block = block & reached[:, None, : block.shape[2]]
        reads: np.ndarray = np.any(block, 2)
        moved = np.repeat((reads[:, n : n + n_kv] | reads[:, n + n_kv :]).any(0), group)
        reached[:, first : first + n] = reads[:, :n] | moved
        found[:, at] = (block & alive[layer][..., None]).reshape(n_spans, -1)
        if wiring.has_mlps:
            at = places.mlp_edges(layer)
            edges = kept[:, at] & reached[:, : at.stop - at.start]
            reached[:, places.mlp(layer)] = edges.any(1)
            found[:, at] = edges & needed[:, [places.mlp(layer)]]
    found[:, places.logits_edges] = kept[:, places.logits_edges] & reached
    return found


def shared_spans(
    model: Model, split: Split, circuits: Sequence[Circuit | PositionalCircuit]
) -> TokenSpans | None:
    """The spans that circuits share; None for circuits without positions.

    Raises:
        ShapeError: circuits with and without positions, or of other spans.
    """
    ways = {
        (one.spans, str(one.positions)) if isinstance(one, PositionalCircuit) else None for one in circuits
    }
    if len(ways) > 1:
        raise ShapeError(
            "These circuits are not cut into the same spans.",
            got=f"{len(ways)} ways of cutting prompts",
            because="what circuits share is run once, span by span",
            instead="one call for each way",
        )
    first = circuits[0]
    return spans_of(model, split, first) if isinstance(first, PositionalCircuit) else None


def saved_circuit(saved: Mapping[str, Any], **more: Any) -> Circuit | PositionalCircuit:
    """The circuit of either kind that a record holds."""
    kind = PositionalCircuit if saved.get("kind") == PositionalCircuitRecord.kind else Circuit
    return kind.from_json(saved, **more)
