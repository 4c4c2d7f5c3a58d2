"""The graph as an object: nodes by name, records, targets, supernodes, interventions in four modes."""

from pathlib import Path

import numpy as np
import pytest

from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.intervene import intervene
from mechscope.graphs.supernodes import effects_between, propose_supernodes
from mechscope.vocabulary.errors import InterventionMismatch, PositionOutOfRange


@pytest.fixture(scope="module")
def graph() -> AttributionGraph:
    return attribution_graph(exact_model("llama"), dictionaries("llama"), prompt(), targets=[3, (4, 5)])


def test_a_record_gives_the_graph_back_to_the_bit(graph: AttributionGraph, tmp_path: Path) -> None:
    for one in (graph, graph.with_supernodes({"two": [0, 5]}).prune(0.9)):
        one.save(tmp_path / "graph.json")
        back = AttributionGraph.load(tmp_path / "graph.json")
        assert np.array_equal(back.adjacency.to_dense(), one.adjacency.to_dense())
        assert np.array_equal(back.cumulative, one.cumulative)
        assert (back.targets, back.supernodes, back.model) == (one.targets, one.supernodes, one.model)
        assert repr(back) == repr(one) and dict(back.settings) == dict(one.settings)
        assert back.settings["bos"] == "given"  # the prompt is a list of ids


def test_nodes_are_found_by_name_and_no_two_share_one(graph: AttributionGraph) -> None:
    names = [graph.nodes.name(i) for i in range(len(graph))]
    assert len(set(names)) == len(names)
    assert [graph.nodes.find(name).index for name in names[::7]] == list(range(len(graph)))[::7]
    with pytest.raises(PositionOutOfRange, match="No node is called"):
        graph.nodes.find("mlp_in.0/99@0")


def test_inputs_and_outputs_are_rows_and_columns(graph: AttributionGraph) -> None:
    dense = graph.adjacency.to_dense()
    logit = int(graph.nodes.of("logit")[0])
    (node, effect), *_ = graph.inputs(logit, 3)
    assert effect == dense[logit, node.index] == graph.effect(node, logit)
    assert abs(effect) == np.abs(dense[logit]).max()
    source = int(graph.nodes.of("token")[0])
    (node, effect), *_ = graph.outputs(source, 3)
    assert abs(effect) == np.abs(dense[:, source]).max() and dense[node.index, source] == effect


def test_a_contrast_is_the_difference_of_two_targets() -> None:
    model, given = exact_model("gpt2"), dictionaries("gpt2")
    a, b, contrast = (attribution_graph(model, given, prompt(), targets=t) for t in ([4], [5], [(4, 5)]))
    rows = [g.adjacency.to_dense()[g.nodes.of("logit")[0]][:-1] for g in (a, b, contrast)]
    assert np.abs(rows[0] - rows[1] - rows[2]).max() < 1e-12
    assert contrast.targets[0].weight == pytest.approx(a.targets[0].weight + b.targets[0].weight)


def test_the_likeliest_tokens_are_explained_by_default() -> None:
    model = exact_model("llama")
    graph = attribution_graph(model, dictionaries("llama"), prompt())
    probabilities = model.logits(prompt())[0, -1].softmax(-1)
    weights = [target.weight for target in graph.targets]
    assert len(weights) <= 10 and weights == sorted(weights, reverse=True)
    assert graph.targets[0].token == int(probabilities.argmax())
    assert sum(weights) >= 0.95 or len(weights) == 10


def test_supernodes_act_as_the_sum_of_their_members(graph: AttributionGraph) -> None:
    members = [int(i) for i in graph.nodes.of("latent")[:3]]
    grouped = graph.with_supernodes({"three": members})
    model, given = exact_model("llama"), dictionaries("llama")
    whole = intervene(model, grouped, transcoders=given, scale={"three": 0.5})
    parts = sum(intervene(model, graph, transcoders=given, scale={m: 0.5}).measured for m in members)
    assert np.abs(whole.measured - parts).max() < 1e-9
    table = effects_between(grouped)
    dense, logit = graph.adjacency.to_dense(), int(graph.nodes.of("logit")[0])
    share = dense[logit, members].sum() / np.abs(dense[logit]).sum()
    assert table.sel(target="logit 0", source="three").values == pytest.approx(share)
    inner = dense[np.ix_(members, range(len(graph)))]
    token = int(graph.nodes.of("token")[0])
    into = inner[:, token].sum() / np.abs(inner).sum()
    assert table.sel(target="three", source="token@0").values == pytest.approx(into)
    with pytest.raises(InterventionMismatch, match="one supernode"):
        graph.with_supernodes({"a": [1, 2], "b": [2, 3]})


