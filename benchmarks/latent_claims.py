"""Do the latents of something known of village do what they should? Claims about them, exchanged and held.

Of each residual dictionary, latents are ranked by integrated gradients on train prompts. *Exchanged*: the smallest of
sets of 1 to 64 with which the answer moves by 0.6 of the gap both ways, else the strongest. The claim: given their
corrupt values, the clean-corrupt gap falls by at least x; and put alone from the clean run into the corrupt one, they
bring back at least y. *Held* at values of their own in the other prompts: `latent_holds`. Sizes are set on validation
prompts, before the held-out ones are opened; controls are other latents of the same dictionary (`latent_bench`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.known_prompts import Concept
from benchmarks.latent_bench import OTHERS, LatentBench, Prepared, effect_row, effects, prepare, sized
from benchmarks.latent_holds import ENOUGH, SIZES, choose_held, effects_of_nothing, measure_holds
from benchmarks.latent_reading import Side, read_side, scored
from mechscope.attribution.latents import attribute_latents
from mechscope.claims.claim import Claim
from mechscope.claims.predictions import lowers, recovers
from mechscope.claims.testing import test_claim
from mechscope.features.latents import Latents
from mechscope.models.model import Model


def ranked(model: Model, prepared: Prepared, dictionaries: dict[str, Any]) -> dict[str, list[int]]:
    """Of every SAE of the residual stream, latents by what they do to the answer on train prompts, largest first."""
    found: dict[str, list[int]] = {}
    for site in sorted(name for name in dictionaries if name.startswith("resid_post")):
        scores = attribute_latents(
            model, prepared.behavior.train, dictionaries=[dictionaries[site]], method="ig"
        )
        of_latents = scores.effects[site][: dictionaries[site].n_latents]
        found[site] = np.argsort(of_latents, kind="stable").tolist()
    return found


def chosen_mechanism(
    model: Model, prepared: Prepared, sets: Sequence[Latents]
) -> tuple[Latents, float, float]:
    """On train prompts: the smallest set with both effects `ENOUGH`, else the strongest; with both shares."""
    split = prepared.behavior.train
    clean, corrupt = (effects_of_nothing(model, split, inputs) for inputs in (split.clean, split.corrupt))
    gap = float((clean - corrupt).mean())
    falls = (clean - effects(model, sets, split, how="corrupt")).mean(1) / gap
    returns = (effects(model, sets, split, how="alone") - corrupt).mean(1) / gap
    lesser = np.minimum(falls, returns)
    good = [i for i in range(len(sets)) if lesser[i] >= min(ENOUGH, lesser.max())]
    best = min(good, key=lambda i: (len(sets[i].latents), -lesser[i]))
    return sets[best], float(falls[best]), float(returns[best])


def measure_claims(concept: Concept, model: Model, dictionaries: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The verdict about exchanging latents, and those about holding them on and off."""
    prepared = prepare(concept, model, dictionaries)
    orders = ranked(model, prepared, dictionaries)
    yield from _exchanged(concept, model, prepared, orders=orders, dictionaries=dictionaries)
    on = choose_held(model, prepared, orders, dictionaries)
    yield from measure_holds(concept, model, prepared, on)
    yield _detection(concept, prepared, model=model, mechanism=on.mechanism, part="held: AUROC")


def _exchanged(
    concept: Concept,
    model: Model,
    prepared: Prepared,
    *,
    orders: dict[str, list[int]],
    dictionaries: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    sets = [
        Latents(dictionaries[site], tuple(order[:size])) for site, order in orders.items() for size in SIZES
    ]
    found, falls, returns = chosen_mechanism(model, prepared, sets)
    mechanism = Latents(found.dictionary, found.latents, label=concept.means)
    validation = LatentBench(model, prepared.share, split="validation")
    probes = (lowers(1.0, unit="gap", how="corrupt"), recovers(1.0))
    predictions = [
        one for probe in probes if (one := sized(validation, mechanism, probe, prepared.behavior)) is not None
    ]
    claim = Claim(
        f"{mechanism.name} carry what the model does with: {concept.means}",
        behavior=prepared.behavior,
        mechanism=mechanism,
        predictions=predictions,
        controls=OTHERS,
    )
    record = test_claim(claim, LatentBench(model, prepared.share))
    for result in record.verdict.predictions:
        yield {
            "concept": concept.name,
            "part": f"claim: {result.prediction.kind}",
            "site": mechanism.site,
            "latents": list(mechanism.latents),
            "predicted": result.prediction.bound,
            **effect_row(result),
            "train": round(falls if result.prediction.kind == "lowers" else returns, 3),
            "outcome": result.outcome,
            "verdict": record.verdict.outcome,
            "passed": result.outcome == "holds",
        }
    yield _detection(concept, prepared, model=model, mechanism=mechanism, part="claim: AUROC")


def _detection(
    concept: Concept, prepared: Prepared, *, model: Model, mechanism: Latents, part: str
) -> dict[str, Any]:
    """AUROC of the claim's latents themselves on held-out prompts, read as does best on train prompts."""
    from mechscope.dictionaries.evaluation.probing import auroc_with_interval

    test = read_side(model, {mechanism.site: mechanism.dictionary}, prepared.pairs["held_out"])
    best = None
    for reading in ("last", "largest"):
        fit = Side(
            {(mechanism.site, reading): prepared.side.tables[mechanism.site, reading]},
            prepared.side.labels,
            prepared.side.units,
        )
        _, score = scored(fit, test, mechanism.site, reading, mechanism.latents)
        train_value, _ = scored(fit, fit, mechanism.site, reading, mechanism.latents)
        if best is None or train_value > best[0]:
            best = (train_value, reading, auroc_with_interval(score, test.labels, test.units, 0))
    assert best is not None
    return {
        "concept": concept.name,
        "part": part,
        "site": mechanism.site,
        "reading": best[1],
        "latents": list(mechanism.latents),
        "auroc": round(best[2].value, 4),
        "low": round(best[2].low, 4),
        "high": round(best[2].high, 4),
        "passed": None,
    }
