"""Toy models end where the theory says, and no instance depends on the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mechscope.superposition import PhaseSettings, ToySettings, draw_phase_diagram, train_toy
from mechscope.superposition.absolute_value import AbsoluteValueSettings, train_absolute_value
from mechscope.superposition.facts import FactSettings, learn_facts
from mechscope.superposition.phase import PHASES, candidate_losses, classify_extra
from mechscope.superposition.toy import ToyModels, expected_loss, make_patterns, train_on_patterns

TINY = ToySettings(n_features=6, n_hidden=2, densities=(0.9, 0.05), n_steps=30, n_samples=64)


def test_the_expected_loss_equals_a_long_average_over_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    weights, biases = torch.randn(1, 3, 2, generator=generator), torch.randn(1, 3, generator=generator) * 0.2
    importance, p = torch.tensor([[1.0, 0.5, 2.0]]), 0.4
    exact = expected_loss(
        make_patterns(3, n_nodes=12, most_on=3),
        weights,
        biases=biases,
        densities=torch.tensor([p]),
        importance=importance,
    )
    inputs = torch.rand(400_000, 3, generator=generator) * (torch.rand(400_000, 3, generator=generator) < p)
    outputs = torch.relu(inputs @ weights[0] @ weights[0].T + biases[0])
    sampled = ((inputs - outputs).square() * importance).sum(1).mean()
    assert float(exact) == pytest.approx(float(sampled), rel=0.02)


def test_pattern_probabilities_sum_to_one() -> None:
    weights = make_patterns(3, n_nodes=4, most_on=3).weights(torch.tensor([0.01, 0.5, 1.0]))
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("in superposition: antipodal", [[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
        ("own dimension: others antipodal", [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]),
        (
            "in superposition: triangle",
            [[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]],
        ),
    ],
)
def test_closed_form_losses_equal_the_quadrature(name: str, weights: list[list[float]]) -> None:
    p, importance = torch.tensor([0.3]), torch.tensor([[1.0, 1.0, 2.5]])
    exact = expected_loss(
        make_patterns(3, n_nodes=24, most_on=3),
        torch.tensor([weights]),
        biases=torch.zeros(1, 3),
        densities=p,
        importance=importance,
    )
    closed = candidate_losses(3, p.double(), torch.tensor([2.5]).double())[name]
    assert float(closed) == pytest.approx(float(exact), rel=0.01)


def test_a_feature_left_out_costs_its_variance() -> None:
    p, bias = torch.tensor([0.3]), torch.tensor([[0.0, 0.15]])
    exact = expected_loss(
        make_patterns(2, n_nodes=8, most_on=2),
        torch.tensor([[[1.0], [0.0]]]),
        biases=bias,
        densities=p,
        importance=torch.tensor([[1.0, 2.0]]),
    )
    closed = candidate_losses(2, p.double(), torch.tensor([2.0]).double())["not represented: (1, 0)"]
    assert float(closed) == pytest.approx(float(exact), rel=1e-4)


def test_an_instance_trained_among_others_equals_itself_trained_alone() -> None:
    patterns = make_patterns(2, n_nodes=4, most_on=2)
    weights = torch.randn(3, 2, 1, generator=torch.Generator().manual_seed(0))

    def losses_of(rows: list[int]) -> torch.Tensor:
        p = torch.tensor([0.9, 0.3, 0.05])[rows]
        return expected_loss(
            patterns,
            weights[rows],
            biases=torch.zeros(len(rows), 2),
            densities=p,
            importance=torch.ones(len(rows), 2),
        )

    torch.testing.assert_close(losses_of([0, 1, 2])[1:2], losses_of([1]))


def test_training_twice_gives_the_same_models() -> None:
    first, second = train_toy(TINY), train_toy(TINY)
    assert torch.equal(first.weights, second.weights)
    assert not torch.equal(first.weights, train_toy(replace(TINY, seed=1)).weights)


def test_sparse_inputs_are_superposed_and_dense_ones_are_not() -> None:
    models = train_on_patterns(
        make_patterns(2, n_nodes=4, most_on=2),
        n_hidden=1,
        densities=torch.tensor([0.05, 1.0]),
        importance=torch.tensor([[1.0, 0.7], [1.0, 0.7]]),
        n_restarts=6,
        n_steps=150,
    )
    sparse, dense = (PHASES[int(phase)] for phase in classify_extra(models))
    assert (sparse, dense) == ("in superposition", "not represented")


def test_the_extra_feature_is_classified_by_norm_and_sharing() -> None:
    weights = torch.tensor([[[1.0], [0.1]], [[1.0], [-1.0]], [[0.0], [1.0]]])
    models = ToyModels(weights=weights, biases=torch.zeros(3, 2), losses=torch.zeros(3))
    assert classify_extra(models).tolist() == [0, 1, 2]


def test_a_small_phase_diagram_agrees_with_the_analysis() -> None:
    diagram = draw_phase_diagram(PhaseSettings(n_cells=7, n_steps=150))
    assert diagram.agreement > 0.8
    assert diagram.array().shape == (2, 7, 7)
    twin = np.roll(diagram.trained, 3, axis=1)  # the agreement is not that of any two diagrams
    assert float((twin == diagram.analytic).mean()) < diagram.agreement


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(2, 1), (3, 2)])
def test_both_phase_diagrams_agree_with_the_analysis(n: int, m: int) -> None:
    diagram = draw_phase_diagram(PhaseSettings(n_features=n, n_hidden=m))
    assert diagram.agreement > 0.9
    assert float(diagram.losses.max()) < 2.5  # every cell found a solution like the best candidate


@pytest.mark.slow
def test_dimensions_per_feature_fall_with_sparsity_through_a_plateau_at_one_half() -> None:
    settings = ToySettings()
    curve = train_toy(settings).dimensions_per_feature
    by_density = dict(zip(settings.densities, curve.tolist(), strict=True))
    assert by_density[0.9] > 0.8
    assert abs(by_density[0.35] - 0.5) < 0.07
    assert by_density[0.08] < 0.4


def test_absolute_values_need_no_superposition_where_inputs_are_dense() -> None:
    settings = AbsoluteValueSettings(
        n_features=4, n_neurons=4, densities=(1.0, 0.02), n_steps=200, n_samples=256
    )
    models = train_absolute_value(settings)
    assert models.array().shape == (2, 2)
    dense, sparse = models.features_per_neuron.mean(1)
    assert float(dense) < float(sparse)


@pytest.mark.slow
def test_sparse_absolute_values_beat_the_best_model_without_superposition() -> None:
    models = train_absolute_value()
    advantage = dict(zip(models.settings.densities, models.advantage.tolist(), strict=True))
    assert advantage[0.01] > 0.2
    assert advantage[1.0] < 0.05  # the twin: dense inputs leave nothing to gain


def test_facts_are_learnt_by_neurons_and_not_without() -> None:
    facts = learn_facts(FactSettings(n_first=5, n_last=5, widths=(0, 12), n_seeds=2, n_steps=300))
    linear, neurons = facts.accuracy.mean(1)
    assert float(neurons) > 0.95
    assert float(linear) < 0.9
    fires, needed = facts.neurons_of(12)
    assert fires.shape == (2, 12)
    assert float(needed.sum(1).min()) > 12  # facts rest on several neurons, neurons on several facts
    assert not bool(facts.needed_by[0].any())  # a model without neurons needs none


@pytest.mark.slow
def test_a_hundred_facts_fit_into_thirty_neurons() -> None:
    facts = learn_facts()
    accuracy = dict(zip(facts.settings.widths, facts.accuracy.mean(1).tolist(), strict=True))
    assert accuracy[30] == 1.0
    assert accuracy[0] < 0.7
    fires, needed = facts.neurons_of(30)
    assert float(fires.mean()) > 10
    assert float(needed.mean()) > 3
