"""Synthetic effect tables whose truth is known: how often does the rule say "supported" when it should not?

Owns the tables and the counting; `benchmarks/claim_calibration` runs them at length. At a true effect of
exactly x (or a change of exactly z) a claim should be supported in at most 5% of tables; well above x, in
nearly all. `units_as_given=False` pretends that every prompt is a unit: the check must then fail.
Invariant: table `i` of a design depends on the seed and `i` only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv

from mechscope.claims import rule
from mechscope.claims.evidence import Controls, Evidence, HeldOut
from mechscope.claims.judge import judge
from mechscope.claims.predictions import Prediction, RecordedBehavior, lowers, raises, recovers, spares
from mechscope.data.intervals import N_RESAMPLES
from mechscope.data.units import as_units, units_of
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import BadClaim

GAP = 3.0
BOUND = {"lowers": 1.0, "raises": 1.0, "recovers": 0.6, "spares": 0.3}
"""The bounds that are predicted: x, y as a fraction of a mean gap of 3, and z."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """How a synthetic table is drawn.

    Args:
        kind: "lowers", "raises", "recovers" or "spares".
        n_units: Independent units; with `crossed`, names from which every prompt takes two.
        prompts_per_unit: Mean number of prompts per unit.
        unit_sd: Standard deviation of the effect between units.
        prompt_sd: Standard deviation of the effect between the prompts of a unit.
        skewed: Unit effects are exponential instead of Gaussian.
        crossed: Prompts share names with one another, so that no independent groups exist.
        n_controls: Controls, all of them without effect on average.
        times_bound: The true effect, as a multiple of the predicted bound; 1.0 is the boundary.
        units_as_given: False treats every prompt as a unit: the twin that must fail.
    """

    kind: str = "lowers"
    n_units: int = 24
    prompts_per_unit: int = 6
    unit_sd: float = 0.5
    prompt_sd: float = 0.5
    skewed: bool = False
    crossed: bool = False
    n_controls: int = 199
    times_bound: float = 1.0
    units_as_given: bool = True


@dataclass(frozen=True)
class Rate:
    """Verdicts over many tables."""

    n_tables: int
    n_supported: int
    n_refuted: int

    @property
    def supported(self) -> float:
        """Fraction of tables with the verdict "supported"."""
        return self.n_supported / self.n_tables

    @property
    def refuted(self) -> float:
        """Fraction of tables with the verdict "refuted"."""
        return self.n_refuted / self.n_tables

    def exceeds(self, limit: float) -> bool:
        """True if support is above `limit` beyond Monte Carlo error: one-sided 95% Clopper-Pearson."""
        k = self.n_supported
        return k > 0 and float(betaincinv(k, self.n_tables - k + 1, 0.05)) > limit


def support_rate(
    design: Design, *, n_tables: int = 400, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> Rate:
    """Judge `n_tables` independent tables of a design and count the verdicts.

    Cost: about 40 ms per table at 24 units, 199 controls and 10,000 resamples.
    """
    supported = refuted = 0
    for index in range(n_tables):
        held_out, evidence = draw_table(design, seed=seed, index=index)
        outcome = judge(held_out, [evidence], seed=index, n_resamples=n_resamples).outcome
        supported += outcome == rule.SUPPORTED
        refuted += outcome == rule.REFUTED
    return Rate(n_tables, supported, refuted)


def draw_table(design: Design, *, seed: int, index: int) -> tuple[HeldOut, Evidence]:
    """One synthetic held-out split with its measurements.

    Raises:
        BadClaim: an unknown kind.
    """
    if design.kind not in BOUND:
        raise BadClaim("no synthetic tables of that kind", got=design.kind, instead=", ".join(BOUND))
    rng = generator_for(seed, "synthetic", design.kind, index)
    entities, shared = _units(design, rng)
    n = len(entities)
    units = units_of(entities, ["template"] * n) if design.units_as_given else as_units(np.arange(n))
    gap = GAP + shared(0.3) + 0.5 * rng.standard_normal(n)
    clean = 1.0 + rng.standard_normal(n)
    held_out = HeldOut(f"synthetic {seed} {index}", clean, clean - gap, units)
    prediction, scale = _prediction(design.kind)
    truth = design.times_bound * BOUND[design.kind] * scale
    # a ratio of means is exactly the truth: what is recovered follows each prompt's own gap
    mean_effect = truth * (gap / GAP if design.kind == "recovers" else 1.0)
    effect = mean_effect + shared(design.unit_sd) + design.prompt_sd * rng.standard_normal(n)
    sign = -1.0 if design.kind == "lowers" else 1.0
    start = held_out.corrupt if held_out.corrupt is not None and design.kind == "recovers" else clean
    spread = 0.2 * rng.standard_normal((design.n_controls, n)) + 0.1 * rng.standard_normal(
        (design.n_controls, 1)
    )
    controls = Controls("synthetic", after=start + sign * spread)
    return held_out, Evidence(prediction, start + sign * effect, held_out, controls)


def _prediction(kind: str) -> tuple[Prediction, float]:
    """The prediction, and how many metric units one unit of its bound is."""
    bound = BOUND[kind]
    match kind:
        case "lowers":
            return lowers(bound), 1.0
        case "raises":
            return raises(bound), 1.0
        case "recovers":
            return recovers(bound), GAP
        case _:
            return spares(RecordedBehavior("another behaviour", "{}"), bound), 1.0


def _units(
    design: Design, rng: np.random.Generator
) -> tuple[list[tuple[str, ...]], Callable[[float], Float[np.ndarray, " prompt"]]]:
    """The entities of each prompt, and a function that draws a mean-zero effect shared by their prompts."""
    n = design.n_units * design.prompts_per_unit
    first = (
        rng.integers(0, design.n_units, n)
        if design.crossed
        else np.repeat(np.arange(design.n_units), design.prompts_per_unit)
    )
    second = (first + rng.integers(1, design.n_units, n)) % design.n_units
    columns = [first, second] if design.crossed else [first]

    def shared(sd: float) -> Float[np.ndarray, " prompt"]:
        total = np.zeros(n)
        for column in columns:
            drawn = rng.standard_normal(design.n_units)
            if design.skewed:
                drawn = rng.standard_exponential(design.n_units) - 1.0
            total += sd * drawn[column] / np.sqrt(len(columns))
        return total

    return [tuple(f"name {column[row]}" for column in columns) for row in range(n)], shared
