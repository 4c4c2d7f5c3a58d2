"""discover_positional: the strongest placed edges by first-order attribution, position by position."""

from typing import Any

import numpy as np

from mechscope.attribution.edges import attribute_edges
from mechscope.attribution.settings import EdgeSettings
from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import split_to_search
from mechscope.circuits.positional import ELSEWHERE, PositionalCircuit
from mechscope.models.model import Model
from mechscope.vocabulary.errors import ShapeError


def discover_positional(
    model: Model,
    behavior: Behavior | Split,
    *,
    positions: Any,
    n_edges: int,
    method: str = "eap-ig",
    settings: EdgeSettings | None = None,
) -> PositionalCircuit:
    """Find the placed edges that carry a behavior, on its train split.

    Args:
        model: An open model.
        behavior: Prompt pairs; of a behavior the train split is looked at and no other.
        positions: "each" or "from-end" (prompts of one length, or counted from the end), or a mapping from names to
            positions. Tokens in none of them keep no edge.
        n_edges: How many placed edges at most; what is not on a path is pruned.
        method: Of `ms.attribute_edges`.
        settings: Of it.

    Raises:
        ShapeError: positions without names, or prompts that do not share them.

    Cost: that of `ms.attribute_edges`.
    Caveat: first order, as there. What it is worth is another question: `circuit.evaluate(model, held_out)`.
    """
    split = split_to_search(behavior)
    found = attribute_edges(model, split, method=method, positions=positions, settings=settings)
    if found.by_place is None:
        raise ShapeError(
            "A positional circuit needs positions with names.",
            got=f"positions={positions!r}",
            instead='"each", "from-end", or a mapping such as {"subject": [3, 4], "end": -1}',
        )
    # A score is the effect of corrupting the edge; what carries the behavior loses by it.
    scores = -found.by_place.double().cpu().numpy()
    scores = np.concatenate([scores, np.zeros((1, scores.shape[1]))])
    strongest = np.argsort(-np.abs(scores), axis=None, kind="stable")[:n_edges]
    kept = np.zeros(scores.shape, dtype=bool)
    kept.flat[strongest] = True
    return PositionalCircuit(
        wiring=found.wiring,
        spans=(*found.places, ELSEWHERE),
        positions=positions,
        kept=kept & (scores != 0),
        scores=scores,
        settings=dict(found.settings) | {"split": split.name, "n_edges": n_edges},
        model=found.model,
        data_sha256=split.data_hash,
    ).connected()
