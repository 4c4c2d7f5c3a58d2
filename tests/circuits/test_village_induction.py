"""Village's induction: which heads its circuit has, and which of them scores on random tokens would have named."""

import numpy as np
import pytest
import torch

import mechscope as ms
from mechscope.behaviors.split import Split
from mechscope.models.model import Model

ATTENDING = {(2, 4), (2, 0), (3, 4)}
"""Heads that attend most to the answer, from the last token of the behavior's own prompts."""


def attention_to_answers(model: Model, split: Split) -> np.ndarray:
    """Mean weight from the last token to where the answer stands, [layer, head]."""
    run = model.run(split.clean, capture="pattern.*")
    is_answer = torch.stack(
        [torch.isin(row, torch.tensor(ids)) for row, ids in zip(split.clean.ids, split.answers, strict=True)]
    )
    rows = [(run.cache[site][:, :, -1] * is_answer[:, None]).sum(-1).mean(0) for site in run.cache]
    return torch.stack(rows).detach().numpy()


def strongest(table: np.ndarray, n: int) -> set[tuple[int, int]]:
    best = np.argsort(-table, axis=None)[:n]
    return {(int(layer), int(head)) for layer, head in zip(*np.unravel_index(best, table.shape), strict=True)}


@pytest.mark.slow
def test_heads_that_attend_to_the_answer_are_in_the_circuit_and_random_tokens_do_not_show_them() -> None:
    model = ms.load("village")
    induction = ms.behaviors.load("induction", model, n=240, seed=0)
    assert strongest(attention_to_answers(model, induction.train), 3) == ATTENDING
    found = ms.discover(model, induction, method="eap-ig", n_edges=60)
    assert set(found.heads) >= ATTENDING
    held_out = found.evaluate(model, induction.held_out, measures=ms.circuits.Measures(parts=()))
    assert held_out.faithfulness == pytest.approx(0.94, abs=0.02)
    scores = ms.head_scores(model, "induction")
    ((best, score),) = scores.top(1)
    assert (best["layer"], best["head"]) not in found.heads and score == pytest.approx(0.13, abs=0.01)
    of_circuit = [scores.values.values[layer, head] for layer, head in found.heads]
    assert max(of_circuit) < 1.2 * scores.chance
