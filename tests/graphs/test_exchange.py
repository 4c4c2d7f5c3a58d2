"""The front ends' JSON: valid by its written rules, read back, and without the traps that others fell into."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.exchange import (
    cantor_pair,
    cantor_unpair,
    graph_from_json,
    graph_to_json,
    open_graph_json,
    refuse_malformed,
    save_graph_json,
)
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.intervene import intervene
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import BadFile, InterventionMismatch, NotSerializable
from tiny_models import tiny

KINDS_OF_THE_SCHEMA = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}


@pytest.fixture(scope="module")
def graph() -> AttributionGraph:
    whole = attribution_graph(exact_model("gpt2"), dictionaries("gpt2"), prompt(), targets=[3, (4, 5)])
    first = [int(index) for index in whole.nodes.of("latent")[:2]]
    return whole.with_supernodes({"pair": first}).prune(0.95)


@pytest.fixture(scope="module")
def body(graph: AttributionGraph) -> dict[str, Any]:
    return json.loads(json.dumps(graph_to_json(graph, slug="s", scan="gpt2-small"), allow_nan=False))


def test_every_rule_of_the_schema_holds(body: dict[str, Any]) -> None:
    assert {"metadata", "qParams", "nodes", "links"} <= set(body)
    assert {"slug", "scan", "prompt", "prompt_tokens"} <= set(body["metadata"])
    assert body["metadata"]["schema_version"] == 1
    assert {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"} <= set(body["qParams"])
    ids = [node["node_id"] for node in body["nodes"]]
    assert len(set(ids)) == len(ids)
    for node in body["nodes"]:
        assert {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"} <= set(node)
        assert node["feature_type"] in KINDS_OF_THE_SCHEMA
        assert isinstance(node["feature"], int) and isinstance(node["layer"], str)
        assert 0 <= node["influence"] <= 1 + 1e-9
        assert 0 <= node["ctx_idx"] < len(body["metadata"]["prompt_tokens"])
    for link in body["links"]:
        assert {link["source"], link["target"]} <= set(ids) and np.isfinite(link["weight"])
    assert all(
        set(group[1:]) <= set(ids) and isinstance(group[0], str) for group in body["qParams"]["supernodes"]
    )


def test_latents_are_paired_as_front_ends_unpair_them(body: dict[str, Any]) -> None:
    for node in body["nodes"]:
        if node["feature_type"] == "cross layer transcoder":
            # The front end's own arithmetic, in doubles.
            w = np.floor((np.sqrt(8 * float(node["feature"]) + 1) - 1) / 2)
            number = node["feature"] - w * (w + 1) / 2
            layer, latent, position = node["node_id"].split("_")
            assert (float(layer), float(latent)) == (w - number, number)
            assert node["layer"] == layer and node["ctx_idx"] == int(position)
    assert [cantor_unpair(cantor_pair(layer, n)) for layer, n in ((0, 0), (25, 16383), (3, 10**7))] == [
        (0, 0),
        (25, 16383),
        (3, 10**7),
    ]
    with pytest.raises(NotSerializable, match="too large a number"):
        cantor_pair(3, 2**28)


def test_no_error_shares_an_id_with_a_latent_of_layer_0(body: dict[str, Any]) -> None:
    errors = [node["node_id"] for node in body["nodes"] if node["feature_type"] == "mlp reconstruction error"]
    assert errors and all(re.fullmatch(r"\d+_error_[\w-]+_\d+", name) for name in errors)


def test_logits_say_what_front_ends_parse(body: dict[str, Any], graph: AttributionGraph) -> None:
    logits = [node for node in body["nodes"] if node["feature_type"] == "logit"]
    assert len(logits) == 2 and len({node["feature"] for node in logits}) == 2
    for node, target in zip(logits, graph.targets, strict=True):
        assert re.search(r'"([^"]*)"', node["clerp"]).group(1) == target.label  # type: ignore[union-attr]
        assert float(re.search(r"\(p=([\d.]+)", node["clerp"]).group(1)) == pytest.approx(
            target.weight, abs=5e-4
        )  # type: ignore[union-attr]


def test_a_graph_comes_back(graph: AttributionGraph, tmp_path: Path) -> None:
    save_graph_json(graph, tmp_path / "graph.json", scan="gpt2-small")
    back = open_graph_json(tmp_path / "graph.json")
    names = {graph.nodes.name(i): i for i in range(len(graph)) if graph.nodes[i].kind != "error"}
    dense, other = graph.adjacency.to_dense(), back.adjacency.to_dense()
    assert {back.nodes.name(i) for i in range(len(back))} >= set(names)
    order = [names.get(back.nodes.name(i)) for i in range(len(back))]
    order = [graph.nodes.find(back.nodes.name(i)).index if o is None else o for i, o in enumerate(order)]
    assert np.array_equal(other, dense[np.ix_(order, order)])
    assert back.model == graph.model and back.targets[0].label == graph.targets[0].label
    assert [group.label for group in back.supernodes] == [group.label for group in graph.supernodes]
    assert np.allclose(back.influence, graph.influence[order])


def test_a_contrast_is_no_token_of_the_vocabulary(body: dict[str, Any], graph: AttributionGraph) -> None:
    d_vocab = exact_model("gpt2").sizes["d_vocab"]
    features = [node["feature"] for node in body["nodes"] if node["feature_type"] == "logit"]
    assert features == [3, d_vocab + 1]
    assert graph.settings["d_vocab"] == d_vocab


def test_what_comes_back_foretells_and_measures_the_same(
    body: dict[str, Any], graph: AttributionGraph
) -> None:
    model, given = exact_model("gpt2"), dictionaries("gpt2")
    back = graph_from_json(body)
    assert back.targets == graph.targets
    for index in (0, int(graph.nodes.of("token")[-1])):
        scale = {graph.nodes.name(index): 0.0}
        for mode in ("constrained", "free"):
            own, other = (
                intervene(model, one, transcoders=given, scale=scale, mode=mode) for one in (graph, back)
            )
            assert own.names == other.names
            for name in ("before", "predicted", "measured"):
                assert np.abs(getattr(own, name) - getattr(other, name)).max() < 1e-12, (mode, name)
    order = [graph.nodes.find(back.nodes.name(i)).index for i in range(len(back))]
    assert np.array_equal(back.biases, graph.biases[order])
    assert np.array_equal(back.remainders, graph.remainders[order])


def test_a_file_that_does_not_say_what_nodes_read_is_drawn_but_not_intervened_on(
    body: dict[str, Any],
) -> None:
    older = json.loads(json.dumps(body))
    del older["metadata"]["mechscope"]["reads"], older["metadata"]["mechscope"]["targets"]
    back = graph_from_json(older)
    assert len(back.inputs("logit 0")) > 0 and np.isnan(back.totals[back.nodes.of("logit")]).all()
    with pytest.raises(InterventionMismatch, match="does not say what its nodes read"):
        intervene(exact_model("gpt2"), back, transcoders=dictionaries("gpt2"), scale={0: 0.0})


def test_a_graph_of_one_layer_is_drawn_from_layer_1() -> None:
    model = wrap(tiny("gpt2", n_layer=1), check=False)
    from mechscope.graphs.replacement import random_transcoders

    graph = attribution_graph(model, random_transcoders(model, 16, seed=0, k=2), prompt(), targets=[3])
    body = graph_to_json(graph)
    inner = [int(node["layer"]) for node in body["nodes"] if node["layer"] != "E"]
    assert min(inner) == 1 and max(inner) == 3
    back = graph_from_json(json.loads(json.dumps(body)))
    assert sorted(set(back.nodes.layers.tolist())) == [-1, 0, 1]


def test_another_tools_graph_is_read() -> None:
    """As circuit-tracer writes one, its error ids and all."""
    shared = {"ctx_idx": 0, "clerp": "", "jsNodeId": "x", "influence": 0.5}
    latent = {"node_id": "0_7_0", "feature": cantor_pair(0, 7), "layer": "0", "activation": 2.0}
    error = {"node_id": "0_1_0", "feature": -1, "layer": "1"}
    token = {"node_id": "E_5_0", "feature": 0, "layer": "E"}
    logit = {"node_id": "3_9_0", "feature": 9, "layer": "3", "clerp": 'Output " the" (p=0.250)'}
    kinds = ("cross layer transcoder", "mlp reconstruction error", "embedding", "logit")
    nodes = [
        shared | one | {"feature_type": kind}
        for one, kind in zip((latent, error, token, logit), kinds, strict=True)
    ]
    links = [
        {"source": "0_7_0", "target": "3_9_0", "weight": -1.5},
        {"source": "E_5_0", "target": "0_7_0", "weight": 2.0},
    ]
    metadata = {"slug": "s", "scan": "m", "prompt": "a", "prompt_tokens": ["a"], "schema_version": 1}
    body = {
        "metadata": metadata,
        "qParams": {"supernodes": [["one", "0_7_0"]]},
        "nodes": nodes,
        "links": links,
    }
    graph = graph_from_json(body)
    assert graph.targets[0].label == " the" and graph.targets[0].weight == 0.25
    first = graph.nodes[int(graph.nodes.of("latent")[0])]
    assert (first.layer, first.number, first.activation) == (0, 7, 2.0)
    assert graph.effect(first, graph.nodes.find("logit 0")) == -1.5
    assert graph.supernodes[0].members == (first.index,)


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (lambda b: b.pop("links"), "lacks links"),
        (lambda b: b["metadata"].pop("scan"), "metadata lacks scan"),
        (lambda b: b["nodes"][0].pop("clerp"), "a node lacks clerp"),
        (lambda b: b["nodes"][0].update(feature_type="neuron"), 'nodes of the type "neuron"'),
        (lambda b: b["nodes"].append(b["nodes"][0]), "occur twice"),
        (lambda b: b["links"][0].update(source="9_9_9"), "links to nodes that are not there"),
        (lambda b: b["links"][0].update(weight=None), "no finite number"),
    ],
)
def test_what_breaks_the_schema_is_refused(body: dict[str, Any], change: Any, because: str) -> None:
    broken = json.loads(json.dumps(body))
    change(broken)
    with pytest.raises(BadFile) as refusal:
        refuse_malformed(broken)
    assert because in refusal.value.because
