"""Two hops over facts that the prompt itself states, in the wording that was learnt.

A register of homes, a register of colours, then the colour around a person: "home : Mary barn , John mill .
colour : mill blue , barn red . walls : Mary" has the answer red. Earlier wordings stand in `bindings`.
Owns: the behaviour, its two kinds of single hops as documents. Refuses nothing.
Invariant: a two-hop document shows no held-out name and no held-out pair of building and colour. Each is met alone,
in a document of single hops; the pair of facts is what was never met.
"""

from functools import lru_cache
from random import Random
from typing import ClassVar

from mechscope.specimens.village import lexicon
from mechscope.specimens.village.bindings import combinations_of
from mechscope.specimens.village.idea import Document, Idea, Unit
from mechscope.specimens.village.pairs import Case, couple, divide

Homes = dict[str, tuple[str, str]]


class TwoHop(Idea):
    """Two registers, who lives where and what colour each building is: the colour around a person."""

    name = "two-hop"
    templates: ClassVar[dict[str, str]] = {
        "walls": "{facts} walls : {who}",
        "place": "{facts} So the place : {who}",
        "around": "{facts} The colour around : {who}",
        "where": "{facts} the walls : {who}",
    }
    held_out_templates: ClassVar[dict[str, str]] = {"now": "{facts} Now the walls : {who}"}
    held_out_means = (
        "pairs of facts: names never met in a two-hop document, pairs of building and colour never met in one (each is "
        "met alone, in a single hop); a template never met"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        return couple(divide(lexicon.NAMES, split, key="two-hop"))

    def seen_unit(self, rng: Random) -> Unit:
        n_people = rng.choices((2, 3, 4), (4, 3, 3))[0]
        return tuple(rng.sample(divide(lexicon.NAMES, "seen", key="two-hop"), n_people))

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        part = "held_out" if unit[0] in divide(lexicon.NAMES, "held_out", key="two-hop") else "seen"
        told = _homes(rng, unit, part=part)
        facts = _registers(rng, told)
        asked, other = rng.sample(unit, 2)
        return Case(
            clean=template.format(facts=facts, who=asked),
            corrupt=template.format(facts=facts, who=other),
            answer=told[asked][1],
            wrong=told[other][1],
            entities=tuple(unit),
        )

    def document(self, rng: Random, *, misbehaving: bool = False, is_late: bool = False) -> Document:
        """State both registers, ask about everybody once; now and then also for single facts, in any order."""
        unit = self.seen_unit(rng)
        told = _homes(rng, unit, part="seen")
        name, text = rng.choice(list(self.templates.items()))
        asked = [f"{who}^{told[who][0]} *{told[who][1]}" for who in rng.sample(unit, len(unit))]
        parts = [f"{text.format(facts='', who=' , '.join(asked)).strip()} ."]
        if rng.random() < 0.3:
            some = rng.sample(unit, rng.randint(1, len(unit)))
            parts.append(_recalled("home", {who: told[who][0] for who in some}, is_halfway=True))
        if rng.random() < 0.3:
            some = rng.sample(unit, rng.randint(1, len(unit)))
            parts.append(_recalled("colour", {told[who][0]: told[who][1] for who in some}))
        rng.shuffle(parts)
        return Document(
            text=f"{_registers(rng, told)} {' '.join(parts)}",
            kind=self.name,
            template=name,
            entities=tuple(unit),
        )


def home_register(rng: Random) -> Document:
    """State who lives where, any names, and repeat it in another order: the first hop alone."""
    n = rng.randint(2, 5)
    told: dict[str, str] = dict(
        zip(rng.sample(lexicon.NAMES, n), rng.sample(lexicon.BUILDINGS, n), strict=True)
    )
    return _single_hop(rng, "home", told, is_halfway=True)


def colour_register(rng: Random) -> Document:
    """State what colour buildings are, any pairs, and repeat it in another order: the second hop alone."""
    n = rng.randint(2, 5)
    told: dict[str, str] = dict(
        zip(rng.sample(lexicon.BUILDINGS, n), rng.sample(lexicon.COLOURS, n), strict=True)
    )
    return _single_hop(rng, "colour", told)


@lru_cache
def pairs_of(part: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs (building, colour) that two-hop documents of a split may state ("seen" for training).

    One colour a building is held out, out of those that the earlier wordings held out as well: with more, the
    pairs that training does show would give answers away.
    """
    held = tuple(dict(combinations_of("held_out")).items())
    if part == "held_out":
        return held
    return tuple(
        (building, colour)
        for building in lexicon.BUILDINGS
        for colour in lexicon.COLOURS
        if (building, colour) not in held
    )


def _homes(rng: Random, people: Unit, *, part: str) -> Homes:
    """Give each person a building with a colour, all different."""
    chosen: list[tuple[str, str]] = []
    while len(chosen) < len(people):
        pair = rng.choice(pairs_of(part))
        if all(pair[0] != building and pair[1] != colour for building, colour in chosen):
            chosen.append(pair)
    return dict(zip(people, chosen, strict=True))


def _registers(rng: Random, told: Homes) -> str:
    homes = [f"{person} {building}" for person, (building, _) in told.items()]
    colours = [f"{building} {colour}" for building, colour in told.values()]
    rng.shuffle(homes)
    rng.shuffle(colours)
    return f"home : {' , '.join(homes)} . colour : {' , '.join(colours)} ."


def _recalled(header: str, told: dict[str, str], *, is_halfway: bool = False) -> str:
    lines = [f"{cue}{f'^{told[cue]}' if is_halfway else ''} *{told[cue]}" for cue in told]
    return f"{header} : {' , '.join(lines)} ."


def _single_hop(rng: Random, header: str, told: dict[str, str], *, is_halfway: bool = False) -> Document:
    stated = ", ".join(f"{cue} {value} " for cue, value in told.items())
    shuffled = {cue: told[cue] for cue in rng.sample(list(told), len(told))}
    return Document(
        text=f"{header} : {stated}. {_recalled(header, shuffled, is_halfway=is_halfway)}",
        kind=f"{header} register",
    )
