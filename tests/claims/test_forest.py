"""What was predicted and found, drawn: nothing is left out, and no label is read as markup."""

from dataclasses import replace

import numpy as np
import pytest

from claim_tables import ToyBehavior, ToyBench, toy_claim
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.predictions import lowers, recovers, spares
from mechscope.claims.testing import test_claim as run_claim
from mechscope.figures import ForestPlot, ForestRow


@pytest.fixture(scope="module")
def record() -> ClaimRecord:
    return run_claim(toy_claim(lowers(1.0), recovers(0.4), spares(ToyBehavior("other"), 0.2)), ToyBench())


def test_a_record_draws_every_effect_bound_and_control(record: ClaimRecord) -> None:
    figure = record.plot()
    effects = [trace for trace in figure.data if trace.name == "effect"]
    controls = [trace for trace in figure.data if trace.name == "controls"]
    results = record.verdict.predictions
    for trace, result in zip(effects, results, strict=True):
        assert result.effect is not None and trace.x[0] == result.effect.value
        shown = result.effect.interval if result.inner is None else result.inner
        assert trace.x[0] + trace.error_x.array[0] == pytest.approx(shown.high)
        assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(shown.low)
    assert [len(trace.x) for trace in controls] == [91, 91, 0]
    assert np.quantile(controls[1].x, 0.95) == pytest.approx(results[1].controls.quantile, abs=0.05)  # type: ignore[union-attr]
    regions = [(shape.x0, shape.x1) for shape in figure.layout.shapes if shape.type == "rect"]
    assert [start for start, _ in regions] == [1.0, 0.4, -0.2] and regions[2][1] == 0.2
    ends = [trace.x[0] + trace.error_x.array[0] for trace in effects]
    assert all(end >= high for (_, end), high in zip(regions[:2], ends, strict=False))
    assert record.claim.statement in figure.layout.title.text and "supported" in figure.layout.title.text


def test_a_verdict_draws_where_its_controls_end(record: ClaimRecord) -> None:
    found = [list(trace.x) for trace in record.verdict.plot().data if trace.name == "controls"]
    summaries = [result.controls for result in record.verdict.predictions]
    assert found == [[] if one is None else [one.quantile] for one in summaries]


def test_rows_without_a_finite_interval_and_hostile_labels_are_drawn() -> None:
    row = ForestRow(label="<b>x</b>", effect=0.5, low=-np.inf, high=np.inf, at_least=0.2, outcome="undecided")
    figure = ForestPlot([row, replace(row, within=0.1, at_least=None)]).plot()
    assert "<b>" not in figure.layout.yaxis.ticktext[0]
    assert all(np.isfinite([shape.x0, shape.x1]).all() for shape in figure.layout.shapes)
