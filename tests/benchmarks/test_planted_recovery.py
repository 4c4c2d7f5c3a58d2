"""Dictionaries trained on planted data recover it; trained on the shuffled control they recover nothing."""

import pytest
import torch
from benchmarks.planted_recovery import ARCHITECTURES, Case, cases_of, done_already, run_case

from mechscope.specimens import planted
from mechscope.specimens.planted.blocks import PLANTED_SITE, PlantedBlocks

EASY = {"n_active": 2.0, "n_features": 128, "d_model": 64, "passes": 6.0, "batch": 256, "rate": 3e-3}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trained_dictionary_recovers_what_was_planted(architecture: str) -> None:
    line = run_case(Case(part="reference", architecture=architecture, **EASY))
    assert line["recovered"] > 0.8
    assert line["precision"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_shuffled_control_recovers_none(architecture: str) -> None:
    line = run_case(Case(part="control", architecture=architecture, is_shuffled=True, **EASY))
    assert line["recovered"] == 0.0
    assert line["passed"]


def test_a_planted_stream_is_blocks_of_a_harvest() -> None:
    from mechscope.engine.harvest.blocks import Blocks

    truth = planted.plant(planted.PlantedSettings(d_model=8, n_features=12, n_active=2.0))
    stream = planted.PlantedStream(truth=truth, n_tokens=50, batch_tokens=20)
    blocks = PlantedBlocks(stream)
    assert isinstance(blocks, Blocks)
    assert (list(blocks.sizes), dict(blocks.shapes)) == ([20, 20, 10], {PLANTED_SITE: (8,)})
    assert torch.equal(blocks.block(1)[PLANTED_SITE], stream.batch(1).activations)


def test_the_benchmark_covers_every_case_once_and_reads_past_a_torn_line(tmp_path) -> None:
    cases = list(cases_of(["reference", "control", "table", "variants"]))
    assert len(cases) == len(set(cases)) == 4 * (1 + 1 + 3 + 4)
    assert {case.variant for case in cases} == set(planted.VARIANTS)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"case": 1}\n{"case": 2, "reco')
    assert done_already(lines) == [{"case": 1}]
