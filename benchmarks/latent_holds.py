"""Latents held on where something is absent, and off where it is there: what clamping does, foretold and held to it.

Each latent is held at what it usually holds in the other prompts, position by position (or beyond: the dose multiplies
the difference; a latent holds no less than 0). Positions are the last ones that every pair of train prompts has in
common, so that what is held is what the model carried there and not the words that were changed; or all last ones, if
pairs differ to the end. The set (the smallest that moves the answer by 0.6 of the gap, else the strongest) and its dose
are chosen on train prompts, the size that is predicted on validation prompts, and held-out prompts decide.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.known_prompts import Concept
from benchmarks.latent_bench import OTHERS, LatentBench, Prepared, effect_row, effects, sized
from mechscope.claims.claim import Claim
from mechscope.claims.predictions import lowers
from mechscope.claims.testing import test_claim
from mechscope.data.intervals import Resamples, mean_bootstrap
from mechscope.features.latents import Latents
from mechscope.models.model import Model

DOSES = (1.0, 2.0, 4.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
ENOUGH = 0.6
"""Of the gap on train prompts, at which no larger set is asked for."""


@dataclass(frozen=True, eq=False)
class Usual:
    """What every latent of a dictionary holds on average on train prompts, by position from the end.

    Args:
        positions: Negative, in order.
        with_it: [position, latent].
        without_it: [position, latent].
    """

    positions: tuple[int, ...]
    with_it: np.ndarray
    without_it: np.ndarray

    def held(
        self, latents: Sequence[int], dose: float, *, is_on: bool
    ) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """What these are held at: on in prompts without the thing, or off in prompts with it."""
        start, end = (self.without_it, self.with_it) if is_on else (self.with_it, self.without_it)
        some = list(latents)
        values = np.maximum(start[:, some] + dose * (end[:, some] - start[:, some]), 0)
        return tuple(
            (position, tuple(row.tolist())) for position, row in zip(self.positions, values, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Chosen:
    """A set with its dose and positions, and the share of the gap that holding it moves on train prompts."""

    mechanism: Latents
    usual: Usual
    dose: float
    train: float


def n_held(clean: Any, corrupt: Any) -> int:
    """How many last tokens are held: those that all pairs have in common; if there are none, that all prompts have."""
    length = int(min(clean.n_real.min(), corrupt.n_real.min())) - 1  # not the beginning of the sequence
    same = (clean.ids == corrupt.ids).flip(1).int().cumprod(1).sum(1)
    return min(length, int(same.min())) or length


def usual_of(model: Model, dictionary: Any, split: Any, n: int) -> Usual:
    """Means over a split's prompts at the last n positions."""
    site = str(dictionary.reads[0])
    means = []
    for inputs in (split.clean, split.corrupt):
        with torch.no_grad():
            codes = dictionary.encode(model.run(inputs, capture=[site]).cache[site][:, -n:])
        means.append(codes.mean(0).double().numpy())
    return Usual(tuple(range(-n, 0)), *means)


def choose_held(
    model: Model, prepared: Prepared, orders: dict[str, list[int]], dictionaries: dict[str, Any]
) -> Chosen:
    """On train prompts: the smallest set that moves enough of the gap when it is held on, else the strongest."""
    train = prepared.without.train
    candidates: list[tuple[Latents, Usual, float]] = []
    n = n_held(train.clean, train.corrupt)
    for site, order in orders.items():
        usual = usual_of(model, dictionaries[site], prepared.behavior.train, n)
        for size in SIZES:
            some = tuple(order[:size])
            candidates += [
                (Latents(dictionaries[site], some, held=usual.held(some, dose, is_on=True)), usual, dose)
                for dose in DOSES
            ]
    moved = _moved(model, [one for one, _, _ in candidates], train)
    good = [i for i in range(len(candidates)) if moved[i] >= min(ENOUGH, moved.max())]
    best = min(good, key=lambda i: (len(candidates[i][0].latents), -moved[i]))
    mechanism, usual, dose = candidates[best]
    return Chosen(mechanism, usual, dose, float(moved[best]))


