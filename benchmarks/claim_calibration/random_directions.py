"""Random directions: claims about a direction that was drawn as words are spread, at sites of two specimens in turn.

Nothing says of such a direction that it should matter, so every claim about it is false, and it is as strong as the
strongest 5% of its controls in 5% of draws: the rule's own level, which may not be exceeded beyond Monte Carlo error.
The claimed direction is a random mixture of what words carry in *validation* prompts; the controls come from the family
as claims draw it, which reads train prompts. So a family that is not spread as words are is seen: on village, where
[BOS] is fifteen times as long as a word, by far. In the cheat the direction is the strongest of twenty on the very
held-out prompts: that must be seen too.
"""

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.claim_calibration.judging import Measured, predicted_size, split_of, verdict_on
from benchmarks.claim_calibration.measuring import (
    LOWERS,
    RAISES,
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
from benchmarks.claim_calibration.power import Pool
from benchmarks.claim_calibration.running import Settings
from benchmarks.claim_calibration.wrong_heads import induction_source
from mechscope.claims import rule
from mechscope.records.canonical import hash_json, to_plain
from mechscope.records.files import open_tensors, save_tensors
from mechscope.records.seeds import generator_for

SPLITS = ("validation", "held_out")
CLAIMED, CONTROLS = "claimed", "controls"
N_DIRECTIONS = {CLAIMED: 150, CONTROLS: 220}
"""Drawn at each site, once: a claim takes one of the former, and as many of the latter as its family needs."""

MEASURED = ((CLAIMED, "validation"), (CLAIMED, "held_out"), (CONTROLS, "held_out"))
"""Which draws on which prompts: controls decide on held-out ones alone."""

N_TRIED = 20
"""Directions of which the cheat takes the strongest."""

KINDS = {"lowers, fraction of the gap": (LOWERS, "gap"), "lowers, the metric's unit": (LOWERS, "metric")} | {
    "recovers, fraction of the gap": (RECOVERS, "gap"),
    "raises, the metric's unit": (RAISES, "metric"),
}
"""What is predicted, and in which unit."""


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """A model and its prompts, with the sites at which directions are claimed.

    Args:
        source: Model and prompts.
        sites: In turn.
        pool: Prompts that claims draw from, and how many each draws.
    """

    source: Source
    sites: tuple[str, ...]
    pool: Pool


@dataclass(frozen=True, kw_only=True)
class Table:
    """Directions of one site on one split under one intervention.

    Args:
        specimen: Where.
        site: Of the directions.
        drawn: `CLAIMED` or `CONTROLS`.
        split: Prompts.
        kind: Intervention.
    """

    specimen: Specimen
    site: str
    drawn: str
    split: str
    kind: str

    @property
    def key(self) -> str:
        """Names its file."""
        return hash_json(to_plain(asdict(self) | {"n": N_DIRECTIONS[self.drawn]}))[:24]


def specimens(settings: Settings) -> dict[str, Specimen]:
    """The hand-written model, and village, whose [BOS] is longer than all of its words."""
    return {
        "induction": Specimen(
            source=induction_source(settings.seed),
            sites=("resid_pre.0", "resid_post.0", "resid_post.1"),
            pool=Pool(validation=(150, 100), held_out=(300, 150), n_predictions=1),
        ),
        "village": Specimen(
            source=Source(model=settings.village, behavior="ioi", n=480, seed=settings.seed),
            sites=("resid_post.1", "resid_post.3"),
            pool=Pool(validation=(80, 60), held_out=(200, 120), n_predictions=1),
        ),
    }


def run(settings: Settings) -> Rates:
    """Claims about random directions.

    Cost: at each of 5 sites 370 directions x 280 to 450 prompts x 3 interventions once, then about 0.1 s a claim.
    """
    start = perf_counter()
    found: dict[str, tuple[Gate, Tally]] = {}
    hashes: dict[str, str] = {}
    for name, specimen in specimens(settings).items():
        prompts = {s: prompts_of(specimen.source, s, most=specimen.pool.of(s)[0]) for s in SPLITS}
        judged = _judged(settings, name, specimen, prompts)
        found |= {f"{name}: {variant}": one for variant, one in judged.items()}
        hashes[f"{name}: weights_sha256"] = opened(specimen.source.model).fingerprint.weights_sha256
        hashes |= {f"{name}: {split}_sha256": one.data_hash for split, one in prompts.items()}
    facts = {name: {"sites": s.sites, "pool": asdict(s.pool)} for name, s in specimens(settings).items()}
    return Rates(
        name="random-directions",
        settings=settings.facts() | {"n_directions": N_DIRECTIONS, "specimens": facts},
        hashes=hashes,
        independence=(
            "A claim draws its direction of 150 and 199 controls of 220 at its site, and prompts of the pool, all "
            "without replacement. Claimed directions and controls come from different prompts, seeds and code. Two "
            "models; claims at a site overlap in directions and prompts."
        ),
        tallies=found,
        seconds=perf_counter() - start,
    )


def _judged(
    settings: Settings, name: str, specimen: Specimen, prompts: dict[str, Prompts]
) -> dict[str, tuple[Gate, Tally]]:
    """Verdicts on one specimen, by variant."""
    tables = _tables(settings, name, specimen)
    tallies = {variant: (Gate(kind="boundary"), Tally()) for variant in KINDS}
    cheat = (Gate(kind="exceeds"), Tally())
    told = settings.told(f"claims about random directions of {name}")
    for index in range(settings.n_claims):
        site = specimen.sites[index % len(specimen.sites)]
        for (_, tally), (kind, unit), n_tried in (
            *((tallies[variant], asked, 1) for variant, asked in KINDS.items()),
            (cheat, (LOWERS, "metric"), N_TRIED),
        ):
            rng = generator_for(settings.seed, "random directions", name, index)
            of_kind = {place: tables[(site, *place, kind)] for place in MEASURED}
            tally.add(_claim_on(specimen.pool, of_kind, prompts, kind, rng, unit=unit, n_tried=n_tried))
        counts = ", ".join(str(tally.n_supported) for _, tally in (*tallies.values(), cheat))
        told(f"{index + 1} of {settings.n_claims}, supported: {counts}")
    return tallies | {f"lowers, strongest of {N_TRIED} on held-out": cheat}


def _claim_on(
    pool: Pool,
    tables: dict[tuple[str, str], np.ndarray],
    prompts: dict[str, Prompts],
    kind: str,
    rng: np.random.Generator,
    *,
    unit: str,
    n_tried: int,
) -> Any:
    """Size a claim about one direction on drawn validation prompts, and judge it on drawn held-out ones."""
    tried = rng.choice(N_DIRECTIONS[CLAIMED], size=n_tried, replace=False)
    others = rng.choice(N_DIRECTIONS[CONTROLS], size=rule.required_draws(pool.n_predictions), replace=False)
    rows = {s: rng.choice(len(prompts[s]), size=pool.of(s)[1], replace=False) for s in SPLITS}
    validation, held_out = (split_of(prompts[split], rows[split]) for split in SPLITS)
    after = {drawn: tables[drawn, "held_out"][:, rows["held_out"]] for drawn in (CLAIMED, CONTROLS)}
    mine = int(tried[after[CLAIMED][tried].mean(axis=1).argmin()])
    before = tables[CLAIMED, "validation"][mine][rows["validation"]]
    size = predicted_size(validation, kind, before, unit=unit)
    measured = Measured(kind, after[CLAIMED][mine], after[CONTROLS][others], float("inf"), unit)
    return verdict_on(held_out, [measured], [size], seed=int(rng.integers(2**31)))


def _tables(settings: Settings, name: str, specimen: Specimen) -> dict[tuple[str, str, str, str], np.ndarray]:
    """The metric of every prompt by site, draw, split and kind, [direction, prompt], kept in files."""
    settings.work.mkdir(parents=True, exist_ok=True)
    wanted = {
        (site, drawn, split, kind): Table(specimen=specimen, site=site, drawn=drawn, split=split, kind=kind)
        for site in specimen.sites
        for kind in (LOWERS, RECOVERS, RAISES)
        for drawn, split in MEASURED
    }
    files = {one: settings.work / f"{table.key}.safetensors" for one, table in wanted.items()}
    missing = [(table, str(files[one])) for one, table in wanted.items() if not files[one].is_file()]
    in_workers(_measure, missing, n_workers=settings.n_workers, told=settings.told(f"tables of {name}"))
    return {one: np.asarray(open_tensors(file)["after"]) for one, file in files.items()}


def _measure(argument: tuple[Table, str]) -> None:
    table, file = argument
    source = table.specimen.source
    bench = bench_for(opened(source.model), table.split, table.specimen.pool.of(table.split)[0])
    behavior = behavior_of(source)
    held_out = bench.open_split(behavior, fresh_seed=None)
    mechanisms = _claimed(table) if table.drawn == CLAIMED else _controls(table)
    after = bench.measure(mechanisms, probe_of(table.kind), behavior, held_out)
    save_tensors(file, {"after": after}, metadata={})


def _claimed(table: Table) -> list[Any]:
    """Random mixtures of what words carry at the site beside their mean: Gaussian, and spread as words are.

    Everything after the first token is a word, in the prompts of both specimens.
    """
    from mechscope.claims.mechanisms import Direction

    source = table.specimen.source
    prompts = behavior_of(source).validation.clean
    value = opened(source.model).run(prompts, capture=[table.site]).cache[table.site].double().numpy()
    words = np.concatenate(
        [row[first + 1 :] for row, first in zip(value, prompts.n_pad.tolist(), strict=True)]
    )
    words = words - words.mean(axis=0)
    weights = generator_for(source.seed, "claimed directions", table.site).standard_normal(
        (N_DIRECTIONS[CLAIMED], len(words))
    )
    mixed = weights @ words
    unit = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return [Direction(table.site, tuple(row.tolist()), f"mixture {i}") for i, row in enumerate(unit)]


def _controls(table: Table) -> list[Any]:
    """The family as a claim about a direction of norm 1 draws it."""
    from mechscope.claims.control_families import draw_family
    from mechscope.claims.controls import DIRECTIONS
    from mechscope.claims.mechanisms import Direction

    source = table.specimen.source
    model, train = opened(source.model), behavior_of(source).train.clean
    drawn = draw_family(
        model,
        Direction(table.site, (1.0, *[0.0] * (model.d_model - 1))),
        reference=train.select(range(min(200, len(train)))),
        family=DIRECTIONS,
        n_draws=N_DIRECTIONS[CONTROLS],
        seed=source.seed,
    )
    return list(drawn.mechanisms)
