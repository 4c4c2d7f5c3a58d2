"""The bench of claims about latents: what is measured, against which other latents, and how large it is said to be.

Latents are exchanged with the pair's other prompt, or held at values by position. Controls are as many other latents of
the same dictionary that are on in these prompts; where the claim holds its latents, theirs are moved by exactly as much
at the same positions. Sizes are set on validation prompts by the rule of investigations (`prediction_sizes`): 0.8 of
the lower end of the interval there.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.known_prompts import Concept, Pair
from benchmarks.latent_reading import N_PAIRS, Side, read_side
from mechscope.claims.bench import EngineBench
from mechscope.claims.evidence import Evidence
from mechscope.claims.predictions import Prediction
from mechscope.claims.testing import DrawnControls
from mechscope.claims.verdict import PredictionResult
from mechscope.data.intervals import Resamples, ratio_bootstrap
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.features.latents import Latents
from mechscope.investigations.prediction_sizes import CAUTION, SMALLEST
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import NotEnoughEvidence

OTHERS = "other latents of the dictionary"
SEED = 11
"""Of the prompts: others than those on which detection is measured, and than earlier searches were tested on."""

N_OF = {"train": 80, "validation": 100, "held_out": 120}
LEAST_ON = 0.1


@dataclass
class Prepared:
    """A concept's prompts as a behaviour, with what the dictionaries say of the train split.

    Args:
        behavior: Clean is with the thing, and corrupt without.
        without: The same pairs turned round: clean is without it.
        side: Codes of the train prompts.
        pairs: By split.
    """

    behavior: Any
    without: Any
    side: Side
    pairs: dict[str, list[Pair]]

    @property
    def share(self) -> dict[str, np.ndarray]:
        """By dictionary, the share of train prompts in which each latent is on."""
        tables = {site: table for (site, reading), table in self.side.tables.items() if reading == "largest"}
        return {site: (table > 0).mean(0) for site, table in tables.items()}


class LatentBench(EngineBench):
    """The bench of claims, which also measures latents and draws other latents as their controls.

    Args:
        model: An open model.
        share: By dictionary site, the share of train prompts in which each latent is on.
        usual: Where latents are held: what every latent holds by itself there on the prompts that it is done to,
            [position, latent], in the order of the mechanism's `held`.
        split: Which split stands for the held-out one: "validation" where sizes are set.
    """

    def __init__(
        self,
        model: Model,
        share: dict[str, np.ndarray],
        *,
        usual: np.ndarray | None = None,
        split: str = "held_out",
    ) -> None:
        super().__init__(model, split=split)
        self._opened_model, self._share, self._usual = model, share, usual

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
        others = [self._moved_alike(mechanism, one) for one in drawn]
        return DrawnControls(others, n_members, tuple(other.name for other in others))

    def measure(
        self, mechanisms: Sequence[Any], prediction: Prediction, behavior: Any, held_out: Any
    ) -> np.ndarray:
        """The metric under each: held, exchanged, or with all else at the site exchanged."""
        del held_out
        how = prediction.how if prediction.kind == "lowers" else "alone"
        return effects(self._opened_model, mechanisms, self.prompts.tested(behavior), how=how)

    def _moved_alike(self, mechanism: Latents, others: tuple[int, ...]) -> Latents:
        """Other latents, moved from what they usually hold by as much as the mechanism's are, where it is held."""
        if not mechanism.held:
            return Latents(mechanism.dictionary, others)
        assert self._usual is not None
        held = [
            (position, tuple((usual[list(others)] + np.array(to) - usual[list(mechanism.latents)]).tolist()))
            for (position, to), usual in zip(mechanism.held, self._usual, strict=True)
        ]
        return Latents(mechanism.dictionary, others, held=tuple(held))


def effects(model: Model, mechanisms: Sequence[Latents], split: Any, *, how: str) -> np.ndarray:
    """The metric on clean prompts under each mechanism's write, [mechanism, prompt].

    Args:
        model: An open model.
        mechanisms: Sets of latents.
        split: Prompts.
        how: "mean" (held by position), "corrupt" (exchanged), or "alone": all else exchanged.
    """
    sites = {m.site for m in mechanisms}
    donors = {} if how == "mean" else {site: model.run(split.corrupt, capture=[site]).cache for site in sites}
    experiments = [
        Experiment(
            inputs=split.clean,
            writes=tuple(
                m.isolation(donors[m.site]) if how == "alone" else m.ablation(how, donors.get(m.site, ()))
            ),
            metric=split.metric,
            name=m.name,
        )
        for m in mechanisms
    ]
    return run_experiments(model, experiments).table().numpy()


def sized(
    bench: LatentBench, mechanism: Latents, probe: Prediction, behavior: Any, *, seed: int = 0
) -> Prediction | None:
    """The prediction at the size that validation prompts bear out; None where that is too small to predict.

    Args:
        bench: Of the validation split.
        mechanism: A set of latents.
        probe: The prediction, of any size.
        behavior: What it is about.
        seed: Of the resamples.
    """
    split = bench.open_split(behavior, fresh_seed=None)
    evidence = Evidence(probe, bench.measure([mechanism], probe, behavior, split)[0], split)
    resamples = Resamples(split.units, seed=seed, n_resamples=2000)
    try:
        low = ratio_bootstrap(resamples, evidence.effect, evidence.denominator).interval(0.95).low
    except NotEnoughEvidence:
        return None
    size = math.floor(100 * CAUTION * low) / 100
    return replace(probe, bound=min(size, 1.0)) if size >= SMALLEST[probe.kind] else None


def prepare(concept: Concept, model: Model, dictionaries: dict[str, Any]) -> Prepared:
    """The concept's pairs as a behaviour with three splits, and codes of the train prompts."""
    pairs = {split: concept.pairs(split, N_PAIRS[split], seed=SEED)[:n] for split, n in N_OF.items()}
    turned = {
        split: [
            replace(pair, clean=pair.corrupt, corrupt=pair.clean, answer=pair.wrong, wrong=pair.answer)
            for pair in found
        ]
        for split, found in pairs.items()
    }
    return Prepared(
        _behavior(pairs, model, concept.name),
        _behavior(turned, model, f"no {concept.name}"),
        read_side(model, dictionaries, pairs["train"]),
        pairs,
    )


def _behavior(pairs: dict[str, list[Pair]], model: Model, name: str) -> Any:
    from mechscope.behaviors.own import from_pairs

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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return from_pairs(path, model, name=name, metric="logit_difference")


def effect_row(result: PredictionResult) -> dict[str, Any]:
    """What a prediction's result says in a line: the effect with its interval, and its controls."""
    effect, controls = result.effect, result.controls
    return {
        "effect": None if effect is None else round(effect.value, 3),
        "low": None if effect is None else round(effect.interval.low, 3),
        "high": None if effect is None else round(effect.interval.high, 3),
        "controls_p": None if controls is None or controls.p is None else round(controls.p, 4),
        "controls": None if controls is None else controls.n_drawn,
        "controls_95": None if controls is None else round(controls.quantile, 3),
    }
