"""QK attribution and head loadings: shares add up to scores and edges, and single shares equal interventions."""

import numpy as np
import pytest
import torch

from graphs.frozen_cases import FAMILIES, dictionaries, exact_model, prompt
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.head_loadings import head_loadings
from mechscope.graphs.held import Change
from mechscope.graphs.intervene import open_again
from mechscope.graphs.modes import hold
from mechscope.graphs.qk import attribute_qk
from mechscope.vocabulary.errors import InterventionMismatch, PositionOutOfRange

CLOSE = 1e-9


def graph_of(family: str, kind: str = "transcoder", **options: object) -> AttributionGraph:
    return attribution_graph(
        exact_model(family), dictionaries(family, kind), prompt(), targets=[3], **options
    )


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_text", "native_bidirectional"])
def test_pairs_add_up_to_the_scores(family: str) -> None:
    model, graph = exact_model(family), graph_of(family)
    found = attribute_qk(model, graph, transcoders=dictionaries(family), layer=2, head=3, keys=[0, 4, 6])
    run = model.run(prompt(), capture=["q.2", "k.2"])
    call = run.cache.call(2)
    key = call.key[0, 3 * model.n_kv_heads // model.n_heads]
    scores = (call.query[0, 3, -1] @ key.T * call.scaling)[[0, 4, 6]].numpy()
    assert np.abs(scores).max() > 0.1
    assert np.abs(found.scores - scores).max() < CLOSE
    assert np.abs(found.pairs.sum((1, 2)) - scores).max() < CLOSE


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_a_pair_is_what_moving_both_sources_does_beyond_moving_each(family: str) -> None:
    """The score is bilinear: f(a, b) - f(a) - f(b) + f() is exactly the two pairs of a and b."""
    model, graph, given = exact_model(family), graph_of(family), dictionaries(family)
    found = attribute_qk(model, graph, transcoders=given, layer=2, head=1, keys=[3])
    a, b = (int(index) for index in graph.nodes.of("latent")[[0, 4]])
    local = open_again(model, given, graph)

    def score(*removed: int) -> float:
        latents = [torch.ones_like(active.values) for active in local.actives]
        for index in removed:
            latents[0][index] = 0
        tokens = torch.ones(len(prompt()), dtype=torch.float64)
        change = Change(latents=latents, errors={}, tokens=tokens)
        writes = hold(model, local, change=change, mode="constrained", layers=None).writes
        call = model.run(prompt(), interventions=writes, capture=["q.2", "k.2"]).cache.call(2)
        return float(call.query[0, 1, -1] @ call.key[0, model.n_kv_heads // model.n_heads, 3] * call.scaling)

    def shares(x: int, y: int) -> float:
        return float(found.pairs[0, x, y])

    together = score(a, b) - score(a) - score(b) + score()
    assert abs(together) > 1e-6
    assert abs(together - shares(a, b) - shares(b, a)) < CLOSE


def test_latents_left_out_are_the_others() -> None:
    model, given = exact_model("llama"), dictionaries("llama")
    whole, part = graph_of("llama"), graph_of("llama", max_latents=9)
    a = attribute_qk(model, whole, transcoders=given, layer=2, head=0, keys=[2])
    b = attribute_qk(model, part, transcoders=given, layer=2, head=0, keys=[2])
    assert "others" in b.labels and "others" not in a.labels
    assert np.abs(a.scores - b.scores).max() < CLOSE
    i, j = part.nodes.name(0), part.nodes.name(1)
    both = [float(x.pairs[0, x.labels.index(i), x.labels.index(j)]) for x in (a, b)]
    assert abs(both[0] - both[1]) < CLOSE


def test_a_head_or_position_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PositionOutOfRange, match="no such head") as refusal:
        attribute_qk(
            exact_model("llama"),
            graph_of("llama"),
            transcoders=dictionaries("llama"),
            layer=3,
            head=4,
            query=9,
        )
    assert "layers 0 to 2" in refusal.value.because and "heads 0 to 3" in refusal.value.because


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_the_stream_beside_them_add_up_to_the_edge(family: str) -> None:
    """From the first layer to the second's read, and from the last layer's input to the logit."""
    model, given, graph = exact_model(family), dictionaries(family), graph_of(family)
    layers, positions = graph.nodes.layers, graph.nodes.positions
    source = int(np.flatnonzero((layers == 0) & (graph.nodes.kinds == 0) & (positions == 1))[0])
    target = int(np.flatnonzero((layers == 1) & (graph.nodes.kinds == 0) & (positions == 4))[0])
    loads = head_loadings(model, graph, transcoders=given, edges=[(source, target)])
    # Another position is reached through heads only, and one layer lies between.
    reach = loads.values[0].sum(1)
    between = 0 if model.binding.anatomy.is_parallel else 1
    if model.binding.anatomy.is_parallel:
        assert abs(graph.effect(source, target)) < CLOSE and np.abs(reach).max() < CLOSE
        target = int(np.flatnonzero((layers == 2) & (graph.nodes.kinds == 0) & (positions == 4))[0])
        loads, between = head_loadings(model, graph, transcoders=given, edges=[(source, target)]), 1
        reach = loads.values[0].sum(1)
    assert abs(graph.effect(source, target)) > 1e-4
    assert abs(reach[between] - graph.effect(source, target)) < CLOSE
    assert np.abs(np.delete(reach, between)).max() < CLOSE


def test_a_path_of_two_layers_loads_heads_of_both() -> None:
    model, given, graph = exact_model("llama"), dictionaries("llama"), graph_of("llama")
    token, logit = int(graph.nodes.of("token")[2]), int(graph.nodes.of("logit")[0])
    loads = head_loadings(model, graph, transcoders=given, edges=[(token, logit)])
    assert loads.shape == (1, 3, 4) and (np.abs(loads.values[0]).max(1) > 1e-4).all()


def test_what_is_no_edge_is_refused() -> None:
    graph = graph_of("llama")
    logit, token = int(graph.nodes.of("logit")[0]), int(graph.nodes.of("token")[0])
    with pytest.raises(InterventionMismatch, match="no edges"):
        head_loadings(exact_model("llama"), graph, transcoders=dictionaries("llama"), edges=[(logit, token)])
