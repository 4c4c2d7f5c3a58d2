"""Random directions: claims about a direction at a site that was drawn like its own controls, at sites in turn.

A direction spread as the site's activations are, of which nothing says that it should matter, is claimed to carry the
behaviour; its controls are others of the same draw. So every such claim is false, and as strong as the strongest 5% of
its controls in 5% of draws: the rule's own level, which may not be exceeded beyond Monte Carlo error. In the cheat the
direction is the strongest of twenty on the very held-out prompts: that must be seen. The specimen is the hand-written
induction model.
"""

from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.claim_calibration.judging import Measured, predicted_size, split_of, verdict_on
from benchmarks.claim_calibration.measuring import (
    LOWERS,
    RECOVERS,
    Prompts,
    Source,
    behavior_of,
    bench_for,
    in_workers,
    opened,
    probe_of,
    prompts_of,
)
from benchmarks.claim_calibration.outcomes import Gate, Rates, Tally
from benchmarks.claim_calibration.running import Settings
from benchmarks.claim_calibration.wrong_heads import N_HELD_OUT, N_VALIDATION, induction_source
from mechscope.claims import rule
from mechscope.records.canonical import hash_json
from mechscope.records.files import open_tensors, save_tensors
from mechscope.records.seeds import generator_for

SITES = ("resid_pre.0", "resid_post.0", "resid_post.1")
N_DIRECTIONS = 400
"""Drawn at each site, once; a claim takes one of them, and as many others as its family needs."""

N_TRIED = 20
"""Directions of which the cheat takes the strongest."""

SPLITS = {"validation": N_VALIDATION, "held_out": N_HELD_OUT}
"""Prompts that a claim draws of each."""


def run(settings: Settings) -> Rates:
    """Claims about random directions.

    Cost: 3 sites x 400 directions x 800 prompts x 2 interventions once, then about 0.1 s a claim.
    """
    start = perf_counter()
    source = induction_source(settings.seed)
    tables = _tables(settings, source)
    prompts: dict[str, Prompts] = {split: prompts_of(source, split) for split in SPLITS}
    at_metric, at_gap, back, cheat = Tally(), Tally(), Tally(), Tally()
    told = settings.told("claims about random directions")
    for index in range(settings.n_claims):
        site = SITES[index % len(SITES)]
        for tally, kind, unit, n_tried in (
            (at_gap, LOWERS, "gap", 1),
            (at_metric, LOWERS, "metric", 1),
            (back, RECOVERS, "gap", 1),
            (cheat, LOWERS, "metric", N_TRIED),
        ):
            rng = generator_for(settings.seed, "random directions", index)
            of_kind = {split: tables[split, site, kind] for split in SPLITS}
            tally.add(_claim_on(of_kind, prompts, kind, rng, unit=unit, n_tried=n_tried))
        counts = ", ".join(str(tally.n_supported) for tally in (at_gap, at_metric, back, cheat))
        told(f"{index + 1} of {settings.n_claims}, supported: {counts}")
    fingerprint = opened(source.model).fingerprint
    return Rates(
        name="random-directions",
        settings=settings.facts()
        | {
            "behavior": source.behavior,
            "n_pool": source.n,
            "sites": list(SITES),
            "n_directions": N_DIRECTIONS,
        }
        | {f"n_{split}": n for split, n in SPLITS.items()},
        hashes={
            "weights_sha256": fingerprint.weights_sha256,
            "config_sha256": fingerprint.config_sha256,
            **{f"{split}_sha256": one.data_hash for split, one in prompts.items()},
        },
        independence=(
            "A claim draws its direction and 199 controls of 400 at its site, 100 of 200 validation prompts and 150 of "
            "600 held-out prompts, without replacement. One model; claims at a site overlap in directions and prompts."
        ),
        tallies={
            "lowers, fraction of the gap": (Gate(kind="boundary"), at_gap),
            "lowers, the metric's unit": (Gate(kind="boundary"), at_metric),
            "recovers, fraction of the gap": (Gate(kind="boundary"), back),
            "lowers, strongest of 20 on held-out": (Gate(kind="exceeds"), cheat),
        },
        seconds=perf_counter() - start,
    )


def _claim_on(
    tables: dict[str, np.ndarray],
    prompts: dict[str, Prompts],
    kind: str,
    rng: np.random.Generator,
    *,
    unit: str,
    n_tried: int,
) -> Any:
    """Size a claim about one direction on drawn validation prompts, and judge it on drawn held-out ones."""
    drawn = rng.choice(N_DIRECTIONS, size=n_tried + rule.required_draws(1), replace=False)
    tried, others = drawn[:n_tried], drawn[n_tried:]
    rows = {split: rng.choice(len(prompts[split]), size=n, replace=False) for split, n in SPLITS.items()}
    validation, held_out = (split_of(prompts[split], rows[split]) for split in SPLITS)
    after = tables["held_out"][:, rows["held_out"]]
    mine = int(tried[after[tried].mean(axis=1).argmin()])
    before = tables["validation"][mine][rows["validation"]]
    size = predicted_size(validation, kind, before, unit=unit)
    measured = Measured(kind, after[mine], after[others], float("inf"), unit)
    return verdict_on(held_out, [measured], [size], seed=int(rng.integers(2**31)))


def _tables(settings: Settings, source: Source) -> dict[tuple[str, str, str], np.ndarray]:
    """The metric of every prompt by split, site and kind, [direction, prompt], kept in files."""
    settings.work.mkdir(parents=True, exist_ok=True)
    wanted = [(split, site, kind) for split in SPLITS for site in SITES for kind in (LOWERS, RECOVERS)]
    place = {one: settings.work / f"{_key(source, *one)}.safetensors" for one in wanted}
    missing = [(source, *one, str(file)) for one, file in place.items() if not file.is_file()]
    in_workers(_measure, missing, n_workers=settings.n_workers, told=settings.told("sites"))
    return {one: np.asarray(open_tensors(file)["after"]) for one, file in place.items()}


def _key(source: Source, split: str, site: str, kind: str) -> str:
    recipe = {"source": vars(source), "split": split, "site": site, "n": N_DIRECTIONS, "kind": kind}
    return hash_json(recipe)[:24]


def _measure(argument: tuple[Source, str, str, str, str]) -> None:
    from mechscope.claims.control_families import draw_family
    from mechscope.claims.controls import DIRECTIONS
    from mechscope.claims.mechanisms import Direction

    source, split, site, kind, file = argument
    model, behavior = opened(source.model), behavior_of(source)
    any_of_its_norm = Direction(site, (1.0, *[0.0] * (model.d_model - 1)))
    drawn = draw_family(
        model,
        any_of_its_norm,
        reference=behavior.train.clean.select(range(min(200, len(behavior.train.clean)))),
        family=DIRECTIONS,
        n_draws=N_DIRECTIONS,
        seed=source.seed,
    )
    bench = bench_for(model, split)
    held_out = bench.open_split(behavior, fresh_seed=None)
    after = bench.measure(list(drawn.mechanisms), probe_of(kind), behavior, held_out)
    save_tensors(file, {"after": after}, metadata={})
