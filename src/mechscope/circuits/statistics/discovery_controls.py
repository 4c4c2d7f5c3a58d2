"""Discovery controls: the whole discovery again where there is nothing to find, beside what it finds in the model.

Three worlds without the mechanism: the same architecture with redrawn weights, with permuted weights, and the model
itself asked for other prompts' answers. What a circuit carries there is told in units of the real behaviour's gap,
    carried = (m(circuit) - m(none)) / |m(model) - m(none)| of the real model and answers,
since a control's own gap is near nothing and a share of nothing can be anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import CircuitRuns, Conventions
from mechscope.circuits.faithfulness import refuse_without_gap
from mechscope.circuits.size_curve import FRACTIONS
from mechscope.circuits.statistics.control_result import MODEL, Discovery, DiscoveryControls
from mechscope.circuits.statistics.reset_networks import WeightReset, reset_weights
from mechscope.data.intervals import Resamples, mean_bootstrap
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for, seed_for
from mechscope.vocabulary.errors import InterventionMismatch, NoGradient, NotEnoughEvidence

CONTROLS = ("redrawn weights", "permuted weights", "permuted answers")

Find = Callable[[Model, Split], Circuit]
Look = Callable[[str, Model, tuple[Split, Split], float | None], Discovery]


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """Which controls, and how many.

    Args:
        controls: Of "redrawn weights", "permuted weights", "permuted answers".
        n_draws: Of each; 19 allow p = 0.05.
        keeps: Patterns of parameters that a reset network keeps.
        fractions: Sizes of the curve, as shares of the model's edges.
        seed: Root of the tree of seeds.
        n_resamples: Of the gap's interval.
    """

    controls: tuple[str, ...] = CONTROLS
    n_draws: int = 5
    keeps: tuple[str, ...] = ()
    fractions: tuple[float, ...] = FRACTIONS
    seed: int = 0
    n_resamples: int = 2000

    def __post_init__(self) -> None:
        unknown = [name for name in self.controls if name not in CONTROLS]
        if unknown or self.n_draws < 1 or not self.controls:
            raise InterventionMismatch(
                "These controls can't be drawn.",
                got=f"controls={self.controls}, n_draws={self.n_draws}",
                instead=f"some of {', '.join(CONTROLS)}, each at least once",
            )


def control_discovery(
    model: Model,
    behavior: Behavior | tuple[Split, Split],
    *,
    find: Find,
    settings: ControlSettings | None = None,
    conventions: Conventions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DiscoveryControls:
    """Run a discovery again in worlds without the mechanism.

    Args:
        model: The model; left as it is.
        behavior: Searched on its train split and evaluated on its held-out one; or these two splits.
        find: The whole discovery, from a model and a split to a circuit:
            `lambda model, split: ms.discover(model, split, method="eap-ig", n_edges=50)`.
        settings: Which controls, and how many draws of each.
        conventions: What removed edges carry in the evaluation; resampling by default.
        progress: Told the control, draws done, draws in all.

    Raises:
        NotEnoughEvidence: the real behaviour has no gap; or all prompts ask for the same answer, so that permuting
            answers changes nothing.

    Cost: one discovery and one evaluation of a dozen circuits for each draw, and a second model in memory.
    Caveat: a reset network may respond to a pair by chance; that is what the gap's interval beside it is for.
    """
    settings, conventions = settings or ControlSettings(), conventions or Conventions()
    if conventions.constants is not None:
        raise InterventionMismatch(
            "Constants learned in one network mean nothing in another.",
            got=f"ablation={conventions.ablation!r}",
            instead='Conventions(ablation="resample"), or "mean"',
        )
    search, test = (behavior.train, behavior.held_out) if isinstance(behavior, Behavior) else behavior
    look = _Look(find, settings, conventions)
    real, found = in_each_world(look.at, model, splits=(search, test), settings=settings, progress=progress)
    return DiscoveryControls(
        real=real,
        controls=found,
        fractions=settings.fractions,
        settings={
            **asdict(settings),
            **conventions.to_json(),
            "split": test.name,
            "searched": search.data_hash,
        },
        model=model.fingerprint,
        data_sha256=test.data_hash,
    )


def in_each_world(
    look: Look,
    model: Model,
    *,
    splits: tuple[Split, Split],
    settings: ControlSettings,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Discovery, tuple[Discovery, ...]]:
    """Look at the model itself, then at each draw of each world without the mechanism, in units of the real gap.

    Args:
        look: From a world's name, its model, its splits and the real gap (None for the model itself) to a discovery.
        model: The model; left as it is.
        splits: Searched, and measured on.
        settings: Which worlds, how many draws, and the seed.
        progress: Told the world, draws done, draws in all.
    """
    real, found = look(MODEL, model, splits, None), []
    for world in settings.controls:
        for draw in range(settings.n_draws):
            where, there = model, splits
            if world == "permuted answers":
                search, test = (permuted_answers(one, seed=settings.seed + draw) for one in splits)
                there = (search, test)
            else:
                seed = seed_for(settings.seed, world, draw)
                reset = WeightReset(how=world.split()[0], keeps=settings.keeps, seed=seed)  # pyright: ignore[reportArgumentType]
                where = reset_weights(model, reset)
            found.append(look(world, where, there, abs(real.gap)))
            if progress is not None:
                progress(world, draw + 1, settings.n_draws)
    return real, tuple(found)


def carried_in(
    world: str, values: np.ndarray, *, units: np.ndarray, unit: float | None, settings: ControlSettings
) -> dict[str, Any]:
    """The gap in a world, and what circuits carry there: `Discovery`'s fields of what was measured.

    Args:
        world: `MODEL` must have a gap.
        values: Metric of the whole, of nothing, of the circuit, and of those of the curve, [3 + size, pair].
        units: Of pairs.
        unit: The real gap, in which what is carried is told; None for this world's own.
        settings: Resamples of the interval, and sizes of the curve.

    Raises:
        NotEnoughEvidence: the model itself has no gap.
    """
    if world == MODEL:
        refuse_without_gap(values[0], values[1])
    gaps, means = values[0] - values[1], values.mean(1)
    resamples = Resamples(units, seed=0, n_resamples=settings.n_resamples)
    interval = mean_bootstrap(resamples, gaps).interval(0.95)
    gap = float(gaps.mean())
    carried = ((means[2:] - means[1]) / (gap if unit is None else unit)).tolist()
    return {
        "gap": gap,
        "gap_interval": (interval.low, interval.high),
        "carried": carried[0],
        "curve": tuple(carried[1:]) or (0.0,) * len(settings.fractions),
    }


def concentration(scores: np.ndarray, n: int) -> float | None:
    """Share of all absolute scores that the n strongest hold; None where all are zero."""
    strength = np.sort(np.abs(scores))[::-1]
    total = float(strength.sum())
    return float(strength[:n].sum()) / total if total else None


def permuted_answers(split: Split, *, seed: int = 0) -> Split:
    """The same prompts, each asked for another prompt's answers.

    Raises:
        NotEnoughEvidence: all prompts ask for the same.
    """
    order = generator_for(seed, "permuted answers", split.name).permutation(len(split))
    rows = np.empty(len(split), dtype=int)
    rows[order] = np.roll(order, 1)  # one cycle through all, so that no prompt keeps its own
    answers = tuple(split.answers[row] for row in rows)
    wrong = tuple(split.wrong[row] for row in rows) if split.wrong else ()
    if answers == split.answers and wrong == split.wrong:
        raise NotEnoughEvidence(
            "Permuting answers changes nothing here.",
            got=f"{len(split)} prompts that all ask for the same",
            because="the control needs answers that belong to their prompts",
            instead='controls=("redrawn weights", "permuted weights")',
        )
    return replace(split, metric=split.metric.select(rows.tolist()), answers=answers, wrong=wrong)


@dataclass(frozen=True)
class _Look:
    """One discovery and what it is worth, in any world."""

    find: Find
    settings: ControlSettings
    conventions: Conventions

    def at(self, world: str, model: Model, splits: tuple[Split, Split], unit: float | None) -> Discovery:
        """Search and evaluate; `unit` is the real gap, None in the model itself."""
        search, test = splits
        try:
            circuit, note = self.find(model, search), ""
        except (NoGradient, NotEnoughEvidence) as error:
            if world == MODEL:
                raise
            circuit, note = None, str(error).splitlines()[0]
        runs = CircuitRuns(model, test, conventions=self.conventions)
        whole = np.ones(runs.wiring.n_edges, dtype=bool)
        masks = [whole, ~whole, ~whole if circuit is None else circuit.kept]
        masks += [circuit.kept for circuit in _sizes(circuit, self.settings.fractions)]
        values = runs.measure(np.stack(masks))
        strongest = None
        if circuit is not None and circuit.scores is not None:
            strongest = concentration(circuit.scores, len(circuit))
        return Discovery(
            world=world,
            circuit=circuit,
            concentration=strongest,
            note=note,
            **carried_in(world, values, units=test.units, unit=unit, settings=self.settings),
        )


def _sizes(circuit: Circuit | None, fractions: Sequence[float]) -> list[Circuit]:
    """The strongest edges by magnitude of score, pruned to connected; nothing without scores."""
    if circuit is None or circuit.scores is None:
        return []
    order, found = np.argsort(-np.abs(circuit.scores), kind="stable"), []
    for fraction in fractions:
        kept = np.zeros_like(circuit.kept)
        kept[order[: max(1, round(fraction * len(order)))]] = True
        found.append(Circuit(wiring=circuit.wiring, kept=kept).connected())
    return found
