"""Compiled programs: ACDC finds exactly the edges that are needed, under the ablation by which they were measured."""

import pytest

from mechscope.behaviors.loading import load as load_behavior
from mechscope.circuits.against_truth import compare_with_truth
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.discover import discover
from mechscope.circuits.methods.acdc import Acdc, Search
from mechscope.models.opening import load
from mechscope.specimens.compiled import PROGRAMS, truth_of

SHARE = 5e-4
"""Threshold, as a share of the distance's range; the truth's own is 1e-3 of the gap."""


def check_acdc(name: str, ablation: str, n: int) -> None:
    model = load(f"compiled/{name}")
    split = load_behavior(f"compiled/{name}", model, n=4 * n, seed=0).train
    split = split.select(range(min(n, len(split))))
    settings = Acdc(threshold=0.0, distance="change", conventions=Conventions(ablation=ablation))
    search = Search(model, split, settings)
    found = search.circuit(search.run(SHARE * search.range))
    compared = compare_with_truth(found, Circuit.of(model, truth_of(name).edges(ablation)))
    assert compared.precision == compared.recall == 1.0, compared


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_acdc_finds_the_edges_of_reverse_and_no_other(ablation):
    check_acdc("reverse", ablation, 12)


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_acdc_finds_the_edges_of_every_program_and_no_other(name, ablation):
    check_acdc(name, ablation, 48)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_verified_scores_put_the_true_edges_first(name):
    model = load(f"compiled/{name}")
    split = load_behavior(f"compiled/{name}", model, n=200, seed=0).train
    truth = Circuit.of(model, truth_of(name).edges("resample"))
    found = discover(model, split, method="eap-ig", n_edges=len(truth), verify=2 * len(truth))
    assert compare_with_truth(found, truth).auroc >= 0.98
