"""Heads: the part of an investigation that finds a small set of heads and MLPs, and freezes a claim about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mechscope.behaviors import Behavior
from mechscope.behaviors.split import Split
from mechscope.claims.claim import Claim
from mechscope.claims.control_families import best_family
from mechscope.figures.labelled import LabelledArray
from mechscope.investigations.patterns import patterns_of_heads
from mechscope.investigations.prediction_sizes import size_predictions
from mechscope.investigations.search import Found, score_components, search_components
from mechscope.models.model import Model

EXPLAINS_NOTHING = 0.15
"""A set that scores less than this fraction of the gap on validation is not claimed."""


@dataclass(frozen=True, kw_only=True)
class HeadPart:
    """What was found about heads and MLPs, and what is claimed of them.

    Args:
        found: The search on train prompts.
        stopped: Why there is no claim; "" if there is one.
        claim: Frozen, not yet tested; None if nothing is claimed.
        left_out: What was not predicted, and why.
        patterns: Where the heads look on real prompts, by prompt.
    """

    found: Found
    stopped: str = ""
    claim: Claim | None = None
    left_out: tuple[str, ...] = ()
    patterns: list[tuple[str, LabelledArray]] = field(default_factory=list)


def find_heads(model: Model, behavior: Behavior, train: Split) -> HeadPart:
    """Search on train prompts, and see on validation prompts whether the set is worth a claim."""
    found = search_components(model, train)
    if found.mechanism is None:
        return HeadPart(
            found=found,
            stopped="Held to corrupt values, all heads and MLPs together hardly move the metric: they do not "
            "carry it.",
        )
    score = score_components(model, behavior.validation, found.mechanism)
    if score.recovered < EXPLAINS_NOTHING:
        return HeadPart(
            found=found,
            stopped=f"The set found on train prompts ({found.mechanism.name}) recovers {score.recovered:.0%} of the "
            "gap on validation prompts: too little to claim.",
        )
    return HeadPart(found=found)


def claim_heads(
    model: Model, behavior: Behavior, *, part: HeadPart, others: Sequence[Behavior] = (), seed: int = 0
) -> HeadPart:
    """Choose on validation prompts what to predict of the set, and freeze the claim.

    Args:
        model: An open model.
        behavior: What the set is claimed to carry.
        part: As found; one that stopped is returned as it is.
        others: Behaviours that the set might spare.
        seed: Of controls and resamples.
    """
    mechanism = part.found.mechanism
    if part.stopped or mechanism is None:
        return part
    sized = size_predictions(model, behavior, mechanism=mechanism, others=tuple(others), seed=seed)
    if {prediction.kind for prediction in sized.predictions} <= {"spares"}:
        stopped = "On validation prompts the set that was found has no effect worth predicting."
        return replace(part, stopped=stopped, left_out=sized.left_out)
    claim = Claim(
        f"In {model.identity.name}, {mechanism.name} carry {behavior.name}.",
        behavior=behavior,
        mechanism=mechanism,
        predictions=sized.predictions,
        controls=best_family(model, mechanism),
        seed=seed,
    )
    patterns = patterns_of_heads(model, behavior.train, mechanism)
    return replace(part, claim=claim, left_out=sized.left_out, patterns=patterns)
