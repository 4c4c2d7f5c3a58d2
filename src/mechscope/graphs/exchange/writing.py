"""A graph written as front ends read it, checked before it is written.

Where front ends misread what peers write, this writes what they read rightly: error nodes get ids that no latent can
have, a graph of one layer is drawn from layer 1, and numbers too large for exact pairing are refused.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mechscope.graphs.exchange.schema import FEATURE_TYPES, cantor_pair, refuse_malformed
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.nodes import KINDS, Node
from mechscope.records.files import save_json
from mechscope.records.version import __version__


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
        scan: The model's id there ("gemma-2-2b"); by default the last part of the model's own name.
        labels: What latents are taken to mean, by node name.
        node_threshold: Where the front end's slider starts.

    Raises:
        NotSerializable: a latent's number too large for the format's pairing of layer and number.
    """
    nodes = graph.nodes
    ids = _ids(graph)
    shift = _shift(graph)
    name = graph.model.name.rsplit("/", 1)[-1] if graph.model else ""
    metadata = {
        "slug": slug,
        "scan": scan or name,
        "transcoder_list": [],
        "prompt": "".join(nodes.tokens),
        "prompt_tokens": list(nodes.tokens),
        "node_threshold": node_threshold,
        "schema_version": 1,
        "info": {"generator": {"name": "mechscope", "version": __version__}},
        "mechscope": {
            "model": graph.model.model_dump() if graph.model else None,
            "settings": {k: v for k, v in graph.settings.items() if k != "cumulative"},
            "site_names": list(nodes.site_names),
            "token_ids": list(nodes.token_ids),
            "n_active": graph.n_active,
            "layer_shift": shift,
            "data_sha256": graph.data_sha256,
            **_what_nodes_read(graph, ids),
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


def _what_nodes_read(graph: AttributionGraph, ids: Sequence[str]) -> dict[str, Any]:
    """What the front ends' fields do not hold, by node id: total, bias and remainder, if known; what is explained."""
    columns = (graph.totals, graph.biases, graph.remainders)
    known = [i for kind in ("latent", "logit") for i in graph.nodes.of(kind) if np.isfinite(graph.totals[i])]
    logits = [ids[i] for i in graph.nodes.of("logit")]
    lost = {
        ids[int(target)]: float(size)
        for block in graph.adjacency.blocks
        if block.dropped is not None
        for target, size in zip(block.targets, block.dropped, strict=True)
    }
    return {
        **({"dropped": lost} if lost else {}),
        "reads": {ids[i]: [float(column[i]) for column in columns] for i in known},
        "targets": {name: asdict(target) for name, target in zip(logits, graph.targets, strict=True)},
    }


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
    count = Counter(found)
    # Several dictionaries may read one layer at different sites; a suffix keeps their latents apart.
    return [f"{name}.{nodes.sites[i]}" if count[name] > 1 else name for i, name in enumerate(found)]


def _virtual(graph: AttributionGraph, number: int) -> int:
    """Contrasts get ids behind the vocabulary, as front ends ask of targets that are no token."""
    in_use = [
        *graph.nodes.token_ids,
        *(t for target in graph.targets for t in (target.token, target.foil or 0)),
    ]
    # A graph that another tool made does not say how large its vocabulary is.
    return int(graph.settings.get("d_vocab", max(in_use) + 1)) + number


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