def planted(rng: np.random.Generator, n_roles: int, n_each: int, noise: float) -> AttributionGraph:
    """Latents of some roles: those of one role write alike and read alike, but for noise."""
    from dataclasses import replace

    from mechscope.graphs.adjacency import Adjacency, RowBlock
    from mechscope.graphs.nodes import Nodes

    n, n_tokens, n_logits = n_roles * n_each, 12, 12
    inputs = rng.normal(size=(n_roles, n_tokens)).repeat(n_each, 0) + noise * rng.normal(size=(n, n_tokens))
    outputs = rng.normal(size=(n_logits, n_roles)).repeat(n_each, 1) + noise * rng.normal(size=(n_logits, n))
    total = n + n_tokens + n_logits
    nodes = Nodes(
        kinds=np.repeat([0, 2, 3], [n, n_tokens, n_logits]),
        layers=np.repeat([0, -1, 1], [n, n_tokens, n_logits]),
        positions=np.r_[np.full(n, 11), np.arange(12), np.full(12, 11)],
        numbers=np.arange(total),
        activations=np.ones(total),
        sites=np.repeat([0, -1, -1], [n, n_tokens, n_logits]),
        site_names=("mlp_in.0",),
        tokens=tuple("abcdefghijkl"),
        token_ids=tuple(range(12)),
        logits=tuple("x" * total),
    )
    logits = np.arange(n + n_tokens, total)
    blocks = [
        RowBlock(logits, np.arange(n), outputs),
        RowBlock(np.arange(n), np.arange(n, n + n_tokens), inputs),
    ]
    weights = np.zeros(total)
    weights[logits] = 1 / n_logits
    empty = attribution_graph(exact_model("llama"), dictionaries("llama"), prompt(), targets=[3])
    return replace(
        empty, nodes=nodes, adjacency=Adjacency(total, blocks), weights=weights, totals=np.ones(total),
        biases=np.zeros(total), remainders=np.zeros(total),
    )  # fmt: skip


def test_planted_roles_are_proposed_and_random_latents_are_not() -> None:
    rng = np.random.default_rng(0)
    found = propose_supernodes(planted(rng, 5, 4, 0.2))
    assert sorted(sorted(group.members) for group in found) == [
        list(range(4 * i, 4 * i + 4)) for i in range(5)
    ]
    assert propose_supernodes(planted(rng, 20, 1, 0.2)) == []


@pytest.mark.parametrize("mode", ["constrained", "iterative", "free"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_scaling_by_one_changes_nothing_and_a_removal_something(family: str, mode: str) -> None:
    model, given = exact_model(family), dictionaries(family, "cross_layer_transcoder")
    graph = attribution_graph(model, given, prompt(), targets=[3])
    latent, error = int(graph.nodes.of("latent")[2]), int(graph.nodes.of("error")[3])
    token = int(graph.nodes.of("token")[1])
    same = intervene(model, graph, transcoders=given, scale={latent: 1.0, error: 1.0, token: 1.0}, mode=mode)
    assert np.abs(same.measured).max() < 1e-9
    gone = intervene(model, graph, transcoders=given, scale={latent: 0.0, error: 0.0, token: 0.0}, mode=mode)
    assert np.abs(gone.measured).max() > 0.01


def test_a_latent_that_is_removed_everywhere_reads_as_a_steered_model() -> None:
    """Free mode against the model's own run with what the latent writes taken away by hand."""
    import mechscope as ms

    model, given = exact_model("llama"), dictionaries("llama")
    graph = attribution_graph(model, given, prompt(), targets=[3])
    node = graph.latents(layer=1, position=4)[0]
    row = given[1].W_dec[node.number] * node.activation
    logits = [
        model.logits(prompt(), interventions=writes)[0, -1]
        for writes in ([], [ms.edit("mlp_out.1", lambda value: value - row, positions=4)])
    ]
    by_hand = [float(one[3] - one.mean()) for one in logits]
    found = intervene(model, graph, transcoders=given, scale={node: 0.0}, mode="free").logits()
    ((_, measured),) = found.values()
    assert abs(measured - (by_hand[1] - by_hand[0])) < 1e-9


def test_plots_and_representations_need_no_model(graph: AttributionGraph) -> None:
    small = graph.prune(0.9)
    assert len(small.plot().data) > 4
    assert "latents" in repr(small) and "data-graph" in small._repr_html_()


@pytest.mark.parametrize("targets", [[3, 3], [(3, 3)], [4, (3, 5), (3, 5)]])
def test_targets_that_say_nothing_new_are_refused(targets: list) -> None:
    with pytest.raises(InterventionMismatch, match="named once"):
        attribution_graph(exact_model("gpt2"), dictionaries("gpt2"), prompt(), targets=targets)
