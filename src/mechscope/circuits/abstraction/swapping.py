"""Swapping: the values that sources carry at places, and the writes that put them into the bases.

Owns: the match of positions between base and source, and the cut of a memory budget. Everything is run by the engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mechscope.circuits.abstraction.interchanges import Interchanges
from mechscope.circuits.abstraction.place import Place
from mechscope.engine.execute import Progress, run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.interventions.donor import Donor
from mechscope.interventions.metrics import UserMetric
from mechscope.interventions.replace import Patch, patch
from mechscope.models.model import Model
from mechscope.models.writing import from_token_form, to_token_form
from mechscope.patching.donors import bytes_per_row
from mechscope.vocabulary.errors import InterventionMismatch, PairLengthMismatch
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import PerRow, Where

Alignment = Mapping[str, Place]
Choice = Literal["vocabulary", "answers"]
CHOICES: tuple[Choice, ...] = ("vocabulary", "answers")

DONOR_BYTES = 2**30
"""Values held at once; more pairs than fit are run in several plans."""


@dataclass(frozen=True)
class Carried:
    """What examples carry at some sites.

    Args:
        row_of: Where each example stands in the values.
        values: By site, in token form, [row, column, *site].
        n_pad: Padding columns of each row.
    """

    row_of: Mapping[int, int]
    values: Mapping[Site, Tensor]
    n_pad: Tensor


def carried_by(model: Model, pairs: Interchanges, sites: Sequence[Site]) -> Carried:
    """Run all sources of some interchanges once and keep what they carry.

    Cost: one forward pass over them, up to the last site.
    """
    rows = sorted({int(row) for own in pairs.sources.values() for row in own})
    batch = pairs.examples.prompts.select(rows)
    cache = model.run(batch, capture=list(sites), stop_after=max(sites)).cache
    values = {site: to_token_form(cache[site], site.row).detach() for site in sites}
    return Carried({row: index for index, row in enumerate(rows)}, values, batch.n_pad)


def donor_of(model: Model, pairs: Interchanges, *, variable: str, place: Place, carried: Carried) -> Donor:
    """The sources' values at the bases' own columns.

    Raises:
        PairLengthMismatch: base and source have unequal numbers of positions there.
    """
    site = model.binding.site(place.site)
    rows = pairs.sources[variable]
    to, from_ = place.positions_of(pairs.examples, pairs.base), place.positions_of(pairs.examples, rows)
    _refuse_unequal(pairs, place, to, from_)
    values, batch = carried.values[site], pairs.base_prompts
    found = values.new_zeros(len(pairs), batch.ids.shape[1], *values.shape[2:])
    at = [(pair, int(batch.n_pad[pair]) + column) for pair, own in enumerate(to) for column in own]
    source = [
        (carried.row_of[int(row)], int(carried.n_pad[carried.row_of[int(row)]]) + column)
        for row, own in zip(rows, from_, strict=True)
        for column in own
    ]
    i, j = torch.tensor(at, device=values.device).T
    k, m = torch.tensor(source, device=values.device).T
    found[i, j] = values[k, m]
    return Donor.of(from_token_form(found, site.row), site)


def where_of(pairs: Interchanges, place: Place) -> Where:
    """The bases' own positions, as a selection."""
    return Where.of(PerRow(tuple(map(tuple, place.positions_of(pairs.examples, pairs.base)))))


def writes_of(
    model: Model, pairs: Interchanges, alignment: Alignment, *, carried: Carried
) -> tuple[Patch, ...]:
    """One patch a variable: what its source carries, in the place aligned with it."""
    writes: list[Patch] = []
    for variable, place in alignment.items():
        donor = donor_of(model, pairs, variable=variable, place=place, carried=carried)
        subspace = place.full_subspace(model)
        heads, units = (place.heads, place.units) if subspace is None else (None, None)
        positions = where_of(pairs, place).positions
        writes.append(
            patch(place.site, donor, positions=positions, heads=heads, units=units, subspace=subspace)
        )
    return tuple(writes)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the model says: the most probable token.

    Args:
        choice: Among the whole "vocabulary", or among the "answers" only.
        answers: Token ids of the answers.
        position: Where it is read.
    """

    choice: Choice
    answers: tuple[int, ...]
    position: int

    def metric(self) -> UserMetric:
        """The token's id as a number."""
        return UserMetric(function=self.read, positions=(self.position,))

    def read(self, logits: Tensor) -> Tensor:
        """Token ids from logits [row, 1, vocabulary]."""
        if self.choice == "vocabulary":
            return logits[:, 0].argmax(-1).double()
        ids = torch.tensor(self.answers, device=logits.device)
        return ids[logits[:, 0, ids].argmax(-1)].double()


def answers_under(
    model: Model,
    pairs: Interchanges,
    *,
    alignments: Sequence[Alignment],
    choice: Choice,
    progress: Progress | None = None,
) -> np.ndarray:
    """What the model answers on the bases, under each alignment, [alignment, pair] token ids; {} patches nothing.

    Cost: one forward pass over the sources, and one experiment for each alignment and pair, sharing base runs.
    """
    answered = Answered(choice=choice, answers=pairs.answer_ids, position=pairs.examples.position)
    sites = sorted({model.binding.site(place.site) for one in alignments for place in one.values()})
    width = pairs.examples.prompts.shape[1]
    per_pair = max(1, bytes_per_row(model, sites, width) * max(1, len(alignments) // max(1, len(sites))))
    size = max(1, DONOR_BYTES // per_pair)
    found: list[np.ndarray] = []
    for start in range(0, len(pairs), size):
        part = pairs.select(np.arange(start, min(start + size, len(pairs))))
        carried = carried_by(model, part, sites) if sites else None
        inputs, metric = part.base_prompts, answered.metric()
        experiments = [
            Experiment(
                inputs=inputs,
                writes=() if carried is None else writes_of(model, part, one, carried=carried),
                metric=metric,
                name=", ".join(map(str, one.values())),
            )
            for one in alignments
        ]
        found.append(run_experiments(model, experiments, progress=progress).table().long().numpy())
    return np.concatenate(found, axis=1)


def sources_at(pairs: Interchanges, place: Place, *, carried: Carried, variable: str, site: Site) -> Tensor:
    """What sources carry at a place, all that a token carries flat, [token, coordinate]."""
    rows, columns = [], []
    for row, own in zip(
        pairs.sources[variable], place.positions_of(pairs.examples, pairs.sources[variable]), strict=True
    ):
        at = carried.row_of[int(row)]
        rows += [at] * len(own)
        columns += [int(carried.n_pad[at]) + column for column in own]
    return carried.values[site][torch.tensor(rows), torch.tensor(columns)].flatten(1)


def refuse_choice(choice: str) -> None:
    """Refuse an unknown way to read the answer."""
    if choice not in CHOICES:
        raise InterventionMismatch(f'"{choice}" is no choice.', got=choice, instead=", ".join(CHOICES))


def _refuse_unequal(pairs: Interchanges, place: Place, to: list[list[int]], from_: list[list[int]]) -> None:
    for pair, (own, others) in enumerate(zip(to, from_, strict=True)):
        if len(own) != len(others) or not own:
            raise PairLengthMismatch(
                f"Base and source have unequal numbers of positions at {place.site}.",
                got=f"pair {pair}: {len(own)} and {len(others)}",
                because="each position of the base takes its value from one position of the source",
                instead="a place with one position, or prompts of one length",
            )
