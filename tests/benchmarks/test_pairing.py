"""Paired ratios and their lines: the statistics of timings, on timings that are given."""

import json
from collections import Counter

import numpy as np
import pytest
from benchmarks.__main__ import main
from benchmarks.lines import line_of
from benchmarks.pairing import Pairs, median_interval, time_pairs
from benchmarks.suite import SUITE

WANTED = ("name", "seconds", "limit_seconds", "ratio", "ratio_low", "ratio_high", "aa_ratio", "peak_mb")


def noisy(ratio: float, n: int = 21, noise: float = 0.05) -> Pairs:
    """Timings of a machine that slows down threefold halfway, and jitters."""
    rng = np.random.default_rng(0)
    machine = np.where(np.arange(n) < n // 2, 1.0, 3.0)
    jitter = np.exp(noise * rng.standard_normal((3, n)))
    return Pairs(ratio * machine * jitter[0], machine * jitter[1], machine * jitter[2])


def test_a_slow_spell_of_the_machine_does_not_move_the_ratio() -> None:
    ratio, low, high = median_interval(noisy(1.10).ratios)
    assert low <= 1.10 <= high
    assert high - low < 0.15
    unpaired = np.median(noisy(1.10).ours) / np.median(noisy(1.10, n=20).baseline[:10])
    assert abs(unpaired - 1.10) > 1.0, "the same timings, unpaired, would have said nothing"
    assert ratio == pytest.approx(1.10, abs=0.05)


def test_a_ratio_to_itself_is_one() -> None:
    _, low, high = median_interval(noisy(1.0).aa_ratios)
    assert low <= 1.0 <= high


def test_the_interval_is_the_same_every_time_and_holds_its_median() -> None:
    values = noisy(1.3).ratios
    assert median_interval(values) == median_interval(values)
    middle, low, high = median_interval(values)
    assert low <= middle <= high


def test_the_interval_of_a_median_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        _, low, high = median_interval(rng.lognormal(0.0, 0.2, size=15), seed=seed)
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_limit_is_failed_only_if_the_lower_end_exceeds_it() -> None:
    pairs = noisy(1.20)
    _, low, _ = median_interval(pairs.ratios)
    assert line_of("x", pairs, limit_ratio=low + 1e-9).passed
    assert not line_of("x", pairs, limit_ratio=low - 1e-9).passed


def test_a_limit_inside_the_interval_is_not_failed_and_the_line_says_that_it_is_not_shown_either() -> None:
    pairs = noisy(1.20)
    _, low, high = median_interval(pairs.ratios)
    inside = line_of("x", pairs, limit_ratio=(low + high) / 2)
    assert inside.passed and "undecided" in inside.details
    for limit in (high + 1e-9, low - 1e-9):
        assert "undecided" not in line_of("x", pairs, limit_ratio=limit).details


def test_a_line_is_one_line_of_json_with_the_fields_that_were_promised() -> None:
    text = line_of("capture", noisy(1.05), limit_ratio=1.15, kept_mb=12.5).to_json()
    plain = json.loads(text)
    assert "\n" not in text
    assert all(name in plain for name in WANTED)
    assert plain["limit_seconds"] == pytest.approx(1.15 * plain["details"]["baseline_seconds"], rel=1e-4)
    assert plain["details"]["kept_mb"] == 12.5


def test_fewer_than_fifteen_pairs_are_marked_as_a_rehearsal() -> None:
    assert "rehearsal" in line_of("x", noisy(1.0, n=14), limit_ratio=2.0).details
    assert "rehearsal" not in line_of("x", noisy(1.0, n=15), limit_ratio=2.0).details


def test_turns_are_taken_in_every_order_and_equally_often() -> None:
    said: list[str] = []
    pairs = time_pairs(lambda: said.append("ours"), lambda: said.append("base"), n_pairs=6, n_warmups=0)
    rounds = [tuple(said[start : start + 3]) for start in range(0, 18, 3)]
    assert Counter(said) == {"ours": 6, "base": 12}
    assert {turns.index("ours") for turns in rounds} == {0, 1, 2}, "ours must not always come first"
    assert len(pairs.ratios) == len(pairs.aa_ratios) == 6
    assert (pairs.ours > 0).all()


def test_every_benchmark_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(SUITE)
