"""Greater-than, for tokenizers that cut a year into century and two digits: an end is later than its start."""

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import ClassVar

from mechscope.behaviors.continuations import Continuations
from mechscope.behaviors.templates import words
from mechscope.behaviors.templates.wording import Item, Unit, Wording, register
from mechscope.data.pairs import PromptPair

_FOIL = "01"


class GreaterThan(Wording):
    """What lasted from 1352 ends in 13 and a number above 52. Corrupt: it began in 1301, so any number would do.

    The set of answers is every later year of the century, the foils are the start and what lies before it.
    """

    name = "greater-than"
    items_are = "years"
    templates: ClassVar[dict[str, str]] = {
        "lasted": "The {event} lasted from the year {c}{y} to the year {c}",
        "began": "The {event} began in the year {c}{y} and ended in the year {c}",
        "between": "There was a {event} between the year {c}{y} and the year {c}",
        "until": "From the year {c}{y} the {event} went on until the year {c}",
    }

    def every_item(self) -> Sequence[Item]:
        return words.YEARS[1:98]

    def usable(self, cut: Continuations) -> Sequence[Item]:
        return [year for year in self.every_item() if _centuries(cut, year)]

    def units(self, part: Sequence[Item]) -> Sequence[Unit]:
        return [(year,) for year in part]

    def fill(
        self, rng: Random, unit: Unit, *, template: str, cut: Continuations, part: Sequence[Item]
    ) -> PromptPair:
        century = rng.choice(_centuries(cut, unit[0]))
        start = int(unit[0])
        kept = _years_apart(cut, century)
        values = {"event": rng.choice(words.EVENTS), "c": century}
        text = self.templates[template]
        return PromptPair(
            clean=text.format(y=unit[0], **values),
            corrupt=text.format(y=_FOIL, **values),
            answers=tuple(year for year in kept if int(year) > start),
            wrong=tuple(year for year in kept if int(year) <= start),
            entities=unit,
            template=template,
            glue="",
        )


@lru_cache(maxsize=64)
def _years_apart(cut: Continuations, century: str) -> tuple[str, ...]:
    """Years for which "1352" is "13" and "52", both one token."""
    before = f"the year {century}"
    cut.prepare([("the year", f" {century}"), *((before, year) for year in words.YEARS)])
    if cut.after("the year", f" {century}") is None:
        return ()
    return tuple(year for year in words.YEARS if cut.after(before, year) is not None)


def _centuries(cut: Continuations, year: str) -> list[str]:
    return [c for c in words.CENTURIES if {year, _FOIL} <= set(_years_apart(cut, c))]


register(GreaterThan())
