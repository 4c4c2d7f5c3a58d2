"""Exchange: attribution graphs in the JSON of circuit-tracer, Neuronpedia and Anthropic's front ends, both ways.

Written by the schema that docs/methods/attribution_graphs.md quotes, checked before it is written. Where front ends
misread what peers write, this writes what they read rightly: error nodes get ids that no latent can have, a graph of
one layer is drawn from layer 1, and numbers too large for exact pairing are refused.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechscope.graphs.adjacency import Adjacency, RowBlock
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.nodes import KINDS, Node, Nodes
from mechscope.graphs.supernodes import Supernode
from mechscope.graphs.targets import Target
from mechscope.records.files import open_json, save_json
from mechscope.vocabulary.errors import BadFile, NotSerializable

LARGEST_EXACT = 2**53
FEATURE_TYPES = {
    "latent": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "token": "embedding",
    "logit": "logit",
}
_KINDS = {name: kind for kind, name in FEATURE_TYPES.items()}
_REQUIRED = {
    "": ("metadata", "qParams", "nodes", "links"),
    "metadata": ("slug", "scan", "prompt", "prompt_tokens"),
    "node": ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"),
    "link": ("source", "target", "weight"),
}


def graph_to_json(
    graph: AttributionGraph,
    *,
    slug: str = "graph",
    scan: str = "",
    labels: Mapping[str, str] | None = None,
    node_threshold: float = 0.8,
) -> dict[str, Any]:
    """A graph as the front ends read it.

    Args:
        graph: Best pruned: front ends draw what they are given.
        slug: The graph's name in the front end.
        scan: The model's id there ("gemma-2-2b"); by default the model's own name.
        labels: What latents are taken to mean, by node name.
        node_threshold: Where the front end's slider starts.

    Raises:
        NotSerializable: a latent's number too large for the format's pairing of layer and number.
    """
    nodes = graph.nodes
    ids = _ids(graph)
    shift = _shift(graph)
    name = graph.model.name if graph.model else ""
    metadata = {
        "slug": slug,
        "scan": scan or name,
        "prompt": "".join(nodes.tokens),
        "prompt_tokens": list(nodes.tokens),
        "node_threshold": node_threshold,
        "schema_version": 1,
        "info": {"generator": {"name": "mechscope", "version": _version()}},
        "mechscope": {
            "model": graph.model.model_dump() if graph.model else None,
            "settings": {k: v for k, v in graph.settings.items() if k != "cumulative"},
            "site_names": list(nodes.site_names),
            "token_ids": list(nodes.token_ids),
            "n_active": graph.n_active,
            "layer_shift": shift,
            "data_sha256": graph.data_sha256,
        },
    }
    pruned = graph.settings.get("pruned")
    if pruned:
        metadata["pruning_settings"] = {
            "node_threshold": pruned["node_share"],
            "edge_threshold": pruned["edge_share"],
        }
    links = [
        {"source": ids[int(source)], "target": ids[int(target)], "weight": float(value)}
        for block in graph.adjacency.blocks
        for target, row in zip(block.targets, block.values, strict=True)
        for source, value in zip(block.sources, row, strict=True)
        if value != 0
    ]
    linked = {link["source"] for link in links} | {link["target"] for link in links}
    written = [
        _node_json(graph, nodes[i], ids[i], labels or {}, shift)
        for i in range(len(graph))
        if ids[i] in linked or nodes[i].kind != "error"
    ]
    supernodes = [[group.label, *(ids[i] for i in group.members)] for group in graph.supernodes]
    params = {"pinnedIds": [], "supernodes": supernodes, "linkType": "both", "clickedId": "", "sg_pos": ""}
    body = {"metadata": metadata, "qParams": params, "nodes": written, "links": links}
    refuse_malformed(body)
    return body


def save_graph_json(graph: AttributionGraph, path: str | Path, **options: Any) -> None:
    """Write `graph_to_json` to a file, atomically."""
    save_json(Path(path), graph_to_json(graph, **options))


def open_graph_json(path: str | Path) -> AttributionGraph:
    """A graph from a front end's JSON, ours or another tool's.

    What the format does not hold (biases, what was left out) is zero; a file of ours also knows its model.

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
    totals = np.nan_to_num(nodes.activations)
    return AttributionGraph(
        nodes=nodes,
        adjacency=_adjacency(body["links"], place, nodes),
        weights=weights,
        totals=totals,
        biases=np.zeros(len(nodes)),
        remainders=np.zeros(len(nodes)),
        n_active=int(own.get("n_active", len(nodes.of("latent")))),
        targets=tuple(
            Target(label=item["label"], token=item["token"], foil=None, weight=item["weight"])
            for item in logits
        ),
        settings=dict(own.get("settings") or {}) | {"imported": body["metadata"]["slug"]},
        model=_fingerprint(own.get("model")),
        data_sha256=own.get("data_sha256"),
        supernodes=tuple(
            Supernode(label, tuple(place[i] for i in members if i in place)) for label, *members in groups
        ),
    )


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
        if len(set(ids)) < len(ids):
            problems.append(f"node ids that occur twice: {sorted({i for i in ids if ids.count(i) > 1})[:3]}")
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
            instead="JSON of circuit-tracer, Neuronpedia, or graphs.exchange.save_graph_json",
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


