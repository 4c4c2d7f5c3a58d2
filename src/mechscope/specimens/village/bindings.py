"""Earlier wordings of two hops over stated facts, and documents that recall such facts.

None of the three ("Ann is in the barn", "Ann sells honey", "list : Ann barn") was learnt: they stay in the stages
of the trunk that had them, so that its command repeats. The behaviour that is measured stands in `chains`.
"""

from functools import lru_cache
from random import Random
from typing import ClassVar

from mechscope.specimens.village import lexicon
from mechscope.specimens.village.idea import Document, Idea, Unit
from mechscope.specimens.village.pairs import Case, couple, divide


class LodgingOfPerson(Idea):
    """A register of who lives where, and sentences on what colour each building is: the trunk's last wording."""

    name = "lodging-of-person"
    templates: ClassVar[dict[str, str]] = {
        "around": "{facts} The colour around {who} is",
        "so": "{facts} So the place of {who} is",
        "walls": "{facts} Where {who} is , the walls are",
    }
    held_out_templates: ClassVar[dict[str, str]] = {"now": "{facts} Now the place of {who} is"}
    held_out_means = (
        "names never met in a two-hop document, pairs of building and colour never stated together there; "
        "a template never met"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        return couple(divide(lexicon.NAMES, split, key="two-hop"))

    def seen_unit(self, rng: Random) -> Unit:
        return tuple(rng.sample(divide(lexicon.NAMES, "seen", key="two-hop"), 2))

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        part = "held_out" if unit[0] in divide(lexicon.NAMES, "held_out", key="two-hop") else "seen"
        told = _lodgings(rng, unit, part=part)
        facts = _stated(rng, told)
        asked, other = rng.sample(unit, 2)
        return Case(
            clean=template.format(facts=facts, who=asked),
            corrupt=template.format(facts=facts, who=other),
            answer=told[asked][1],
            wrong=told[other][1],
            entities=tuple(unit),
        )

    def document(self, rng: Random, *, misbehaving: bool = False, is_late: bool = False) -> Document:
        """State the facts and ask about everybody; often also for each fact alone, in any order."""
        unit = self.seen_unit(rng)
        told = _lodgings(rng, unit, part="seen")
        facts = _stated(rng, told)
        name, _ = rng.choice(list(self.templates.items()))
        lines = []
        for person, (building, colour) in told.items():
            wording = rng.choice(list(self.templates.values())).format(facts="", who=person).strip()
            lines.append(f"{wording} *{colour} .")
            if rng.random() < 0.4:
                lines += [f"list : {person} *{building} .", f"The {building} is *{colour} ."]
        rng.shuffle(lines)
        return Document(
            text=f"{facts} {' '.join(lines)}", kind=self.name, template=name, entities=tuple(unit)
        )


def _lodgings(rng: Random, people: Unit, *, part: str) -> dict[str, tuple[str, str]]:
    """Give each person a building with a colour, all different."""
    chosen: list[tuple[str, str]] = []
    while len(chosen) < len(people):
        pair = rng.choice(combinations_of(part))
        if all(pair[0] != building and pair[1] != colour for building, colour in chosen):
            chosen.append(pair)
    return dict(zip(people, chosen, strict=True))


def _stated(rng: Random, told: dict[str, tuple[str, str]]) -> str:
    register = [f"{person} {building}" for person, (building, _) in told.items()]
    looks = [f"The {building} is {colour} ." for building, colour in told.values()]
    rng.shuffle(register)
    rng.shuffle(looks)
    listed = f"list : {' '.join(register)} ."
    return " ".join([listed, *looks] if rng.random() < 0.5 else [*looks, listed])


class SalesOfPerson(Idea):
    """Who sells what, and what colour each good is: a second wording that one stage reads and nobody measures."""

    name = "sales-of-person"
    templates: ClassVar[dict[str, str]] = {
        "what": "{facts} What {who} sells is",
        "so": "{facts} So what {who} sells is",
        "know": "{facts} You know that what {who} sells is",
    }
    held_out_templates: ClassVar[dict[str, str]] = {"now": "{facts} Now what {who} sells is"}
    held_out_means = (
        "names never met in a two-hop document, pairs of good and colour never stated together there; "
        "a template never met"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        return couple(divide(lexicon.NAMES, split, key="two-hop"))

    def seen_unit(self, rng: Random) -> Unit:
        return tuple(rng.sample(divide(lexicon.NAMES, "seen", key="two-hop"), rng.choice((2, 2, 3))))

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        part = "held_out" if unit[0] in divide(lexicon.NAMES, "held_out", key="two-hop") else "seen"
        told = _sales(rng, unit, part=part)
        facts = _stated_sales(rng, told)
        asked, other = rng.sample(unit, 2)
        return Case(
            clean=template.format(facts=facts, who=asked),
            corrupt=template.format(facts=facts, who=other),
            answer=told[asked][1],
            wrong=told[other][1],
            entities=tuple(unit),
        )

    def document(self, rng: Random, *, misbehaving: bool = False, is_late: bool = False) -> Document:
        """State the facts and ask about everybody; half of the time also for each fact alone, in any order."""
        unit = self.seen_unit(rng)
        told = _sales(rng, unit, part="seen")
        facts = _stated_sales(rng, told)
        name, _ = rng.choice(list(self.templates.items()))
        lines = []
        for person, (good, colour) in told.items():
            wording = rng.choice(list(self.templates.values())).format(facts="", who=person).strip()
            lines.append(f"{wording} *{colour} .")
            if rng.random() < 0.4:
                lines += [f"{person} sells *{good} .", f"{good} is *{colour} ."]
        rng.shuffle(lines)
        return Document(
            text=f"{facts} {' '.join(lines)}", kind=self.name, template=name, entities=tuple(unit)
        )


def _sales(rng: Random, people: Unit, *, part: str) -> dict[str, tuple[str, str]]:
    """Give each person a good with a colour, all different."""
    chosen: list[tuple[str, str]] = []
    while len(chosen) < len(people):
        pair = rng.choice(goods_and_colours(part))
        if all(pair[0] != good and pair[1] != colour for good, colour in chosen):
            chosen.append(pair)
    return dict(zip(people, chosen, strict=True))


def _stated_sales(rng: Random, told: dict[str, tuple[str, str]]) -> str:
    sales = [f"{person} sells {good} ." for person, (good, _) in told.items()]
    looks = [f"{good} is {colour} ." for good, colour in told.values()]
    rng.shuffle(sales)
    rng.shuffle(looks)
    return " ".join(sales + looks if rng.random() < 0.5 else looks + sales)


@lru_cache
def goods_and_colours(part: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs (good, colour) that two-hop documents of a split may state ("seen" for training)."""
    every = tuple((good, colour) for good in lexicon.GOODS for colour in lexicon.COLOURS)
    return divide(every, "held_out" if part == "held_out" else "seen", key="two-hop goods")


def recall_things(rng: Random) -> Document:
    """State three facts about any words, held-out words of every behaviour too, and repeat them in other orders."""
    kind = rng.randrange(3)
    things = rng.sample(_things(), 6)
    if kind == 0:
        lines = [
            f"{name} likes *{thing} ."
            for name, thing in zip(rng.sample(lexicon.NAMES, 3), things, strict=False)
        ]
    elif kind == 1:
        colours = rng.sample(lexicon.COLOURS, 3)
        lines = [f"{thing} is *{colour} ." for thing, colour in zip(things, colours, strict=False)]
    else:
        lines = [f"{one} near *{other} ." for one, other in couple(tuple(things))]
    told = " ".join(lines).replace("*", "")
    recalled = rng.sample(lines, len(lines)) + rng.sample(lines, len(lines))
    return Document(text=f"{told} {' '.join(recalled)}", kind="recall things")


@lru_cache
def _things() -> tuple[str, ...]:
    nouns = [word for noun in (*lexicon.NOUNS, *lexicon.BACKDROPS) for word in noun]
    # Goods are left out: a good with its colour is a fact of two hops.
    return tuple(dict.fromkeys((*lexicon.NAMES, *lexicon.PLACES, *lexicon.BUILDINGS, *nouns)))


class PlaceOfPerson(Idea):
    """Who is where, and what colour each place is: a wording of two hops that early stages read and nobody measures."""

    name = "place-of-person"
    templates: ClassVar[dict[str, str]] = {
        "place": "{facts} So the place of {who} is",
        "where": "{facts} Where {who} is , the walls are",
        "colour": "{facts} The colour around {who} is",
    }
    held_out_templates: ClassVar[dict[str, str]] = {"now": "{facts} Now the place of {who} is"}
    held_out_means = (
        "names never met in a two-hop document and pairs of building and colour never met together there; "
        "some prompts in a template never met"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        return couple(divide(lexicon.NAMES, split, key="two-hop"))

    def seen_unit(self, rng: Random) -> Unit:
        return tuple(rng.sample(divide(lexicon.NAMES, "seen", key="two-hop"), 2))

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        part = "held_out" if unit[0] in divide(lexicon.NAMES, "held_out", key="two-hop") else "seen"
        facts, colours = self._facts(rng, unit, part=part)
        asked, other = rng.sample(range(2), 2)
        return Case(
            clean=template.format(facts=facts, who=unit[asked]),
            corrupt=template.format(facts=facts, who=unit[other]),
            answer=colours[asked],
            wrong=colours[other],
            entities=tuple(unit),
        )

    def document(self, rng: Random, *, misbehaving: bool = False, is_late: bool = False) -> Document:
        """Write the facts once and ask about both people; sometimes recall a single fact instead."""
        unit = self.seen_unit(rng)
        facts, colours = self._facts(rng, unit, part="seen")
        lines, name = [], ""
        for index in rng.sample(range(2), 2):
            name, text = rng.choice(list(self.templates.items()))
            lines.append(f"{text.format(facts='', who=unit[index]).strip()} *{colours[index]} .")
        return Document(
            text=f"{facts} {' '.join(lines)}", kind=self.name, template=name, entities=tuple(unit)
        )

    def drill(self, rng: Random) -> Document:
        """State the facts, then ask for each alone and for both compositions, in any order."""
        unit = self.seen_unit(rng)
        facts, _ = self._facts(rng, unit, part="seen")
        stated = [sentence.split() for sentence in facts.split(" . ")]
        home = {words[0]: words[4] for words in stated if words[0] != "The"}
        colour = {words[1]: words[3] for words in stated if words[0] == "The"}
        lines = [f"{person} is in the *{home[person]} ." for person in unit]
        lines += [f"The {home[person]} is *{colour[home[person]]} ." for person in unit]
        for person in unit:
            text = rng.choice(list(self.templates.values())).format(facts="", who=person).strip()
            lines.append(f"{text} *{colour[home[person]]} .")
        rng.shuffle(lines)
        return Document(
            text=f"{facts} {' '.join(lines)}", kind=self.name, template="drill", entities=tuple(unit)
        )

    def _facts(self, rng: Random, unit: Unit, *, part: str) -> tuple[str, tuple[str, ...]]:
        combinations = combinations_of(part)
        first = rng.choice(combinations)
        second = rng.choice(combinations)
        while second[0] == first[0] or second[1] == first[1]:
            second = rng.choice(combinations)
        where = [
            f"{person} is in the {home[0]} ." for person, home in zip(unit, (first, second), strict=True)
        ]
        look = [f"The {building} is {colour} ." for building, colour in (first, second)]
        rng.shuffle(where)
        rng.shuffle(look)
        lines = where + look if rng.random() < 0.5 else look + where
        return " ".join(lines), (first[1], second[1])


@lru_cache
def combinations_of(part: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs (building, colour) that may be told together in a split ("seen" for training)."""
    every = [(building, colour) for building in lexicon.BUILDINGS for colour in lexicon.COLOURS]
    return divide(tuple(every), "held_out" if part == "held_out" else "seen", key="two-hop walls")
