"""Checks: every test and control that a circuit can be held against, in one go, to stand beside a claim about it.

Seven tests of the circuit on prompts that no search has seen, corrected for their number; and the search itself again
where there is nothing to find. They are shown: no verdict depends on them (docs/decisions/0011).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.discover import search_of
from mechscope.circuits.faithfulness import refuse_without_gap
from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.circuits.statistics.control_result import DiscoveryControls
from mechscope.circuits.statistics.discovery_controls import (
    CONTROLS,
    ControlSettings,
    Find,
    control_discovery,
    permuted_answers,
)
from mechscope.circuits.statistics.significance import TestSettings, share_interval, test_circuit
from mechscope.circuits.statistics.significance_result import CircuitTest, corrected
from mechscope.circuits.statistics.stress import random_parts, worst_part
from mechscope.data.intervals import Resamples, ratio_bootstrap
from mechscope.models.model import Model
from mechscope.records.canonical import to_plain
from mechscope.vocabulary.errors import NotEnoughEvidence, ShapeError

Told = Callable[[str, int, int], None]

SIZES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of all edges at which searches are compared: beyond them circuits of any search are alike, and dear."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What a circuit is held against.

    Args:
        tests: Of equivalence, independence, sufficiency, necessity, minimality.
        n_parts: Random parts of the complement that are removed.
        n_rounds: Of the search for the worst part.
        keeps: Share of the gap that is to be kept when a part of the complement is gone.
        n_controls: Draws of each world without the mechanism, in which the search is run again; 0 for none.
        n_search: Train pairs that the search is run on.
        n_tested: Held-out pairs that all is measured on, the first ones.
        n_worst: Train pairs that the worst part is looked for on.
    """

    tests: TestSettings = field(default_factory=TestSettings)
    n_parts: int = 64
    n_rounds: int = 1
    keeps: float = 0.5
    n_controls: int = 19
    n_search: int = 48
    n_tested: int = 100
    n_worst: int = 24

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "CheckSettings":
        """The settings on record with checks that were done."""
        own = {name: plain[name] for name in cls.__dataclass_fields__}
        return cls(**{**own, "tests": TestSettings(**plain["tests"])})

    def cut(self, search: Split, test: Split) -> tuple[Split, Split]:
        """As many of the first pairs that are searched, and measured on, as are asked for."""
        return (
            search.select(range(min(self.n_search, len(search)))),
            test.select(range(min(self.n_tested, len(test)))),
        )

    def __post_init__(self) -> None:
        if (
            self.n_controls < 0
            or min(self.n_parts, self.n_search, self.n_tested, self.n_worst) < 1
            or not 0 < self.keeps < 1
        ):
            raise ShapeError(
                "A circuit can't be checked so.",
                got=f"n_parts={self.n_parts}, n_controls={self.n_controls}, n_search={self.n_search}, "
                f"n_tested={self.n_tested}, keeps={self.keeps}",
                instead="counts from 1 (controls from 0), and keeps between 0 and 1",
            )


def check_circuit(
    model: Model,
    circuit: Circuit,
    *,
    search: Split,
    test: Split,
    settings: CheckSettings | None = None,
    find: Find | None = None,
    progress: Told | None = None,
) -> CircuitChecks:
    """Hold a circuit against random ones, parts of its complement, its own edges, and worlds without the mechanism.

    Args:
        model: The model that it was found in.
        circuit: The circuit.
        search: Where it was found, usually `behavior.train`.
        test: Prompts that no search has seen, usually `behavior.held_out`.
        settings: What it is held against.
        find: The search, from a model and a split to a circuit; by default the one that the circuit remembers.
        progress: Told what is run, how much of it is done, and all of it.

    Returns:
        Every test and control that could be done; `left_out` says what could not, and why.

    Raises:
        UnknownEdge: a circuit of another model.

    Cost: about 300 runs of circuits, one for each edge outside the circuit, and `3 * n_controls` discoveries.
    """
    circuit.refuse_unless_of(model)
    settings = settings or CheckSettings()
    splits = settings.cut(search, test)

    def against_random_ones() -> tuple[list[CircuitTest], dict[str, float]]:
        found = test_circuit(model, circuit, split=splits[1], settings=settings.tests, progress=progress)
        return list(found.tests.values()), dict(found.edge_p)

    return checked(
        splits[1],
        settings,
        against_random_ones=against_random_ones,
        under_stress=lambda: _under_stress(
            model, circuit, splits=splits, settings=settings, progress=progress
        ),
        in_other_worlds=lambda: _controls(
            model, circuit, splits, find=find or search_of(circuit), settings=settings, tell=progress
        ),
    )


