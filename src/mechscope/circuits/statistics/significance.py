"""Hypothesis tests of a circuit on held-out prompts: equivalence, independence, minimality, sufficiency, necessity.

The tests are those of Shi et al. 2024 (arXiv 2410.13032), with exact binomial tails; each says what its null is,
because two of them are passed by *not* rejecting. Prompts of one unit are averaged first, so that n counts units.
Their sizes are measured in tests/circuits/test_statistics.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit, all_edges
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.faithfulness import refuse_without_gap
from mechscope.circuits.statistics.random_circuits import random_circuits
from mechscope.circuits.statistics.significance_result import CircuitTest, CircuitTests, holm
from mechscope.data.intervals import clopper_pearson
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import NotEnoughEvidence

FEWEST_UNITS = 20

ROUND_OFF = 1e-5
"""Differences below this share of the metric's size are ties: float32 gives no sign to them."""

BEATEN = {
    "sufficiency": "share of random circuits that are further from the model",
    "necessity": "share of random circuits whose removal costs less",
}
"""What is counted, by test."""


@dataclass(frozen=True, kw_only=True)
class TestSettings:
    """Settings of the tests.

    Args:
        tolerance: Of equivalence: P(circuit above model) may differ from a half by so much.
        share: Of random rivals that a circuit, or an edge, must beat.
        n_rivals: Random circuits.
        n_inflated: Inflated circuits that minimality compares each edge in; 0 leaves minimality out.
        n_permutations: Of the independence test.
        level: At which a test rejects; minimality is corrected over edges by Holm's rule.
        seed: Root of the tree of seeds.
    """

    __test__ = False

    tolerance: float = 0.1
    share: float = 0.9
    n_rivals: int = 100
    n_inflated: int = 100
    n_permutations: int = 1000
    level: float = 0.05
    seed: int = 0


