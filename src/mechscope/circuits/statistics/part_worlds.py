"""The choice of latents or experts again where there is nothing to choose: other prompts' answers, other weights.

Latents are of dictionaries, which are of one network's activations: in a network with other weights they mean nothing,
so that world is for experts only. What is found carries a share of the real gap, as in `discovery_controls`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.faithfulness import refuse_without_gap
from mechscope.circuits.parts.circuit import PartCircuit
from mechscope.circuits.parts.experts import ExpertCircuit, choose_experts, expert_runs
from mechscope.circuits.parts.latents import LatentCircuit, choose_latents, latent_runs
from mechscope.circuits.statistics.checks import CheckSettings, why
from mechscope.circuits.statistics.control_result import MODEL, Discovery, DiscoveryControls
from mechscope.circuits.statistics.discovery_controls import CONTROLS, permuted_answers
from mechscope.circuits.statistics.reset_networks import WeightReset, reset_weights
from mechscope.data.intervals import Resamples, mean_bootstrap
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.engine.kept_parts.run import KeptRuns
from mechscope.models.model import Model
from mechscope.records.seeds import seed_for
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
    if not settings.n_controls:
        return None, []
    if "method" not in circuit.settings:
        return None, ["the search where there is nothing to find: the circuit does not say how it was found"]
    worlds, left_out = list(CONTROLS), []
    if isinstance(circuit, LatentCircuit):
        worlds = ["permuted answers"]
        left_out.append(
            "the search in networks with other weights: dictionaries are of this network's activations"
        )
    try:
        for split in splits:
            permuted_answers(split)
    except NotEnoughEvidence as refusal:
        worlds.remove("permuted answers")
        left_out.append(f"permuted answers: {why(refusal)}")
    if not worlds:
        return None, left_out
    look = _Look(circuit, tuple(dictionaries))
    try:
        real = look.at(MODEL, model, splits, unit=None)
    except NotEnoughEvidence as refusal:
        return None, [*left_out, f"the search where there is nothing to find: {why(refusal)}"]
    found = []
    for world in worlds:
        for draw in range(settings.n_controls):
            where, there = _world(model, splits, world, settings.tests.seed, draw)
            found.append(look.at(world, where, there, unit=abs(real.gap)))
            if progress is not None:
                progress(f"searching with {world}", draw + 1, settings.n_controls)
    return DiscoveryControls(
        real=real,
        controls=tuple(found),
        fractions=SIZES,
        settings={**Conventions().to_json(), "n_draws": settings.n_controls, "part": circuit.part},
        data_sha256=splits[1].data_hash,
    ), left_out


def _world(
    model: Model, splits: tuple[Split, Split], world: str, seed: int, draw: int
) -> tuple[Model, tuple[Split, Split]]:
    if world == "permuted answers":
        search, test = (permuted_answers(split, seed=seed + draw) for split in splits)
        return model, (search, test)
    how = "redrawn" if world == "redrawn weights" else "permuted"
    return reset_weights(model, WeightReset(how=how, seed=seed_for(seed, world, draw))), splits


@dataclass(frozen=True)
class _Look:
    """One search and what it is worth, in any world."""

    circuit: PartCircuit
    dictionaries: tuple[Dictionary, ...]

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
        if world == MODEL:
            refuse_without_gap(values[0], values[1])
        gaps, means = values[0] - values[1], values.mean(1)
        interval = mean_bootstrap(Resamples(test.units, seed=0), gaps).interval(0.95)
        scale = float(gaps.mean()) if unit is None else unit
        carried = ((means[2:] - means[1]) / scale).tolist()
        return Discovery(
            world=world,
            circuit=found,
            gap=float(gaps.mean()),
            gap_interval=(interval.low, interval.high),
            carried=carried[0],
            concentration=_concentration(found),
            curve=tuple(carried[1:]) or (0.0,) * len(SIZES),
            note=note,
        )

    def _find(self, model: Model, split: Split) -> PartCircuit:
        asked, own = self.circuit.settings, self.circuit
        if isinstance(own, ExpertCircuit):
            return choose_experts(
                model, split, n_experts=len(own), routing=own.routing, method=asked["method"]
            )
        return choose_latents(
            model,
            split,
            dictionaries=self.dictionaries,
            n_latents=len(own),
            errors=asked["errors"],
            method=asked["method"],
        )

    def _runs(self, model: Model, split: Split) -> KeptRuns:
        if isinstance(self.circuit, ExpertCircuit):
            return expert_runs(model, split, routing=self.circuit.routing, conventions=Conventions())
        return latent_runs(model, split, dictionaries=self.dictionaries, conventions=Conventions())

    def _sizes(self, found: PartCircuit | None) -> list[PartCircuit]:
        """The strongest parts in other numbers; none without scores."""
        if found is None or found.scores is None:
            return []
        assert isinstance(found, LatentCircuit | ExpertCircuit)
        return [found.resized(max(1, round(size * len(self.circuit)))) for size in SIZES]


def _concentration(found: PartCircuit | None) -> float | None:
    """Share of all absolute scores that the circuit's number of strongest parts holds."""
    if found is None or found.scores is None:
        return None
    strength = np.sort(np.abs(np.concatenate(list(found.scores.values()))))[::-1]
    total = float(strength.sum())
    return float(strength[: len(found)].sum()) / total if total else None
