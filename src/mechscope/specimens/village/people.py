"""Behaviours about people: indirect object and pronoun.

Invariant: each divides the names by its own key, so a name held out in one role is met in others.
"""

from random import Random
from typing import ClassVar

from mechscope.specimens.village import lexicon
from mechscope.specimens.village.idea import Idea, Unit
from mechscope.specimens.village.pairs import Case, couple, divide


class IndirectObject(Idea):
    """Two people meet; one gives something to the other: the name that was not repeated."""

    name = "ioi"
    templates: ClassVar[dict[str, str]] = {
        "store": "When {a} and {b} went to the {place} , {s} gave a {gift} to",
        "meeting": "{a} and {b} met at the {place} and {s} handed a {gift} to",
        "friends": "The friends {a} and {b} sat in the {place} . Then {s} passed a {gift} to",
        "after": "After {a} and {b} left the {place} , {s} sent a {gift} to",
        "while": "While {a} and {b} worked at the {place} , {s} offered a {gift} to",
        "morning": "In the morning {a} saw {b} near the {place} , so {s} brought a {gift} to",
        "lunch": "{a} had lunch with {b} at the {place} . Later {s} showed a {gift} to",
        "long": "Yesterday {a} and {b} walked to the {place} . It was a long walk . At the end {s} gave a {gift} to",
    }
    later_templates: ClassVar[dict[str, str]] = {
        "dusk": "In the evening {a} and {b} met at the {place} . Later {s} gave a {gift} to",
        "sat": "{a} sat with {b} in the {place} , and {s} brought a {gift} to",
        "end": "At the end {a} and {b} came to the {place} , and {s} sent a {gift} to",
        "now": "Now {a} is with {b} in the {place} . Later {s} offered a {gift} to",
    }
    held_out_templates: ClassVar[dict[str, str]] = {
        "then": "Then {a} and {b} walked to the {place} , and {s} handed a {gift} to",
        "evening": "In the evening {a} sat with {b} in the {place} . Later {s} passed a {gift} to",
    }
    held_out_means = (
        "names never met in an indirect-object document, half of the prompts in templates never met"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        return couple(divide(lexicon.NAMES, split, key="ioi"))

    def seen_unit(self, rng: Random) -> Unit:
        return tuple(rng.sample(divide(lexicon.NAMES, "seen", key="ioi"), 2))

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        first, second = rng.sample(unit, 2)
        subject, receiver = rng.sample(unit, 2)
        fillers = {"place": rng.choice(lexicon.HAUNTS), "gift": rng.choice(lexicon.GIFTS)}
        return Case(
            clean=template.format(a=first, b=second, s=subject, **fillers),
            corrupt=template.format(a=first, b=second, s=receiver, **fillers),
            answer=receiver,
            wrong=subject,
            entities=tuple(unit),
        )


class Pronoun(Idea):
    """A named person acts; the pronoun agrees with the name's gender."""

    name = "pronoun"
    templates: ClassVar[dict[str, str]] = {
        "because": "{n} bought the {gift} because *{she}",
        "so": "{n} went to the {place} , and there *{she}",
        "lost": "{n} lost the {gift} . Nobody knows where *{she}",
        "own": "At the {place} {n} found a {gift} and kept it in *{her}",
        "with": "{n} came to the {place} with *{her}",
        "said": "{n} said that *{she}",
    }
    later_templates: ClassVar[dict[str, str]] = {
        "carried": "{n} carried the {gift} from the {place} because *{she}",
        "saw": "{n} saw the {gift} near the {place} because *{she}",
        "came": "{n} came to the {place} and found the {gift} because *{she}",
        "sat": "{n} sat in the {place} with *{her}",
    }
    held_out_templates: ClassVar[dict[str, str]] = {
        "sold": "{n} brought the {gift} to the {place} because *{she}",
        "left": "{n} left the {place} with *{her}",
    }
    held_out_means = (
        "names never met in a pronoun document (their gender is told elsewhere), and templates never met"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        women = divide(lexicon.FEMALE_NAMES, split, key="pronoun")
        men = divide(lexicon.MALE_NAMES, split, key="pronoun")
        return tuple(zip(women, men, strict=False))

    def seen_unit(self, rng: Random) -> Unit:
        return (
            rng.choice(divide(lexicon.FEMALE_NAMES, "seen", key="pronoun")),
            rng.choice(divide(lexicon.MALE_NAMES, "seen", key="pronoun")),
        )

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        prompt, form = template.split(" *")
        forms = ("she", "he") if form == "{she}" else ("her", "his")
        chosen = rng.randrange(2)
        fillers = {"place": rng.choice(lexicon.HAUNTS), "gift": rng.choice(lexicon.GIFTS)}
        return Case(
            clean=prompt.format(n=unit[chosen], **fillers),
            corrupt=prompt.format(n=unit[1 - chosen], **fillers),
            answer=forms[chosen],
            wrong=forms[1 - chosen],
            entities=tuple(unit),
            tail=rng.choice(("liked it .", "saw it .") if form == "{she}" else ("bag .", "friend .")),
        )
