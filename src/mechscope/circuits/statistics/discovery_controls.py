"""Discovery controls: the whole discovery again where there is nothing to find, beside what it finds in the model.

Three worlds without the mechanism: the same architecture with redrawn weights, with permuted weights, and the model
itself asked for other prompts' answers. What a circuit carries there is told in units of the real behaviour's gap,
    carried = (m(circuit) - m(none)) / |m(model) - m(none)| of the real model and answers,
since a control's own gap is near nothing and a share of nothing can be anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

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
    real = look.at(MODEL, model, (search, test), unit=None)
    found = []
    for world in settings.controls:
        for draw in range(settings.n_draws):
            if world == "permuted answers":
                splits = tuple(permuted_answers(one, seed=settings.seed + draw) for one in (search, test))
                found.append(look.at(world, model, (splits[0], splits[1]), unit=abs(real.gap)))
            else:
                seed = seed_for(settings.seed, world, draw)
                reset = WeightReset(how=world.split()[0], keeps=settings.keeps, seed=seed)  # pyright: ignore[reportArgumentType]
                found.append(look.at(world, reset_weights(model, reset), (search, test), unit=abs(real.gap)))
            if progress is not None:
                progress(world, draw + 1, settings.n_draws)
    return DiscoveryControls(
        real=real,
        controls=tuple(found),
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
        if world == MODEL:
            refuse_without_gap(values[0], values[1])
        gaps, means = values[0] - values[1], values.mean(1)
        resamples = Resamples(test.units, seed=0, n_resamples=self.settings.n_resamples)
        interval = mean_bootstrap(resamples, gaps).interval(0.95)
        scale = float(gaps.mean()) if unit is None else unit
        carried = ((means[2:] - means[1]) / scale).tolist()
        return Discovery(
            world=world,
            circuit=circuit,
            gap=float(gaps.mean()),
            gap_interval=(interval.low, interval.high),
            carried=carried[0],
            concentration=_concentration(circuit),
            curve=tuple(carried[1:]) or (0.0,) * len(self.settings.fractions),
            note=note,
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


def _concentration(circuit: Circuit | None) -> float | None:
    if circuit is None or circuit.scores is None or not np.abs(circuit.scores).sum():
        return None
    strength = np.sort(np.abs(circuit.scores))[::-1]
    return float(strength[: len(circuit)].sum() / strength.sum())
