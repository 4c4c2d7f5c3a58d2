"""What front ends' JSON of attribution graphs must hold, the names of its kinds, and its pairing of two numbers.

Source: the schema that docs/methods/attribution_graphs.md quotes.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mechscope.vocabulary.errors import BadFile, NotSerializable

LARGEST_EXACT = 2**53
FEATURE_TYPES = {
    "latent": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "token": "embedding",
    "logit": "logit",
}
KIND_OF_TYPE = {name: kind for kind, name in FEATURE_TYPES.items()}
_REQUIRED = {
    "": ("metadata", "qParams", "nodes", "links"),
    "metadata": ("slug", "scan", "prompt", "prompt_tokens"),
    "node": ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"),
    "link": ("source", "target", "weight"),
}


def refuse_malformed(body: Any) -> None:
    """Refuse JSON that the front ends' schema forbids; all problems at once.

    Raises:
        BadFile
    """
    problems = _missing(body, "", "the file")
    if not problems:
        problems += _missing(body["metadata"], "metadata", "metadata")
        problems += [p for item in body["nodes"] for p in _node_problems(item)]
        problems += [p for item in body["links"] for p in _missing(item, "link", "a link")]
    if not problems:
        ids = [item["node_id"] for item in body["nodes"]]
        if twice := sorted(name for name, count in Counter(ids).items() if count > 1):
            problems.append(f"node ids that occur twice: {twice[:3]}")
        known = set(ids)
        loose = [k["source"] for k in body["links"] if not {k["source"], k["target"]} <= known]
        problems += [f"{len(loose)} links to nodes that are not there"] if loose else []
        bad = [k for k in body["links"] if not _is_number(k["weight"])]
        problems += [f"{len(bad)} links whose weight is no finite number"] if bad else []
    if problems:
        raise BadFile(
            "This is not an attribution graph as front ends read it.",
            got=f"{len(problems)} problems",
            because="; ".join(dict.fromkeys(problems[:6])),
            instead="JSON of circuit-tracer, Neuronpedia, or graphs.save_graph_json",
        )


def cantor_pair(layer: int, number: int) -> int:
    """Layer and number of a latent as one number, the format's `feature`.

    Raises:
        NotSerializable: beyond 2**53 front ends, which compute in doubles, would decode another latent.
    """
    paired = (layer + number) * (layer + number + 1) // 2 + number
    if paired >= LARGEST_EXACT:
        raise NotSerializable(
            f"Latent {number} has too large a number for this format.",
            got=f"layer {layer}, latent {number}",
            because="the format pairs layer and number in a double, which is exact below 2**53 only",
            instead="graph.save, which has no such limit",
        )
    return paired


def cantor_unpair(paired: int) -> tuple[int, int]:
    """Layer and number of a `feature`."""
    diagonal = (math.isqrt(8 * paired + 1) - 1) // 2
    number = paired - diagonal * (diagonal + 1) // 2
    return diagonal - number, number


def _missing(item: Any, what: str, name: str) -> list[str]:
    if not isinstance(item, Mapping):
        return [f"{name} is no object"]
    absent = [field for field in _REQUIRED[what] if field not in item]
    return [f"{name} lacks {', '.join(absent)}"] if absent else []


def _node_problems(item: Any) -> list[str]:
    problems = _missing(item, "node", "a node")
    if problems:
        return problems
    if not isinstance(item["node_id"], str) or not isinstance(item["jsNodeId"], str):
        problems.append("a node whose id is no text")
    if item["feature"] is not None and not isinstance(item["feature"], int):
        problems.append("a node whose feature is no whole number")
    if not isinstance(item["layer"], str | int) or not isinstance(item["ctx_idx"], int):
        problems.append("a node whose layer or position is no number")
    if item["feature_type"] not in KIND_OF_TYPE:
        problems.append(f'nodes of the type "{item["feature_type"]}"')
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