def turned_off(model: Model, prepared: Prepared, on: Chosen) -> Chosen:
    """The same set held off in prompts with the thing, at the dose that moves most on train prompts."""
    of, train = on.mechanism, prepared.behavior.train
    sets = [
        Latents(of.dictionary, of.latents, held=on.usual.held(of.latents, dose, is_on=False))
        for dose in DOSES
    ]
    moved = _moved(model, sets, train)
    best = int(np.argmax(moved))
    return Chosen(sets[best], on.usual, DOSES[best], float(moved[best]))


def _moved(model: Model, sets: Sequence[Latents], split: Any) -> np.ndarray:
    clean, corrupt = (effects_of_nothing(model, split, inputs) for inputs in (split.clean, split.corrupt))
    return (clean - effects(model, sets, split, how="mean")).mean(1) / (clean - corrupt).mean()


def effects_of_nothing(model: Model, split: Any, inputs: Any) -> np.ndarray:
    """The metric of the untouched model, [prompt]."""
    from mechscope.engine.execute import run_experiments
    from mechscope.engine.experiment import Experiment

    return run_experiments(model, [Experiment(inputs=inputs, metric=split.metric)]).values[0].numpy()


def measure_holds(concept: Concept, model: Model, prepared: Prepared, on: Chosen) -> Iterator[dict[str, Any]]:
    """A line for holding the chosen set on, and one for holding it off."""
    for part, chosen, behavior in (
        ("held on", on, prepared.without),
        ("held off", turned_off(model, prepared, on), prepared.behavior),
    ):
        yield _line(concept, part, chosen, behavior, model=model, prepared=prepared)


def _line(
    concept: Concept, part: str, chosen: Chosen, behavior: Any, *, model: Model, prepared: Prepared
) -> dict[str, Any]:
    held, is_on = chosen.mechanism, part == "held on"
    usual = chosen.usual.without_it if is_on else chosen.usual.with_it
    base = {
        "concept": concept.name,
        "part": part,
        "site": held.site,
        "latents": list(held.latents),
        "positions": [chosen.usual.positions[0], chosen.usual.positions[-1]],
        "dose": chosen.dose,
        "train": round(chosen.train, 3),
    }
    probe = lowers(1.0, unit="gap", how="mean")
    validation = LatentBench(model, prepared.share, usual=usual, split="validation")
    prediction = sized(validation, held, probe, behavior)
    if prediction is None:
        return {**base, "outcome": "nothing predicted", "passed": False}
    claim = Claim(
        f"{held.name}, as with{'' if is_on else 'out'} {concept.means}, turn the answer",
        behavior=behavior,
        mechanism=held,
        predictions=[prediction],
        controls=OTHERS,
    )
    bench = LatentBench(model, prepared.share, usual=usual)
    record = test_claim(claim, bench)
    result = record.verdict.predictions[0]
    return {
        **base,
        "predicted": prediction.bound,
        **effect_row(result),
        **_turned(model, bench, claim, behavior),
        "outcome": result.outcome,
        "verdict": record.verdict.outcome,
        "passed": result.outcome == "holds",
    }


def _turned(model: Model, bench: LatentBench, claim: Claim, behavior: Any) -> dict[str, Any]:
    """How many answers become the other prompt's: by the set, and by the most successful of 39 of its controls."""
    split, held = behavior.held_out, claim.mechanism
    assert isinstance(held, Latents)
    units = np.unique(["/".join(one) for one in split.entities], return_inverse=True)[1]
    before, after = turned_answers(model, split, None), turned_answers(model, split, held)
    interval = mean_bootstrap(Resamples(units, seed=0), after).interval(0.95)
    others = bench.draw_controls(held, behavior, family=OTHERS, n_draws=199, seed=claim.seed).mechanisms[:39]
    return {
        "answers_turned_before": round(float(before.mean()), 3),
        "answers_turned": round(float(after.mean()), 3),
        "answers_low": round(max(0.0, interval.low), 3),
        "answers_high": round(min(1.0, interval.high), 3),
        "largest_of_39_controls": round(
            max(float(turned_answers(model, split, other).mean()) for other in others), 3
        ),
    }


def turned_answers(model: Model, split: Any, held: Latents | None) -> np.ndarray:
    """Whether each clean prompt is answered as its corrupt twin is to be, [prompt]."""
    writes = [] if held is None else held.holding()
    with torch.no_grad():
        told = model.logits(split.clean, interventions=writes)[:, -1].argmax(-1).tolist()
    return np.array([token in wrong for token, wrong in zip(told, split.metric.wrong, strict=True)], float)