def test_circuit(
    model: Model,
    circuit: Circuit,
    *,
    split: Split,
    conventions: Conventions | None = None,
    settings: TestSettings | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> CircuitTests:
    """Test a circuit on prompts that no search has seen.

    Args:
        model: The model that it was found in.
        circuit: The circuit.
        split: Usually `behavior.held_out`.
        conventions: What removed edges carry.
        settings: Of the tests.
        progress: Told what is run, circuits done and circuits in all.

    Raises:
        UnknownEdge: a circuit of another model.
        NotEnoughEvidence: fewer than 20 units, or no gap to explain.

    Cost: two runs for each random rival; two for each edge and inflated circuit of minimality.
    """
    circuit.refuse_unless_of(model)
    settings, conventions = settings or TestSettings(), conventions or Conventions()
    runs = CircuitRuns(model, split, conventions=conventions)
    refuse_few_units(split)
    rivals = np.stack(
        [rival.kept for rival in random_circuits(circuit, settings.n_rivals, seed=settings.seed)]
    )
    whole = np.ones_like(circuit.kept)
    with runs.hold():
        values = runs.measure(np.stack([circuit.kept, whole, ~whole, ~circuit.kept]))
        refuse_without_gap(values[1], values[2])
        of_rivals = runs.measure(rivals, progress=_naming("random circuits alone", progress)).mean(1)
        less_rivals = runs.measure(~rivals, progress=_naming("random circuits removed", progress)).mean(1)
        edge_p = (
            _edge_tests(runs, circuit, settings=settings, progress=progress) if settings.n_inflated else {}
        )
    tests = against_rivals(
        values,
        (of_rivals, less_rivals),
        units=split.units,
        rivals="random circuits of its size",
        settings=settings,
    )
    tests += [minimality(edge_p, settings)] if edge_p else []
    return CircuitTests(
        circuit=circuit,
        tests={test.name: test for test in tests},
        edge_p=edge_p,
        settings={**asdict(settings), **conventions.to_json(), "split": split.name, "n_units": split.n_units},
        data_sha256=split.data_hash,
    )


test_circuit.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - a verb, not a test of ours


def refuse_few_units(split: Split) -> None:
    """Refuse prompts of too few units for tests of a circuit.

    Raises:
        NotEnoughEvidence: fewer than `FEWEST_UNITS`.
    """
    if split.n_units < FEWEST_UNITS:
        raise NotEnoughEvidence(
            "Tests of a circuit need more units.",
            got=f"{split.n_units} units",
            because="prompts about the same entity are one observation",
            instead=f"at least {FEWEST_UNITS}",
        )


def against_rivals(
    values: np.ndarray,
    of_rivals: tuple[np.ndarray, np.ndarray],
    *,
    units: np.ndarray,
    rivals: str,
    settings: TestSettings,
) -> list[CircuitTest]:
    """Equivalence and independence of a circuit, and its sufficiency and necessity against random ones.

    Args:
        values: Metric of the circuit alone, of the whole, of nothing, and of all but the circuit, [4, pair].
        of_rivals: Mean metric of each random circuit alone, and of all but it, [rival] each.
        units: Of pairs.
        rivals: What the random ones are, in words.
        settings: Tolerances, level and seed.
    """
    mine, full, _, rest = values
    alone, less = of_rivals
    differences = by_unit(mine - full, units)
    differences[np.abs(differences) <= ROUND_OFF * np.abs(values).max()] = 0.0
    return [
        equivalence(differences, settings.tolerance, settings.level),
        independence(by_unit(rest, units), by_unit(full, units), settings),
        beats(
            -abs(mine.mean() - full.mean()),
            -np.abs(alone - full.mean()),
            name="sufficiency",
            null=f"it is no closer to the model than {rivals}",
            settings=settings,
        ),
        beats(
            full.mean() - rest.mean(),
            full.mean() - less,
            name="necessity",
            null=f"removing it costs no more than removing {rivals}",
            settings=settings,
        ),
    ]


def by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Means over the prompts of each unit, [unit]."""
    _, where = np.unique(units, return_inverse=True)
    return np.bincount(where, weights=values) / np.bincount(where)


def equivalence(differences: np.ndarray, tolerance: float, level: float = 0.05) -> CircuitTest:
    """Null: P(circuit above model) is within `tolerance` of a half. Passed if it is not rejected.

    Args:
        differences: Circuit less model, [unit]; ties count as a half each way.
    """
    above = float((differences > 0).sum() + (differences == 0).sum() / 2)
    n = len(differences)
    most = int(np.ceil(max(above, n - above) - 1e-9))
    p = min(
        1.0,
        float(stats.binom.sf(most - 1, n, 0.5 + tolerance) + stats.binom.cdf(n - most, n, 0.5 + tolerance)),
    )
    return CircuitTest(
        name="equivalence",
        null=f"it is above the model for a share of units within {tolerance:g} of a half",
        statistic=abs(above / n - 0.5),
        p=p,
        passes=p > level,
        note=f"above the model on {above:g} of {n} units",
        measured="share of units on which it is above the model",
        estimate=above / n,
        interval=share_interval(round(above), n),
        speaks_for=True,
        level=level,
    )


def independence(complement: np.ndarray, model: np.ndarray, settings: TestSettings) -> CircuitTest:
    """Null: what the rest of the model does alone is independent of what the model does. Passed if not rejected.

    The statistic is HSIC with Gaussian kernels of median width; p is by permutation.
    """
    kernels = [_gaussian(values) for values in (complement, model)]
    centred = _centred(kernels[0])
    own = float((centred * kernels[1]).mean())
    rng = generator_for(settings.seed, "independence")
    n = len(model)
    drawn = np.empty(settings.n_permutations)
    for i in range(settings.n_permutations):
        order = rng.permutation(n)
        drawn[i] = (centred * kernels[1][np.ix_(order, order)]).mean()
    p = float((1 + (drawn >= own - 1e-15).sum()) / (1 + len(drawn)))
    is_constant = bool(np.ptp(complement) < 1e-12 or np.ptp(model) < 1e-12)
    return CircuitTest(
        name="independence",
        null="what is outside it knows nothing of the model's output",
        statistic=own,
        p=p,
        passes=None if is_constant else p > settings.level,
        note="one of the two is constant" if is_constant else "",
        measured="dependence on the model of what is left without the circuit (0 none, 1 full)",
        estimate=None if is_constant else own / _self_dependence(kernels),
        speaks_for=True,
        level=settings.level,
    )


def beats(own: float, rivals: np.ndarray, *, name: str, null: str, settings: TestSettings) -> CircuitTest:
    """Null: it beats at most `share` of the rivals that could be drawn. Passed if it is rejected; ties are losses."""
    wins = int((own > rivals).sum())
    p = float(stats.binomtest(wins, len(rivals), settings.share, alternative="greater").pvalue)
    return CircuitTest(
        name=name,
        null=null,
        statistic=wins / len(rivals),
        p=p,
        passes=p <= settings.level,
        note=f"beats {wins} of {len(rivals)}",
        measured=BEATEN[name],
        estimate=wins / len(rivals),
        interval=share_interval(wins, len(rivals)),
        level=settings.level,
    )


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """The exact 95% interval of a share."""
    found = clopper_pearson(hits, n)
    return found.low, found.high


def _naming(what: str, progress: Callable[[str, int, int], None] | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def _edge_tests(
    runs: CircuitRuns,
    circuit: Circuit,
    *,
    settings: TestSettings,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, float]:
    """For each edge: the p that it matters more than a random added one in fewer than `share` of inflated circuits."""
    inflated, added = _inflated(circuit, settings)
    places = np.flatnonzero(circuit.kept)
    without = [circuit.kept & (np.arange(len(circuit.kept)) != place) for place in places]
    means = runs.measure(
        np.stack([circuit.kept, *without]), progress=_naming("its edges, each removed", progress)
    ).mean(1)
    own = np.abs(means[1:] - means[0])
    fat = runs.measure(
        np.stack([*inflated, *added]), progress=_naming("random edges added and removed", progress)
    ).mean(1)
    random = np.abs(fat[: len(inflated)] - fat[len(inflated) :])
    edges, p = all_edges(circuit.wiring), matters_more(own, random, settings.share)
    return {str(edges[place]): float(value) for place, value in zip(places, p, strict=True)}


def matters_more(own: np.ndarray, random: np.ndarray, share: float) -> np.ndarray:
    """For each edge the p of the null that it matters more than at most `share` of random edges, corrected over edges.

    Args:
        own: How much the removal of each edge changes, [edge].
        random: The same of random edges in circuits that they were added to, [random]; ties are losses.
        share: Of the random edges that could be drawn.
    """
    wins = (own[:, None] > random[None]).sum(1)
    tails = [stats.binomtest(int(k), len(random), share, alternative="greater").pvalue for k in wins]
    return holm(np.array(tails))


def _inflated(circuit: Circuit, settings: TestSettings) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Circuits with a random path added, and each of them less one of the edges added."""
    inflated, less = [], []
    paths = random_circuits(circuit, 4 * settings.n_inflated, seed=settings.seed + 1, n_edges=1)
    for index, path in enumerate(paths):
        new = np.flatnonzero(path.kept & ~circuit.kept)
        if not len(new):
            continue
        fat = circuit.kept | path.kept
        thin = fat.copy()
        thin[generator_for(settings.seed, "inflated", index).choice(new)] = False
        inflated.append(fat)
        less.append(thin)
        if len(inflated) == settings.n_inflated:
            break
    if not inflated:
        raise NotEnoughEvidence(
            "No random path adds an edge to this circuit.",
            got=f"{len(circuit)} edges",
            because="it holds all edges on paths from the embedding to the logits",
            instead="a smaller circuit, or n_inflated=0",
        )
    return inflated, less


def minimality(edge_p: Mapping[str, float], settings: TestSettings, *, of: str = "edge") -> CircuitTest:
    """Null: some edge matters no more than random ones. Passed if every edge is shown to matter more.

    Args:
        edge_p: Of each edge, corrected; see `matters_more`.
        settings: The level.
        of: What it is made of, in a word.
    """
    needed = sum(p <= settings.level for p in edge_p.values())
    return CircuitTest(
        name="minimality",
        null=f"some {of} matters no more than a random one",
        statistic=needed / len(edge_p),
        p=max(edge_p.values()),
        passes=needed == len(edge_p),
        note=f"{needed} of {len(edge_p)} {of}s shown to matter more than random ones",
        measured=f"share of its {of}s shown to matter more than random ones",
        estimate=needed / len(edge_p),
        level=settings.level,
    )


def _self_dependence(kernels: list[np.ndarray]) -> float:
    """What HSIC is at most for these two: the geometric mean of each with itself."""
    own = [float((_centred(kernel) * kernel).mean()) for kernel in kernels]
    return float(np.sqrt(own[0] * own[1]))


def _gaussian(values: np.ndarray) -> np.ndarray:
    distances = np.abs(values[:, None] - values[None])
    apart = distances[np.triu_indices(len(values), 1)]
    width = float(np.median(apart)) or float(apart.mean()) or 1.0
    return np.exp(-(distances**2) / (2 * width**2))


def _centred(kernel: np.ndarray) -> np.ndarray:
    rows = kernel.mean(0)
    return kernel - rows[None] - rows[:, None] + kernel.mean()
