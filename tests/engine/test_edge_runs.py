"""Edge runs equal the slow forward with an input of its own for each reader, in every family in reach."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from arithmetic_forward import in_double
from engine.edges_by_hand import EdgesByHand
from family_cases import FAMILIES, opened, rows
from mechscope.engine.edge_runs.ablations import Resampled, mean_of, zero
from mechscope.engine.edge_runs.batching import cut_batches
from mechscope.engine.edge_runs.block import TokenSpans
from mechscope.engine.edge_runs.layer_parts import LayerParts
from mechscope.engine.edge_runs.places import Places
from mechscope.engine.edge_runs.recording import record_run
from mechscope.engine.edge_runs.run import EdgeRuns
from mechscope.interventions.metrics import LogitDifference
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.opening import wrap
from mechscope.models.wiring import wiring_of
from mechscope.vocabulary.errors import InterventionMismatch, PairLengthMismatch, PointUnavailable, ShapeError
from tiny_models import VOCABULARY

ANATOMY = {name: opened(name).binding.anatomy for name in FAMILIES}
IN_REACH = [n for n, one in ANATOMY.items() if one.attention.has_interface and not one.is_stream_normed]
METRIC = LogitDifference(answers=((3,), (5,)), wrong=((4,), (6,)))
TIGHT = 1e-10


@pytest.fixture(autouse=True)
def double():
    with in_double():
        yield


def twins() -> tuple[TokenBatch, TokenBatch]:
    clean = rows()
    other = torch.randint(0, VOCABULARY, clean.ids.shape, generator=torch.Generator().manual_seed(8))
    return clean, TokenBatch(torch.where(clean.mask.bool(), other, clean.ids), clean.n_pad)


def runs_of(name: str, how: str = "resample", **more) -> EdgeRuns:
    clean, corrupt = twins()
    model = opened(name)
    ablation = {
        "resample": lambda: Resampled(prompts=corrupt),
        "mean": lambda: mean_of(model, corrupt),
        "zero": lambda: zero(model),
    }[how]()
    return EdgeRuns(model, clean, metric=METRIC, ablation=ablation, **more)


def random_circuits(n_edges: int, n: int = 2, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.random((n, n_edges)) < np.linspace(0.4, 0.95, n)[:, None]


def difference_of(logits: torch.Tensor) -> torch.Tensor:
    last = logits[:, -1]
    return torch.stack([last[0, 3] - last[0, 4], last[1, 5] - last[1, 6]])


def by_hand(
    name: str, runs: EdgeRuns, circuit: np.ndarray, pair: tuple[TokenBatch, TokenBatch] | None = None
) -> torch.Tensor:
    arithmetic = EdgesByHand(opened(name).hf)
    clean, corrupt = pair or twins()
    kept = {edge for edge, is_kept in zip(runs.wiring.edges(), circuit, strict=True) if is_kept}
    removed = arithmetic.added_in(corrupt)
    if runs.ablation.how != "resample":
        values = runs.ablation.values.tensor
        removed = {node: values[i].expand(2, 9, -1) for i, node in enumerate(runs.wiring.writers)}
    return difference_of(arithmetic.logits(clean, runs.wiring, kept, removed))


@pytest.mark.parametrize("name", IN_REACH)
def test_circuits_equal_the_slow_forward_with_split_inputs(name):
    runs = runs_of(name)
    circuits = random_circuits(runs.wiring.n_edges)
    found = runs.measure(circuits)
    for circuit, values in zip(circuits, found, strict=True):
        assert (values - by_hand(name, runs, circuit)).abs().max() < TIGHT


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "llama", "olmo2", "gptj", "native"])
def test_columns_that_twins_share_are_not_computed_and_nothing_changes(name):
    clean, other = twins()
    alike = torch.arange(9) < 5
    pair = clean, TokenBatch(torch.where(alike, clean.ids, other.ids), clean.n_pad)
    runs = EdgeRuns(opened(name), clean, metric=METRIC, ablation=Resampled(prompts=pair[1]))
    assert [block.first_column for block in runs.blocks] == [5]
    circuits = random_circuits(runs.wiring.n_edges)
    for circuit, values in zip(circuits, runs.measure(circuits), strict=True):
        assert (values - by_hand(name, runs, circuit, pair)).abs().max() < TIGHT
    base = runs.state(circuits[1])
    smaller = circuits[1:] & circuits[:1]
    assert (runs.walk(smaller, base).values - runs.measure(smaller)).abs().max() < TIGHT
    weights = torch.from_numpy(circuits).double()
    assert (runs.measure_weighted(weights) - runs.measure(circuits)).abs().max() < TIGHT


@pytest.mark.parametrize("how", ["resample", "mean"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "llama", "olmo2", "gptj", "native"])
def test_edges_kept_span_by_span_equal_the_slow_forward(name, how):
    spans = torch.tensor([0, 0, 1, 1, 1, 2, 2, 1, 2]).repeat(2, 1)
    spans[1] = spans[1].roll(1)
    runs = runs_of(name, how, spans=TokenSpans(3, spans))
    n = runs.wiring.n_edges
    circuits = np.random.default_rng(0).random((2, 3, n)) < np.array([0.5, 0.9])[:, None, None]
    clean, corrupt = twins()
    arithmetic = EdgesByHand(opened(name).hf)
    removed = arithmetic.added_in(corrupt)
    if how == "mean":
        values = runs.ablation.values.tensor
        removed = {node: values[i].expand(2, 9, -1) for i, node in enumerate(runs.wiring.writers)}
    for circuit, values in zip(circuits, runs.measure(circuits), strict=True):
        at = {edge: torch.from_numpy(circuit[:, i])[spans] for i, edge in enumerate(runs.wiring.edges())}
        assert (
            values - difference_of(arithmetic.logits(clean, runs.wiring, at, removed))
        ).abs().max() < TIGHT
    # All spans alike is a circuit without spans, and a span's edges are not another's.
    plain, alike = runs_of(name, how), circuits[:, :1].repeat(3, axis=1)
    assert (runs.measure(alike) - plain.measure(circuits[:, 0])).abs().max() < TIGHT
    assert (runs.measure(circuits[:, ::-1]) - runs.measure(circuits)).abs().max() > 1e-6
    base = runs.state(circuits[1])
    smaller = (circuits[1] & circuits[0])[None]
    assert (runs.walk(smaller, base).values - runs.measure(smaller)).abs().max() < TIGHT


@pytest.mark.parametrize("how", ["resample", "zero"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "llama", "opt", "gptj"])
def test_removed_units_equal_the_slow_forward(name, how):
    runs = runs_of(name, how, with_units=True)
    d_mlp = runs.blocks[0].removed_units[0].shape[1]
    circuits = random_circuits(runs.wiring.n_edges, 3)
    units = np.random.default_rng(1).random((3, runs.wiring.n_layers, d_mlp)) < 0.5
    units[2] = True
    clean, corrupt = twins()
    model, arithmetic = opened(name), EdgesByHand(opened(name).hf)
    given = [arithmetic.run(corrupt.ids, corrupt.n_pad)[f"mlp_post.{i}"] for i in range(model.n_layers)]
    found = runs.measure(circuits, units)
    for circuit, kept, values in zip(circuits, units, found, strict=True):
        slow = EdgesByHand(model.hf)
        removed = slow.added_in(corrupt)
        if how == "zero":
            removed = {node: torch.zeros_like(value) for node, value in removed.items()}
            given = [torch.zeros_like(value) for value in given]
        slow.units = [(torch.from_numpy(kept[i]), given[i]) for i in range(model.n_layers)]
        edges = {edge for edge, is_kept in zip(runs.wiring.edges(), circuit, strict=True) if is_kept}
        assert (values - difference_of(slow.logits(clean, runs.wiring, edges, removed))).abs().max() < TIGHT
    plain = runs_of(name, how)
    assert (found[2] - plain.measure(circuits)[2]).abs().max() < TIGHT
    assert (found[1] - plain.measure(circuits)[1]).abs().max() > 1e-6


def test_units_without_a_value_or_of_another_width_are_refused():
    with pytest.raises(InterventionMismatch, match="has no value"):
        runs_of("gpt2", "mean", with_units=True)
    runs = runs_of("gpt2", with_units=True)
    with pytest.raises(ShapeError, match="not units"):
        runs.measure([runs.every], np.ones((1, 2, 3), dtype=bool))
    with pytest.raises(ShapeError, match="without units"):
        plain = runs_of("gpt2")
        plain.measure([plain.every], np.ones((1, 3, 3), dtype=bool))


def test_spans_of_other_tokens_and_circuits_without_them_are_refused():
    with pytest.raises(ShapeError, match="token by token"):
        runs_of("gpt2", spans=TokenSpans(1, torch.zeros(2, 4, dtype=torch.long)))
    runs = runs_of("gpt2", spans=TokenSpans(1, torch.zeros(2, 9, dtype=torch.long)))
    with pytest.raises(ShapeError, match="not circuits of this model"):
        runs.measure(np.ones((2, runs.wiring.n_edges), dtype=bool))


def test_columns_that_differ_must_be_computed(monkeypatch):
    monkeypatch.setattr(EdgeRuns, "_first_column", lambda _self, _rows, _read: 5)
    runs = runs_of("gpt2")  # these twins differ from the first column on
    circuit = random_circuits(runs.wiring.n_edges)[0]
    assert (runs.measure([circuit])[0] - by_hand("gpt2", runs, circuit)).abs().max() > 1e-4


def test_circuits_are_cut_into_batches_of_a_like_size_and_none_is_left_out():
    wiring = wiring_of(opened("gpt2"))
    places = Places(wiring, (False,) * wiring.n_layers)
    whole = np.ones(wiring.n_edges, dtype=bool)
    small = np.zeros_like(whole)
    small[-1] = True
    circuits = np.stack([small, small, whole, whole, whole])
    cuts = cut_batches(places, circuits, most=2)
    assert [index for at in cuts for index in range(at.start, at.stop)] == list(range(5))
    assert cuts[:2] == [slice(0, 2), slice(2, 4)]
    assert cut_batches(places, circuits, most=9)[0] == slice(0, 2)


@pytest.mark.parametrize("name", IN_REACH)
def test_all_edges_are_the_clean_run_and_none_the_corrupt_run(name):
    runs = runs_of(name)
    clean, corrupt = twins()
    found = runs.measure([runs.every, runs.none])
    model = opened(name)
    assert (found[0] - difference_of(model.logits(clean))).abs().max() < TIGHT
    assert (found[1] - difference_of(model.logits(corrupt))).abs().max() < TIGHT
    assert (found[0] - found[1]).abs().min() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt", "gemma2"])
def test_biases_are_kept_in_half_precision(name, dtype, tolerance):
    model, (clean, corrupt) = opened(name, dtype), twins()
    circuit = random_circuits(runs_of(name).wiring.n_edges, 1)[0]
    for ablation in (Resampled(prompts=corrupt), zero(model)):
        runs = EdgeRuns(model, clean, metric=METRIC, ablation=ablation)
        found = runs.measure([runs.every, circuit])
        exact = EdgeRuns(
            opened(name),
            clean,
            metric=METRIC,
            ablation=ablation if ablation.how == "resample" else zero(opened(name)),
        )
        assert (found - exact.measure([exact.every, circuit])).abs().max() < tolerance


def test_means_are_over_real_tokens():
    model, batch = opened("gpt2"), rows()
    assert int(batch.n_pad.max()) > 0
    alone = [
        model.run(batch_of([batch.row(i)], pad_id=0), capture=["resid_pre.0", "mlp_out.1"]) for i in (0, 1)
    ]
    found = mean_of(model, batch).values.tensor
    for writer, site in (("embed", "resid_pre.0"), ("m1", "mlp_out.1")):
        wanted = torch.cat([run.cache[site][0] for run in alone]).mean(0)
        index = [str(node) for node in wiring_of(model).writers].index(writer)
        assert (found[index] - wanted).abs().max() < TIGHT


def test_a_small_bias_is_no_rounding():
    model = wrap(deepcopy(opened("qwen2", torch.float32).hf), check=False)
    for layer in model.hf.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            bias = getattr(layer.self_attn, name).bias
            bias.data = 2e-4 * torch.sign(bias.data)
    frame = Frame.of(rows())
    parts = [LayerParts(model.binding, layer) for layer in range(model.n_layers)]
    with model.ready():
        run = record_run(model.binding, parts, frame=frame)
    assert all(abs(float(one.abs().median()) - 2e-4) < 2e-5 for one in run.constants)


@pytest.mark.parametrize("how", ["mean", "zero"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "native"])
def test_constants_on_removed_edges_equal_the_slow_forward(name, how):
    runs = runs_of(name, how)
    circuits = random_circuits(runs.wiring.n_edges, 3)
    for circuit, values in zip(circuits, runs.measure(circuits), strict=True):
        assert (values - by_hand(name, runs, circuit)).abs().max() < TIGHT


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "olmo2", "gptj"])
def test_differences_from_another_circuit_equal_runs_of_their_own(name):
    runs = runs_of(name)
    base = random_circuits(runs.wiring.n_edges, 1, seed=1)[0] | (np.arange(runs.wiring.n_edges) % 2 == 0)
    state = runs.state(base)
    smaller = np.repeat(base[None], 3, 0)
    kept = np.flatnonzero(base)
    for row, edge in enumerate(kept[[5, len(kept) // 2, -3]]):
        smaller[row:, edge] = False
    walked = runs.walk(smaller, state)
    assert (walked.values - runs.measure(smaller)).abs().max() < TIGHT
    further = smaller[-1].copy()
    further[kept[[7, len(kept) // 3]]] = False
    again = runs.walk(further[None], walked.state(2)).values
    assert (again - runs.measure(further[None])).abs().max() < TIGHT


def test_weights_of_zero_and_one_are_circuits_and_gradients_are_slopes():
    runs = runs_of("gemma2")
    circuits = random_circuits(runs.wiring.n_edges, 2)
    weights = torch.from_numpy(circuits).double().requires_grad_()
    found = runs.measure_weighted(weights)
    assert (found.detach() - runs.measure(circuits)).abs().max() < TIGHT
    found.sum().backward()
    edge, step = runs.wiring.n_edges // 2, 1e-5
    moved = weights.detach().clone()
    moved[0, edge] += step
    slope = (runs.measure_weighted(moved).sum() - found.sum()).item() / step
    assert abs(slope - weights.grad[0, edge].item()) < 1e-3 * max(1.0, abs(slope))
    assert weights.grad.abs().max() > 1e-3


def test_small_blocks_of_prompts_change_nothing():
    whole, cut = runs_of("llama"), runs_of("llama", memory=1)
    circuits = random_circuits(whole.wiring.n_edges, 3)
    assert len(cut.blocks) == 2 and cut.batch_size == 1
    assert (whole.measure(circuits) - cut.measure(circuits)).abs().max() < TIGHT
    # The shorter prompt's block is narrower than the batch; spans and units go with their tokens.
    spans = TokenSpans(3, torch.arange(9).div(3, rounding_mode="floor").repeat(2, 1))
    more = {"spans": spans, "with_units": True}
    whole, cut = runs_of("llama", **more), runs_of("llama", memory=1, **more)
    assert {block.shape[1] for block in cut.blocks} == {6, 9}
    circuits = np.random.default_rng(0).random((2, 3, whole.wiring.n_edges)) < 0.8
    d_mlp = whole.blocks[0].removed_units[0].shape[1]
    units = np.random.default_rng(1).random((2, whole.wiring.n_layers, d_mlp)) < 0.5
    assert (whole.measure(circuits, units) - cut.measure(circuits, units)).abs().max() < TIGHT


def test_the_model_is_left_as_found():
    runs = runs_of("gpt2")
    before = opened("gpt2").logits(rows())
    runs.measure([runs.none])
    assert torch.equal(before, opened("gpt2").logits(rows()))


def test_circuits_of_another_width_are_refused():
    runs = runs_of("gpt2")
    with pytest.raises(ShapeError, match="not circuits of this model"):
        runs.measure(np.ones((2, 7), dtype=bool))


def test_twins_of_other_lengths_and_families_out_of_reach_are_refused():
    clean, _ = twins()
    with pytest.raises(PairLengthMismatch):
        EdgeRuns(opened("gpt2"), clean, metric=METRIC, ablation=Resampled(prompts=rows(is_padded=False)))
    with pytest.raises(PointUnavailable):
        EdgeRuns(opened("bloom"), clean, metric=METRIC, ablation=Resampled(prompts=clean))
