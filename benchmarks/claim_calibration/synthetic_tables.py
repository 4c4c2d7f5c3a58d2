"""Synthetic tables: claims whose true effect is exactly the bound that they predict."""

from collections import Counter
from time import perf_counter
from typing import Any

from benchmarks.claim_calibration.measuring import in_workers
from benchmarks.claim_calibration.outcomes import Gate, Rates, Tally
from benchmarks.claim_calibration.running import Settings
from mechscope.claims import rule
from mechscope.claims.synthetic import Design, support_rate

KINDS = ("lowers", "recovers", "spares")
"""A rise is judged as a fall is, with the other sign."""

DESIGNS: dict[str, dict[str, Any]] = {
    "24 units": {},
    "24 names, crossed": {"crossed": True},
    "60 units, exponential effects": {"n_units": 60, "prompts_per_unit": 3, "skewed": True},
}
STRESS = {"24 units, exponential effects": {"skewed": True}}
"""Shown without a gate: the known limit of few and strongly skewed units."""

TWIN = {"24 units, prompts taken as units": {"units_as_given": False}}
"""Must exceed 5%, or the check could not fail."""

Job = tuple[str, str, dict[str, Any], int, int]
"""Name of the variant, gate, design, claims, seed."""


def run(settings: Settings) -> Rates:
    """Claims at the boundary.

    Cost: about 40 ms a table.
    """
    start = perf_counter()
    jobs: list[Job] = []
    for gate, designs in (("boundary", DESIGNS), ("shown", STRESS), ("exceeds", TWIN)):
        for name, more in designs.items():
            kinds = KINDS if gate != "exceeds" else ("lowers", "spares")
            jobs += [
                (f"{kind}, {name}", gate, {"kind": kind, **more}, settings.n_claims, settings.seed)
                for kind in kinds
            ]
    found: dict[str, tuple[Gate, Tally]] = {}

    def keep(result: tuple[str, str, Counter[str]]) -> None:
        name, gate, outcomes = result
        found[name] = (Gate(kind=gate), Tally(outcomes, Counter(), sum(outcomes.values())))

    told = settings.told("synthetic tables")
    in_workers(count_verdicts, jobs, n_workers=settings.n_workers, told=told, keep=keep)
    return Rates(
        name="synthetic-tables",
        settings=settings.facts() | {"designs": DESIGNS | STRESS | TWIN, "kinds": list(KINDS)},
        hashes={},
        independence="Every table is drawn from a seed of its own.",
        tallies=found,
        seconds=perf_counter() - start,
    )


def count_verdicts(job: Job) -> tuple[str, str, Counter[str]]:
    """Verdicts over the tables of one design."""
    name, gate, settings, n_tables, seed = job
    rate = support_rate(Design(**settings), n_tables=n_tables, seed=seed)
    rest = n_tables - rate.n_supported - rate.n_refuted
    counts = {rule.SUPPORTED: rate.n_supported, rule.REFUTED: rate.n_refuted, rule.INCONCLUSIVE: rest}
    return name, gate, Counter(counts)
