"""Circuits of the transcoders that village ships with: few latents carry what its MLPs do for a behaviour."""

from dataclasses import replace

import pytest
import torch

from mechscope.behaviors.loading import load as load_behavior
from mechscope.circuits.parts.evaluation import PartMeasures
from mechscope.circuits.parts.latents import choose_latents, evaluate_latents
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.features.shipped import bundled_indexes
from mechscope.models.opening import load

SIZES = (20, 50, 100, 200)
FAITHFULNESS = {
    ("ioi", "kept"): (0.39, 0.66, 0.92, 0.94),
    ("ioi", "removed"): (0.13, 0.32, 0.57, 0.59),
    ("agreement", "kept"): (0.57, 0.83, 0.90, 0.95),
    ("agreement", "removed"): (0.49, 0.75, 0.82, 0.86),
}
"""Of 20, 50, 100 and 200 of 5,120 latents on held-out prompts: the table of docs/methods/circuits.md."""


def transcoders() -> list[Dictionary]:
    folders = [path for name, path in bundled_indexes("village").items() if name.startswith("mlp")]
    return [Dictionary.open(folder / "dictionary").to(dtype=torch.float32) for folder in folders]


@pytest.mark.slow
@pytest.mark.parametrize(("behavior", "errors"), list(FAITHFULNESS))
def test_few_latents_of_the_transcoders_carry_a_behaviour_on_held_out_prompts(behavior: str, errors):
    model, dictionaries = load("village"), transcoders()
    prompts = load_behavior(behavior, model, n=240, seed=0)
    found = choose_latents(model, prompts, dictionaries=dictionaries, n_latents=20, errors=errors)
    evaluations = evaluate_latents(
        model,
        [found.resized(n) for n in SIZES],
        split=prompts.held_out,
        dictionaries=dictionaries,
        measures=PartMeasures(n_random=10),
    )
    wanted = FAITHFULNESS[behavior, errors]
    assert [one.faithfulness for one in evaluations] == pytest.approx(wanted, abs=0.02)
    assert [len(one.circuit) for one in evaluations] == list(SIZES)
    for one in evaluations:
        assert one.p == pytest.approx(1 / 11) and one.random_faithfulness.max() < 0.6 * one.faithfulness
        assert one.settings["errors_kept"] == (list(one.circuit.kept) if errors == "kept" else [])
        assert one.errors_alone is None if errors == "removed" else 0 < one.errors_alone < 0.2
    complements = [one.complement for one in evaluations]
    assert complements == sorted(complements, reverse=True) and complements[-1] < 0.2


@pytest.mark.slow
def test_latents_that_write_in_each_others_directions_carry_nothing():
    model = load("village")
    prompts = load_behavior("agreement", model, n=120, seed=0)
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for one in transcoders():
        order = torch.randperm(one.n_latents, generator=generator)
        wrong.append(Dictionary(replace(one.settings), one.tensors | {"W_dec": one.W_dec[order]}))
    found = choose_latents(model, prompts, dictionaries=wrong, n_latents=100, errors="removed")
    assert found.evaluate(model, prompts.held_out, dictionaries=wrong).faithfulness < 0.1
