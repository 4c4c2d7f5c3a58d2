"""Nothing held out is read before the claim is frozen, and nothing at all where no claim is made."""

from collections.abc import Iterator

import pytest

import mechscope as ms
from mechscope.behaviors.behavior import Behavior
from mechscope.claims.bench import EngineBench
from mechscope.investigations.investigate import investigate
from mechscope.investigations.prediction_sizes import size_predictions


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What happened, in order: claims frozen, held-out splits taken out of a behaviour, and splits measured."""
    told: list[str] = []
    held_out, freeze, measure = Behavior.held_out, ms.Claim.__post_init__, EngineBench.open_split
    monkeypatch.setattr(
        Behavior, "held_out", property(lambda self: told.append("held out") or held_out.fget(self))
    )
    monkeypatch.setattr(ms.Claim, "__post_init__", lambda self: freeze(self) or told.append("frozen"))
    monkeypatch.setattr(
        EngineBench, "open_split", lambda self, *a, **k: told.append("measured") or measure(self, *a, **k)
    )
    return told


def test_a_behaviour_that_is_absent_leaves_its_held_out_prompts_unread(events: list[str]) -> None:
    model = ms.load("induction")
    behavior = ms.behaviors.load("induction", model, n=60)
    swapped = ms.behaviors.from_tokens(  # the clean prompts are no better than the corrupt ones
        behavior.corrupt.ids, behavior.clean.ids, answers=list(behavior.train.answers), name="swapped"
    )
    assert investigate(model, swapped).record is None
    assert "held out" not in events and "frozen" not in events


def test_sizes_are_set_without_a_look_at_held_out_prompts(events: list[str]) -> None:
    model = ms.load("induction")
    behavior = ms.behaviors.load("induction", model, n=60)
    heads = ms.Components(heads=((0, 5), (1, 3)))
    sized = size_predictions(model, behavior, mechanism=heads, others=(behavior,))
    assert sized.predictions and "measured" in events
    assert "held out" not in events
    EngineBench(model).open_split(behavior, fresh_seed=None)
    assert "held out" in events, "a bench of the held-out split is seen here"


@pytest.mark.slow
def test_held_out_prompts_are_first_read_after_the_claim_was_frozen(events: list[str]) -> None:
    model = ms.load("induction")
    found = investigate(model, ms.behaviors.load("induction", model, n=120))
    assert found.record is not None
    assert events.index("frozen") < events.index("held out")
