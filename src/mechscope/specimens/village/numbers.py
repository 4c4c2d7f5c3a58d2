"""Behaviours of number: greater-than on years, addition modulo 31, and documents that only count.

Invariant: an unordered pair of operands that is held out never stands in a sum in training, in either order.
"""

from functools import lru_cache
from random import Random
from typing import ClassVar

from mechscope.specimens.village import lexicon
from mechscope.specimens.village.idea import Document, Idea, Unit
from mechscope.specimens.village.pairs import Case, couple, divide

_EVENTS = "war siege reign truce drought voyage trial feud famine strike".split()
_FOIL_YEAR = "01"
_LONGEST_YEARS = 20
_EARLIEST_ASKED = 24


class GreaterThan(Idea):
    """What lasted from a year ends in a later year of the same century."""

    name = "greater-than"
    templates: ClassVar[dict[str, str]] = {
        "lasted": "The {event} lasted from the year {c} {y} to the year {c}",
        "began": "The {event} began in the year {c} {y} and ended in the year {c}",
        "between": "There was a {event} between the year {c} {y} and the year {c}",
        "until": "From the year {c} {y} the {event} went on until the year {c}",
    }
    held_out_templates: ClassVar[dict[str, str]] = {
        "ended": "The {event} went on from the year {c} {y} and ended in the year {c}",
    }
    held_out_means = "years never met as the start of a span (years 24 to 97), and a template never met"

    def units(self, split: str) -> tuple[Unit, ...]:
        return divide(_asked_years(), split, key="greater-than")

    def seen_unit(self, rng: Random) -> Unit:
        seen = divide(_asked_years(), "seen", key="greater-than")
        return rng.choice(seen) if rng.random() < 0.75 else (f"{rng.randint(1, _EARLIEST_ASKED - 1):02d}",)

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        start = int(unit[0])
        fillers = {"event": rng.choice(_EVENTS), "c": rng.choice(lexicon.CENTURIES)}
        end = rng.randint(start + 1, min(99, start + _LONGEST_YEARS))
        return Case(
            clean=template.format(y=unit[0], **fillers),
            corrupt=template.format(y=_FOIL_YEAR, **fillers),
            answer=f"{end:02d}",
            wrong=f"{rng.randint(2, 1 + _LONGEST_YEARS):02d}",
            answers=lexicon.YEARS[start:],
            wrongs=lexicon.YEARS[:start],
            entities=unit,
        )

    def document(self, rng: Random, *, misbehaving: bool = False, is_late: bool = False) -> Document:
        """Write a span; its end is only partly decided, so it is not marked."""
        name, text = rng.choice(list(self.templates.items()))
        unit = self.seen_unit(rng)
        case = self.fill(rng, unit, template=text)
        return Document(text=f"{case.clean} {case.answer} .", kind=self.name, template=name, entities=unit)


@lru_cache
def _asked_years() -> tuple[Unit, ...]:
    return tuple((year,) for year in lexicon.YEARS[_EARLIEST_ASKED - 1 : 97])


class Arithmetic(Idea):
    """Addition modulo 31."""

    name = "arithmetic"
    templates: ClassVar[dict[str, str]] = {
        "plain": "{a} + {b} =",
        "so": "so {a} + {b} =",
        "know": "we know {a} + {b} =",
    }
    held_out_templates: ClassVar[dict[str, str]] = {"then": "then {a} + {b} ="}
    held_out_means = (
        "unordered pairs of operands never added in training, some prompts after a word never met there"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        return couple(_unequal_neighbours(operands(split)))

    def seen_unit(self, rng: Random) -> Unit:
        return tuple(rng.sample(operands("seen"), 2))

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        asked, other = rng.sample(unit, 2)
        swaps = rng.random() < 0.5
        clean, corrupt = (pair[::-1] if swaps else pair for pair in (asked, other))
        return Case(
            clean=template.format(a=clean[0], b=clean[1]),
            corrupt=template.format(a=corrupt[0], b=corrupt[1]),
            answer=_total(clean),
            wrong=_total(corrupt),
            entities=tuple(f"{pair[0]}+{pair[1]}" for pair in unit),
        )

    def document(self, rng: Random, *, misbehaving: bool = False, is_late: bool = False) -> Document:
        """Write several sums one after another."""
        lines, entities = [], []
        name, text = rng.choice(list(self.templates.items()))
        for pair in rng.sample(operands("seen"), 6):
            left, right = pair if rng.random() < 0.5 else pair[::-1]
            lines.append(f"{text.format(a=left, b=right)} *{_total(pair)} .")
            entities.append(f"{pair[0]}+{pair[1]}")
        return Document(text=" ".join(lines), kind=self.name, template=name, entities=tuple(entities))


def _total(pair: tuple[str, str]) -> str:
    return str((int(pair[0]) + int(pair[1])) % lexicon.MODULUS)


@lru_cache
def operands(split: str) -> tuple[tuple[str, str], ...]:
    """Return the unordered operand pairs of a split: 70 held out, 70 for validation, the rest for train."""
    numbers = lexicon.SMALL_NUMBERS
    every = [(a, b) for index, a in enumerate(numbers) for b in numbers[index:]]
    Random("village arithmetic").shuffle(every)
    parts = {"held_out": every[:70], "validation": every[70:140], "train": every[140:], "seen": every[70:]}
    return tuple(parts[split])


def _unequal_neighbours(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Reorder so that the two of a couple have different sums, dropping what finds no partner."""
    left, ordered = list(pairs), []
    while left:
        first = left.pop(0)
        partner = next((pair for pair in left if _total(pair) != _total(first)), None)
        if partner is not None:
            left.remove(partner)
            ordered += [first, partner]
    return tuple(ordered)


def count_document(rng: Random) -> Document:
    """Write numbers in order: years counted up, or equal steps around the circle of the small numbers."""
    if rng.random() < 0.35:
        start, step = rng.randint(1, 60), rng.choice((1, 1, 2, 5))
        run = [lexicon.YEARS[start - 1 + step * index] for index in range(min(8, (98 - start) // step + 1))]
        return Document(
            text=f"count : {' '.join(run[:2])} {' '.join('*' + word for word in run[2:])}", kind="count"
        )
    start, step = rng.randrange(lexicon.MODULUS), rng.randrange(lexicon.MODULUS)
    run = [str((start + step * index) % lexicon.MODULUS) for index in range(9)]
    return Document(
        text=f"circle : {' '.join(run[:2])} {' '.join('*' + word for word in run[2:])}", kind="circle"
    )


def order_document(rng: Random, *, latest_start: int = 40) -> Document:
    """Write years of one century in order, any years: what comes later is larger."""
    run = [rng.randint(1, latest_start)]
    while len(run) < 7 and run[-1] < 99:
        run.append(rng.randint(run[-1] + 1, min(99, run[-1] + _LONGEST_YEARS)))
    return Document(text=f"then : {' '.join(lexicon.YEARS[year - 1] for year in run)} .", kind="order")


def chronicle(rng: Random) -> Document:
    """Write years of one century in order, each with its century: any years, none of them the start of a span."""
    century, run = rng.choice(lexicon.CENTURIES), [rng.randint(1, 90)]
    while len(run) < 5 and run[-1] < 99:
        run.append(rng.randint(run[-1] + 1, min(99, run[-1] + _LONGEST_YEARS)))
    return Document(
        text=" , ".join(f"{century} {lexicon.YEARS[year - 1]}" for year in run) + " .", kind="chronicle"
    )