def checked(
    test: Split,
    settings: CheckSettings,
    *,
    against_random_ones: Callable[[], tuple[list[CircuitTest], dict[str, float]]],
    under_stress: Callable[[], list[CircuitTest]],
    in_other_worlds: Callable[[], tuple[DiscoveryControls | None, list[str]]],
    part: str | None = None,
) -> CircuitChecks:
    """Do each kind of check, of a circuit of edges or of parts; what there is not enough for is left out, and said.

    Args:
        test: The prompts that all is measured on.
        settings: What it is held against.
        against_random_ones: Gives tests, and a p for each edge or part.
        under_stress: Gives tests.
        in_other_worlds: Gives controls, and what was left out of them and why.
        part: What the circuit is made of, where that is not edges.
    """
    tests: list[CircuitTest] = []
    left_out: list[str] = []
    edge_p: dict[str, float] = {}
    controls = None
    try:
        found, edge_p = against_random_ones()
        tests += found
    except NotEnoughEvidence as refusal:
        left_out.append(f"tests against random circuits: {why(refusal)}")
    try:
        tests += under_stress()
    except NotEnoughEvidence as refusal:
        left_out.append(f"parts of the complement: {why(refusal)}")
    if settings.n_controls:
        controls, reasons = in_other_worlds()
        left_out += reasons
    facts = {"n_pairs": len(test), "n_units": test.n_units} | ({} if part is None else {"part": part})
    return CircuitChecks(
        tests=corrected(tests),
        edge_p=edge_p,
        controls=controls,
        left_out=tuple(left_out),
        settings=asdict(settings) | Conventions().to_json() | facts,
        data_sha256=test.data_hash,
    )


def _under_stress(
    model: Model,
    circuit: Circuit,
    *,
    splits: tuple[Split, Split],
    settings: CheckSettings,
    progress: Told | None,
) -> list[CircuitTest]:
    """The circuit whole and parts of the rest gone: at random, and the worst that a search on train prompts finds."""
    search, test = splits
    conventions = Conventions()
    tell = None if progress is None else lambda done, total: progress("the worst part", done, total)
    few = search.select(range(min(settings.n_worst, len(search))))
    searched = CircuitRuns(model, few, conventions=conventions)
    with searched.hold():
        worst, _ = worst_part(searched, circuit, n_rounds=settings.n_rounds, progress=tell)
    _, parts = random_parts(circuit, settings.n_parts, seed=settings.tests.seed)
    runs = CircuitRuns(model, test, conventions=conventions)
    told = None if progress is None else lambda done, total: progress("random parts", done, total)
    whole = np.ones_like(circuit.kept)
    values = runs.measure(np.stack([whole, ~whole, worst, *parts]), progress=told)
    refuse_without_gap(values[0], values[1])
    left = values[2:] - values[1]
    gap = values[0] - values[1]
    return [
        random_parts_test(left[1:].mean(1) / gap.mean(), settings),
        worst_part_test(
            (left[0], gap), test.units, removed=f"{int((~worst).sum())} edges", settings=settings
        ),
    ]


