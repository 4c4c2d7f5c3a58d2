"""What is kept of a graph's rows: every non-zero effect in the smaller form, or the strongest with the rest counted."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.graphs import build, row_blocks
from mechscope.graphs.budget import Budget
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.exchange import graph_from_json, graph_to_json
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.row_blocks import RowBlock, SparseRows, keep_strongest, packed
from mechscope.graphs.supernodes import effects_between
from mechscope.vocabulary.errors import InterventionMismatch

N = 16
"""Tokens: more than the sliding windows of tiny Mistral reach, so that many pairs have no path."""


def graph_of(budget: Any = None, family: str = "mistral") -> AttributionGraph:
    return attribution_graph(
        exact_model(family), dictionaries(family), prompt(N), targets=[3, (4, 5)], max_latents=budget
    )


@pytest.fixture(scope="module")
def dense() -> AttributionGraph:
    """The graph whose blocks are all kept dense."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "packed", lambda block: block)
        graph = graph_of()
    assert all(isinstance(block, RowBlock) for block in graph.adjacency.blocks)
    return graph


@pytest.fixture(scope="module")
def sparse() -> AttributionGraph:
    graph = graph_of()
    assert sum(isinstance(block, SparseRows) for block in graph.adjacency.blocks) > 5
    return graph


def same(a: AttributionGraph, b: AttributionGraph) -> bool:
    """Whether every number of two graphs is equal to the bit."""
    arrays = [
        [g.adjacency.to_dense(), g.influence, g.cumulative, g.totals, g.biases, g.remainders, g.weights]
        for g in (a, b)
    ]
    return all(np.array_equal(x, y) for x, y in zip(*arrays, strict=True)) and a.scores == b.scores


def test_sparse_rows_give_the_same_numbers_to_the_bit(
    dense: AttributionGraph, sparse: AttributionGraph
) -> None:
    assert same(dense, sparse)
    assert same(dense.prune(), sparse.prune()) and same(dense.prune(0.5, 0.6), sparse.prune(0.5, 0.6))
    for i in range(0, len(dense), 5):
        ends = [[(n.name, v) for n, v in [*g.inputs(i), *g.outputs(i)]] for g in (dense, sparse)]
        assert ends[0] == ends[1]
        assert dense.effect(0, i) == sparse.effect(0, i)
    tables = [
        effects_between(graph.prune().with_supernodes({"a": [0, 1]})).values for graph in (dense, sparse)
    ]
    assert np.array_equal(*tables)


