"""Investigate: the whole loop for one behaviour of one model, in order, with nothing looked at too early.

measure      does the model show the behaviour? (train)         if not, stop and say so
localise     where is it carried? grids by patching (train)
search       the smallest set of heads and MLPs that carries it (train)
size         how much to predict (validation)
freeze       the claim, before any held-out prompt is read
test         on held-out prompts, against controls
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from mechscope.behaviors import Baseline, Behavior, measure
from mechscope.claims.claim import Claim
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.control_families import best_family
from mechscope.figures.labelled import LabelledArray
from mechscope.investigations.patterns import patterns_of_heads
from mechscope.investigations.prediction_sizes import size_predictions
from mechscope.investigations.search import Found, score_components, search_components
from mechscope.models.model import Model
from mechscope.patching.grid import patch_grid
from mechscope.patching.grid_result import PatchGrid

N_SEARCHED = 64
"""Train pairs that grids and the search use."""

EXPLAINS_NOTHING = 0.15
"""A set that scores less than this fraction of the gap on validation is not claimed."""

Progress = Callable[[str, float], None]
"""Told what is being done, and how much of all is done (0 to 1)."""


@dataclass(frozen=True, kw_only=True)
class Investigation:
    """What an investigation found. Holds numbers and prompts, not the model.

    Args:
        model_name: As it was opened.
        behavior: Its name and recipe.
        baseline: The behaviour on train prompts.
        grids: Patching grids by title.
        found: The search, or None where the behaviour is absent.
        patterns: Attention patterns of the heads found on a real prompt, by prompt.
        record: The tested claim with all its measurements, or None.
        stopped: Why it ended before a claim; "" if it did not.
        left_out: What was not predicted, and why.
        examples: Some (clean, corrupt, answer, foil) as text.
        command: How to run it again.
        seconds: By stage.
    """

    model_name: str
    behavior: Behavior
    baseline: Baseline
    grids: dict[str, PatchGrid]
    found: Found | None
    patterns: list[tuple[str, LabelledArray]]
    record: ClaimRecord | None
    stopped: str
    left_out: tuple[str, ...]
    examples: tuple[tuple[str, str, str, str], ...]
    command: str
    seconds: dict[str, float]

    @property
    def outcome(self) -> str:
        """supported, refuted, inconclusive, or "no claim"."""
        return "no claim" if self.record is None else self.record.verdict.outcome


def investigate(
    model: Model,
    behavior: Behavior,
    *,
    others: tuple[Behavior, ...] = (),
    seed: int = 0,
    ledger: Path | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Investigation:
    """Find what carries a behaviour, claim it, and test the claim.

    Args:
        model: An open model.
        behavior: With train, validation and held-out splits.
        others: Behaviours that the mechanism might spare.
        seed: Of controls and resamples.
        ledger: Folder of the ledger of held-out openings.
        command: How the caller would run this again; shown in the report.
        progress: Told the stage and the share done.

    Cost: about a minute on two cores for a model of a few million parameters.
    """
    steps = _Steps(progress)
    steps.begin("measuring the behaviour", 0.0)
    train = behavior.train.select(range(min(N_SEARCHED, len(behavior.train))))
    baseline = measure(model, behavior.train)
    stopped = "" if baseline.is_present else _absent(baseline)
    grids: dict[str, PatchGrid] = {}
    found: Found | None = None
    record: ClaimRecord | None = None
    left_out: tuple[str, ...] = ()
    patterns: list[tuple[str, LabelledArray]] = []
    if not stopped:
        steps.begin("patching layers, positions and heads", 0.05)
        grids = draw_grids(model, train)
        steps.begin("searching the smallest set of heads", 0.2)
        found = search_components(model, train)
        stopped = _nothing_found(model, behavior, found)
    if not stopped and found is not None and found.mechanism is not None:
        steps.begin("choosing what to predict", 0.35)
        mechanism = found.mechanism
        sized = size_predictions(model, behavior, mechanism=mechanism, others=others, seed=seed)
        left_out = sized.left_out
        if {p.kind for p in sized.predictions} <= {"spares"}:
            stopped = "On validation prompts the set that was found has no effect worth predicting."
        else:
            patterns = patterns_of_heads(model, behavior.train, mechanism)
            claim = Claim(
                f"In {model.identity.name}, {mechanism.name} carry {behavior.name}.",
                behavior=behavior,
                mechanism=mechanism,
                predictions=sized.predictions,
                controls=best_family(model, mechanism),
                seed=seed,
            )
            steps.begin("testing the claim on held-out prompts", 0.45)
            record = claim.examine(model, ledger=ledger, behaviors=others, progress=steps.within(0.45, 0.95))
    steps.begin("writing", 0.97)
    return Investigation(
        model_name=model.identity.name,
        behavior=behavior,
        baseline=baseline,
        grids=grids,
        found=found,
        patterns=patterns,
        record=record,
        stopped=stopped,
        left_out=left_out,
        examples=examples_of(model, behavior),
        command=command,
        seconds=steps.seconds,
    )


def draw_grids(model: Model, pairs: Any) -> dict[str, PatchGrid]:
    """The grids that a report shows: streams, attention and MLP by position, heads in both directions."""
    has_mlps = any(site.point == "mlp_out" for site in model.binding.formed)
    is_even = not pairs.clean.is_padded
    positions = "each" if is_even else "from-end"
    grids = {"residual stream": patch_grid(model, pairs, site="resid_pre", positions=positions)}
    grids["attention outputs"] = patch_grid(model, pairs, site="attn_out", positions=positions)
    if has_mlps:
        grids["MLP outputs"] = patch_grid(model, pairs, site="mlp_out", positions=positions)
    if any(site.point == "z" for site in model.binding.formed):
        grids["heads, denoising"] = patch_grid(model, pairs, site="z")
        grids["heads, noising"] = patch_grid(model, pairs, site="z", direction="noising")
    return grids


def examples_of(model: Model, behavior: Behavior, n: int = 3) -> tuple[tuple[str, str, str, str], ...]:
    """A few train pairs as text, with answer and foil."""
    train = behavior.train
    rows = []
    for row in range(min(n, len(train))):
        answer, foil = train.answers[row], train.wrong[row] if train.wrong else ()
        words = [", ".join(model.reader.strings(list(ids)[:4])) for ids in (answer, foil)]
        rows.append((*train.texts[row], *words))
    return tuple(rows)


def _absent(baseline: Baseline) -> str:
    return (
        "The model does not show this behaviour clearly enough to explain it: "
        f"it is {baseline.state}, the gap between clean and corrupt prompts is {baseline.gap} "
        f"({baseline.numbers['unit']}). Nothing was localised and no claim was made."
    )


def _nothing_found(model: Model, behavior: Behavior, found: Found) -> str:
    if found.mechanism is None:
        return "Held to corrupt values, all heads and MLPs together hardly move the metric: they do not carry it."
    score = score_components(model, behavior.validation, found.mechanism)
    if score.recovered < EXPLAINS_NOTHING:
        return (
            f"The set found on train prompts ({found.mechanism.name}) recovers {score.recovered:.0%} of the gap on "
            "validation prompts: too little to claim."
        )
    return ""


class _Steps:
    """Tells progress and keeps the time of each stage."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}
        self._name, self._since = "", 0.0

    def begin(self, name: str, share: float) -> None:
        """A new stage."""
        now = perf_counter()
        if self._name:
            self.seconds[self._name] = round(now - self._since, 2)
        self._name, self._since = name, now
        if self._progress is not None:
            self._progress(name, share)

    def within(self, start: float, stop: float) -> Callable[[str, int, int], None]:
        """Progress inside a stage, from rows done and rows in all."""

        def tell(what: str, done: int, total: int) -> None:
            if self._progress is not None:
                self._progress(f"testing: {what}", start + (stop - start) * done / max(total, 1))

        return tell
