"""What lenses and patching refuse before any work starts."""

import pytest

from mechscope.interventions.metrics import LogitDifference, answer_sets
from mechscope.lenses.direct_attribution import direct_logit_attribution
from mechscope.lenses.head_scores import head_scores
from mechscope.lenses.logit_lens import logit_lens
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.patching.grid import patch_grid
from mechscope.patching.trace import causal_trace
from mechscope.vocabulary.errors import (
    AmbiguousSite,
    BadPairs,
    InterventionMismatch,
    PairLengthMismatch,
    PointUnavailable,
    PositionOutOfRange,
    ShapeError,
    UnknownSite,
)
from patching.drawn_pairs import DrawnPairs, random_pairs
from tiny_models import tiny


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(tiny("gpt2"), check=False)


def test_what_is_no_set_of_pairs_is_refused(model: Model) -> None:
    with pytest.raises(BadPairs, match="pairs of prompts and a metric") as refusal:
        patch_grid(model, ["a prompt", "another"])  # type: ignore[arg-type]
    assert "ms.behaviors.load" in refusal.value.instead


def test_unequally_many_prompts_are_refused(model: Model) -> None:
    pairs = random_pairs(model)
    with pytest.raises(BadPairs, match="equally many"):
        patch_grid(model, DrawnPairs(pairs.clean, pairs.corrupt.select([0, 1]), pairs.metric))
    metric = LogitDifference(answers=answer_sets([1]), wrong=answer_sets([2]))
    with pytest.raises(BadPairs, match="equally many"):
        patch_grid(model, DrawnPairs(pairs.clean, pairs.corrupt, metric))


def test_pairs_of_unequal_length_are_refused_with_the_rows(model: Model) -> None:
    pairs, other = random_pairs(model), random_pairs(model, lengths=(7, 6, 7))
    with pytest.raises(PairLengthMismatch, match="1 of 3 pairs") as refusal:
        patch_grid(model, DrawnPairs(pairs.clean, other.clean, pairs.metric))
    assert refusal.value.got == "row 1: 7 and 6"


def test_prompts_of_several_lengths_are_refused_with_two_ways_out(model: Model) -> None:
    with pytest.raises(ShapeError, match="share no positions") as refusal:
        patch_grid(model, random_pairs(model, lengths=(7, 5)), positions="each")
    assert "from-end" in refusal.value.instead and "subject" in refusal.value.instead


def test_sites_that_no_grid_can_have_are_refused(model: Model) -> None:
    pairs = random_pairs(model)
    with pytest.raises(AmbiguousSite, match="one point a layer"):
        patch_grid(model, pairs, site="mlp_*.0")
    with pytest.raises(AmbiguousSite, match="one point a layer"):
        patch_grid(model, pairs, site="embed")
    with pytest.raises(PointUnavailable, match="cannot be patched") as refusal:
        patch_grid(model, pairs, site="head_out")
    assert refusal.value.instead == "z"
    with pytest.raises(UnknownSite):
        patch_grid(model, pairs, site="resid_port")


def test_directions_positions_units_and_kinds_that_do_not_exist_are_refused(model: Model) -> None:
    pairs = random_pairs(model)
    with pytest.raises(InterventionMismatch, match="no direction"):
        patch_grid(model, pairs, direction="sideways")  # type: ignore[arg-type]
    with pytest.raises(InterventionMismatch, match="no set of positions"):
        patch_grid(model, pairs, positions="end")
    with pytest.raises(PositionOutOfRange):
        patch_grid(model, pairs, positions=7)
    with pytest.raises(PositionOutOfRange, match="no such units"):
        patch_grid(model, pairs, site="mlp_post.0", units=[128])
    with pytest.raises(InterventionMismatch, match="no units"):
        patch_grid(model, pairs, units=[1])
    with pytest.raises(InterventionMismatch, match="no kind of head"):
        head_scores(model, "name-mover")  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [-1, 37])
def test_answers_outside_the_vocabulary_are_refused_and_no_other_column_is_read(
    model: Model, index: int
) -> None:
    """The vocabulary has 37 tokens: -1 would read the last one's column."""
    prompt = [1, 2, 3]
    cache = model.run_with_cache(prompt)[1]
    for look in (
        lambda: direct_logit_attribution(model, prompt, answers=index),
        lambda: direct_logit_attribution(model, prompt, answers=3, wrong=index),
        lambda: cache.logit_effects([3], [index]),
        lambda: logit_lens(model, prompt, target=index),
        lambda: causal_trace(model, prompt, subject=[1], answers=[index]),
    ):
        with pytest.raises(PositionOutOfRange, match="outside the vocabulary"):
            look()


def test_a_subject_is_told_by_positions_one_or_several(model: Model) -> None:
    for wrong in ("dog", ["dog"], [["dog"]]):
        with pytest.raises(PositionOutOfRange, match="positions of its tokens"):
            causal_trace(model, [1, 2, 3], subject=wrong, answers=[4])
    with pytest.raises(PositionOutOfRange, match="no such subject"):
        causal_trace(model, [1, 2, 3], subject=3, answers=[4])
    shown = logit_lens(model, [1, 2, 3], positions=-1).log_probability
    assert (shown.values == logit_lens(model, [1, 2, 3], positions=[-1]).log_probability.values).all()
