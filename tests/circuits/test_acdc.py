"""ACDC: the decisions are those of one edge at a time; a sweep's are those of each threshold alone."""

import numpy as np
import pytest
import torch

from circuits.cases import TRUE_EDGES, induction, pairs
from family_cases import opened
from mechscope.circuits.discover import discover
from mechscope.circuits.methods.acdc import NEAR, Acdc, Search, acdc_sweep, edge_order
from mechscope.vocabulary.errors import InputError, ShapeError


def one_edge_at_a_time(search: Search, threshold: float) -> np.ndarray:
    kept = search.runs.every
    before = search.distance(search.runs.measure([kept])[0].numpy())
    for edge in edge_order(search.wiring)[0]:
        without = kept.copy()
        without[edge] = False
        distance = search.distance(search.runs.measure([without])[0].numpy())
        if distance - before < threshold:
            kept, before = without, distance
    return kept


@pytest.mark.parametrize(
    ("name", "distance"), [("gpt2", "kl"), ("gemma2", "drop"), ("gptj", "change"), ("olmo2", "kl")]
)
def test_decisions_are_those_of_one_edge_at_a_time(name, distance):
    search = Search(opened(name), pairs(), Acdc(threshold=0.0, distance=distance))
    threshold = 0.01 * search.range
    found = search.run(threshold)
    assert np.array_equal(found.kept, one_edge_at_a_time(search, threshold))
    assert 0 < found.kept.sum() < search.wiring.n_edges
    assert found.n_evaluations < search.wiring.n_edges * 3


def test_each_threshold_of_a_sweep_decides_as_its_own_run():
    search = Search(opened("llama"), pairs(), Acdc(threshold=0.0))
    thresholds = search.thresholds(5)
    together = search.sweep(thresholds)
    alone = [search.run(threshold) for threshold in thresholds]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.kept, other.kept)
        assert np.abs(one.increases - other.increases).max() < 1e-9
    assert len({int(one.kept.sum()) for one in together}) > 2
    assert sum(one.n_evaluations for one in together) < sum(one.n_evaluations for one in alone)


def test_thresholds_that_rounding_cannot_tell_apart_share_their_decisions():
    """The second costs one circuit; what it would decide otherwise by itself is listed, and nothing else."""
    search = Search(opened("llama"), pairs(), Acdc(threshold=0.0))
    near_by = 0.01 * search.range
    increases = search.run(near_by).increases
    tie = float(increases[np.abs(increases - near_by).argmin()])
    thresholds = [tie - 0.4 * search.near, tie + 0.4 * search.near]
    first, second = search.sweep(thresholds)[::-1]
    assert first.n_evaluations > search.wiring.n_edges / 2
    assert second.n_evaluations == 1
    alone = search.run(thresholds[0])
    differs = np.flatnonzero((alone.kept != second.kept)[search.order])
    assert not len(differs) or int(search.order[differs[0]]) in second.near_ties
    # Twin: where rounding tells them apart, each is decided by itself.
    search.near = 0.0
    assert min(one.n_evaluations for one in search.sweep(thresholds)) > 1


def test_a_near_tie_may_be_taken_over_and_is_listed():
    search = Search(opened("gpt2"), pairs(), Acdc(threshold=0.0))
    first = int(edge_order(search.wiring)[0][0])
    tie = float(search.run(0.01 * search.range).increases[first])
    kept, removed = tie - 0.4 * search.near, tie + 0.4 * search.near
    assert search.run(kept).kept[first] and not search.run(removed).kept[first]
    shared = search.run(removed, known=[search.run(kept)])
    assert shared.kept[first] and first in shared.near_ties


def test_near_ties_are_listed():
    search = Search(opened("gpt2"), pairs(), Acdc(threshold=0.0))
    first = int(edge_order(search.wiring)[0][0])
    tie = float(search.run(0.01 * search.range).increases[first])
    assert first in search.run(tie).near_ties
    assert first not in search.run(tie + 0.01 * search.range).near_ties


def test_near_ties_reach_as_far_as_the_model_rounds():
    exact = Search(opened("gpt2"), pairs(), Acdc(threshold=0.0))
    assert exact.near == NEAR * exact.range
    single = Search(opened("gpt2", torch.float32), pairs(), Acdc(threshold=0.0))
    assert NEAR * single.range < single.near < 1e-2 * single.range


def test_the_true_edges_of_the_induction_specimen_are_found_and_no_other():
    model, behavior = induction()
    split = behavior.train.select(range(12))
    found = discover(model, split, method="acdc", threshold=0.01)
    assert found.edges == TRUE_EDGES
    assert found.settings["method"] == "acdc" and found.data_sha256 == split.data_hash
    smaller = discover(model, split, method="acdc", n_edges=3, n_thresholds=4)
    assert set(smaller.edges) <= set(TRUE_EDGES)


def test_scores_of_a_sweep_are_the_largest_threshold_that_keeps_an_edge():
    search = Search(opened("gpt2"), pairs(), Acdc(threshold=0.0))
    thresholds = search.thresholds(4)
    found = acdc_sweep(opened("gpt2"), pairs(), thresholds)
    for circuit in found:
        kept_longer = circuit.scores > circuit.settings["threshold"]
        assert not (kept_longer & (circuit.scores == 0)).any()
    assert np.isin(found[0].scores, [0.0, *thresholds]).all()


def test_bad_settings_are_refused():
    with pytest.raises(ShapeError, match="ACDC can't be run so"):
        discover(opened("gpt2"), pairs(), method="acdc")
    with pytest.raises(InputError, match="no way to find circuits"):
        discover(opened("gpt2"), pairs(), method="acd")
    with pytest.raises(InputError, match="no setting tau"):
        discover(opened("gpt2"), pairs(), method="acdc", tau=0.1)
