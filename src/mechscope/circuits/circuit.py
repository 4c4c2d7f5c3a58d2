"""Circuit: some edges of a model, with scores if a method gave them, as a frozen value.

Nodes are those that an edge touches. Set operations keep to circuits of one wiring; scores are the left one's.
Refuses circuits of another model when they are run, and edges that the model does not have when they are named.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mechscope.engine.edge_runs.places import Places
from mechscope.figures.circuit_graph import CircuitGraph, GraphEdge
from mechscope.models.model import Model
from mechscope.models.wiring import wiring_of
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.edges import Edge, Node, Wiring
from mechscope.vocabulary.errors import BadFile, NotEnoughEvidence, UnknownEdge

if TYPE_CHECKING:
    import networkx

    from mechscope.circuits.evaluation import CircuitEvaluation

_WIRING = ("n_layers", "n_heads", "n_kv_heads", "is_parallel", "has_mlps")


class CircuitRecord(Record):
    """A saved `Circuit`."""

    kind: ClassVar[str] = "circuit"


@dataclass(frozen=True, kw_only=True, eq=False)
class Circuit:
    """Some edges of a model.

    Args:
        wiring: Of the model.
        kept: Which edges, [edge] truth values in the order of `Wiring.edges`.
        scores: What the method gave each edge of the model, [edge], or None. Their meaning is in `settings`.
        settings: Method and conventions, JSON.
        numbers: What the method says of its work (thresholds, near ties, evaluations), JSON.
        model: Which weights it was found in; None for a circuit that somebody wrote down.
        data_sha256: Hash of the prompts that it was found on.
    """

    wiring: Wiring
    kept: np.ndarray
    scores: np.ndarray | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    def __post_init__(self) -> None:
        for name in ("kept", "scores"):
            array = getattr(self, name)
            if array is None:
                continue
            array = np.array(array, dtype=bool if name == "kept" else np.float64)
            if array.shape != (self.wiring.n_edges,):
                raise UnknownEdge(
                    f"{name} are not those of this wiring.",
                    got=f"shape {list(array.shape)}",
                    because=f"the wiring has {self.wiring.n_edges} edges",
                    instead="one entry an edge, in the order of Wiring.edges()",
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def of(cls, model: Model | Wiring, edges: Iterable[str | Edge], /, **more: Any) -> "Circuit":
        """The circuit of some edges by name.

        Raises:
            UnknownEdge: a name that is none, or an edge that the model does not have.
        """
        wiring = model if isinstance(model, Wiring) else wiring_of(model)
        kept = np.zeros(wiring.n_edges, dtype=bool)
        index = edge_index(wiring)
        for name in edges:
            edge = Edge.parse(name)
            if edge not in index:
                wiring.refuse_unless_it_has(edge)
                raise UnknownEdge(
                    f'"{edge}" is a part of an edge.',
                    got=str(edge),
                    because="circuits keep whole edges: all units and positions of a node",
                    instead=str(Edge(source=edge.source.whole, target=edge.target.whole, input=edge.input)),
                )
            kept[index[edge]] = True
        return cls(wiring=wiring, kept=kept, **more)

    @classmethod
    def whole(cls, model: Model | Wiring) -> "Circuit":
        """All edges."""
        wiring = model if isinstance(model, Wiring) else wiring_of(model)
        return cls(wiring=wiring, kept=np.ones(wiring.n_edges, dtype=bool))

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Its edges, in the order of the wiring."""
        every = all_edges(self.wiring)
        return tuple(every[i] for i in np.flatnonzero(self.kept))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes that an edge touches, in the order in which they are computed."""
        touched = {node for edge in self.edges for node in (edge.source, edge.target)}
        order = {node: i for i, node in enumerate(self.wiring.nodes)}
        return tuple(sorted(touched, key=lambda node: (order.get(node, 0), node.layer or 0, str(node))))

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of its query heads that write."""
        found = {edge.source for edge in self.edges if edge.source.kind == "head"}
        return tuple(sorted((node.layer or 0, node.head or 0) for node in found))

    @property
    def mlps(self) -> tuple[int, ...]:
        """Layers of its MLPs that write."""
        return tuple(sorted({e.source.layer or 0 for e in self.edges if e.source.kind == "mlp"}))

    @property
    def name(self) -> str:
        """Short text for reports."""
        method = self.settings.get("method", "circuit")
        return f"{method}: {len(self)} of {self.wiring.n_edges} edges"

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __contains__(self, edge: object) -> bool:
        index = edge_index(self.wiring).get(Edge.parse(edge)) if isinstance(edge, str | Edge) else None
        return index is not None and bool(self.kept[index])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Circuit)
            and self.wiring == other.wiring
            and bool(np.array_equal(self.kept, other.kept))
        )

    def __hash__(self) -> int:
        return hash((self.wiring, self.kept.tobytes()))

    def __or__(self, other: "Circuit") -> "Circuit":
        """Edges of either."""
        return self._with(self.kept | self._same(other).kept)

    def __and__(self, other: "Circuit") -> "Circuit":
        """Edges of both."""
        return self._with(self.kept & self._same(other).kept)

    def __sub__(self, other: "Circuit") -> "Circuit":
        """Edges of this one that the other has not."""
        return self._with(self.kept & ~self._same(other).kept)

    def __invert__(self) -> "Circuit":
        """All other edges of the model."""
        return self._with(~self.kept)

    def jaccard(self, other: "Circuit") -> float:
        """Edges of both over edges of either; 1 for two empty circuits."""
        either = int((self.kept | self._same(other).kept).sum())
        return int((self.kept & other.kept).sum()) / either if either else 1.0

    def without(self, nodes: Iterable[str | Node]) -> "Circuit":
        """Less all edges out of some nodes."""
        return self._with(self.kept & ~edges_out_of(self.wiring, [Node.parse(node) for node in nodes]))

    def connected(self) -> "Circuit":
        """Only edges on a path from the embedding to the logits."""
        return self._with(connected_edges(self.wiring, self.kept))

    def top(self, n: int | None = None) -> list[tuple[Edge, float]]:
        """Its edges by magnitude of score, largest first; zeros where there are no scores."""
        scores = np.zeros(self.wiring.n_edges) if self.scores is None else self.scores
        every = all_edges(self.wiring)
        at = np.flatnonzero(self.kept)
        order = at[np.argsort(-np.abs(scores[at]), kind="stable")]
        return [(every[i], float(scores[i])) for i in order[:n]]

    def refuse_unless_of(self, model: Model) -> None:
        """Refuse to be run in another model, or empty.

        Raises:
            UnknownEdge: the model has another wiring, or other weights than the circuit was found in.
            NotEnoughEvidence: there is no edge.
        """
        wiring = wiring_of(model)
        if wiring != self.wiring:
            raise UnknownEdge(
                "This circuit is of a model of another shape.",
                got=str(self.wiring),
                because=f"this model is {wiring}",
                instead="the model that it was found in",
            )
        if self.model is not None and self.model.weights_sha256 != model.fingerprint.weights_sha256:
            raise UnknownEdge(
                "This circuit was found in another model.",
                got=f"weights {self.model.weights_sha256[:12]} ({self.model.name})",
                because=f"this model's weights are {model.fingerprint.weights_sha256[:12]}",
                instead="dataclasses.replace(circuit, model=None), to try it on purpose",
            )
        if not self.kept.any():
            raise NotEnoughEvidence(
                "This circuit is empty.",
                got=self.name,
                because="without an edge it is the run that removed edges' values come from",
                instead="a larger n_edges or a smaller threshold",
            )

    def evaluate(self, model: Model, split: Any, **settings: Any) -> "CircuitEvaluation":
        """Faithfulness, completeness and minimality on a split; see `ms.evaluate_circuits`."""
        from mechscope.circuits.evaluation import evaluate_circuits  # it builds on this class

        return evaluate_circuits(model, [self], split, **settings)[0]

    def to_networkx(self) -> "networkx.MultiDiGraph":
        """A networkx graph: nodes by name, edges with `input` and `score`."""
        import networkx

        graph = networkx.MultiDiGraph()
        graph.add_nodes_from((str(node), {"kind": node.kind, "layer": node.layer}) for node in self.nodes)
        for edge, score in self.top():
            graph.add_edge(str(edge.source), str(edge.target), key=edge.input, input=edge.input, score=score)
        return graph

    def figure(self, *, title: str = "", at_most: int = 120) -> CircuitGraph:
        """A drawing for a report: layers upwards, the strongest edges if there are more than `at_most`."""
        shown = self.top(at_most)
        edges = [
            GraphEdge(source=str(e.source), target=str(e.target), input=e.input, score=score)
            for e, score in shown
        ]
        levels = {str(node): _level(node, self.wiring) for node in self.nodes}
        left_out = len(self) - len(shown)
        caption = f"The {len(shown)} strongest edges; {left_out} are not drawn." if left_out else ""
        return CircuitGraph(edges=edges, levels=levels, title=title or self.name, caption=caption)

    def plot(self) -> CircuitGraph:
        """The drawing, which shows itself in a notebook."""
        return self.figure()

    def _repr_html_(self) -> str:
        return self.figure()._repr_html_()

    def __repr__(self) -> str:
        shown = ", ".join(str(edge) for edge, _ in self.top(6))
        return f"<Circuit {self.name}: {shown}{', ...' if len(self) > 6 else ''}>"

    def to_json(self) -> dict[str, Any]:
        """What identifies it: wiring and edges."""
        wiring = {name: getattr(self.wiring, name) for name in _WIRING}
        return {"kind": "circuit", "wiring": wiring, "edges": [str(edge) for edge in self.edges]}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], **more: Any) -> "Circuit":
        """Inverse of `to_json`.

        Raises:
            BadFile: not what `to_json` writes.
        """
        try:
            wiring = Wiring(**{name: saved["wiring"][name] for name in _WIRING})
            edges = list(saved["edges"])
        except (KeyError, TypeError) as error:
            raise BadFile("This is not a circuit.", got=str(saved)[:80], because=str(error)) from error
        return cls.of(wiring, edges, **more)

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, scores as safetensors beside it."""
        CircuitRecord(
            settings=dict(self.settings),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={"circuit": self.to_json(), "numbers": dict(self.numbers)},
            arrays={} if self.scores is None else {"scores": self.scores},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read what `save` wrote."""
        record = CircuitRecord.load(path)
        return cls.from_json(
            record.numbers["circuit"],
            scores=record.arrays.get("scores"),
            settings=record.settings,
            numbers=record.numbers["numbers"],
            model=record.model,
            data_sha256=record.data_sha256,
        )

    def _same(self, other: "Circuit") -> "Circuit":
        if other.wiring != self.wiring:
            raise UnknownEdge(
                "Two circuits of models of different shapes have no edges in common.",
                got=f"{self.wiring} and {other.wiring}",
                instead="circuits of one model",
            )
        return other

    def _with(self, kept: np.ndarray) -> "Circuit":
        return replace(self, kept=kept)


