"""The choice of latents or experts again where there is nothing to choose: other prompts' answers, other weights.

Latents are of dictionaries, which are of one network's activations: in a network with other weights they mean nothing,
so that world is for experts only. What is found carries a share of the real gap, as in `discovery_controls`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.parts.circuit import PartCircuit
from mechscope.circuits.parts.experts import ExpertCircuit, choose_experts, expert_runs
from mechscope.circuits.parts.latents import LatentCircuit, choose_latents, latent_runs
from mechscope.circuits.statistics.checks import CheckSettings, why, worlds_of
from mechscope.circuits.statistics.control_result import MODEL, Discovery, DiscoveryControls
from mechscope.circuits.statistics.discovery_controls import (
    ControlSettings,
    carried_in,
    concentration,
    in_each_world,
)
from mechscope.data.intervals import N_RESAMPLES
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.engine.kept_parts.run import KeptRuns
from mechscope.models.model import Model
from mechscope.vocabulary.errors import NoGradient, NotEnoughEvidence

SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Sizes of the curve, times the circuit's."""

Told = Callable[[str, int, int], None]


def part_worlds(
    model: Model,
    circuit: PartCircuit,
    *,
    splits: tuple[Split, Split],
    dictionaries: Sequence[Dictionary],
    settings: CheckSettings,
    progress: Told | None = None,
) -> tuple[DiscoveryControls | None, list[str]]:
    """The search that found a circuit again in worlds without the mechanism, and what was left out and why.

    Args:
        model: The model; left as it is.
        circuit: As it was found.
        splits: Searched, and measured on.
        dictionaries: Of latents.
        settings: How many draws, and the seed.
        progress: Told the world, draws done, draws in all.

    Cost: one search and one evaluation of six circuits for each draw.
    """
    if "method" not in circuit.settings:
        return None, ["the search where there is nothing to find: the circuit does not say how it was found"]
    worlds, left_out = worlds_of(splits)
    if isinstance(circuit, LatentCircuit):
        worlds = tuple(world for world in worlds if not world.endswith("weights"))
        left_out.append(
            "the search in networks with other weights: dictionaries are of this network's activations"
        )
    if not worlds:
        return None, left_out
    chosen = ControlSettings(
        controls=worlds,
        n_draws=settings.n_controls,
        fractions=SIZES,
        seed=settings.tests.seed,
        n_resamples=N_RESAMPLES,
    )
    look = _Look(circuit, tuple(dictionaries), chosen)
    told = (
        None
        if progress is None
        else lambda what, done, total: progress(f"searching with {what}", done, total)
    )
    try:
        real, found = in_each_world(look.at, model, splits=splits, settings=chosen, progress=told)
    except NotEnoughEvidence as refusal:
        return None, [*left_out, f"the search where there is nothing to find: {why(refusal)}"]
    return DiscoveryControls(
        real=real,
        controls=found,
        fractions=SIZES,
        settings={**Conventions().to_json(), "n_draws": settings.n_controls, "part": circuit.part},
        data_sha256=splits[1].data_hash,
    ), left_out


@dataclass(frozen=True)
class _Look:
    """One search and what it is worth, in any world."""

    circuit: PartCircuit
    dictionaries: tuple[Dictionary, ...]
    settings: ControlSettings

    def at(self, world: str, model: Model, splits: tuple[Split, Split], unit: float | None) -> Discovery:
        search, test = splits
        note = ""
        try:
            found = self.circuit if world == MODEL else self._find(model, search)
            if not len(found):
                found, note = None, "no part has an effect"
        except (NoGradient, NotEnoughEvidence) as error:
            found, note = None, str(error).splitlines()[0]
        runs = self._runs(model, test)
        whole = runs.whole
        none = {site: ~which for site, which in whole.items()}
        asked = [whole, none, none if found is None else found.kept]
        asked += [one.kept for one in self._sizes(found)]
        values = runs.measure(asked)
        strongest = None
        if found is not None and found.scores is not None:
            strongest = concentration(np.concatenate(list(found.scores.values())), len(found))
        return Discovery(
            world=world,
            circuit=found,
            concentration=strongest,
            note=note,
            **carried_in(world, values, units=test.units, unit=unit, settings=self.settings),
        )

    def _find(self, model: Model, split: Split) -> PartCircuit:
        asked, own = self.circuit.settings, self.circuit
        conventions = Conventions(ablation=asked["ablation"], direction=asked["direction"])
        if isinstance(own, ExpertCircuit):
            return choose_experts(
                model,
                split,
                n_experts=len(own),
                routing=own.routing,
                method=asked["method"],
                conventions=conventions,
            )
        return choose_latents(
            model,
            split,
            dictionaries=self.dictionaries,
            n_latents=self._n_chosen,
            errors=asked["errors"],
            method=asked["method"],
            conventions=conventions,
        )

    @property
    def _n_chosen(self) -> int:
        """Parts that the search was free to choose: errors that are ranked with latents count."""
        own = self.circuit
        is_chosen = own.settings.get("errors") == "chosen"
        return sum(int(which.sum()) for which in own.kept.values()) if is_chosen else len(own)

    def _runs(self, model: Model, split: Split) -> KeptRuns:
        if isinstance(self.circuit, ExpertCircuit):
            return expert_runs(model, split, routing=self.circuit.routing, conventions=Conventions())
        return latent_runs(model, split, dictionaries=self.dictionaries, conventions=Conventions())

    def _sizes(self, found: PartCircuit | None) -> list[PartCircuit]:
        """The strongest parts in other numbers; none without scores."""
        if found is None or found.scores is None:
            return []
        assert isinstance(found, LatentCircuit | ExpertCircuit)
        return [found.resized(max(1, round(size * self._n_chosen))) for size in SIZES]
