"""Behaviours of form, for any tokenizer: subject-verb agreement across a distractor, and closing brackets."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from mechscope.behaviors.continuations import Continuations
from mechscope.behaviors.templates import words
from mechscope.behaviors.templates.wording import Item, Unit, Wording, register, whole
from mechscope.data.pairs import PromptPair

_VERBS = {"are": ("is", "are"), "were": ("was", "were"), "have": ("has", "have")}
_KINDS = (("(", ")"), ("[", "]"), ("{", "}"))


class Agreement(Wording):
    """The verb agrees with its subject, not with the noun beside it. Corrupt: the subject in the other number."""

    name = "agreement"
    items_are = "nouns with a plural of equal length"
    templates: ClassVar[dict[str, str]] = {
        "near": "The {n} near the {d} *are",
        "behind": "I know that the {n} behind the {d} *were",
        "beside": "Today the {n} beside the {d} *have",
        "that": "We think that the {n} in front of the {d} *are",
        "yesterday": "Yesterday the {n} next to the {d} *were",
    }

    def every_item(self) -> Sequence[Item]:
        return list(dict.fromkeys(words.NOUNS))

    def usable(self, cut: Continuations) -> Sequence[Item]:
        kept = {word for one in self.every_item() for word in one if len(cut.added("the", f" {word}")) == 1}
        return [noun for noun in self.every_item() if set(noun) <= kept]

    def units(self, part: Sequence[Item]) -> Sequence[Unit]:
        return part

    def fill(
        self, rng: Random, unit: Unit, *, template: str, cut: Continuations, part: Sequence[Item]
    ) -> PromptPair:
        prompt, verb = self.templates[template].split(" *")
        number = rng.randrange(2)
        distractor = rng.choice(words.DISTRACTORS)[rng.randrange(2)]
        return PromptPair(
            clean=prompt.format(n=unit[number], d=distractor),
            corrupt=prompt.format(n=unit[1 - number], d=distractor),
            answers=(_VERBS[verb][number],),
            wrong=(_VERBS[verb][1 - number],),
            entities=(unit[0],),
            template=template,
        )


class Brackets(Wording):
    """What was opened is closed by its own kind. Corrupt: another kind was opened."""

    name = "brackets"
    items_are = "nouns of one token"
    templates: ClassVar[dict[str, str]] = {
        "see": "They sold the house {o}see the picture of the {n}",
        "with": "She came by train {o}with her {n}",
        "than": "The second one {o}the one with the {n}",
        "list": "The list is here {o}it begins with the {n}",
    }

    def every_item(self) -> Sequence[Item]:
        return list(dict.fromkeys(noun for noun, _ in words.NOUNS))

    def usable(self, cut: Continuations) -> Sequence[Item]:
        return whole(cut, self.every_item(), before="the")

    def units(self, part: Sequence[Item]) -> Sequence[Unit]:
        return [(noun,) for noun in part]

    def fill(
        self, rng: Random, unit: Unit, *, template: str, cut: Continuations, part: Sequence[Item]
    ) -> PromptPair:
        kind, foil = rng.sample(_KINDS, 2)
        text = self.templates[template]
        return PromptPair(
            clean=text.format(o=kind[0], n=unit[0]),
            corrupt=text.format(o=foil[0], n=unit[0]),
            answers=(kind[1],),
            wrong=(foil[1],),
            entities=unit,
            template=template,
            glue="",
        )


register(Agreement())
register(Brackets())