_EDGES: dict[Wiring, tuple[Edge, ...]] = {}
_INDICES: dict[Wiring, dict[Edge, int]] = {}
_SOURCES: dict[Wiring, np.ndarray] = {}


def all_edges(wiring: Wiring) -> tuple[Edge, ...]:
    """Every edge of a wiring, made once."""
    if wiring not in _EDGES:
        _EDGES[wiring] = tuple(wiring.edges())
    return _EDGES[wiring]


def edge_index(wiring: Wiring) -> dict[Edge, int]:
    """The place of each edge in a wiring's order."""
    if wiring not in _INDICES:
        _INDICES[wiring] = {edge: i for i, edge in enumerate(all_edges(wiring))}
    return _INDICES[wiring]


def edges_out_of(wiring: Wiring, nodes: Iterable[Node]) -> np.ndarray:
    """Every edge that leaves some nodes, [edge] truth values."""
    if wiring not in _SOURCES:
        counts = [wiring.n_sources(target) for target, _ in wiring.readers]
        _SOURCES[wiring] = np.concatenate([np.arange(n) for n in counts])
    index = {node: i for i, node in enumerate(wiring.writers)}
    return np.isin(_SOURCES[wiring], [index[node] for node in nodes if node in index])


def connected_edges(wiring: Wiring, kept: np.ndarray) -> np.ndarray:
    """Those of some edges that lie on a path from the embedding to the logits, [edge] truth values."""
    places = Places(wiring, (False,) * wiring.n_layers)
    needed = places.needed(kept)
    reached = np.zeros(places.n_writers, dtype=bool)
    reached[0] = True
    found = np.zeros(wiring.n_edges, dtype=bool)
    for layer in range(wiring.n_layers):
        at, first = places.attention_edges(layer), places.head(layer)
        block = kept[at].reshape(places.n_readers, -1) & reached[: places.n_sources(layer)]
        heads = slice(first, first + wiring.n_heads)
        reached[heads] = places.heads_read_by(np.asarray(block.any(1)))
        block &= places.readers_of(needed[heads])[:, None]
        found[at] = block.ravel()
        if wiring.has_mlps:
            at = places.mlp_edges(layer)
            edges = kept[at] & reached[: at.stop - at.start]
            reached[places.mlp(layer)] = edges.any()
            found[at] = edges & needed[places.mlp(layer)]
    found[places.logits_edges] = kept[places.logits_edges] & reached
    return found


def _level(node: Node, wiring: Wiring) -> float:
    """Height in a drawing: the embedding at 0, attention and MLP of each layer above, the logits on top."""
    if node.kind == "embed":
        return 0.0
    if node.kind == "logits":
        return 2.0 * wiring.n_layers + 1
    return 2.0 * (node.layer or 0) + (2.0 if node.kind == "mlp" else 1.0)
