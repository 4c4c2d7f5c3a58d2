"""Checks beside a claim: the true circuit passes them, a random one does not, and every one of them can fail."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from circuits.cases import pairs
from family_cases import opened
from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.loading import load as load_behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.discover import discover, search_of
from mechscope.circuits.single_edges import metric_without_each
from mechscope.circuits.statistics.checks import CheckSettings, check_circuit
from mechscope.circuits.statistics.checks_result import CircuitChecks, WorldCheck
from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.circuits.statistics.significance import TestSettings
from mechscope.circuits.statistics.significance_result import CircuitTest, corrected
from mechscope.models.model import Model
from mechscope.models.opening import load
from mechscope.specimens.compiled import truth_of
from mechscope.vocabulary.errors import ShapeError

FAST = CheckSettings(
    tests=TestSettings(n_rivals=50, n_inflated=60, n_permutations=100),
    n_parts=50,
    n_controls=0,
    n_search=6,
    n_tested=32,
)
SHOWN = ("sufficiency", "minimality", "random parts removed", "worst part removed")


@cache
def reverse() -> tuple[Model, Behavior]:
    """A program that was compiled to exact weights; its true edges are known."""
    model = load("compiled/reverse")
    return model, load_behavior("compiled/reverse", model, n=120, seed=0)


def truth() -> Circuit:
    return Circuit.of(reverse()[0], truth_of("reverse").edges("resample"))


def other() -> Circuit:
    return random_circuits(truth(), 1, seed=1, avoiding=True)[0]


def checks_of(circuit: Circuit, settings: CheckSettings = FAST, **more) -> CircuitChecks:
    model, behavior = reverse()
    return check_circuit(
        model, circuit, search=behavior.train, test=behavior.held_out, settings=settings, **more
    )


def ranks(found: CircuitChecks) -> dict[str, int]:
    return {one.world: one.rank for one in found.worlds}


@pytest.fixture(scope="module")
def of_the_truth() -> tuple[CircuitChecks, list[str]]:
    told: list[str] = []
    found = checks_of(
        truth(),
        replace(FAST, n_controls=1),
        find=lambda _model, _split: truth(),
        progress=lambda what, done, total: told.append(what),
    )
    return found, told


def test_the_true_circuit_of_a_compiled_program_is_shown_to_be_one(of_the_truth) -> None:
    found, told = of_the_truth
    assert [found[name].outcome for name in SHOWN] == ["holds"] * 4, found.lines()
    assert found["equivalence"].outcome == "not contradicted" and max(found.edge_p.values()) < 0.05
    for name in ("sufficiency", "necessity", "random parts removed", "worst part removed"):
        low, high = found[name].interval
        assert low <= found[name].estimate <= high and found[name].p_holm >= found[name].p
    assert {"the worst part", "random circuits alone", "random parts"} <= set(told)
    assert "searching with permuted answers" in told


def test_a_random_circuit_is_shown_to_be_nothing() -> None:
    found = checks_of(other())
    assert [found[name].outcome for name in (*SHOWN, "necessity")] == ["not shown"] * 5, found.lines()
    assert found["equivalence"].outcome == "contradicted" and found.controls is None
    assert found["worst part removed"].estimate < 0.2


def test_the_circuit_stands_out_among_searches_where_there_is_nothing(of_the_truth) -> None:
    found, _ = of_the_truth
    assert found.controls.real.circuit == truth() and found.controls.real.carried == pytest.approx(
        1, abs=0.01
    )
    assert ranks(found) == {"redrawn weights": 1, "permuted weights": 1, "permuted answers": 1}
    assert {one.outcome for one in found.worlds} == {"can't tell"}, "one search allows p = 1/2 at best"


def test_networks_that_were_not_reset_are_not_beaten(monkeypatch) -> None:
    place = "mechscope.circuits.statistics.discovery_controls.reset_weights"
    monkeypatch.setattr(place, lambda model, reset: model)
    settings = replace(FAST, n_controls=1, n_parts=1, tests=replace(FAST.tests, n_rivals=1, n_inflated=0))
    found = checks_of(truth(), settings, find=lambda _model, _split: truth())
    assert ranks(found) == {"redrawn weights": 2, "permuted weights": 2, "permuted answers": 1}
    told = {one.world: one.outcome for one in found.worlds}
    assert told["redrawn weights"] == told["permuted weights"] == "not shown"


def test_a_world_is_beaten_when_enough_searches_were_run_in_it() -> None:
    def world(rank: int, n: int) -> str:
        return WorldCheck(world="w", rank=rank, n_draws=n, most=0.0, p=rank / (n + 1)).outcome

    assert world(1, 19) == "holds" and world(1, 18) == "can't tell" and world(2, 19) == "not shown"


def test_checks_come_back_from_a_file_as_they_were(of_the_truth) -> None:
    found, _ = of_the_truth
    assert CircuitChecks.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert CheckSettings.from_json({**found.settings, "n_controls": 0}) == FAST
    assert "sufficiency" in found._repr_html_() and "holds: " in repr(found)


def test_a_circuit_remembers_the_search_that_found_it() -> None:
    model, behavior = reverse()
    split: Split = behavior.train.select(range(6))
    found = discover(model, split, method="eap", n_edges=4)
    assert search_of(found)(model, split) == found
    assert len(search_of(replace(found, settings={**found.settings, "n_edges": 1}))(model, split)) <= 1
    by_threshold = discover(model, split, method="acdc", threshold=0.5, distance="change")
    assert search_of(by_threshold)(model, split) == by_threshold
    assert search_of(truth()) is None, "a circuit that was written down"


def test_a_circuit_remembers_the_conventions_of_its_search(tmp_path) -> None:
    model, behavior = reverse()
    split: Split = behavior.train.select(range(6))
    settings = {"method": "acdc", "threshold": 0.5, "distance": "change"}
    found = discover(model, split, conventions=Conventions(ablation="zero"), **settings)
    found.save(tmp_path / "circuit.json")
    again = search_of(Circuit.load(tmp_path / "circuit.json"))
    assert again is not None and again(model, split) == found
    assert discover(model, split, **settings) != found


def test_what_can_not_be_asked_is_said_and_the_rest_is_done() -> None:
    found = checks_of(truth(), replace(FAST, n_tested=6, n_controls=1))
    assert [test.name for test in found.tests] == ["random parts removed", "worst part removed"]
    assert "more units" in found.left_out[0] and "does not say how it was found" in found.left_out[1]
    with pytest.raises(ShapeError):
        CheckSettings(n_parts=0)


def a_test(p: float, *, speaks_for: bool = False, passes: bool | None = True) -> CircuitTest:
    return CircuitTest(name="t", null="", statistic=0.0, p=p, passes=passes, speaks_for=speaks_for)


def test_only_rejections_assert_anything_and_they_are_corrected() -> None:
    tests = corrected([a_test(0.001), a_test(0.02), a_test(0.02, speaks_for=True), a_test(0.5)])
    assert np.allclose([test.p_holm for test in tests], [0.004, 0.06, 0.06, 0.5])
    assert [test.outcome for test in tests] == ["holds", "not shown", "not contradicted", "not shown"]
    assert a_test(0.01, speaks_for=True).outcome == "contradicted"
    assert a_test(0.01, passes=None).outcome == "can't tell" and corrected([]) == ()


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_edges_taken_out_one_by_one_are_what_whole_runs_say(direction) -> None:
    model = opened("gpt2")
    runs = CircuitRuns(model, pairs(), conventions=Conventions(direction=direction))
    kept = np.random.default_rng(0).random(runs.wiring.n_edges) < 0.6
    edges = np.flatnonzero(kept)[::3]
    masks = np.repeat(kept[None], len(edges), axis=0)
    masks[np.arange(len(edges)), edges] = False
    whole, without = metric_without_each(runs, kept, edges=edges)
    slow = runs.measure(np.stack([kept, *masks])).mean(1)
    assert np.allclose([whole, *without], slow, atol=1e-5) and np.ptp(without) > 1e-4
