"""Rows of the matrix: equal to autograd, to interventions in the model itself, and to what each target reads."""

import numpy as np
import pytest
import torch

from graphs.autograd_rows import rows_by_autograd
from graphs.frozen_cases import FAMILIES, KINDS, MORE_FAMILIES, batch, dictionaries, exact_model, prompt
from mechscope.graphs import build, local, meeting
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.intervene import intervene
from mechscope.graphs.replacement import replacements_of

CLOSE = 1e-9
TARGETS = [3, (4, 5)]
SLOW_FAMILIES = [pytest.param(family, marks=pytest.mark.slow) for family in MORE_FAMILIES]


def graph_of(family: str, kind: str = "transcoder", **options: object) -> AttributionGraph:
    return attribution_graph(
        exact_model(family), dictionaries(family, kind), prompt(), targets=TARGETS, **options
    )


def readers(graph: AttributionGraph) -> np.ndarray:
    return np.concatenate([graph.nodes.of("latent"), graph.nodes.of("logit")])


def row_gap(graph: AttributionGraph) -> float:
    """Largest difference between what a target reads and the sum of its row, its bias and what was left out."""
    sums = np.zeros(len(graph))
    for block in graph.adjacency.blocks:
        sums[block.targets] = block.values.sum(1)
    return float(np.abs(sums + graph.biases + graph.remainders - graph.totals)[readers(graph)].max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "kind", ["transcoder", pytest.param("cross_layer_transcoder", marks=pytest.mark.slow)]
)
def test_every_edge_equals_autograd_through_the_model(family: str, kind: str) -> None:
    graph = graph_of(family, kind)
    by_hand = rows_by_autograd(exact_model(family), dictionaries(family, kind), graph).numpy()
    assert np.abs(by_hand).max() > 0.1
    assert np.abs(graph.adjacency.to_dense() - by_hand).max() < CLOSE


@pytest.mark.parametrize(
    ("family", "kind", "mlps"),
    [
        ("gpt2", "skip_transcoder", "constant"),
        ("gemma2", "skip_transcoder", "constant"),
        ("llama", "sae", "gates"),
        ("gpt_neox", "sae", "gates"),
        ("gemma2", "sae", "constant"),
    ],
)
def test_skips_saes_and_gated_mlps_equal_autograd_too(family: str, kind: str, mlps: str) -> None:
    graph = graph_of(family, kind, mlps=mlps)
    by_hand = rows_by_autograd(exact_model(family), dictionaries(family, kind), graph).numpy()
    assert np.abs(graph.adjacency.to_dense() - by_hand).max() < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_every_edge_equals_a_constrained_intervention(family: str) -> None:
    graph = graph_of(family)
    model, given = exact_model(family), dictionaries(family)
    dense = graph.adjacency.to_dense()
    rng = np.random.default_rng(0)
    sources = [int(rng.choice(graph.nodes.of(kind), 1)[0]) for kind in ("latent", "error", "token")]
    sources += [int(index) for index in graph.nodes.of("latent")[:3]]
    for source in dict.fromkeys(sources):
        done = intervene(model, graph, transcoders=given, scale={source: 0.0})
        assert np.abs(done.measured + dense[list(done.nodes), source]).max() < CLOSE


@pytest.mark.parametrize("family", [*FAMILIES, *SLOW_FAMILIES])
def test_effects_of_all_nodes_at_once_equal_a_constrained_intervention(family: str) -> None:
    for kind in KINDS[1:]:
        graph = graph_of(family, kind)
        rng = np.random.default_rng(1)
        sources = range(len(graph) - len(TARGETS))
        scale = {
            index: float(factor) for index, factor in zip(sources, rng.normal(size=len(graph)), strict=False)
        }
        done = intervene(exact_model(family), graph, transcoders=dictionaries(family, kind), scale=scale)
        assert np.abs(done.measured).max() > 0.1
        assert np.abs(done.measured - done.predicted).max() < CLOSE, kind


@pytest.mark.parametrize("family", [*FAMILIES, *SLOW_FAMILIES])
def test_rows_and_biases_add_up_to_what_targets_read(family: str) -> None:
    for kind in KINDS:
        assert row_gap(graph_of(family, kind)) < CLOSE, kind


def test_the_sum_of_a_row_would_show_a_missing_edge() -> None:
    graph = graph_of("llama")
    block = max(graph.adjacency.blocks, key=lambda block: np.abs(block.values).max())
    block.values[np.unravel_index(np.abs(block.values).argmax(), block.values.shape)] = 0
    assert row_gap(graph) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_the_frozen_model_has_no_curvature(family: str) -> None:
    graph, model, given = graph_of(family), exact_model(family), dictionaries(family)
    a, b = (int(graph.nodes.of(kind)[1]) for kind in ("token", "latent"))
    scales = ({a: -3.0}, {b: 5.0}, {a: -3.0, b: 5.0})
    one, other, both = (intervene(model, graph, transcoders=given, scale=scale).measured for scale in scales)
    assert np.abs(one).max() > 0.1
    assert np.abs(both - one - other).max() < CLOSE
    free = [intervene(model, graph, transcoders=given, scale=scale, mode="free").measured for scale in scales]
    assert np.abs(free[2] - free[0] - free[1]).max() > 1e-3  # the model itself has


