"""The page of `mechscope toy`: its figures show the numbers they are given, and a tiny run writes all of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from command_line_runs import Shell
from mechscope.superposition import toy_report
from mechscope.superposition.absolute_value import AbsoluteValueSettings
from mechscope.superposition.drawings import ArrowFigure, PhaseFigure, StickyFigure, _border
from mechscope.superposition.facts import FactSettings
from mechscope.superposition.phase import CASES, PHASES, PhaseDiagram, PhaseSettings
from mechscope.superposition.shapes_toy import CASES as SHAPES
from mechscope.superposition.toy import ToySettings


def test_the_border_runs_where_the_phase_changes_and_nowhere_else() -> None:
    flat = np.zeros((4, 4), dtype=int)
    assert "M" not in _border(flat, 0, 0)
    half = flat.copy()
    half[:, 2:] = 1
    assert _border(half, 0, 0).count("M") == 4  # one edge in each of four rows
    half[0, 0] = 2
    assert _border(half, 0, 0).count("M") == 6


def test_dots_and_lines_of_the_sticky_figure_are_its_numbers() -> None:
    values = np.array([[1.0, 0.5, np.nan], [0.4, 0.375, 0.75]])
    markup = str(
        StickyFigure((0.5, 0.1), values, [(0.5, "digon, 1/2"), (0.75, "tetrahedron, 3/4")], "words").markup()
    )
    assert markup.count("<circle") == 5, "one a learnt feature, none for what is not there"
    assert "digon, 1/2" in markup and "tetrahedron, 3/4" in markup and "words" in markup
    assert str(StickyFigure((0.5, 0.1), values * np.nan, [], "").markup()).count("<circle") == 0


def test_arrows_are_the_directions_of_features() -> None:
    angles = 2 * np.pi * np.arange(5) / 5
    pentagon = np.stack([np.cos(angles), np.sin(angles)], 1)
    markup = str(ArrowFigure([("pentagon", pentagon), ("digon", pentagon[:2])], "words").markup())
    assert markup.count("<line") >= 7 and "pentagon" in markup and "digon" in markup


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training of the page in a few steps."""
    small = {
        "PhaseSettings": lambda **more: PhaseSettings(n_cells=3, n_restarts=2, n_steps=4, **more),
        "ToySettings": lambda **more: ToySettings(n_features=6, n_hidden=2, n_steps=4, n_samples=32, **more),
        "AbsoluteValueSettings": lambda **more: AbsoluteValueSettings(n_restarts=1, n_steps=4, **more),
        "FactSettings": lambda **more: FactSettings(n_seeds=1, n_steps=4, **more),
    }
    for name, make in small.items():
        monkeypatch.setattr(toy_report, name, make)
    shape = toy_report.train_shape
    monkeypatch.setattr(toy_report, "SHAPE_CASES", SHAPES[:2])
    monkeypatch.setattr(toy_report, "train_shape", lambda case, seed: shape(case, n_steps=4, seed=seed))


def test_the_command_writes_a_page_and_the_numbers_of_each_figure(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(capsys)
    told = shell("toy", "--out", tmp_path, "--seed", 1, "--json")
    assert told.code == 0, told.err
    page = Path(told.json["page"])
    assert page == tmp_path / "toy.html" and str(page) in told.json["files"]
    html = page.read_text()
    assert "The shapes they form" in html and "100 facts in 30 neurons" in html and "<script src" not in html
    for n, _m in CASES:
        saved = json.loads((tmp_path / f"phases_n{n}.json").read_text())
        assert np.asarray(saved["values"]).size
    assert shell("toy", "--out", tmp_path).code == 0


def test_a_phase_figure_draws_what_was_trained_and_the_border_of_the_analysis() -> None:
    trained, analytic = np.zeros((2, 4, 4), dtype=int)
    trained[:, 3], analytic[:, 2:] = 1, 1
    settings = PhaseSettings(n_cells=4)
    diagram = PhaseDiagram(settings=settings, trained=trained, analytic=analytic, losses=np.ones((4, 4)))
    markup = str(PhaseFigure(diagram, "words").markup())
    assert markup.count(f"{PHASES[0]}; density") == 12 and markup.count(f"{PHASES[1]}; density") == 4
    assert _border(analytic, 76, 12) in markup and _border(trained, 76, 12) not in markup
    assert "75% of cells agree" in markup and "words" in markup
