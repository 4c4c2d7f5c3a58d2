"""Village's induction: which heads its circuit has, and which of them scores on random tokens would have named."""

import numpy as np
import pytest

import mechscope as ms

ATTENDING = {(2, 4), (2, 0), (3, 4)}
"""Heads that attend most to the token after the earlier occurrence, from the last token of the behavior's prompts."""


def strongest(table: np.ndarray, n: int) -> set[tuple[int, int]]:
    best = np.argsort(-table, axis=None)[:n]
    return {(int(layer), int(head)) for layer, head in zip(*np.unravel_index(best, table.shape), strict=True)}


@pytest.mark.slow
def test_heads_that_attend_to_the_answer_are_in_the_circuit_and_random_tokens_do_not_show_them() -> None:
    model = ms.load("village")
    induction = ms.behaviors.load("induction", model, n=240, seed=0)
    here = ms.head_scores(model, "induction", prompts=induction.train.clean, positions=-1)
    assert strongest(here.values.values, 3) == ATTENDING
    assert [score for _, score in here.top(3)] == pytest.approx([0.23, 0.21, 0.16], abs=0.01)
    assert here.chance == pytest.approx(0.07, abs=0.01)
    found = ms.discover(model, induction, method="eap-ig", n_edges=60)
    assert set(found.heads) >= ATTENDING
    held_out = found.evaluate(model, induction.held_out, measures=ms.circuits.Measures(parts=()))
    assert held_out.faithfulness == pytest.approx(0.94, abs=0.02)
    scores = ms.head_scores(model, "induction")
    ((best, score),) = scores.top(1)
    assert (best["layer"], best["head"]) not in found.heads and score == pytest.approx(0.13, abs=0.01)
    of_circuit = [scores.values.values[layer, head] for layer, head in found.heads]
    assert max(of_circuit) < 1.2 * scores.chance
    # A network with the same weights in another order has no such heads on these prompts.
    other = ms.circuits.reset_weights(model, ms.circuits.WeightReset(how="permuted", seed=0))
    elsewhere = ms.head_scores(other, "induction", prompts=induction.train.clean, positions=-1)
    assert elsewhere.top(1)[0][1] < 1.2 * here.chance
