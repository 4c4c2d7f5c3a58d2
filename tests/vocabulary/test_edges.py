"""Names of nodes and edges, and which of them a model has."""

import pytest

from mechscope.vocabulary.edges import Edge, Node, Wiring
from mechscope.vocabulary.errors import UnknownEdge

GPT2_SMALL = Wiring(n_layers=12, n_heads=12, n_kv_heads=12)


def test_gpt2_small_has_the_published_number_of_edges() -> None:
    assert len(GPT2_SMALL.writers) == 157
    assert len(GPT2_SMALL.readers) == 445
    assert GPT2_SMALL.n_edges == 32_491
    assert sum(1 for _ in GPT2_SMALL.edges()) == 32_491


def test_a_parallel_block_drops_the_edges_from_heads_to_their_own_mlp() -> None:
    parallel = Wiring(n_layers=12, n_heads=12, n_kv_heads=12, is_parallel=True)
    assert GPT2_SMALL.n_edges - parallel.n_edges == 12 * 12


def test_every_edge_comes_from_a_node_computed_before_its_reader() -> None:
    wiring = Wiring(n_layers=3, n_heads=4, n_kv_heads=2)
    order = {node: index for index, node in enumerate(wiring.nodes)}
    for edge in wiring.edges():
        reader = edge.target
        if reader.kind == "kv":
            reader = Node(kind="head", layer=reader.layer, head=0)
        assert order[edge.source] < order[reader]


@pytest.mark.parametrize(
    "wiring", [GPT2_SMALL, Wiring(n_layers=2, n_heads=4, n_kv_heads=2)], ids=["full", "shared"]
)
def test_every_name_reads_back(wiring: Wiring) -> None:
    for edge in wiring.edges():
        assert Edge.parse(str(edge)) == edge
        wiring.refuse_unless_it_has(edge)


@pytest.mark.parametrize("name", ["embed", "a3.4", "kv0.1", "m7", "m7:305", "a2.1@5", "m7:3@-1", "logits"])
def test_nodes_with_parts_and_positions_read_back(name: str) -> None:
    assert str(Node.parse(name)) == name


@pytest.mark.parametrize(
    "name", ["resid_post.2:417", "mlp_out.0:error", "z.1:5@3", "attn_out.2", "z.0:error@-1"]
)
def test_latents_and_errors_of_sites_are_nodes(name: str) -> None:
    node = Node.parse(name)
    assert str(node) == name and node.point == name.split(".")[0]
    assert node.kind == ("error" if "error" in name else "latent")


@pytest.mark.parametrize(
    "name", ["resid.2:3", "resid_post:3", "h3.4", "m3:error", "resid_post.2:x", "embed:error"]
)
def test_a_node_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(UnknownEdge, match="not the name of a node"):
        Node.parse(name)


@pytest.mark.parametrize("name", ["", "a3", "h3.4", "a1.0->a2.0", "m0->m1.q", "a1.0-a2.0.q", "a1.0->a2.0.x"])
def test_another_form_is_refused(name: str) -> None:
    with pytest.raises(UnknownEdge):
        Edge.parse(name)


@pytest.mark.parametrize(
    "name", ["a2.0->a1.0.q", "m1->a1.0.v", "a1.3->a1.0.k", "embed->a9.0.q", "embed->kv0.1.k"]
)
def test_an_edge_that_the_model_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(UnknownEdge):
        Wiring(n_layers=2, n_heads=4, n_kv_heads=4).refuse_unless_it_has(Edge.parse(name))


def test_shared_key_heads_are_read_by_the_heads_of_their_group() -> None:
    wiring = Wiring(n_layers=1, n_heads=4, n_kv_heads=2)
    inputs = [f"{node}.{which}" for node, which in wiring.inputs_of(Node.parse("a0.3"))]
    assert inputs == ["a0.3.q", "kv0.1.k", "kv0.1.v"]


def test_an_attention_only_model_has_no_edges_of_mlps() -> None:
    wiring = Wiring(n_layers=2, n_heads=2, n_kv_heads=2, has_mlps=False)
    assert not [edge for edge in wiring.edges() if "mlp" in (edge.source.kind, edge.target.kind)]
    assert wiring.n_edges == 6 * 1 + 6 * 3 + 5
