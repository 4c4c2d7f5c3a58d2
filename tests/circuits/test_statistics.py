"""Statistics of circuits: sizes of the tests are measured, the true circuit passes, a random one does not."""

import numpy as np
import pytest

from circuits.cases import TRUE_EDGES, induction
from mechscope.circuits.circuit import Circuit, connected_edges
from mechscope.circuits.discover import discover
from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.circuits.statistics.resampling import Stability, mean_jaccard, measure_stability
from mechscope.circuits.statistics.significance import (
    TestSettings,
    beats,
    equivalence,
    holm,
    independence,
    matters_more,
    minimality,
)
from mechscope.circuits.statistics.significance import (
    test_circuit as run_tests,
)
from mechscope.circuits.statistics.stress import stress_circuit
from mechscope.vocabulary.errors import NotEnoughEvidence

FAST = TestSettings(n_permutations=200, n_inflated=80)


def truth() -> Circuit:
    return Circuit.of(induction()[0], TRUE_EDGES)


def test_random_circuits_are_connected_and_as_large() -> None:
    circuit = truth()
    for rival in random_circuits(circuit, 20, seed=1):
        assert len(circuit) <= len(rival) <= len(circuit) + 3
        assert (connected_edges(rival.wiring, rival.kept) == rival.kept).all()
    for rival in random_circuits(circuit, 20, seed=1, avoiding=True):
        assert not (rival.kept & circuit.kept).any()


def test_a_random_circuit_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = random_circuits(truth(), 3, seed=4), random_circuits(truth(), 9, seed=4)
    assert few == many[:3] and len({hash(one) for one in many}) > 5


def test_more_edges_than_the_model_has_are_refused() -> None:
    with pytest.raises(NotEnoughEvidence):
        random_circuits(truth(), 1, n_edges=10**6)


def test_mean_jaccard_of_equal_circuits_is_one_and_of_disjoint_ones_zero() -> None:
    assert mean_jaccard(np.ones((5, 3), dtype=bool)) == (1.0, (1.0, 1.0))
    assert mean_jaccard(np.eye(4, dtype=bool))[0] == 0.0
    mean, (low, high) = mean_jaccard(np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=bool))
    assert np.isclose(mean, (1 / 2 + 2 / 3 + 1 / 3) / 3) and low <= mean <= high


def test_discovery_on_resampled_units_finds_the_true_edges_every_time(tmp_path) -> None:
    model, behavior = induction()
    split = behavior.train.select(range(24))
    found = measure_stability(split, lambda part: discover(model, part, method="eap", n_edges=3), n_runs=6)
    assert set(found.stable.edges) == set(TRUE_EDGES) and found.jaccard == 1.0
    found.save(tmp_path / "stability.json")
    again = Stability.load(tmp_path / "stability.json")
    assert again.stable == found.stable and (again.frequencies == found.frequencies).all()


def test_a_discovery_that_guesses_is_not_stable() -> None:
    _, behavior = induction()
    calls = iter(range(100))
    found = measure_stability(
        behavior.train.select(range(24)),
        lambda part: random_circuits(truth(), 1, seed=next(calls))[0],
        n_runs=8,
    )
    assert found.jaccard < 0.3 and len(found.stable) == 0


def test_one_unit_has_no_stability() -> None:
    _, behavior = induction()
    with pytest.raises(NotEnoughEvidence):
        measure_stability(behavior.train.select([0]), lambda part: truth())


@pytest.mark.slow
def test_the_true_circuit_passes_and_a_random_one_does_not() -> None:
    model, behavior = induction()
    split = behavior.held_out.select(range(48))
    mine = run_tests(model, truth(), split=split, settings=FAST)
    assert mine["sufficiency"].passes and mine["necessity"].passes and mine["minimality"].passes
    other = random_circuits(truth(), 1, seed=3, avoiding=True)[0]
    theirs = run_tests(model, other, split=split, settings=FAST)
    assert not theirs["sufficiency"].passes and not theirs["necessity"].passes
    assert not theirs["equivalence"].passes and not theirs["minimality"].passes
    assert next(row[0] for row in mine.table().rows) == "equivalence"


