"""Controls of sites: the same sites at other positions, or the same kinds of sites at any layer and position.

A control selects positions as its mechanism does, so that the two could have changed places: indices are held against
as many other indices from the same end, words against other words that are in as many prompts, own positions for each
prompt against the same ones moved by some tokens. Own positions drawn anew in each prompt would average every role of
a word, and any role that matters at all would stand out. Only ordinary tokens are controls: no [BOS], no first token.
Invariant: positions are read off the prompts; no model is run.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from mechscope.claims.controls import ANY_SITE, POSITIONS, Family, draw_selections, n_selections
from mechscope.claims.rule import FEWEST_THAT_GATE
from mechscope.claims.sites import Sites, indices_of
from mechscope.claims.testing import DrawnControls
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.ordinary_tokens import ordinary_tokens
from mechscope.vocabulary.errors import BadClaim
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Matching, PerRow, Positions

COUNTED = 10**15
"""A family of more members than this counts as without end."""

Addresses = tuple[Hashable, ...]
_ByGroup = dict[Hashable, Sequence[Hashable]]


@dataclass(frozen=True)
class _Kind:
    """How a selection names positions.

    Args:
        form: Equal for selections whose addresses mean the same.
        own: The mechanism's addresses.
        every: All that it or a control may have.
    """

    form: Hashable
    own: Addresses
    every: Addresses


class SiteControls:
    """The families of one mechanism on some prompts.

    Args:
        model: The model.
        mechanism: Some sites at some positions.
        prompts: Those of each split that is measured, held-out ones last: own positions are of these.
    """

    def __init__(self, model: Model, mechanism: Sites, prompts: Sequence[TokenBatch]) -> None:
        self._model, self._mechanism, self._prompts = model, mechanism, tuple(prompts)
        self._ordinary = [ordinary_tokens(model, batch, with_first=False) for batch in self._prompts]
        self._refuse_other_rows()
        self._kinds = {site: self._kind(where) for site, where in mechanism.places}
        points = {Site.parse(site).point for site in mechanism.sites}
        self._sites = [str(site) for site in model.binding.formed if site.point in points]

    @property
    def best(self) -> str:
        """The same sites at other positions where that can gate, else any layer."""
        return POSITIONS if self.n_members(POSITIONS) >= FEWEST_THAT_GATE else ANY_SITE

    def n_members(self, family: str) -> int:
        """How many there are."""
        mechanism, universe = self._selections(family)
        return n_selections(mechanism, universe, anywhere=family == ANY_SITE, kind_of=_point_of)

    def draw(self, family: str, *, n_draws: int, seed: int) -> DrawnControls:
        """Members of a family, as `draw_selections` draws them."""
        mechanism, universe = self._selections(family)
        drawn = draw_selections(
            mechanism,
            universe,
            n_draws=n_draws,
            seed=seed,
            name=family,
            anywhere=family == ANY_SITE,
            kind_of=_point_of,
        )
        members = self._as_sites(drawn)
        n_members = drawn.n_members if drawn.n_members <= COUNTED else float("inf")
        return DrawnControls(members, n_members, tuple(one.name for one in members))

    def _selections(self, family: str) -> tuple[_ByGroup, _ByGroup]:
        """The mechanism's addresses by site, and all addresses: at its sites, or at all sites of its kinds."""
        own: _ByGroup = {site: kind.own for site, kind in self._kinds.items()}
        if family == POSITIONS:
            return own, {site: kind.every for site, kind in self._kinds.items()}
        if len({kind.form for kind in self._kinds.values()}) > 1:
            raise BadClaim(
                f'no controls "{ANY_SITE}" for this mechanism',
                got=self._mechanism.name,
                because="its sites select positions differently, so it is not known which go with another layer",
                instead=f"one kind of positions for all sites, or {POSITIONS}",
            )
        every = tuple(dict.fromkeys(one for kind in self._kinds.values() for one in kind.every))
        return own, dict.fromkeys(self._sites, every)

    def _as_sites(self, drawn: Family) -> list[Sites]:
        known = dict(self._mechanism.places)
        example = self._mechanism.places[0][1]
        return [
            Sites(
                tuple(
                    (str(site), self._where(known.get(str(site), example), chosen))
                    for site, chosen in member.items()
                )
            )
            for member in drawn.members
        ]

    def _kind(self, where: Positions | None) -> _Kind:
        indices = indices_of(where)
        if indices is not None:
            from_end = indices[0] < 0
            every = sorted({*indices, *self._ordinary_indices(from_end=from_end)})
            return _Kind("from the end" if from_end else "from the start", indices, tuple(every))
        match where:
            case Matching(tokens):
                return self._words(tokens)
            case PerRow(rows):
                return _Kind(rows, (0,), self._offsets(rows))
            case _:
                return _Kind(where, (where,), (where,))

    def _where(self, example: Positions | None, chosen: Addresses) -> Positions | None:
        """Positions from addresses of the kind that the mechanism has."""
        match example:
            case Matching() if isinstance(chosen[0], int):
                return Matching(chosen)  # pyright: ignore[reportArgumentType] - addresses of words are ids
            case PerRow(rows):
                moved = [
                    sorted({index + offset for index in row for offset in chosen})  # pyright: ignore
                    for row in self._counted(rows)
                ]
                return PerRow(tuple(map(tuple, moved)))
            case _ if indices_of(example) is not None:
                return chosen  # pyright: ignore[reportReturnType] - and those of indices are indices
            case _:
                return example

    def _ordinary_indices(self, *, from_end: bool) -> list[int]:
        """Indices at which every prompt has an ordinary token."""
        shortest = min(int(batch.n_real.min()) for batch in self._prompts)
        found = []
        for index in range(-shortest, 0) if from_end else range(shortest):
            columns = [batch.n_pad + index + (batch.n_real if from_end else 0) for batch in self._prompts]
            at = [o[torch.arange(len(o)), c] for o, c in zip(self._ordinary, columns, strict=True)]
            if all(bool(here.all()) for here in at):
                found.append(index)
        return found

    def _words(self, tokens: tuple[int | str, ...]) -> _Kind:
        """Ids of the mechanism's words, and of words that are in as large a share of each split's prompts."""
        forms = [(t,) if isinstance(t, int) else self._model.reader.token_forms(t) for t in tokens]
        shares = [_shares(b, o) for b, o in zip(self._prompts, self._ordinary, strict=True)]
        ids = {index for form in forms for index in form}
        own = tuple(sorted(index for index in ids if all(index in share for share in shares)))
        if not own:
            return _Kind(tokens, (tokens,), (tokens,))
        least = [min(share[index] for index in own) for share in shares]
        common = set.intersection(*(set(share) for share in shares))
        others = {i for i in common if all(s[i] >= x for s, x in zip(shares, least, strict=True))}
        return _Kind("words", own, tuple(sorted({*own, *(others - ids)})))

    def _offsets(self, rows: Sequence[Sequence[int]]) -> Addresses:
        """Numbers of tokens by which all own positions can be moved, onto ordinary tokens that are not among them."""
        ordinary, batch = self._ordinary[-1], self._prompts[-1]
        first = batch.n_pad.tolist()
        free = [
            {column - first[row] for column in torch.nonzero(here)[:, 0].tolist()} - set(own)
            for row, (here, own) in enumerate(zip(ordinary, self._counted(rows), strict=True))
        ]
        width = int(batch.n_real.max())
        return tuple(
            offset
            for offset in range(-width, width)
            if offset == 0
            or all(
                {index + offset for index in own} <= allowed
                for own, allowed in zip(self._counted(rows), free, strict=True)
            )
        )

    def _counted(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Own positions counted from the start."""
        lengths = self._prompts[-1].n_real.tolist()
        return [
            [index + n if index < 0 else index for index in row] for row, n in zip(rows, lengths, strict=True)
        ]

    def _refuse_other_rows(self) -> None:
        n_rows, n = self._mechanism.n_rows, len(self._prompts[-1])
        if n_rows is not None and n_rows != n:
            raise BadClaim(
                "own positions for another number of prompts",
                got=f"{n_rows} rows of positions",
                because=f"the held-out split has {n} prompts, and row i is the i-th of them",
                instead="one row of positions for each of behavior.held_out.clean",
            )


def _point_of(site: Hashable) -> str:
    return Site.parse(str(site)).point


def _shares(batch: TokenBatch, ordinary: torch.Tensor) -> dict[int, float]:
    """The share of prompts in which each ordinary token is."""
    counts: dict[int, int] = {}
    for row in range(len(batch)):
        for index in set(batch.ids[row][ordinary[row]].tolist()):
            counts[index] = counts.get(index, 0) + 1
    return {index: count / len(batch) for index, count in counts.items()}