def _ids(graph: AttributionGraph) -> list[str]:
    """Node ids as front ends build them; errors in a form that no latent's id has."""
    nodes, found, shift = graph.nodes, [], _shift(graph)
    for index in range(len(nodes)):
        node = nodes[index]
        if node.kind == "latent":
            found.append(f"{node.layer + shift}_{node.number}_{node.position}")
        elif node.kind == "error":
            site = nodes.site_names[nodes.sites[index]].replace(".", "-").replace("_", "-")
            found.append(f"{node.layer + shift}_error_{site}_{node.position}")
        elif node.kind == "token":
            found.append(f"E_{node.number}_{node.position}")
        else:
            target = graph.targets[node.number]
            token = target.token if target.foil is None else _virtual(graph, node.number)
            found.append(f"{node.layer + shift + 1}_{token}_{node.position}")
    twice = {i for i in found if found.count(i) > 1} if len(set(found)) < len(found) else set()
    # Several dictionaries may read one layer at different sites; a suffix keeps their latents apart.
    return [f"{name}.{nodes.sites[i]}" if name in twice else name for i, name in enumerate(found)]


def _virtual(graph: AttributionGraph, number: int) -> int:
    """Contrasts get ids behind every token in use, as front ends ask of targets that are no token."""
    largest = max([*graph.nodes.token_ids, *(target.token for target in graph.targets)])
    return largest + 1 + number


def _shift(graph: AttributionGraph) -> int:
    """1 for a graph whose latents and errors all stand at layer 0: a front end takes that for no layer at all."""
    inner = np.isin(graph.nodes.kinds, [KINDS.index("latent"), KINDS.index("error")])
    return int(not inner.any() or graph.nodes.layers[inner].max() == 0)


def _node_json(
    graph: AttributionGraph, node: Node, name: str, labels: Mapping[str, str], shift: int
) -> dict[str, Any]:
    layer = str(node.layer + shift)
    clerp, feature, js = labels.get(node.name, ""), -1, f"{layer}_{node.number}-0"
    more: dict[str, Any] = {}
    if node.kind == "latent":
        feature = cantor_pair(node.layer + shift, node.number)
        more["activation"] = node.activation
    elif node.kind == "error":
        clerp, js = clerp or f"Err: {node.text}", f"{layer}_error-{node.position}"
    elif node.kind == "token":
        layer, feature, js = "E", node.position, f"E_{node.number}-{node.position}"
        clerp = clerp or f'Emb: "{node.text}"'
    else:
        target = graph.targets[node.number]
        feature = target.token if target.foil is None else _virtual(graph, node.number)
        layer = str(node.layer + shift + 1)
        # Front ends read the token between the first double quotes and the number behind "(p=".
        clerp = f'Output "{target.label.replace(chr(34), chr(39))}" (p={target.weight:.3f})'
        js = f"{layer}_{feature}-0"
        more = {"token_prob": target.weight, "is_target_logit": True}
    return {
        "node_id": name,
        "feature": int(feature),
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": FEATURE_TYPES[node.kind],
        "jsNodeId": js,
        "clerp": clerp,
        "influence": float(graph.cumulative[node.index]),
        "reverse_ctx_idx": 0,
        "run_idx": 0,
        **more,
    }


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
    if item["feature_type"] not in _KINDS:
        problems.append(f'nodes of the type "{item["feature_type"]}"')
    return problems


def _parsed(item: Mapping[str, Any], metadata: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    kind = _KINDS[item["feature_type"]]
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


def _adjacency(links: Any, place: Mapping[str, int], nodes: Nodes) -> Adjacency:
    rows: dict[int, dict[int, float]] = {}
    for link in links:
        rows.setdefault(place[link["target"]], {})[place[link["source"]]] = float(link["weight"])
    # Last targets first: logits, then latents from the last site down.
    order = sorted(rows, key=lambda i: (-int(nodes.kinds[i] == KINDS.index("logit")), -int(nodes.layers[i])))
    blocks = []
    for target in order:
        sources = np.array(sorted(rows[target]), dtype=np.int64)
        values = np.array([[rows[target][int(s)] for s in sources]])
        blocks.append(RowBlock(np.array([target]), sources, values))
    return Adjacency(len(nodes), blocks)


def _n_layers(parsed: list[dict[str, Any]]) -> int:
    return 1 + max([item["layer"] for item in parsed if item["kind"] in ("latent", "error")], default=0)


def _fingerprint(saved: Any) -> Any:
    from mechscope.records.fingerprint import ModelFingerprint

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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _version() -> str:
    from mechscope import __version__

    return __version__
