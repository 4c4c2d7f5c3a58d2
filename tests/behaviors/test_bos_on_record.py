"""Every record says what was done about the beginning-of-sequence token."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from behaviors.speakers import small_model, word_model
from mechscope.attribution.edges import attribute_edges
from mechscope.attribution.nodes import attribute
from mechscope.behaviors import load, measure
from mechscope.behaviors.behavior import Behavior
from mechscope.lenses.attention_patterns import attention_patterns
from mechscope.lenses.direct_attribution import direct_logit_attribution
from mechscope.lenses.head_scores import head_scores
from mechscope.lenses.logit_lens import logit_lens
from mechscope.models.model import Model
from mechscope.patching.grid import patch_grid
from mechscope.patching.path import path_patch
from mechscope.patching.trace import causal_trace
from mechscope.patching.trace_settings import TraceSettings

Result = Callable[[Model, Behavior], Any]
ANSWER = {"answers": [5], "wrong": [6]}
RESULTS: dict[str, Result] = {
    "baseline": lambda model, ioi: measure(model, ioi),
    "grid": lambda model, ioi: patch_grid(model, ioi, site="z"),
    "paths": lambda model, ioi: path_patch(model, ioi, senders=["m0"], receivers=["logits"]),
    "attribution": lambda model, ioi: attribute(model, ioi),
    "edges": lambda model, ioi: attribute_edges(model, ioi),
    "trace": lambda model, ioi: causal_trace(
        model, ioi.clean.select([0]), subject=[1], answers=[5], settings=TraceSettings(n_draws=1)
    ),
    "logit lens": lambda model, ioi: logit_lens(model, ioi.clean.select([0])),
    "patterns": lambda model, ioi: attention_patterns(model, ioi.clean.select([0])),
    "logit attribution": lambda model, ioi: direct_logit_attribution(model, ioi.clean.select([0]), **ANSWER),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_says_what_was_done_about_the_beginning_of_sequence(name: str) -> None:
    model, ioi = word_model(), load("ioi", word_model(), n=12)
    assert RESULTS[name](model, ioi).settings["bos"] == ioi.clean.bos == "tokenizer"
    given = {
        key: replace(
            split, clean=replace(split.clean, bos="given"), corrupt=replace(split.corrupt, bos="given")
        )
        for key, split in ioi.splits.items()
    }
    assert RESULTS[name](model, replace(ioi, splits=given)).settings["bos"] == "given"


def test_a_recipe_says_it_and_so_does_every_claim_that_holds_the_recipe() -> None:
    assert load("ioi", word_model(), n=12).recipe()["bos"] == "tokenizer"


def test_head_scores_say_whether_they_put_one_before_their_random_tokens() -> None:
    assert head_scores(small_model(), "induction").settings["bos"] == "added"