@pytest.mark.slow
def test_a_superfluous_edge_fails_minimality() -> None:
    model, behavior = induction()
    diluted = truth() | Circuit.of(model, ["embed->a0.3.v", "a0.3->logits"])
    found = run_tests(model, diluted, split=behavior.held_out.select(range(48)), settings=FAST)
    assert not found["minimality"].passes
    assert found.edge_p["a0.3->logits"] > 0.05 >= found.edge_p["a1.11->logits"]


def test_the_true_circuit_stands_stress_and_a_random_one_breaks() -> None:
    model, behavior = induction()
    split = behavior.held_out.select(range(2))
    mine = stress_circuit(model, truth(), split=split, n_random=8, n_rounds=1)
    assert mine.lowest_random > 0.95 and mine.worst > 0.95
    other = stress_circuit(
        model, random_circuits(truth(), 1, seed=3, avoiding=True)[0], split=split, n_random=8, n_rounds=1
    )
    assert other.worst < 0.2 and set(map(str, TRUE_EDGES)) & set(other.worst_removed)


def rejections(draw, n: int = 400) -> float:
    """Share of draws under a null that a test rejects at 5%."""
    return float(np.mean([draw(np.random.default_rng(index)).p <= 0.05 for index in range(n)]))


def test_equivalence_rejects_at_most_its_level_at_the_edge_of_its_null() -> None:
    at_the_edge = rejections(lambda rng: equivalence(np.where(rng.random(60) < 0.6, 1.0, -1.0), 0.1))
    assert at_the_edge <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert rejections(lambda rng: equivalence(np.where(rng.random(60) < 0.9, 1.0, -1.0), 0.1)) > 0.9


def test_independence_rejects_at_its_level_and_sees_dependence() -> None:
    settings = TestSettings(n_permutations=99)
    free = rejections(lambda rng: independence(rng.normal(size=40), rng.normal(size=40), settings), n=200)
    assert free <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)

    def bound(rng):
        values = rng.normal(size=40)
        return independence(values, values**2 + 0.1 * rng.normal(size=40), settings)

    assert rejections(bound, n=50) > 0.9


def test_beating_rivals_by_luck_is_rare() -> None:
    settings = TestSettings()

    def at_the_edge(rng):  # a circuit that beats exactly 90% of all rivals
        return beats(0.9, rng.random(100), name="sufficiency", null="", settings=settings)

    assert rejections(at_the_edge) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert (
        rejections(lambda rng: beats(1.1, rng.random(100), name="sufficiency", null="", settings=settings))
        == 1.0
    )


def test_a_circuit_with_one_edge_no_better_than_random_seldom_passes_as_minimal() -> None:
    settings = TestSettings()

    def passes(rng, own: list[float]) -> bool:
        p = matters_more(np.array(own), rng.random(100), settings.share)
        found = minimality({str(i): float(one) for i, one in enumerate(p)}, settings)
        assert found.passes == all(p <= settings.level)
        return bool(found.passes)

    def share(draw, n: int = 400) -> float:
        return float(np.mean([passes(np.random.default_rng(i), draw(i)) for i in range(n)]))

    at_most = settings.level + 3 * np.sqrt(0.05 * 0.95 / 400)
    # At the edge of the null: one edge matters more than exactly 90% of all random ones, the others more than all.
    assert share(lambda _: [2.0, 2.0, 2.0, 0.9]) <= at_most
    # An edge that is itself drawn like the random ones.
    assert share(lambda i: [2.0, 2.0, np.random.default_rng(10_000 + i).random()]) <= at_most
    assert share(lambda _: [2.0, 2.0, 2.0, 1.5]) == 1.0


def test_edges_no_better_than_random_are_seldom_shown_to_matter_however_many_there_are() -> None:
    def shown(rng) -> bool:
        return bool((matters_more(np.full(20, 0.9), rng.random(100), 0.9) <= 0.05).any())

    found = np.mean([shown(np.random.default_rng(i)) for i in range(400)])
    assert found <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_holms_rule_by_hand() -> None:
    assert np.allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])


def test_few_units_are_refused() -> None:
    model, behavior = induction()
    with pytest.raises(NotEnoughEvidence):
        run_tests(model, truth(), split=behavior.held_out.select(range(6)), settings=FAST)