def test_pieces_of_any_size_give_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = graph_of("llama").adjacency.to_dense()
    monkeypatch.setattr(build, "ENTRIES", 5)
    assert np.abs(graph_of("llama").adjacency.to_dense() - whole).max() < 1e-12


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox", "native_bidirectional"])
def test_the_first_layers_shortcut_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = graph_of(family).adjacency.to_dense()
    monkeypatch.setattr(local, "FEW_POSITIONS", 0)
    assert np.abs(graph_of(family).adjacency.to_dense() - short).max() < 1e-12


@pytest.mark.parametrize(
    "family", ["gpt2", "gemma2", "gpt_neox", "qwen3", "native_bidirectional", *SLOW_FAMILIES]
)
def test_wherever_sources_and_targets_meet_rows_are_the_same(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_layers = exact_model(family).n_layers
    for kind in KINDS:
        for mlps in (
            ("constant", "gates") if kind == "sae" and family in ("gpt2", "gpt_neox") else ("constant",)
        ):
            found = []
            for layer in range(n_layers):
                monkeypatch.setattr(build, "choose_layer", lambda _, layer=layer: layer)
                found.append(graph_of(family, kind, mlps=mlps).adjacency.to_dense())
            for other in found[1:]:
                assert np.abs(other - found[0]).max() < 1e-12, (kind, mlps)


def test_sources_that_do_not_wait_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "choose_layer", lambda _: 1)
    monkeypatch.setattr(meeting.Meeting, "add", lambda *_: None)
    assert row_gap(graph_of("llama")) > 1e-3


def test_rows_meet_on_the_way_unless_what_waits_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact_model("llama")
    parts = replacements_of(model, dictionaries("llama"))
    opened = local.open_local(model, parts, batch=batch())
    assert 0 < meeting.choose_layer(opened) < model.n_layers
    monkeypatch.setattr(meeting, "HELD_BYTES", 1000)
    assert meeting.choose_layer(opened) == 0


def test_a_budget_computes_the_same_rows_for_fewer_latents() -> None:
    whole, part = graph_of("qwen3"), graph_of("qwen3", max_latents=20)
    assert len(part.nodes.of("latent")) == 20 and part.n_active == whole.n_active > 20
    assert row_gap(part) < CLOSE
    kept = [whole.nodes.find(part.nodes.name(i)).index for i in range(len(part))]
    dense = whole.adjacency.to_dense()[np.ix_(kept, kept)]
    assert np.abs(part.adjacency.to_dense() - dense).max() < 1e-12
    least = min(whole.influence[kept[i]] for i in part.nodes.of("latent"))
    assert least >= 0.2 * np.sort(whole.influence[whole.nodes.of("latent")])[-20]


def test_positions_left_out_bring_constants_only() -> None:
    graph = graph_of("gpt2", left_out=[0, -1])
    latents, errors = graph.nodes.of("latent"), graph.nodes.of("error")
    assert not np.isin(graph.nodes.positions[latents], [0, len(prompt()) - 1]).any()
    effects = [graph.adjacency.column(int(i))[1] for i in errors if graph.nodes.positions[i] == 0]
    assert max(np.abs(column).max(initial=0) for column in effects) == 0
    assert row_gap(graph) < CLOSE


def test_later_positions_and_layers_are_no_sources() -> None:
    graph = graph_of("llama")
    positions, layers = graph.nodes.positions, graph.nodes.layers
    latents = set(graph.nodes.of("latent").tolist())
    for block in graph.adjacency.blocks:
        for row, target in zip(block.values, block.targets, strict=True):
            sources = block.sources[row != 0]
            assert (positions[sources] <= positions[target]).all()
            inner = [s for s in sources if s in latents]
            assert (layers[inner] < layers[target]).all()


def test_single_precision_agrees_with_double() -> None:
    from mechscope.models.opening import wrap
    from tiny_models import tiny

    model = wrap(tiny("llama", torch.float32), check=False)
    given = [one.to(dtype=torch.float32) for one in dictionaries("llama")]
    graph = attribution_graph(model, given, prompt(), targets=TARGETS)
    exact = graph_of("llama")
    assert graph.adjacency.blocks[0].values.dtype == np.float32
    assert np.abs(graph.adjacency.to_dense() - exact.adjacency.to_dense()).max() < 1e-4
