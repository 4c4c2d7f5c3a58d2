"""LatentCircuit: sparse feature circuits: some latents of dictionaries, with the error of each site kept or removed.

A site's value is what its latents write and the rest. Latents that are kept are computed in the circuit's own run, from
what is left upstream; the others carry their value from the run that removed values are from. An error is a node too.
A latent that writes several sites (of cross-layer transcoders, crosscoders) is a node at the first, removed at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from mechscope.attribution.latents import attribute_latents
from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import Conventions, split_to_search
from mechscope.circuits.discover import remember
from mechscope.circuits.parts.circuit import PartCircuit, strongest
from mechscope.circuits.parts.evaluation import (
    PartEvaluation,
    PartMeasures,
    evaluate_parts,
    prompts_for,
    refuse_none,
)
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.engine.kept_parts.homes import Home, homes_at, homes_of
from mechscope.engine.kept_parts.latents import LatentRuns
from mechscope.models.model import Model
from mechscope.records.fingerprint import hash_tensors
from mechscope.records.record import Record
from mechscope.vocabulary.errors import DictionaryMismatch, InterventionMismatch, UnknownEdge

Errors = Literal["kept", "removed", "chosen"]
ERRORS = ("kept", "removed", "chosen")


class LatentCircuitRecord(Record):
    """A saved `LatentCircuit`."""

    kind: ClassVar[str] = "latent-circuit"


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentCircuit(PartCircuit):
    """Some latents of dictionaries at some sites; `LatentCircuit.of` makes one by hand.

    Args:
        kept: By site written, [n_latents + 1] truth values of the latents at home there, the last for the error.
        dictionaries: Hash of each site's dictionary.
    """

    part = "latent"
    record = LatentCircuitRecord

    dictionaries: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        dictionaries: Sequence[Dictionary],
        *,
        latents: Mapping[str, Iterable[int]],
        errors: Literal["kept", "removed"] | Iterable[str],
        **more: Any,
    ) -> "LatentCircuit":
        """The circuit of some latents.

        Args:
            dictionaries: One for each site that is written.
            latents: Which are kept, by the first site that they write, counted from 0 among those at home there; a site
                that is not named keeps none.
            errors: "kept" or "removed" everywhere, or the sites where they are kept.
            more: Other fields.

        Raises:
            UnknownEdge: a site without a dictionary, or a latent that it does not have.
        """
        by_site = _homes(dictionaries)
        listed = {site: list(which) for site, which in latents.items()}
        where = set(by_site) if errors == "kept" else set() if errors == "removed" else set(errors)
        problems = [f"no dictionary writes {site}" for site in sorted({*listed, *where} - set(by_site))]
        problems += [
            f"{site}:{latent}, of {by_site[site].n_latents} latents"
            for site, which in listed.items()
            for latent in which
            if site in by_site and not 0 <= latent < by_site[site].n_latents
        ]
        if problems:
            raise UnknownEdge(
                "Latents that these dictionaries do not have.",
                got="; ".join(problems)[:200],
                because=f"they write {', '.join(by_site) or 'nothing'}",
                instead='latents={"resid_post.2": (17, 40)}, errors="kept", "removed" or some of these sites',
            )
        kept: dict[str, np.ndarray] = {}
        for site, one in by_site.items():
            kept[site] = np.zeros(one.n_latents + 1, dtype=bool)
            kept[site][listed.get(site, [])] = True
            kept[site][-1] = site in where
        hashes = _hashes(by_site, dictionaries)
        return cls(kept=kept, dictionaries=hashes, **more)

    @property
    def latents(self) -> dict[str, tuple[int, ...]]:
        """Latents that are kept, by site."""
        return {site: tuple(np.flatnonzero(which[:-1]).tolist()) for site, which in self.kept.items()}

    @property
    def errors(self) -> tuple[str, ...]:
        """Sites whose error is kept."""
        return tuple(site for site, which in self.kept.items() if which[-1])

    @property
    def name(self) -> str:
        n = len(self.errors)
        told = "no error" if not n else "all errors" if n == len(self.kept) else f"errors at {n} sites"
        return f"{super().name}, {told} kept"

    @property
    def conventions(self) -> dict[str, Any]:
        """What an evaluation says of it."""
        return {"errors_kept": list(self.errors), "dictionaries": dict(self.dictionaries)}

    def resized(self, n_latents: int) -> "LatentCircuit":
        """The n strongest latents by its scores, errors treated as they were when it was chosen.

        Raises:
            NotEnoughEvidence: it has no scores.
        """
        kept = _choose(self._scored(), n_latents, self.settings.get("errors", "kept"))
        return replace(self, kept=kept, settings={**self.settings, "n_latents": n_latents})

    def evaluate(
        self,
        model: Model,
        split: Split,
        *,
        dictionaries: Sequence[Dictionary],
        conventions: Conventions | None = None,
        measures: PartMeasures | None = None,
    ) -> PartEvaluation:
        """Faithfulness, its complement's, and random circuits', on a split; see `evaluate_latents`."""
        found = evaluate_latents(
            model, [self], split=split, dictionaries=dictionaries, conventions=conventions, measures=measures
        )
        return found[0]

    def refuse_unless_measurable(self, model: Model, dictionaries: Sequence[Dictionary]) -> None:
        """Refuse another model, an empty circuit, and dictionaries that are not its own or do not fit the model.

        Raises:
            UnknownEdge, NotEnoughEvidence: as `refuse_unless_of`.
            InterventionMismatch, DictionaryMismatch: dictionaries.
        """
        self.refuse_unless_of(model)
        homes = homes_at(model, dictionaries)
        self.refuse_other_dictionaries({site: _of(home, dictionaries) for site, home in homes.items()})

    def refuse_other_dictionaries(self, dictionaries: Mapping[str, Dictionary]) -> None:
        """Refuse dictionaries other than the circuit's own.

        Raises:
            DictionaryMismatch: another site, another width, other weights; all problems at once.
        """
        problems = [f"none writes {site}" for site in self.kept if site not in dictionaries]
        problems += [f"{site} is no site of the circuit" for site in dictionaries if site not in self.kept]
        for site in set(self.kept) & set(dictionaries):
            n, here = len(self.kept[site]) - 1, _homes([dictionaries[site]])[site].n_latents
            if n != here:
                problems.append(f"{site} had {n} latents, and has {here} here")
            elif self.dictionaries.get(site, "") not in ("", hash_tensors(dictionaries[site].tensors)):
                problems.append(f"the dictionary of {site} has other weights")
        if problems:
            raise DictionaryMismatch(
                "These are not the dictionaries that the circuit's latents are of.",
                got=f"dictionaries that write {', '.join(dictionaries)}",
                because="; ".join(problems),
                instead="the dictionaries that it was found in, in the precision that they had",
            )

    def to_json(self) -> dict[str, Any]:
        """What identifies it: sites, latents, errors, and the dictionaries by their hash."""
        return super().to_json() | {"errors": list(self.errors), "dictionaries": dict(self.dictionaries)}

    @classmethod
    def _rest_of(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        return {"dictionaries": dict(saved["dictionaries"])}


def choose_latents(
    model: Model,
    behavior: Behavior | Split,
    *,
    dictionaries: Sequence[Dictionary],
    n_latents: int,
    errors: Errors,
    method: str = "attribution",
    conventions: Conventions | None = None,
) -> LatentCircuit:
    """The strongest latents of dictionaries, by attribution at their codes.

    Args:
        model: An open model.
        behavior: Prompt pairs; of a behavior the train split.
        dictionaries: SAEs, transcoders and crosscoders; at most one writes each site.
        n_latents: How many are kept in all; latents whose effect is zero are never among them.
        errors: "kept" or "removed" everywhere; "chosen": an error is ranked with the latents and counts as one.
        method: Of `ms.attribute_latents`: "attribution", "ig", "relp".
        conventions: What removed latents carry; by default the corrupt twin's values, in the clean run.

    Raises:
        InterventionMismatch, DictionaryMismatch: dictionaries that do not fit the model or each other.

    Cost: that of `ms.attribute_latents`.
    """
    if errors not in ERRORS:
        raise InterventionMismatch(
            "A circuit of latents says what happens to what dictionaries leave over.",
            got=f"errors={errors!r}",
            because="errors can carry as much as latents do",
            instead=", ".join(map(repr, ERRORS)),
        )
    conventions = conventions or Conventions()
    split = split_to_search(behavior, ablation=conventions.ablation)
    _, _, removed = prompts_for(split, conventions)
    scores = attribute_latents(
        model,
        split,
        dictionaries=dictionaries,
        method=method,
        direction=conventions.direction,
        removed=removed,
    )
    by_site = _homes(dictionaries)
    found = LatentCircuit(
        kept=_choose(scores.effects, n_latents, errors),
        scores=scores.effects,
        unit=scores.unit,
        dictionaries={
            site: sha for site, sha in _hashes(by_site, dictionaries).items() if site in scores.effects
        },
        settings={"method": method, "n_latents": n_latents, "errors": errors, "split": split.name}
        | conventions.to_json(),
        model=model.fingerprint,
        data_sha256=split.data_hash,
    )
    return remember(found, behavior) if isinstance(behavior, Behavior) else found


def evaluate_latents(
    model: Model,
    circuits: Sequence[LatentCircuit],
    *,
    split: Split,
    dictionaries: Sequence[Dictionary],
    conventions: Conventions | None = None,
    measures: PartMeasures | None = None,
) -> list[PartEvaluation]:
    """Evaluate circuits of latents on one split; runs that they have in common are shared.

    Args:
        model: The model that they were found in.
        circuits: Of the same dictionaries.
        split: Prompt pairs; for a claim about them, ones that no search has seen.
        dictionaries: Theirs.
        conventions: What removed latents and errors carry, and in which run.
        measures: Random circuits and resamples.

    Raises:
        DictionaryMismatch: dictionaries of another model, or other ones than the circuits'.
        UnknownEdge: a circuit of another model.
        InterventionMismatch: an ablation that gives latents no value ("optimal").
        NotEnoughEvidence: no gap, an empty circuit, or none at all.

    Cost: a forward pass for each circuit, its complement, its errors and its random circuits, from the first site on
        and without the tokens before prompts differ; at each site the encoder and decoder in each of them.
    """
    refuse_none(circuits)
    conventions = conventions or Conventions()
    for one in circuits:
        one.refuse_unless_measurable(model, dictionaries)
    runs = latent_runs(model, split, dictionaries=dictionaries, conventions=conventions)
    return evaluate_parts(
        model, circuits, runs=runs, split=split, conventions=conventions, measures=measures or PartMeasures()
    )


def latent_runs(
    model: Model, split: Split, *, dictionaries: Sequence[Dictionary], conventions: Conventions
) -> LatentRuns:
    """A split made ready to be run under circuits of latents.

    Raises:
        InterventionMismatch: an ablation that gives latents no value, or dictionaries that do not fit each other.
        DictionaryMismatch: dictionaries that do not fit the model.
    """
    tokens, other, ablation = prompts_for(split, conventions)
    return LatentRuns(
        model, tokens, metric=split.metric, dictionaries=dictionaries, ablation=ablation, other=other
    )


def _homes(dictionaries: Sequence[Dictionary]) -> dict[str, Home]:
    """Homes by site, in the order of the forward pass."""
    found = [home for one in dictionaries for home in homes_of(one)]
    return {str(home.site): home for home in sorted(found, key=lambda home: home.site)}


def _of(home: Home, dictionaries: Sequence[Dictionary]) -> Dictionary:
    return next(one for one in dictionaries if one is home.codec)


def _hashes(homes: Mapping[str, Home], dictionaries: Sequence[Dictionary]) -> dict[str, str]:
    """The hash of each site's dictionary."""
    hashes = {id(one): hash_tensors(one.tensors) for one in dictionaries}
    return {site: hashes[id(home.codec)] for site, home in homes.items()}


def _choose(scores: Mapping[str, np.ndarray], n_latents: int, errors: Errors) -> dict[str, np.ndarray]:
    if errors == "chosen":
        return strongest(scores, n_latents)
    kept = strongest({site: of[:-1] for site, of in scores.items()}, n_latents)
    return {site: np.append(which, errors == "kept") for site, which in kept.items()}
