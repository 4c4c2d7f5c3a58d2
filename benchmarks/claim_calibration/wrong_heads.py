"""Wrong heads: random pairs of heads, one in each layer as the truth has them, and none of the truth's.

The specimen is the hand-written induction model, whose two heads are on record, so every such claim is false.
"""

from itertools import product
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.claim_calibration.judging import Measured, predicted_size, split_of, verdict_on
from benchmarks.claim_calibration.measuring import (
    LOWERS,
    RECOVERS,
    HeadSet,
    Prompts,
    Source,
    Task,
    chunks,
    measure,
    opened,
    prompts_of,
    table_of,
)
from benchmarks.claim_calibration.outcomes import Gate, Rates, Tally
from benchmarks.claim_calibration.running import Settings
from mechscope.records.seeds import generator_for
from mechscope.specimens.induction.truth import HEADS

N_POOL = 1200
"""Pairs in all: 400 train, 200 validation, 600 held out."""

N_VALIDATION, N_HELD_OUT = 100, 150
KINDS = (LOWERS, RECOVERS)


class PairTables:
    """Every pair of one head in each layer, on validation and held-out prompts, both ways.

    Args:
        settings: Where tables are kept, how many processes.
        source: Model and prompts.
    """

    def __init__(self, settings: Settings, source: Source) -> None:
        self.source = source
        self.settings = settings
        n_heads = opened(source.model).n_heads
        self.pairs: list[HeadSet] = [((0, a), (1, b)) for a, b in product(range(n_heads), repeat=2)]
        self.place = {pair: index for index, pair in enumerate(self.pairs)}
        self.prompts: dict[str, Prompts] = {s: prompts_of(source, s) for s in ("validation", "held_out")}
        self.after = {(split, kind): self._table(split, kind) for split in self.prompts for kind in KINDS}

    def _table(self, split: str, kind: str) -> np.ndarray:
        tasks = [Task(source=self.source, split=split, kind=kind, sets=part) for part in chunks(self.pairs)]
        what = f"{self.source.behavior}, {split}, {kind}"
        folder = self.settings.work
        measure(tasks, folder=folder, n_workers=self.settings.n_workers, told=self.settings.told(what))
        return np.concatenate([table_of(task, folder=folder) for task in tasks])

    def controls_of(self, pair: HeadSet) -> list[int]:
        """Places of the pairs that share no head with this one: the whole family "other components, same layers"."""
        return [index for other, index in self.place.items() if not set(other) & set(pair)]

    def measured(self, split: str, kind: str, pair: HeadSet, rows: np.ndarray) -> Measured:
        """One prediction about a pair on some prompts of a split, with its controls."""
        table = self.after[split, kind][:, rows]
        others = self.controls_of(pair)
        return Measured(kind, table[self.place[pair]], table[others], len(others))


def run(settings: Settings) -> Rates:
    """Claims about wrong pairs.

    Cost: 256 pairs x 800 prompts x 2 interventions once, then about 0.1 s a claim.
    """
    start = perf_counter()
    tables = PairTables(settings, induction_source(settings.seed))
    both, one = Tally(), Tally()
    told = settings.told("claims about wrong heads")
    for index in range(settings.n_claims):
        rng = generator_for(settings.seed, "wrong heads", index)
        pair = _wrong_pair(rng, tables)
        for tally, kinds in ((both, KINDS), (one, (LOWERS,))):
            tally.add(claim_on(tables, pair, generator_for(settings.seed, "rows", index), kinds, seed=index))
        told(f"{index + 1} of {settings.n_claims}, {both.n_supported} and {one.n_supported} supported")
    return Rates(
        name="wrong-heads",
        settings=settings.facts()
        | {"behavior": "induction", "n_pool": N_POOL, "n_validation": N_VALIDATION, "n_held_out": N_HELD_OUT},
        hashes=hashes_of(tables),
        independence=(
            "A claim draws its pair of heads (225 that share no head with the truth), 100 of 200 validation prompts "
            "and 150 of 600 held-out prompts, without replacement. One model; claims overlap in prompts, and "
            "a pair is drawn about twice."
        ),
        tallies={
            "lowers and recovers": (Gate(kind="false"), both),
            "lowers alone": (Gate(kind="false"), one),
        },
        seconds=perf_counter() - start,
    )


def induction_source(seed: int) -> Source:
    """The hand-written specimen and its prompts."""
    return Source(model="induction", behavior="induction", n=N_POOL, seed=seed)


def claim_on(
    tables: PairTables, pair: HeadSet, rng: np.random.Generator, kinds: tuple[str, ...], *, seed: int
) -> Any:
    """Size a claim about a pair on drawn validation prompts, and judge it on drawn held-out ones."""
    drawn = {"validation": N_VALIDATION, "held_out": N_HELD_OUT}
    rows = {s: rng.choice(len(tables.prompts[s]), size=n, replace=False) for s, n in drawn.items()}
    validation = split_of(tables.prompts["validation"], rows["validation"])
    sizes = [
        predicted_size(validation, kind, tables.measured("validation", kind, pair, rows["validation"]).after)
        for kind in kinds
    ]
    measured = [tables.measured("held_out", kind, pair, rows["held_out"]) for kind in kinds]
    return verdict_on(split_of(tables.prompts["held_out"], rows["held_out"]), measured, sizes, seed=seed)


def hashes_of(tables: PairTables) -> dict[str, str]:
    """Weights and prompts."""
    fingerprint = opened(tables.source.model).fingerprint
    return {
        "weights_sha256": fingerprint.weights_sha256,
        "config_sha256": fingerprint.config_sha256,
        **{f"{split}_sha256": prompts.data_hash for split, prompts in tables.prompts.items()},
    }


def _wrong_pair(rng: np.random.Generator, tables: PairTables) -> HeadSet:
    wrong = [pair for pair in tables.pairs if not set(pair) & set(HEADS)]
    return wrong[int(rng.integers(len(wrong)))]
