"""A graph read from front ends' JSON, ours or another tool's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechscope.graphs.adjacency import Adjacency
from mechscope.graphs.exchange.schema import KIND_OF_TYPE, cantor_unpair, refuse_malformed
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.nodes import KINDS, Nodes
from mechscope.graphs.row_blocks import RowBlock
from mechscope.graphs.supernodes import Supernode
from mechscope.graphs.targets import Target
from mechscope.records.files import open_json
from mechscope.records.fingerprint import ModelFingerprint


def open_graph_json(path: str | Path) -> AttributionGraph:
    """A graph from a front end's JSON, ours or another tool's.

    A file of ours comes back whole. Another tool's does not say what nodes read in all, of biases, and of what was
    left out: that is NaN, and `intervene` refuses such a graph.

    Raises:
        BadFile: not such a graph; says which field is missing or wrong.
    """
    body: Any = open_json(Path(path))
    refuse_malformed(body)
    return graph_from_json(body)


def graph_from_json(body: Mapping[str, Any]) -> AttributionGraph:
    """Inverse of `graph_to_json`, and a reader of other tools' graphs. Nodes of unknown kinds are refused.

    Raises:
        BadFile
    """
    own = body["metadata"].get("mechscope") or {}
    parsed = [_parsed(item, body["metadata"], own) for item in body["nodes"]]
    for place_in_file, item in enumerate(parsed):
        item["order"] = (*item["order"], place_in_file)
    order = sorted(range(len(parsed)), key=lambda i: parsed[i]["order"])
    parsed = [parsed[i] for i in order]
    place = {item["id"]: i for i, item in enumerate(parsed)}
    tokens = tuple(body["metadata"]["prompt_tokens"])
    logits = [item for item in parsed if item["kind"] == "logit"]
    sites = tuple(own.get("site_names") or [f"mlp_in.{i}" for i in range(_n_layers(parsed))])
    token_ids = own.get("token_ids") or [
        next((p["number"] for p in parsed if p["kind"] == "token" and p["position"] == i), 0)
        for i in range(len(tokens))
    ]
    for number, item in enumerate(logits):
        item["number"] = number
    nodes = Nodes(
        kinds=np.array([KINDS.index(item["kind"]) for item in parsed], dtype=np.int64),
        layers=np.array([item["layer"] for item in parsed], dtype=np.int64),
        positions=np.array([item["position"] for item in parsed], dtype=np.int64),
        numbers=np.array([item["number"] for item in parsed], dtype=np.int64),
        activations=np.array([item["activation"] for item in parsed], dtype=np.float64),
        sites=np.array([item["site"] for item in parsed], dtype=np.int64),
        site_names=sites,
        tokens=tokens,
        token_ids=tuple(int(i) for i in token_ids),
        logits=tuple(item["label"] for item in logits),
    )
    groups = body["qParams"].get("supernodes") or []
    weights = np.array([item["weight"] for item in parsed])
    totals, biases, remainders = np.array([_reads(item, own) for item in parsed]).reshape(-1, 3).T
    return AttributionGraph(
        nodes=nodes,
        adjacency=_adjacency(body["links"], place, nodes=nodes, dropped=own.get("dropped", {})),
        weights=weights,
        totals=totals,
        biases=biases,
        remainders=remainders,
        n_active=int(own.get("n_active", len(nodes.of("latent")))),
        targets=tuple(_target(item, own) for item in logits),
        settings=dict(own.get("settings") or {}) | {"imported": body["metadata"]["slug"]},
        model=_fingerprint(own.get("model")),
        data_sha256=own.get("data_sha256"),
        supernodes=tuple(
            Supernode(label, tuple(place[i] for i in members if i in place)) for label, *members in groups
        ),
    )


def _parsed(item: Mapping[str, Any], metadata: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    kind = KIND_OF_TYPE[item["feature_type"]]
    shift = int(own.get("layer_shift", 0))
    layer = -1 if kind == "token" else int(item["layer"]) - shift - (1 if kind == "logit" and own else 0)
    number, site, weight = -1, -1, 0.0
    if kind == "latent":
        paired = metadata.get("schema_version") == 1 and isinstance(item["feature"], int)
        number = cantor_unpair(item["feature"])[1] if paired else int(item["node_id"].split("_")[1])
        site = layer
    elif kind == "error":
        site = layer
    elif kind == "token":
        number = int(item["node_id"].split("_")[1])
    else:
        weight = float(item.get("token_prob") or _probability(item["clerp"]))
    if own and kind in ("latent", "error"):
        site = _own_site(item, own, kind, layer)
    return {
        "id": item["node_id"],
        "kind": kind,
        "layer": layer,
        "position": int(item["ctx_idx"]),
        "number": number,
        "site": site,
        "activation": float(item["activation"]) if item.get("activation") is not None else float("nan"),
        "weight": weight,
        "token": int(item["feature"] or 0),
        "label": _quoted(item["clerp"]),
        "order": (KINDS.index(kind), site, int(item["ctx_idx"]), number),
    }


def _reads(item: Mapping[str, Any], own: Mapping[str, Any]) -> Sequence[float]:
    """Total, bias and remainder of a node: nothing is read by errors and tokens."""
    unknown = (np.nan,) * 3 if item["kind"] in ("latent", "logit") else (0.0,) * 3
    return own.get("reads", {}).get(item["id"], unknown)


def _target(item: Mapping[str, Any], own: Mapping[str, Any]) -> Target:
    known = own.get("targets", {}).get(item["id"])
    if known is not None:
        return Target(**known)
    return Target(label=item["label"], token=item["token"], foil=None, weight=item["weight"])


def _own_site(item: Mapping[str, Any], own: Mapping[str, Any], kind: str, layer: int) -> int:
    names = own["site_names"]
    if kind == "error":
        wanted = item["node_id"].split("_")[2]
        return next(i for i, name in enumerate(names) if name.replace(".", "-").replace("_", "-") == wanted)
    _, dot, suffix = item["node_id"].partition(".")
    if dot:
        return int(suffix)
    reads = {site for one in own["settings"].get("dictionaries", ()) for site in one["reads"]}
    fitting = [i for i, name in enumerate(names) if name in reads and name.endswith(f".{layer}")]
    return fitting[0] if fitting else -1


def _adjacency(
    links: Any, place: Mapping[str, int], *, nodes: Nodes, dropped: Mapping[str, float]
) -> Adjacency:
    lost = {place[name]: np.array([size]) for name, size in dropped.items() if name in place}
    rows: dict[int, dict[int, float]] = {}
    for link in links:
        rows.setdefault(place[link["target"]], {})[place[link["source"]]] = float(link["weight"])
    # Last targets first: logits, then latents from the last site down.
    order = sorted(rows, key=lambda i: (-int(nodes.kinds[i] == KINDS.index("logit")), -int(nodes.layers[i])))
    blocks = []
    for target in order:
        sources = np.array(sorted(rows[target]), dtype=np.int64)
        values = np.array([[rows[target][int(s)] for s in sources]])
        blocks.append(RowBlock(np.array([target]), sources, values, lost.get(target)))
    return Adjacency(len(nodes), blocks)


def _n_layers(parsed: list[dict[str, Any]]) -> int:
    return 1 + max([item["layer"] for item in parsed if item["kind"] in ("latent", "error")], default=0)


def _fingerprint(saved: Any) -> Any:
    return None if saved is None else ModelFingerprint(**saved)


def _quoted(clerp: str) -> str:
    parts = clerp.split('"')
    return parts[1] if len(parts) > 2 else clerp


def _probability(clerp: str) -> float:
    _, found, rest = clerp.partition("(p=")
    try:
        return float(rest.split(")")[0]) if found else 0.0
    except ValueError:
        return 0.0
