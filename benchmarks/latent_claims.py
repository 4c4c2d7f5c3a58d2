"""Do the latents of something known of village do what they should? Claims about them, and clamps, beside others.

The set is chosen on train prompts: of each residual dictionary, the latents to which integrated gradients give the
largest part of the answer are exchanged together, 1 to 64 of them; the smallest set is taken with which the answer
moves by 0.6 of the gap both ways, else the strongest. The claim: given their corrupt values, the clean-corrupt gap
falls by at least half; and put alone from the clean run into the corrupt one, they bring back at least half. Controls:
as many other latents of the same dictionary that are on in these prompts. Then, on prompts without the thing, each is
clamped to what it usually holds with it.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.known_latents import N_PAIRS, Side, read_side, scored
from benchmarks.known_prompts import Concept, Pair
from mechscope.attribution.latents import attribute_latents
from mechscope.claims.bench import EngineBench
from mechscope.claims.claim import Claim
from mechscope.claims.predictions import Prediction, lowers, recovers
from mechscope.claims.testing import DrawnControls, test_claim
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.features.latents import Latents
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for

OTHERS = "other latents of the dictionary"
SIZES = (1, 2, 4, 8, 16, 32, 64)
SHARE = 0.5
"""Of the clean-corrupt gap that is predicted to fall, and to come back."""

ENOUGH = 0.6
"""Of both on train prompts, at which no larger set is asked for."""

SEED = 9
"""Of the prompts: others than those on which detection is measured, and than an earlier search was tested on."""

N_TRAIN, N_HELD_OUT, LEAST_ON = 80, 120, 0.1
DOSES = (1.0, 2.0, 4.0)


@dataclass
class Prepared:
    """A concept's prompts as a behaviour, with what the dictionaries say of the train split."""

    behavior: Any
    side: Side
    pairs: dict[str, list[Pair]]


class LatentBench(EngineBench):
    """The bench of claims, which also measures latents and draws other latents as their controls.

    Args:
        model: An open model.
        share: By dictionary site, the share of train prompts in which each latent is on.
    """

    def __init__(self, model: Model, share: dict[str, np.ndarray]) -> None:
        super().__init__(model)
        self._opened_model, self._share = model, share

    def check(self, mechanism: Any, predictions: Sequence[Prediction]) -> None:
        """Latents satisfy these kinds of prediction by construction."""

    def families_for(self, mechanism: Any) -> Sequence[str]:
        """Other latents, and nothing else."""
        return (OTHERS,)

    def draw_controls(
        self, mechanism: Any, behavior: Any, *, family: str, n_draws: int, seed: int
    ) -> DrawnControls:
        """As many others that are on in these prompts; all of them where there are no more."""
        on = self._share[mechanism.site]
        pool = [i for i in np.flatnonzero(on >= LEAST_ON).tolist() if i not in mechanism.latents]
        size = len(mechanism.latents)
        n_members = comb(len(pool), size)
        if n_members <= n_draws:
            drawn = list(combinations(pool, size))
        else:
            drawn, index = [], 0
            while len(drawn) < n_draws:
                rng = generator_for(seed, "controls", family, index)
                one = tuple(sorted(int(i) for i in rng.choice(pool, size, replace=False)))
                index += 1
                if one not in drawn:
                    drawn.append(one)
        others = [Latents(mechanism.dictionary, one) for one in drawn]
        return DrawnControls(others, n_members, tuple(other.name for other in others))

    def measure(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, held_out: Any
    ) -> np.ndarray:
        """The metric on held-out clean prompts, with the latents corrupt, or with all else at the site corrupt."""
        del held_out
        return effects(self._opened_model, mechanisms, behavior.held_out, alone=prediction.kind == "recovers")


def effects(model: Model, mechanisms: Sequence[Latents], split: Any, *, alone: bool) -> np.ndarray:
    """The metric on clean prompts under each mechanism's write, [mechanism, prompt]."""
    donors = {site: model.run(split.corrupt, capture=[site]).cache for site in {m.site for m in mechanisms}}
    experiments = [
        Experiment(
            inputs=split.clean,
            writes=tuple(m.isolation(donors[m.site]) if alone else m.ablation("corrupt", donors[m.site])),
            metric=split.metric,
            name=m.name,
        )
        for m in mechanisms
    ]
    return run_experiments(model, experiments).table().numpy()