def test_places_that_are_mixed_up_would_be_noticed(
    dense: AttributionGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losing(block: RowBlock) -> row_blocks.Block:
        found = packed(block)
        if isinstance(found, SparseRows) and len(found.targets) > 1:
            return SparseRows(found.targets, found.sources, found.bits, np.roll(found.effects, 1))
        return found

    monkeypatch.setattr(build, "packed", losing)
    assert not same(dense, graph_of())


def test_a_block_takes_the_smaller_form() -> None:
    targets, sources = np.arange(4), np.arange(100)
    values = np.zeros((4, 100), np.float32)
    values[:, ::10] = 1.5
    block = packed(RowBlock(targets, sources, values))
    assert isinstance(block, SparseRows) and block.n_bytes < values.nbytes
    assert np.array_equal(block.values, values) and np.array_equal(block.column(20), values[:, 20])
    found, effects = block.row(2)
    assert found.tolist() == list(range(0, 100, 10)) and (effects == 1.5).all()
    full = RowBlock(targets, sources, np.ones((4, 100), np.float32))
    assert packed(full) is full


def test_memory_grows_with_what_is_not_zero() -> None:
    """An effect costs its own bytes, and a place without one an eighth of a byte."""

    def held(n_columns: int, n_effects: int) -> float:
        values = np.zeros((64, n_columns), np.float32)
        values[:, :n_effects] = 1.0
        block = RowBlock(np.arange(64), np.arange(n_columns, dtype=np.int32), values)
        tracemalloc.start()
        try:
            kept = [packed(block) for _ in range(8)]
            size = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert all(isinstance(one, SparseRows) for one in kept)
        return size / (8 * 64)

    assert held(2000, 200) - held(2000, 100) == pytest.approx(4 * 100, rel=0.02)
    assert held(4000, 100) - held(2000, 100) == pytest.approx(2000 / 8, rel=0.02)


def test_records_and_front_ends_files_give_sparse_rows_back(sparse: AttributionGraph, tmp_path: Path) -> None:
    for graph in (sparse, graph_of(Budget(row_share=0.8))):
        graph.save(tmp_path / "graph.json")
        back = AttributionGraph.load(tmp_path / "graph.json")
        assert same(back, graph) and np.array_equal(back.dropped, graph.dropped)
        assert [type(b) for b in back.adjacency.blocks] == [type(b) for b in graph.adjacency.blocks]
        small = graph.prune()
        read = graph_from_json(graph_to_json(small, slug="x"))
        names = [read.nodes.find(small.nodes.name(i)).index for i in range(len(small))]
        assert np.allclose(read.influence[names], small.influence, rtol=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_strongest_effects_are_kept_and_the_rest_is_counted(
    sparse: AttributionGraph, share: float
) -> None:
    part = graph_of(Budget(row_share=share))
    whole, kept = sparse.adjacency.to_dense(), part.adjacency.to_dense()
    assert np.array_equal(kept[kept != 0], whole[kept != 0])
    sizes, held = np.abs(whole).sum(1), np.abs(kept).sum(1)
    rows = sizes > 0
    assert (held[rows] >= share * sizes[rows] * (1 - 1e-12)).all()
    assert np.allclose(part.dropped[rows], 1 - held[rows] / sizes[rows], atol=1e-12)
    for row in np.flatnonzero(rows):  # none could be spared
        weakest = np.abs(kept[row][kept[row] != 0]).min()
        spared = np.abs(whole[row])[np.abs(whole[row]) > weakest].sum()
        assert spared < share * sizes[row]
    reads = kept.sum(1) + part.biases + part.remainders
    assert np.abs(reads - part.totals)[rows].max() < 1e-9
    assert part.adjacency.n_edges < sparse.adjacency.n_edges
    assert (part.influence <= sparse.influence + 1e-12).all()


def test_what_was_dropped_stays_on_record_in_a_pruned_graph() -> None:
    whole = graph_of(Budget(row_share=0.7))

    def lost(graph: AttributionGraph) -> dict[str, float]:
        return {
            graph.nodes.name(int(target)): float(size)
            for block in graph.adjacency.blocks
            if block.dropped is not None
            for target, size in zip(block.targets, block.dropped, strict=True)
        }

    small = whole.prune(0.9, 0.9)
    kept = {small.nodes.name(index) for index in range(len(small))} & set(lost(whole))
    assert kept and sum(lost(whole)[name] > 0 for name in kept) > len(kept) / 2
    assert lost(small) == {name: lost(whole)[name] for name in kept}


def test_all_is_kept_where_nothing_is_dropped(sparse: AttributionGraph) -> None:
    assert same(graph_of(Budget(row_share=1.0)), sparse) and not sparse.dropped.any()
    block = RowBlock(np.arange(1), np.arange(3), np.array([[3.0, -2.0, 1.0]]))
    kept, gone = keep_strongest(block, 0.8)
    assert kept.values.tolist() == [[3.0, -2.0, 0.0]]
    assert gone.tolist() == [1.0] and kept.dropped is not None and kept.dropped.tolist() == [1.0]
    assert "of a row dropped" in repr(graph_of(Budget(row_share=0.5)))


def test_a_budget_of_latents_and_a_share_go_together() -> None:
    part = graph_of(Budget(max_latents=20, row_share=0.9))
    assert len(part.nodes.of("latent")) == 20 and part.settings["row_share"] == 0.9
    rows = np.concatenate([part.nodes.of("latent"), part.nodes.of("logit")])
    reads = part.adjacency.to_dense().sum(1) + part.biases + part.remainders
    assert np.abs(reads - part.totals)[rows].max() < 1e-9


def test_a_share_of_nothing_is_refused_and_so_are_fewer_latents_than_none() -> None:
    with pytest.raises(InterventionMismatch, match="keeps a share"):
        Budget(row_share=0.0)
    with pytest.raises(InterventionMismatch, match="a number of latents"):
        Budget(max_latents=-1)
    assert not len(graph_of(0).nodes.of("latent"))


KEPT = {1.0: (1.0, 17.6, 222), 0.99: (0.63, 12.0, 209), 0.95: (0.34, 7.1, 170), 0.9: (0.20, 4.8, 139)}
"""By share, on village: effects kept, megabytes, nodes of the pruned graph; docs/methods/attribution_graphs.md."""


@pytest.mark.slow
def test_what_shares_keep_on_village_is_as_written() -> None:
    import mechscope as ms

    model = ms.load("village")
    transcoders = [ms.features.open(f"village/mlp.{layer}").dictionary() for layer in range(5)]
    clean = ms.behaviors.load("ioi", model, n=20, seed=0).clean
    ids = [token for row in range(3) for token in clean.row(row)]
    whole = pruned = None
    for share, (kept, megabytes, n_nodes) in KEPT.items():
        graph = ms.attribution_graph(model, transcoders, ids, max_latents=Budget(row_share=share))
        small = graph.prune()
        names = {small.nodes.name(i) for i in range(len(small))}
        whole, pruned = whole or graph, pruned or names
        assert graph.adjacency.n_edges / whole.adjacency.n_edges == pytest.approx(kept, abs=0.01)
        assert graph.adjacency.n_bytes / 1e6 == pytest.approx(megabytes, rel=0.02)
        assert np.corrcoef(whole.influence, graph.influence)[0, 1] > 0.99
        assert len(small) == pytest.approx(n_nodes, rel=0.02) and names <= pruned
