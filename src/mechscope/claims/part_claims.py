"""Claims about circuits of parts: some latents of dictionaries or some experts of a mixture, as a mechanism.

Alone means that every other latent of these dictionaries, or expert, carries what it carries in the corrupt prompt;
what the dictionaries leave over is kept or removed as the circuit says. Removed are its parts and the errors that it
keeps. Controls have as many parts at each site, of those that are active in train prompts, none of the circuit's own,
and the same errors. Refuses a circuit that leaves no room for them, before any held-out prompt is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.parts.circuit import PartCircuit
from mechscope.circuits.parts.evaluation import measure_kept
from mechscope.circuits.parts.experts import ExpertCircuit, expert_runs
from mechscope.circuits.parts.latents import LatentCircuit, latent_runs
from mechscope.claims.circuit_claims import OF_PARTS, refuse_unless_of_parts
from mechscope.claims.controls import ANY_LAYER, RIVALS, draw_selections, n_selections
from mechscope.claims.dictionary_places import Placed, find_dictionaries, reopen
from mechscope.claims.predictions import Prediction
from mechscope.claims.rule import FEWEST_THAT_GATE
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.engine.kept_parts.run import KeptRuns
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadClaim, NotEnoughEvidence

COUNTED = 10**15
"""A family of more members than this counts as without end."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A circuit of latents or experts, with the dictionaries that its latents are of.

    Args:
        circuit: Which parts.
        placed: By site, its dictionary and where that lies; none for experts.
        label: Text for reports; by default the circuit's own name.
    """

    circuit: PartCircuit
    placed: Mapping[str, Placed] = field(default_factory=dict)
    label: str = ""

    @classmethod
    def of(
        cls, circuit: PartCircuit, dictionaries: Sequence[Dictionary | str | Path] | None = None
    ) -> "Parts":
        """The mechanism that a circuit is.

        Args:
            circuit: Of latents or experts.
            dictionaries: Of latents: open ones, or their places; None looks among those that ship with the model.

        Raises:
            BadClaim: dictionaries of experts.
            BadFile, DictionaryMismatch: none, or others than the circuit's.
        """
        if isinstance(circuit, LatentCircuit):
            return cls(circuit, find_dictionaries(circuit, dictionaries))
        if dictionaries is not None:
            raise BadClaim(
                "experts are not read by dictionaries",
                got=circuit.name,
                because="they are parts of the model",
                instead="Claim.about(circuit)",
            )
        return cls(circuit)

    @property
    def name(self) -> str:
        return self.label or self.circuit.name

    @cached_property
    def members(self) -> dict[str, tuple[int, ...]]:
        """Latents or experts that are kept, by site that has some; errors are not among them."""
        found = {site: tuple(np.flatnonzero(which).tolist()) for site, which in self._own.items()}
        return {site: kept for site, kept in found.items() if kept}

    @property
    def universe(self) -> dict[str, range]:
        """All latents or experts, by site."""
        return {site: range(len(which)) for site, which in self._own.items()}

    def __len__(self) -> int:
        return len(self.circuit)

    def to_json(self) -> dict[str, Any]:
        """The circuit, and of each dictionary where it lay and in which precision."""
        opened = {
            site: {"place": one.recorded_place, "dtype": one.dtype} for site, one in self.placed.items()
        }
        return self.circuit.to_json() | ({"opened": opened} if opened else {})

    @classmethod
    def from_json(
        cls,
        saved: Mapping[str, Any],
        *,
        dictionaries: Sequence[str | Path | Dictionary] = (),
        beside: Path | None = None,
    ) -> "Parts":
        """Inverse of `to_json`; dictionaries are opened where the file says, where they are given, or beside it.

        Raises:
            BadFile, DictionaryMismatch: they are nowhere, or others.
        """
        if saved["kind"] == ExpertCircuit.record.kind:
            return cls(ExpertCircuit.from_json(saved))
        circuit = LatentCircuit.from_json(saved)
        return cls(circuit, reopen(circuit, saved.get("opened", {}), given=dictionaries, beside=beside))

    def keeping(self, members: Mapping[Any, Sequence[Any]], label: str = "") -> "Parts":
        """Other parts of the same sites, with the same errors."""
        kept: dict[str, np.ndarray] = {}
        for site, which in self.circuit.kept.items():
            kept[site] = np.zeros_like(which)
            kept[site][list(members.get(site, ()))] = True
            kept[site][len(self._own[site]) :] = which[len(self._own[site]) :]
        return Parts(replace(self.circuit, kept=kept, scores=None), self.placed, label)

    def without(self, site: str, index: int) -> "Parts":
        """The circuit less one of its parts; errors stay."""
        left = tuple(one for one in self.members[site] if one != index)
        return self.keeping(self.members | {site: left})

    def without_each(self) -> tuple["Parts", ...]:
        """The circuit less each of its parts."""
        return tuple(self.without(site, index) for site, kept in self.members.items() for index in kept)

    def refuse_unless_of(self, model: Model) -> None:
        """Refuse another model than the circuit's, and dictionaries that do not fit it."""
        if isinstance(self.circuit, LatentCircuit):
            self.circuit.refuse_unless_measurable(model, self.dictionaries_on(model))
        else:
            self.circuit.refuse_unless_of(model)

    def runs(self, model: Model, split: Split, conventions: Conventions) -> KeptRuns:
        """A split made ready to be run under circuits of these parts."""
        if isinstance(self.circuit, ExpertCircuit):
            return expert_runs(model, split, routing=self.circuit.routing, conventions=conventions)
        return latent_runs(model, split, dictionaries=self.dictionaries_on(model), conventions=conventions)

    def dictionaries_on(self, model: Model) -> list[Dictionary]:
        """The dictionaries of latents on the model's device; none of experts."""
        return [one.dictionary.to(device=model.device) for one in self.placed.values()]

    @cached_property
    def _own(self) -> dict[str, np.ndarray]:
        is_latent = self.circuit.part == "latent"
        return {site: which[:-1] if is_latent else which for site, which in self.circuit.kept.items()}


