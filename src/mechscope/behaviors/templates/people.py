"""Behaviours about people, for any tokenizer: indirect object identification and the gendered pronoun."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from mechscope.behaviors.continuations import Continuations
from mechscope.behaviors.templates import words
from mechscope.behaviors.templates.wording import Item, Unit, Wording, by_length, register, whole
from mechscope.data.pairs import PromptPair


class IndirectObject(Wording):
    """Two people meet, one gives: the answer is the name that was not repeated. Corrupt: the other one gives."""

    name = "ioi"
    items_are = "names"
    templates: ClassVar[dict[str, str]] = {
        "store": "When {a} and {b} went to the {place}, {s} gave a {gift} to",
        "then": "Then, {a} and {b} were working at the {place}. {s} decided to give a {gift} to",
        "friends": "The friends {a} and {b} met at the {place}, and {s} handed a {gift} to",
        "after": "After {a} and {b} had lunch near the {place}, {s} offered a {gift} to",
        "long": "Yesterday {a} and {b} had a long talk at the {place}. Afterwards {s} gave a {gift} to",
    }

    def every_item(self) -> Sequence[Item]:
        return (*words.WOMEN, *words.MEN)

    def usable(self, cut: Continuations) -> Sequence[Item]:
        return whole(cut, self.every_item())

    def units(self, part: Sequence[Item]) -> Sequence[Unit]:
        return list(zip(part[0::2], part[1::2], strict=False))

    def fill(
        self, rng: Random, unit: Unit, *, template: str, cut: Continuations, part: Sequence[Item]
    ) -> PromptPair:
        first, second = rng.sample(unit, 2)
        giver, receiver = rng.sample(unit, 2)
        fillers = {"place": rng.choice(words.PLACES), "gift": rng.choice(words.GIFTS)}
        text = self.templates[template]
        return PromptPair(
            clean=text.format(a=first, b=second, s=giver, **fillers),
            corrupt=text.format(a=first, b=second, s=receiver, **fillers),
            answers=(receiver,),
            wrong=(giver,),
            entities=(receiver, giver),
            template=template,
        )


class Pronoun(Wording):
    """A named person acts: the pronoun has the name's gender. Corrupt: a name of the other gender."""

    name = "pronoun"
    items_are = "couples of names of equal length"
    min_items = 6
    templates: ClassVar[dict[str, str]] = {
        "because": "Yesterday {n} went to the {place} because *she",
        "lost": "One day {n} lost a {gift}. After that *she",
        "so": "In the morning {n} was very happy, so *she",
        "with": "At the {place} we saw {n} with *her",
        "when": "The {gift} fell when {n} opened *her",
    }

    def every_item(self) -> Sequence[Item]:
        return list(zip(words.WOMEN, words.MEN, strict=False))

    def usable(self, cut: Continuations) -> Sequence[Item]:
        women, men = by_length(cut, words.WOMEN), by_length(cut, words.MEN)
        return [couple for n in sorted(women) for couple in zip(women[n], men.get(n, ()), strict=False)]

    def units(self, part: Sequence[Item]) -> Sequence[Unit]:
        return part

    def fill(
        self, rng: Random, unit: Unit, *, template: str, cut: Continuations, part: Sequence[Item]
    ) -> PromptPair:
        prompt, form = self.templates[template].split(" *")
        forms = ("she", "he") if form == "she" else ("her", "his")
        chosen = rng.randrange(2)
        fillers = {"place": rng.choice(words.PLACES), "gift": rng.choice(words.GIFTS)}
        return PromptPair(
            clean=prompt.format(n=unit[chosen], **fillers),
            corrupt=prompt.format(n=unit[1 - chosen], **fillers),
            answers=(forms[chosen],),
            wrong=(forms[1 - chosen],),
            entities=(unit[chosen], unit[1 - chosen]),
            template=template,
        )


register(IndirectObject())
register(Pronoun())
