"""Whatever is looked at comes back as labelled arrays that draw themselves and name their strongest cells."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

import mechscope as ms
from mechscope.figures.labelled import LabelledArray
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.patching.trace_settings import TraceSettings
from patching.drawn_pairs import random_pairs
from tiny_models import tiny

PROMPT = [3, 14, 15, 9, 2, 6]
LOOKS: dict[str, Callable[[Model], Any]] = {
    "logit lens": lambda model: ms.logit_lens(model, PROMPT, target=7),
    "direct logit attribution": lambda model: ms.direct_logit_attribution(model, PROMPT, answers=7, wrong=8),
    "attention patterns": lambda model: ms.attention_patterns(model, PROMPT, heads=["0.1", "1.2"]),
    "induction scores": lambda model: ms.head_scores(model, "induction", n_tokens=5),
    "previous-token scores": lambda model: ms.head_scores(model, "previous-token", n_tokens=5),
    "duplicate-token scores": lambda model: ms.head_scores(model, "duplicate-token", n_tokens=5),
    "layer x position": lambda model: ms.patch_grid(model, random_pairs(model), site="resid_pre"),
    "attention outputs": lambda model: ms.patch_grid(model, random_pairs(model), site="attn_out"),
    "MLP outputs": lambda model: ms.patch_grid(
        model, random_pairs(model), site="mlp_out", direction="noising"
    ),
    "layer x head": lambda model: ms.patch_grid(model, random_pairs(model), site="z"),
    "neurons": lambda model: ms.patch_grid(model, random_pairs(model), site="mlp_post.1", units=[0, 3, 5]),
    "causal trace": lambda model: ms.causal_trace(
        model, [PROMPT], subject=[1], answers=5, settings=TraceSettings(n_draws=1)
    ),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_result_holds_labelled_arrays_draws_itself_and_ranks(look: str) -> None:
    found = LOOKS[look](wrap(tiny("gpt2", torch.float64), check=False))
    arrays = [getattr(found, spec.name) for spec in fields(found)]
    assert any(isinstance(array, LabelledArray) and all(array.dims) for array in arrays)
    assert isinstance(found.plot(), go.Figure)
    strongest = found.top(2)
    assert len(strongest) == 2
    assert all(isinstance(value, float) for _, value in strongest)
    assert abs(strongest[0][1]) >= abs(strongest[1][1])
