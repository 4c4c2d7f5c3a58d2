"""Sites as a mechanism: what a few sites carry at some positions, such as "resid_post.2 at the last token".

Alone means that the clean values are put back into the corrupt run at these sites and positions and nowhere else, as a
denoising patch does. Of one residual site that is the same as holding all its other positions at their corrupt values.
Refuses sites that carry no vector for each position: heads, attention maps, choices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mechscope.interventions.ablation import ablate
from mechscope.interventions.replace import patch
from mechscope.models.cache import Cache
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadClaim, PositionOutOfRange
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site, routing_at
from mechscope.vocabulary.where import Matching, PerRow, Positions, Span, Where

Place = tuple[str, Positions | None]
"""A site and the positions there; None for all of them."""


@dataclass(frozen=True)
class Sites:
    """What some sites carry at some positions.

    Args:
        places: (site, positions) pairs; `Sites.of` takes positions as interventions do.
        label: Text for reports; by default the places.
    """

    places: tuple[Place, ...]
    label: str = ""

    def __post_init__(self) -> None:
        places = sorted(((Site.parse(at), _sorted(where)) for at, where in self.places), key=lambda p: p[0])
        sites = [site for site, _ in places]
        problems = [f"{site} is named twice" for site in sorted({s for s in sites if sites.count(s) > 1})]
        problems += [f"{site} counts from the end" for site in sites if (site.layer or 0) < 0]
        if problems or not places:
            raise BadClaim(
                "these are no sites that a claim can be about",
                got=", ".join(problems) or "no site",
                because="a claim names each site once, with all of its positions",
                instead='Sites.of("resid_post.2", positions=[3, 4])',
            )
        object.__setattr__(self, "places", tuple((str(site), where) for site, where in places))

    @classmethod
    def of(cls, *sites: str | Site, positions: Any = None) -> "Sites":
        """The same positions of each site.

        Args:
            sites: "resid_post.2", "attn_out.3", "mlp_out.1", ...: sites whose values are a vector for each position.
            positions: Index, list, slice, words, or a list of lists (own positions for each held-out prompt).
        """
        return cls(tuple((str(site), Where.of(positions).positions) for site in sites))

    @property
    def name(self) -> str:
        """ "resid_post.2 at position -1"."""
        told = [f"{site}{_told(where)}{_routed(site)}" for site, where in self.places]
        return self.label or ", ".join(told)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(site for site, _ in self.places)

    @property
    def n_rows(self) -> int | None:
        """Held-out prompts that it names own positions for; None where its positions serve any prompt."""
        counts = {len(where.positions) for _, where in self.places if isinstance(where, PerRow)}
        return max(counts) if counts else None

    def to_json(self) -> dict[str, Any]:
        """Canonical: the positions as selections save them."""
        return {
            "kind": "sites",
            "places": [[site, Where(positions=where).to_json()] for site, where in self.places],
        } | ({"label": self.label} if self.label else {})

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Sites":
        """Inverse of `to_json`."""
        places = tuple((site, Where.from_json(where).positions) for site, where in saved["places"])
        return cls(places, saved.get("label", ""))

    def ablation(self, how: str, reference: Any) -> list[Write]:
        """What the sites carry at the positions set to the value of `how`."""
        if how == "corrupt":
            return self.restoration(reference)
        return [ablate(site, how, reference=reference, positions=where) for site, where in self.places]

    def restoration(self, donor: Cache) -> list[Write]:
        """The donor's values at the sites and positions: of the clean run, what the mechanism alone puts back."""
        return [patch(site, donor, positions=where) for site, where in self.places]

    def on(self, model: Model, batch: TokenBatch) -> "Sites":
        """With words as own positions of each of these prompts, so that they mean the same in the corrupt twins.

        Raises:
            PositionOutOfRange: no prompt has any of the words.
        """
        places = tuple(
            (site, _rows_with(where, model, batch) if isinstance(where, Matching) else where)
            for site, where in self.places
        )
        return Sites(places, self.name)

    def without_each(self) -> tuple["Sites", ...]:
        """Less each position of each site where positions are indices, else less each site; () of a single part."""
        less: list[Sites] = []
        for site, where in self.places:
            others = tuple(place for place in self.places if place[0] != site)
            if isinstance(where, tuple) and len(where) > 1:
                rest = [tuple(index for index in where if index != left_out) for left_out in where]
                less += [Sites((*others, (site, kept))) for kept in rest]
            elif others:
                less.append(Sites(others))
        return tuple(less)

    def refuse_unless_of(self, model: Model) -> None:
        """Refuse sites that the model does not form, or that carry no vector for each position.

        Raises:
            PointUnavailable, UnknownSite: the model has no such site.
            BadClaim: heads, attention maps, choices, the logits.
        """
        strange = [site for site in map(model.binding.site, self.sites) if not carries_vectors(site)]
        if strange:
            raise BadClaim(
                "a site that carries no vector for each position",
                got=", ".join(f"{site} [{' '.join(site.row.axes)}]" for site in strange),
                because="sites are claimed whole, position by position",
                instead="resid_post, attn_out, mlp_out; of heads and neurons Components and Neurons",
            )


def carries_vectors(site: Site) -> bool:
    """True for written sites whose value is a vector of numbers at each position."""
    axes = site.row.axes
    is_vector = axes[:2] == ("batch", "pos") and len(axes) == 3 and axes[2] not in ("choice", "one")
    return site.row.is_writable and is_vector and site.point != "logits"


def _rows_with(where: Matching, model: Model, batch: TokenBatch) -> PerRow:
    forms = [(one,) if isinstance(one, int) else model.reader.token_forms(one) for one in where.tokens]
    ids = torch.tensor([index for form in forms for index in form], dtype=torch.long)
    found = torch.isin(batch.ids, ids.to(batch.ids.device)) & batch.mask.bool()
    if not bool(found.any()):
        raise PositionOutOfRange(
            "No prompt has such a word.",
            got=", ".join(map(repr, where.tokens)),
            because="a claim about sites says at which words, and there are none to measure",
            instead="words of these prompts, or indices",
        )
    rows = [torch.nonzero(row)[:, 0] - n for row, n in zip(found, batch.n_pad, strict=True)]
    return PerRow(tuple(tuple(row.tolist()) for row in rows))


def _sorted(where: Positions | None) -> Positions | None:
    return tuple(sorted(set(where))) if isinstance(where, tuple) else where


def _told(where: Positions | None) -> str:
    match where:
        case None:
            return ""
        case Span(start, stop):
            return f" at positions {'' if start is None else start}:{'' if stop is None else stop}"
        case Matching(tokens):
            return f" at {', '.join(map(repr, tokens))}"
        case PerRow(rows):
            return f" at own positions of {len(rows)} prompts"
        case indices:
            listed = ", ".join(map(str, indices))
            return f" at {'position' if len(indices) == 1 else 'positions'} {listed}"


def _routed(site: str) -> str:
    routing = routing_at(site)
    return f" (experts' choice {routing})" if routing else ""


def indices_of(where: Positions | None) -> tuple[int, ...] | None:
    """A selection as indices that all count from the same end; None if it is no such selection."""
    match where:
        case Span(start, stop) if (start or 0) >= 0 and stop is not None and stop > 0:
            where = tuple(range(start or 0, stop))
        case Span(start, stop) if start is not None and start < 0 and (stop is None or stop < 0):
            where = tuple(range(start, stop or 0))
        case _:
            pass
    if not isinstance(where, tuple) or not where or (min(where) < 0) != (max(where) < 0):
        return None
    return where
