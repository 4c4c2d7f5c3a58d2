"""Memory of building a graph, counted while it runs: rows are made in pieces, so it does not grow with their number."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from engine.live_bytes import LiveBytes
from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.graphs import build
from mechscope.graphs.adjacency import RowBlock
from mechscope.graphs.build import attribution_graph

FEW, MANY = 600, 2400


@pytest.fixture(autouse=True)
def _nothing_is_collected() -> Iterator[None]:
    """What is freed is freed by being let go of."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def beside_the_rows(n_rows: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Most bytes that lived at once while so many latents' rows were built, less the rows themselves."""
    kept: list[int] = []

    def counted(targets: Any, sources: Any, values: Any) -> RowBlock:
        kept.append(values.nbytes)
        return RowBlock(targets, sources, values)

    monkeypatch.setattr(build, "RowBlock", counted)
    with LiveBytes() as live:
        graph = attribution_graph(
            exact_model("llama"),
            dictionaries("llama", n_latents=256, k=24),
            prompt(40),
            targets=[3],
            max_latents=n_rows,
        )
    assert len(graph.nodes.of("latent")) == n_rows < graph.n_active
    return live.peak - sum(kept)


@pytest.mark.slow
def test_memory_grows_with_the_rows_of_a_piece_and_not_with_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = {}
    for entries in (256, 10**9):  # small pieces, and none
        monkeypatch.setattr(build, "ENTRIES", entries)
        grown[entries] = beside_the_rows(MANY, monkeypatch) - beside_the_rows(FEW, monkeypatch)
    assert grown[10**9] > (MANY - FEW) * 1000  # bytes: without pieces each row costs some
    assert grown[256] < 0.25 * grown[10**9]
