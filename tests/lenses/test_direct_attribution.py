"""Direct logit attribution adds up to the logit difference, by component and by head, on every kind of block."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mechscope.interventions.metrics import LogitDifference, answer_sets
from mechscope.lenses.direct_attribution import LogitAttribution, direct_logit_attribution
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.specimens.induction import draw_pairs, truth
from mechscope.vocabulary.errors import BadPairs
from patching.drawn_pairs import specimen
from tiny_models import tiny

ROWS = [[3, 14, 15, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9]]
RIGHT, WRONG = [1, 2, 3], [4, 5, (6, 7)]
IN_SINGLE = 3e-6
"""These families compute their final norm in single precision, whatever the model's dtype."""

TOLERANCES = {
    "gpt2": 1e-10,
    "gpt_neox": 1e-10,
    "opt": 1e-10,
    "starcoder2": 1e-10,
    "native": 1e-10,
    "native_attention_only": 1e-10,
    "native_parallel": 1e-10,
    "llama": IN_SINGLE,
    "gemma2": IN_SINGLE,
    "olmo2": IN_SINGLE,
    "granite": IN_SINGLE,
    "gpt_oss": IN_SINGLE,
}


def opened(family: str) -> Model:
    return wrap(tiny(family, torch.float64), check=False)


def differences(model: Model, rows: list[list[int]]) -> np.ndarray:
    """Logit differences before a final soft-cap, from the model's own logits."""
    found = model.logits(rows)[:, -1].detach()
    if (cap := model.binding.anatomy.head.softcap) is not None:
        found = cap * torch.atanh(found / cap)
    foils = [found[i, list(w) if isinstance(w, tuple) else [w]].mean() for i, w in enumerate(WRONG)]
    return np.array([float(found[i, a] - foils[i]) for i, a in enumerate(RIGHT)])


@pytest.mark.parametrize("family", TOLERANCES)
def test_the_terms_add_up_to_the_logit_difference_and_heads_to_their_layer(family: str) -> None:
    model = opened(family)
    found = direct_logit_attribution(model, ROWS, answers=RIGHT, wrong=WRONG)
    assert np.abs(found.total.values - differences(model, ROWS)).max() < TOLERANCES[family]
    assert found.heads_per_prompt is not None and found.attention_bias is not None
    layers = found.heads_per_prompt.values.sum(1) + found.attention_bias.values
    for layer in range(3):
        term = found.per_prompt.sel(component=f"attn_out.{layer}").values
        assert np.abs(layers[layer] - term).max() < 1e-10


def test_the_sum_is_wrong_without_the_biases_or_any_component() -> None:
    found = direct_logit_attribution(opened("native"), ROWS, answers=RIGHT, wrong=WRONG)
    for component in found.per_prompt.coords["component"]:
        without = found.total.values - found.per_prompt.sel(component=component).values
        assert np.abs(without - found.total.values).max() > 1e-3, component


def test_without_foils_the_terms_add_up_to_the_logit_itself() -> None:
    model = opened("native")
    found = direct_logit_attribution(model, ROWS, answers=RIGHT)
    logits = model.logits(ROWS)[:, -1].detach()
    expected = [float(logits[row, answer]) for row, answer in enumerate(RIGHT)]
    assert np.abs(found.total.values - expected).max() < 1e-10


def test_a_behaviors_metric_says_answers_and_position() -> None:
    model = opened("gpt2")
    metric = LogitDifference(answers=answer_sets(RIGHT), wrong=answer_sets([4, 5, 6]), position=-2)
    found = direct_logit_attribution(model, ROWS, answers=metric)
    logits = model.logits(ROWS)[:, -2].detach()
    expected = [
        float(logits[row, a] - logits[row, w])
        for row, (a, w) in enumerate(zip(RIGHT, [4, 5, 6], strict=True))
    ]
    assert np.abs(found.total.values - expected).max() < 1e-10


def test_the_head_that_writes_the_specimens_answer_is_found() -> None:
    model = specimen()
    drawn = draw_pairs(split="train", n=16, seed=0)
    found = direct_logit_attribution(
        model,
        [pair.clean for pair in drawn],
        answers=[pair.answer for pair in drawn],
        wrong=[pair.wrong for pair in drawn],
    )
    (best, effect), (_, second) = found.top(2)
    assert (best["layer"], best["head"]) == truth.INDUCTION
    assert effect > 0.9 * found.total.values.mean() and abs(second) < 0.1 * effect


def test_an_attribution_is_saved_and_read_back_equal(tmp_path: Path) -> None:
    found = direct_logit_attribution(opened("gpt2"), ROWS, answers=RIGHT, wrong=WRONG)
    found.save(tmp_path / "dla.json")
    assert LogitAttribution.load(tmp_path / "dla.json") == found
    assert "embed" in repr(found) and found.plot("heads").data[0].type == "heatmap"


def test_another_number_of_answers_is_refused() -> None:
    with pytest.raises(BadPairs, match="its answer"):
        direct_logit_attribution(opened("gpt2"), ROWS, answers=[1, 2])
