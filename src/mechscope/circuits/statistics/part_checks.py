"""Checks of circuits of latents and experts: what circuits of edges are held against, where it means something.

Random circuits have as many parts at each site, of those that are active, and the same errors. Parts are compared with
random active parts that are added. A part of the rest is removed at random, or chosen against the circuit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mechscope.attribution.experts import attribute_experts
from mechscope.attribution.latents import attribute_latents
from mechscope.attribution.part_scores import node_of
from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.faithfulness import refuse_without_gap
from mechscope.circuits.parts.circuit import PartCircuit
from mechscope.circuits.parts.evaluation import random_parts
from mechscope.circuits.parts.experts import ExpertCircuit, expert_runs
from mechscope.circuits.parts.latents import LatentCircuit, latent_runs
from mechscope.circuits.statistics.checks import CheckSettings, checked, random_parts_test, worst_part_test
from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.circuits.statistics.part_worlds import part_worlds
from mechscope.circuits.statistics.significance import (
    against_rivals,
    matters_more,
    minimality,
    refuse_few_units,
)
from mechscope.circuits.statistics.significance_result import CircuitTest
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.engine.kept_parts.run import Kept, KeptRuns
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import NoGradient, NotEnoughEvidence

MOST_REMOVED_ONE_BY_ONE = 512
"""Active parts of the rest that are each really removed in the search for the worst; more are ranked by attribution."""

N_SIZES = 16
"""Sizes of the worst part that are tried."""

Told = Callable[[str, int, int], None]
Place = tuple[str, int]


def check_parts(
    model: Model,
    circuit: PartCircuit,
    *,
    search: Split,
    test: Split,
    dictionaries: Sequence[Dictionary] = (),
    settings: CheckSettings | None = None,
    progress: Told | None = None,
) -> CircuitChecks:
    """Hold a circuit of latents or experts against random ones, parts of its complement, and worlds without answers.

    Args:
        model: The model that it was found in.
        circuit: The circuit.
        search: Where it was found, usually `behavior.train`.
        test: Prompts that no search has seen, usually `behavior.held_out`.
        dictionaries: Of a circuit of latents.
        settings: What it is held against; random edges are random parts here.
        progress: Told what is run, how much of it is done, and all of it.

    Returns:
        Every test and control that could be done; `left_out` says what could not, and why.

    Raises:
        UnknownEdge, DictionaryMismatch: a circuit of another model, or of other dictionaries.

    Cost: about 400 runs of circuits and one for each part, and `n_controls` searches in each world.
    """
    circuit.refuse_unless_of(model)
    settings = settings or CheckSettings()
    search, test = settings.cut(search, test)
    asked = _Asked(model, circuit, tuple(dictionaries), settings, progress)
    ready = asked.ready(test)
    return checked(
        test,
        settings,
        against_random_ones=lambda: _against_random_ones(asked, ready, test),
        under_stress=lambda: _under_stress(asked, ready, search=search, test=test),
        in_other_worlds=lambda: part_worlds(
            model,
            circuit,
            splits=(search, test),
            dictionaries=dictionaries,
            settings=settings,
            progress=progress,
        ),
        part=circuit.part,
    )


@dataclass(frozen=True)
class _Asked:
    """What is to be checked."""

    model: Model
    circuit: PartCircuit
    dictionaries: tuple[Dictionary, ...]
    settings: CheckSettings
    progress: Told | None

    def ready(self, split: Split) -> "_Ready":
        conventions = Conventions()
        if isinstance(self.circuit, LatentCircuit):
            self.circuit.refuse_unless_measurable(self.model, self.dictionaries)
            runs: KeptRuns = latent_runs(
                self.model, split, dictionaries=self.dictionaries, conventions=conventions
            )
        else:
            assert isinstance(self.circuit, ExpertCircuit)
            runs = expert_runs(self.model, split, routing=self.circuit.routing, conventions=conventions)
        return _Ready(self, runs)

    def naming(self, what: str) -> Callable[[int, int], None] | None:
        tell = self.progress
        return None if tell is None else lambda done, total: tell(what, done, total)


@dataclass(frozen=True)
class _Ready:
    """A split made ready."""

    asked: _Asked
    runs: KeptRuns

    @property
    def own(self) -> Kept:
        return self.asked.circuit.kept

    @cached_property
    def active(self) -> Mapping[str, np.ndarray]:
        return self.runs.active

    @cached_property
    def outside(self) -> list[Place]:
        """Active parts that are not in the circuit, and errors that are not."""
        is_latent = self.asked.circuit.part == "latent"
        found: list[Place] = []
        for site, which in self.own.items():
            can = self.active[site].copy()
            if is_latent:
                can[-1] = True
            found += [(site, int(i)) for i in np.flatnonzero(can & ~which)]
        return found

    def but(self, places: Sequence[Place], of: Kept) -> dict[str, np.ndarray]:
        """Some parts turned over: removed where they are kept, kept where they are not."""
        found = {site: which.copy() for site, which in of.items()}
        for site, index in places:
            found[site][index] = not found[site][index]
        return found

    def measure(self, circuits: Sequence[Kept], what: str) -> np.ndarray:
        return self.runs.measure(circuits, progress=self.asked.naming(what))


def _against_random_ones(
    asked: _Asked, ready: _Ready, test: Split
) -> tuple[list[CircuitTest], dict[str, float]]:
    settings, circuit = asked.settings.tests, asked.circuit
    refuse_few_units(test)
    rivals = [
        random_parts(circuit, ready.active, seed=settings.seed, index=i) for i in range(settings.n_rivals)
    ]
    whole = ready.runs.whole
    ends = ready.measure([circuit.kept, whole, _not(whole), _not(circuit.kept)], "the circuit")
    refuse_without_gap(ends[1], ends[2])
    of_rivals = ready.measure(rivals, "random circuits alone").mean(1)
    less_rivals = ready.measure([_not(one) for one in rivals], "random circuits removed").mean(1)
    found = against_rivals(
        ends,
        (of_rivals, less_rivals),
        units=test.units,
        rivals=f"as many random {circuit.part}s at each site",
        settings=settings,
    )
    part_p = _part_tests(asked, ready) if settings.n_inflated else {}
    return [*found, *([minimality(part_p, settings, of=circuit.part)] if part_p else [])], part_p


def _part_tests(asked: _Asked, ready: _Ready) -> dict[str, float]:
    """For each part the p that it matters more than a random one that is added."""
    settings, circuit = asked.settings.tests, asked.circuit
    counted = {site: which & ready.active[site] for site, which in circuit.kept.items()}
    own = [(site, int(i)) for site, which in counted.items() for i in np.flatnonzero(which)]
    errors = (
        {site: len(which) - 1 for site, which in circuit.kept.items()} if circuit.part == "latent" else {}
    )
    strange = [place for place in ready.outside if place[1] != errors.get(place[0])]
    if not strange or not own:
        raise NotEnoughEvidence(
            f"There is no other {circuit.part} to compare with.",
            got=f"{len(own)} active {circuit.part}s in the circuit, {len(strange)} outside",
            because=f"a {circuit.part} of it matters if it matters more than a random one that is added",
            instead="a smaller circuit, or n_inflated=0",
        )
    rng = generator_for(settings.seed, "inflated parts")
    chosen = rng.permutation(len(strange))[: settings.n_inflated]
    asked_for = [circuit.kept, *(ready.but([place], circuit.kept) for place in own)]
    asked_for += [ready.but([strange[i]], circuit.kept) for i in chosen]
    means = ready.measure(asked_for, f"its {circuit.part}s, each removed, and random ones added").mean(1)
    moved = np.abs(means[1:] - means[0])
    p = matters_more(moved[: len(own)], moved[len(own) :], settings.share)
    names = [node_of(circuit.part, site, i, len(circuit.kept[site])) for site, i in own]
    return {str(name): float(value) for name, value in zip(names, p, strict=True)}


def _under_stress(asked: _Asked, ready: _Ready, *, search: Split, test: Split) -> list[CircuitTest]:
    """The circuit whole and parts of the rest gone: at random, and the worst that was found on train prompts."""
    settings, outside, whole = asked.settings, ready.outside, ready.runs.whole
    if not outside:
        raise NotEnoughEvidence(
            "Nothing is left to remove.", got="a circuit of all active parts", instead="a smaller circuit"
        )
    shares = (np.arange(settings.n_parts) + 0.5) / settings.n_parts
    gone = [
        [
            place
            for place, u in zip(
                outside, generator_for(settings.tests.seed, "stress", i).random(len(outside)), strict=True
            )
            if u < share
        ]
        for i, share in enumerate(shares)
    ]
    worst = _worst_part(asked, search.select(range(min(settings.n_worst, len(search)))))
    values = ready.measure(
        [whole, _not(whole), ready.but(worst, whole), *(ready.but(places, whole) for places in gone)],
        "random parts of the rest",
    )
    refuse_without_gap(values[0], values[1])
    left, gap = values[2:] - values[1], values[0] - values[1]
    told = f"{len(worst)} {asked.circuit.part}s"
    return [
        random_parts_test(left[1:].mean(1) / gap.mean(), settings),
        worst_part_test((left[0], gap), test.units, removed=told, settings=settings),
    ]


def _worst_part(asked: _Asked, split: Split) -> list[Place]:
    """Parts of the rest whose removal lowers the mean metric most: the most harmful together, in the best number."""
    ready = asked.ready(split)
    outside, whole = ready.outside, ready.runs.whole
    full, harms = float(ready.runs.measure([whole]).mean()), _harms(asked, ready, split)
    order = np.argsort(-harms, kind="stable")
    n_harmful = int((harms > 0).sum())
    if not n_harmful:
        return []
    sizes = np.unique(np.geomspace(1, n_harmful, N_SIZES).astype(int))
    tried = [[outside[i] for i in order[:size]] for size in sizes]
    means = ready.measure([ready.but(places, whole) for places in tried], "the worst part").mean(1)
    return tried[int(means.argmin())] if means.min() < full else []


def _harms(asked: _Asked, ready: _Ready, split: Split) -> np.ndarray:
    """How much the removal of each part of the rest lowers the metric, really or to first order, [part]."""
    outside = ready.outside
    if len(outside) <= MOST_REMOVED_ONE_BY_ONE:
        whole = ready.runs.whole
        means = ready.measure([whole, *(ready.but([p], whole) for p in outside)], "the worst part").mean(1)
        return means[0] - means[1:]
    try:
        effects = _effects(asked, split)
    except NoGradient as error:
        raise NotEnoughEvidence(
            "The worst part can't be looked for.",
            got=f"{len(outside)} active {asked.circuit.part}s outside the circuit, and a metric without a gradient",
            because="they are too many to remove one by one",
            instead="a metric that is smooth, such as the logit difference",
        ) from error
    return np.array([-effects[site][index] for site, index in outside])


def _effects(asked: _Asked, split: Split) -> Mapping[str, np.ndarray]:
    """Change of the metric by the removal of each part, to first order, by site."""
    if isinstance(asked.circuit, ExpertCircuit):
        return attribute_experts(asked.model, split, routing=asked.circuit.routing).effects
    return attribute_latents(asked.model, split, dictionaries=asked.dictionaries).effects


def _not(kept: Kept) -> dict[str, np.ndarray]:
    return {site: ~which for site, which in kept.items()}