def measure_parts(
    model: Model,
    mechanisms: Sequence[Parts],
    *,
    prediction: Prediction,
    split: Split,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "mechanism prompt"]:
    """The metric under circuits alone ("recovers"), or without them ("lowers", "spares").

    Args:
        model: The model that they are of.
        mechanisms: One or more, of the same dictionaries or of the same routing.
        prediction: What is done to the model.
        split: Prompt pairs.
        progress: Told prompts done and prompts in all.

    Raises:
        BadClaim: a prediction that parts have no meaning for.
    """
    refuse_unless_of_parts(prediction)
    is_alone = prediction.kind in ("recovers", "needs")
    ablation: Any = "resample" if is_alone else OF_PARTS[prediction.how]
    conventions = Conventions(ablation=ablation)
    circuits = [one.circuit if is_alone else ~one.circuit for one in mechanisms]
    runs = mechanisms[0].runs(model, split, conventions)
    return measure_kept(runs, [one.kept for one in circuits], conventions, progress=progress)


def draw_parts(
    model: Model, mechanism: Parts, *, family: str, train: Split, n_draws: int, seed: int
) -> tuple[list[Parts], float]:
    """Members of a control family, and how many there are in all: other parts that are active in train prompts.

    Args:
        model: The model.
        mechanism: What they are controls for.
        family: `RIVALS`: as many at each site. `ANY_LAYER`: as many in all.
        train: Prompts that say which parts are active, with their twins.
        n_draws: How many.
        seed: The claim's.

    Raises:
        NotEnoughEvidence: too few other parts are active.
    """
    active = mechanism.runs(model, train, Conventions()).active
    universe = {
        site: sorted({*np.flatnonzero(active[site]).tolist(), *mechanism.members.get(site, ())})
        for site in mechanism.universe
    }
    drawn = draw_selections(
        mechanism.members,  # pyright: ignore[reportArgumentType] - sites are hashable
        universe,  # pyright: ignore[reportArgumentType]
        n_draws=n_draws,
        seed=seed,
        name=family,
        anywhere=family == ANY_LAYER,
        kind_of=_point_of,
    )
    if not drawn.members:
        others = {site: len(universe[site]) - len(kept) for site, kept in mechanism.members.items()}
        told = [f"{len(kept)} of {site}, {others[site]} others" for site, kept in mechanism.members.items()]
        part = mechanism.circuit.part
        raise NotEnoughEvidence(
            f"There are too few other {part}s to hold this circuit against.",
            got="; ".join(told),
            because=f"a control has as many {part}s, none of the circuit's own, that are active in train prompts",
            instead=f"a circuit of fewer {part}s",
        )
    members = [mechanism.keeping(one, f"random {index}") for index, one in enumerate(drawn.members)]
    return members, drawn.n_members if drawn.n_members <= COUNTED else float("inf")


def family_for_parts(mechanism: Parts) -> str:
    """The family that a claim should name: as many parts at each site, where there are enough of such controls."""
    n_members = n_selections(mechanism.members, mechanism.universe)  # pyright: ignore[reportArgumentType]
    return RIVALS if n_members >= FEWEST_THAT_GATE else ANY_LAYER


def _point_of(site: Any) -> str:
    """A latent of the residual stream is no stand-in for one of an MLP."""
    return str(site).partition(".")[0]