def random_parts_test(kept: np.ndarray, settings: CheckSettings) -> CircuitTest:
    """Null: at most a share of random parts of the rest can be removed so that enough of the gap is kept.

    Args:
        kept: Share of the gap without each random part, [part].
        settings: How much is enough, and of how many.
    """
    hits, n, share = int((kept >= settings.keeps).sum()), len(kept), settings.tests.share
    p = float(stats.binomtest(hits, n, share, alternative="greater").pvalue)
    return CircuitTest(
        name="random parts removed",
        null=f"with the circuit whole, at most {share:.0%} of random parts of the rest can be removed so that "
        f"{settings.keeps:.0%} of the gap is kept",
        statistic=hits / n,
        p=p,
        passes=p <= settings.tests.level,
        note=f"{hits} of {n} parts; the least that is kept is {kept.min():.2f} of the gap",
        measured=f"share of random parts of the rest without which {settings.keeps:.0%} of the gap is kept",
        estimate=hits / n,
        interval=share_interval(hits, n),
        level=settings.tests.level,
    )


def worst_part_test(
    measured: tuple[np.ndarray, np.ndarray], units: np.ndarray, *, removed: str, settings: CheckSettings
) -> CircuitTest:
    """Null: without the worst part of the rest at most some of the gap is kept.

    Args:
        measured: What is left of the gap without it, and the gap, [pair] each.
        units: Of pairs.
        removed: How much was removed, in words.
        settings: How much is enough.
    """
    found = ratio_bootstrap(Resamples(units, seed=settings.tests.seed), *measured)
    interval, p = found.interval(0.95), found.p_at_most(settings.keeps)
    return CircuitTest(
        name="worst part removed",
        null=f"with the circuit whole, removing the worst part of the rest leaves at most {settings.keeps:.0%} of "
        "the gap",
        statistic=found.value,
        p=p,
        passes=p <= settings.tests.level,
        note=f"{removed}, chosen against the circuit on train prompts",
        measured="share of the gap kept without the worst part of the rest",
        estimate=found.value,
        interval=(interval.low, interval.high),
        level=settings.tests.level,
    )


def _controls(
    model: Model,
    circuit: Circuit,
    splits: tuple[Split, Split],
    *,
    find: Find | None,
    settings: CheckSettings,
    tell: Told | None,
) -> tuple[DiscoveryControls | None, list[str]]:
    """The search again in worlds without the mechanism, beside this circuit; and what was left out."""
    if find is None:
        return None, ["the search where there is nothing to find: the circuit does not say how it was found"]
    search = splits[0]
    worlds, left_out = worlds_of(splits)

    def find_or_keep(where: Model, split: Split) -> Circuit:
        is_own = where is model and split is search
        return circuit if is_own else find(where, split)

    told = None if tell is None else lambda what, done, total: tell(f"searching with {what}", done, total)
    chosen = ControlSettings(
        controls=worlds,
        n_draws=settings.n_controls,
        fractions=SIZES,
        seed=settings.tests.seed,
    )
    try:
        found = control_discovery(model, splits, find=find_or_keep, settings=chosen, progress=told)
    except NotEnoughEvidence as refusal:
        return None, [*left_out, f"the search where there is nothing to find: {why(refusal)}"]
    plain: Any = to_plain(found.settings)
    return replace(found, model=None, settings=plain), left_out


def worlds_of(splits: tuple[Split, Split]) -> tuple[tuple[str, ...], list[str]]:
    """The worlds without a mechanism that these prompts allow, and why another one is left out."""
    try:
        for split in splits:
            permuted_answers(split)
    except NotEnoughEvidence as refusal:
        kept = tuple(world for world in CONTROLS if world != "permuted answers")
        return kept, [f"permuted answers: {why(refusal)}"]
    return CONTROLS, []


def why(refusal: NotEnoughEvidence) -> str:
    """A refusal in one line."""
    return f"{refusal.what} {refusal.because}".strip()
