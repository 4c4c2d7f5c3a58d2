"""Edge runs equal the slow forward with an input of its own for each reader, in every family in reach."""

import numpy as np
import pytest
import torch

from arithmetic_forward import in_double
from engine.edges_by_hand import EdgesByHand
from family_cases import FAMILIES, opened, rows
from mechscope.engine.edge_runs.ablations import Resampled, mean_of, zero
from mechscope.engine.edge_runs.run import EdgeRuns
from mechscope.interventions.metrics import LogitDifference
from mechscope.models.inputs import TokenBatch
from mechscope.vocabulary.errors import PairLengthMismatch, PointUnavailable, ShapeError
from tiny_models import VOCABULARY

IN_REACH = [name for name in FAMILIES if opened(name).binding.anatomy.attention.has_interface]
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


def by_hand(name: str, runs: EdgeRuns, circuit: np.ndarray) -> torch.Tensor:
    arithmetic = EdgesByHand(opened(name).hf)
    clean, corrupt = twins()
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


@pytest.mark.parametrize("name", IN_REACH)
def test_all_edges_are_the_clean_run_and_none_the_corrupt_run(name):
    runs = runs_of(name)
    clean, corrupt = twins()
    found = runs.measure([runs.every, runs.none])
    model = opened(name)
    assert (found[0] - difference_of(model.logits(clean))).abs().max() < TIGHT
    assert (found[1] - difference_of(model.logits(corrupt))).abs().max() < TIGHT
    assert (found[0] - found[1]).abs().min() > 1e-3


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