def prepare(concept: Concept, model: Model, dictionaries: dict[str, Any]) -> Prepared:
    """The concept's pairs as a behaviour with three splits, and codes of the train prompts."""
    from mechscope.behaviors.own import from_pairs

    sizes = {"train": N_TRAIN, "validation": 60, "held_out": N_HELD_OUT}
    pairs = {split: concept.pairs(split, N_PAIRS[split], seed=SEED)[:n] for split, n in sizes.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{concept.name}.jsonl"
        rows = [
            {
                "clean": pair.clean,
                "corrupt": pair.corrupt,
                "answer": pair.answer,
                "wrong": pair.wrong,
                "entities": list(pair.entities),
                "template": pair.template,
                "split": split,
            }
            for split, found in pairs.items()
            for pair in found
        ]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        behavior = from_pairs(path, model, name=concept.name, metric="logit_difference")
    return Prepared(behavior, read_side(model, dictionaries, pairs["train"]), pairs)


def candidates(model: Model, prepared: Prepared, dictionaries: dict[str, Any]) -> list[Latents]:
    """Of every SAE, the latents that matter most on train prompts, with what each holds where it is on."""
    labels, split = prepared.side.labels, prepared.behavior.train
    found: list[Latents] = []
    for site in sorted(name for name in dictionaries if name.startswith("resid_post")):
        dictionary = dictionaries[site]
        scores = attribute_latents(model, split, dictionaries=[dictionary], method="ig").effects[site]
        order = np.argsort(scores[: dictionary.n_latents], kind="stable").tolist()
        held = prepared.side.tables[site, "largest"][labels]
        for size in SIZES:
            chosen = tuple(order[:size])
            found.append(Latents(dictionary, chosen, tuple(typical(held[:, latent]) for latent in chosen)))
    return found


def typical(values: np.ndarray) -> float:
    """The mean where it is on; 0 for one that is mostly off."""
    on = values[values > 0]
    return float(on.mean()) if 2 * len(on) >= len(values) else 0.0


def chosen_mechanism(
    model: Model, prepared: Prepared, sets: Sequence[Latents]
) -> tuple[Latents, float, float]:
    """On train prompts: the smallest set with both effects `ENOUGH`, else the strongest; with both shares."""
    split = prepared.behavior.train
    clean, corrupt = (
        run_experiments(model, [Experiment(inputs=inputs, metric=split.metric)]).values[0].numpy()
        for inputs in (split.clean, split.corrupt)
    )
    gap = float((clean - corrupt).mean())
    falls = (clean - effects(model, sets, split, alone=False)).mean(1) / gap
    returns = (effects(model, sets, split, alone=True) - corrupt).mean(1) / gap
    lesser = np.minimum(falls, returns)
    good = [i for i in range(len(sets)) if lesser[i] >= min(ENOUGH, lesser.max())]
    best = min(good, key=lambda i: (len(sets[i].latents), -lesser[i]))
    return sets[best], float(falls[best]), float(returns[best])


def measure_claims(concept: Concept, model: Model, dictionaries: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The claim's verdict, and the clamps."""
    prepared = prepare(concept, model, dictionaries)
    sets = candidates(model, prepared, dictionaries)
    mechanism, falls, returns = chosen_mechanism(model, prepared, sets)
    mechanism = Latents(mechanism.dictionary, mechanism.latents, mechanism.values, concept.means)
    share = {
        f"{site}": (table > 0).mean(0)
        for (site, reading), table in prepared.side.tables.items()
        if reading == "largest"
    }
    claim = Claim(
        f"{mechanism.name} carry what the model does with: {concept.means}",
        behavior=prepared.behavior,
        mechanism=mechanism,
        predictions=[lowers(SHARE, unit="gap", how="corrupt"), recovers(SHARE)],
        controls=OTHERS,
    )
    record = test_claim(claim, LatentBench(model, share))
    for result in record.verdict.predictions:
        effect, controls = result.effect, result.controls
        yield {
            "concept": concept.name,
            "part": f"claim: {result.prediction.kind}",
            "site": mechanism.site,
            "latents": list(mechanism.latents),
            "effect": None if effect is None else round(effect.value, 3),
            "low": None if effect is None else round(effect.interval.low, 3),
            "high": None if effect is None else round(effect.interval.high, 3),
            "controls_p": None if controls is None or controls.p is None else round(controls.p, 4),
            "controls": None if controls is None else controls.n_drawn,
            "controls_95": None if controls is None else round(controls.quantile, 3),
            "train": round(falls if result.prediction.kind == "lowers" else returns, 3),
            "outcome": result.outcome,
            "verdict": record.verdict.outcome,
            "passed": result.outcome == "holds",
        }
    yield _detection(concept, prepared, model, mechanism)
    yield from _clamps(concept, model, prepared, mechanism, share)


def _detection(concept: Concept, prepared: Prepared, model: Model, mechanism: Latents) -> dict[str, Any]:
    """AUROC of the claim's latents themselves, at the largest of the prompt, on held-out prompts."""
    from mechscope.dictionaries.evaluation.probing import auroc_with_interval

    test = read_side(model, {mechanism.site: mechanism.dictionary}, prepared.pairs["held_out"])
    best = None
    for reading in ("last", "largest"):
        fit = Side(
            {(mechanism.site, reading): prepared.side.tables[mechanism.site, reading]},
            prepared.side.labels,
            prepared.side.units,
        )
        value, score = scored(fit, test, mechanism.site, reading, mechanism.latents)
        train_value, _ = scored(fit, fit, mechanism.site, reading, mechanism.latents)
        if best is None or train_value > best[0]:
            best = (train_value, reading, auroc_with_interval(score, test.labels, test.units, 0))
        del value
    assert best is not None
    return {
        "concept": concept.name,
        "part": "claim: AUROC",
        "site": mechanism.site,
        "reading": best[1],
        "latents": list(mechanism.latents),
        "auroc": round(best[2].value, 4),
        "low": round(best[2].low, 4),
        "high": round(best[2].high, 4),
        "passed": None,
    }


def _clamps(
    concept: Concept, model: Model, prepared: Prepared, mechanism: Latents, share: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """On prompts without the thing, clamped to the usual value; dose and positions chosen on train prompts."""
    ways = [(dose, positions) for dose in DOSES for positions in (None, -1)]
    train = prepared.behavior.train
    flips = [_flips(model, train, mechanism.steering(dose, positions)).mean() for dose, positions in ways]
    dose, positions = ways[int(np.argmax(flips))]
    split = prepared.behavior.held_out
    before, after = _flips(model, split, ()), _flips(model, split, mechanism.steering(dose, positions))
    units = np.array(["/".join(pair.entities) for pair in prepared.pairs["held_out"]])
    low, high = _interval(after, units)
    largest = prepared.side.tables[mechanism.site, "largest"]
    pool = [
        i for i in np.flatnonzero(share[mechanism.site] >= LEAST_ON).tolist() if i not in mechanism.latents
    ]
    strong, kept = [], []
    for index in range(39):
        rng = generator_for(0, "clamp controls", index)
        some = tuple(int(i) for i in rng.choice(pool, len(mechanism.latents), replace=False))
        other = Latents(mechanism.dictionary, some, tuple(typical(largest[:, i]) for i in some))
        strong.append(float(_flips(model, split, other.steering(dose, positions)).mean()))
        kept.append(float(_flips(model, split, other.ablation("zero", ()), from_clean=True).mean()))
    held = _flips(model, split, mechanism.ablation("zero", ()), from_clean=True)
    untouched = _flips(model, split, (), from_clean=True)
    yield {
        "concept": concept.name,
        "part": "clamped on",
        "site": mechanism.site,
        "latents": list(mechanism.latents),
        "dose": dose,
        "positions": "all" if positions is None else "last",
        "answers_as_with_it_before": round(float(before.mean()), 3),
        "answers_as_with_it": round(float(after.mean()), 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "largest_of_39_controls": round(max(strong), 3),
        "passed": None,
    }
    yield {
        "concept": concept.name,
        "part": "clamped to 0",
        "site": mechanism.site,
        "latents": list(mechanism.latents),
        "answers_as_with_it_before": round(float(untouched.mean()), 3),
        "answers_as_with_it": round(float(held.mean()), 3),
        "smallest_of_39_controls": round(min(kept), 3),
        "passed": None,
    }


def _flips(model: Model, split: Any, writes: Sequence[Any], *, from_clean: bool = False) -> np.ndarray:
    """Whether each prompt without the thing (or, from clean, with it) gets the answer that it gets with it."""
    tokens = split.clean if from_clean else split.corrupt
    with torch.no_grad():
        told = model.logits(tokens, interventions=list(writes))[:, -1].argmax(-1).tolist()
    return np.array(
        [token in answers for token, answers in zip(told, split.metric.answers, strict=True)], float
    )


def _interval(values: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    from mechscope.data.intervals import Resamples, mean_bootstrap

    _, labels = np.unique(units, return_inverse=True)
    found = mean_bootstrap(Resamples(labels, seed=0), values).interval(0.95)
    return max(0.0, found.low), min(1.0, found.high)
