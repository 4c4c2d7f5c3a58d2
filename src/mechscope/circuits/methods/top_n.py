"""The strongest edges by a first-order score (EAP and its integrals), or by really patching each edge.

Selection is plain (the n strongest) or greedy from the logits (the strongest edge into what is already in, as EAP-IG
does). A verification pass patches the top edges and those that no gradient reaches, and puts what was measured in
place of what was predicted.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mechscope.attribution.edges import attribute_edges
from mechscope.attribution.settings import EdgeSettings
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit, all_edges, connected_edges, edge_index
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.registry import discovery
from mechscope.circuits.single_edges import metric_without_each
from mechscope.models.model import Model
from mechscope.vocabulary.edges import Node, Wiring
from mechscope.vocabulary.errors import ShapeError


@dataclass(frozen=True, kw_only=True)
class TopN:
    """Settings of scores with a cut.

    Args:
        n_edges: How many edges at most; pruning to connected may leave fewer.
        selection: "top" or "greedy".
        by: "magnitude", or "signed": edges that raise the metric only.
        verify: How many of the strongest edges are really patched, those without a gradient besides; 0 for none.
        connected: Keep only edges on a path from the embedding to the logits.
        attribution: Steps, their rule, what is held.
    """

    n_edges: int
    selection: Literal["top", "greedy"] = "top"
    by: Literal["magnitude", "signed"] = "magnitude"
    verify: int = 0
    connected: bool = True
    attribution: EdgeSettings = field(default_factory=EdgeSettings)

    def __post_init__(self) -> None:
        refuse_no_edges(self.n_edges)
        if (
            self.selection not in ("top", "greedy")
            or self.by not in ("magnitude", "signed")
            or self.verify < 0
        ):
            raise ShapeError(
                "Edges can't be chosen so.",
                got=f"selection={self.selection!r}, by={self.by!r}, verify={self.verify}",
                instead='selection "top" or "greedy", by "magnitude" or "signed", verify 0 or more',
            )


def refuse_no_edges(n_edges: int | None) -> None:
    """Refuse to look for a circuit without edges.

    Raises:
        ShapeError
    """
    if n_edges is None or n_edges < 1:
        raise ShapeError(
            "A circuit has at least one edge.",
            got=f"n_edges={n_edges}",
            because="without an edge it is the run that removed edges' values come from",
            instead="n_edges=50",
        )


def _by_attribution(method: str) -> Callable[[Model, Split, TopN], Circuit]:
    def find(model: Model, split: Split, settings: TopN) -> Circuit:
        scored = attribute_edges(model, split, method=method, settings=settings.attribution)
        importance = scored.importance.detach().double().cpu().numpy().copy()
        dead = scored.has_no_gradient.cpu().numpy().astype(bool)
        numbers: dict[str, Any] = {"n_without_gradient": int(dead.sum())}
        if settings.verify:
            top = np.argsort(-np.abs(importance), kind="stable")[: settings.verify]
            chosen = np.union1d(top, np.flatnonzero(dead))
            importance[chosen] = patched_importance(model, split, chosen)
            numbers["n_verified"] = len(chosen)
        stated = {"method": method, "attribution": dict(scored.settings)}
        return cut(model, split, importance=importance, settings=settings, stated=stated, numbers=numbers)

    find.__doc__ = f"The strongest edges by {method}."
    return find


for _name in ("eap", "eap-ig", "eap-ig-activations", "eap-clean-corrupted"):
    discovery(_name, TopN)(_by_attribution(_name))


@discovery("edge-patching", TopN)
def find_by_patching(model: Model, split: Split, settings: TopN) -> Circuit:
    """The edges whose removal alone changes the metric most, each really removed."""
    every = np.arange(Circuit.whole(model).wiring.n_edges)
    importance = patched_importance(model, split, every)
    return cut(
        model,
        split,
        importance=importance,
        settings=settings,
        stated={"method": "edge-patching"},
        numbers={"n_verified": len(every)},
    )


def patched_importance(
    model: Model, split: Split, edges: np.ndarray, *, conventions: Conventions | None = None
) -> np.ndarray:
    """How much the mean metric falls when each of some edges alone is removed, [edge].

    Cost: one forward for each edge, from its reader on; many in a batch.
    """
    runs = CircuitRuns(model, split, conventions=conventions or Conventions())
    whole, without = metric_without_each(runs, runs.runs.every, edges=edges)
    return whole - without


def cut(
    model: Model,
    split: Split,
    *,
    importance: np.ndarray,
    settings: TopN,
    stated: dict[str, Any],
    numbers: dict[str, Any],
) -> Circuit:
    """The circuit of the strongest edges."""
    wiring = Circuit.whole(model).wiring
    strength = np.abs(importance) if settings.by == "magnitude" else importance
    kept = chosen_edges(wiring, strength, settings.n_edges, settings.selection)
    kept = connected_edges(wiring, kept) if settings.connected else kept
    stated |= {"n_edges": settings.n_edges, "selection": settings.selection, "by": settings.by}
    stated |= {"verify": settings.verify, "split": split.name, "scores": "importance: what the edge adds"}
    return Circuit(
        wiring=wiring,
        kept=kept,
        scores=importance,
        settings=stated | Conventions().to_json(),
        numbers=numbers,
        model=model.fingerprint,
        data_sha256=split.data_hash,
    )


def chosen_edges(wiring: Wiring, strength: np.ndarray, n: int, selection: str) -> np.ndarray:
    """The n strongest edges, plainly or greedily from the logits, [edge] truth values. Only positive strengths."""
    kept = np.zeros(len(strength), dtype=bool)
    if selection == "top":
        order = np.argsort(-strength, kind="stable")[:n]
        kept[order[strength[order] > 0]] = True
        return kept
    every, index = all_edges(wiring), edge_index(wiring)
    into: dict[tuple[Node, str], list[int]] = {}
    for edge, place in index.items():
        into.setdefault((edge.target, edge.input), []).append(place)
    heap: list[tuple[float, int]] = []
    seen: set[tuple[Node, str]] = set()

    def open_node(node: Node) -> None:
        for reader in wiring.inputs_of(node):
            if reader not in seen:
                seen.add(reader)
                for place in into.get(reader, []):
                    heapq.heappush(heap, (-float(strength[place]), place))

    open_node(Node(kind="logits"))
    while heap and int(kept.sum()) < n:
        size, place = heapq.heappop(heap)
        if size >= 0:
            break
        kept[place] = True
        open_node(every[place].source)
    return kept
