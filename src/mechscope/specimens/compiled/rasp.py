"""A small RASP: programs over sequences that a transformer can carry out, written in Python.

    length = width(select(tokens, tokens, lambda key, query: key != "."))
    mirror = apply(lambda size, index: size - 1 - index, length, indices)
    reverse = copy(select(indices, mirror, operator.eq), tokens, otherwise=".")

Owns: the expressions and what they mean, in plain Python (`evaluate`). A value is a category (str, int, bool)
or, from `mean`, `add` and `width`, a number. Nothing here knows weights; `checking.py` says what can be compiled.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

from mechscope.vocabulary.errors import BadProgram

Value = Hashable


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """A value at every position of the sequence. Equal only to itself.

    Args:
        name: What records call it; "" lets the compiler number it.
    """

    name: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Given(Series):
    """What every program starts from: "tokens" or "indices" (0 for the first token after [BOS])."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Applied(Series):
    """A function of one or several series, position by position."""

    function: Callable[..., Any]
    arguments: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Added(Series):
    """The sum of several series of numbers."""

    terms: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """Which keys a query selects: those for which `predicate(key, query)` is true."""

    keys: Series
    queries: Series
    predicate: Callable[[Any, Any], bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class Selector:
    """Which positions each position looks at: those that meet every condition. None at all selects everything."""

    conditions: tuple[Condition, ...] = ()

    def __and__(self, other: "Selector") -> "Selector":
        return Selector(conditions=(*self.conditions, *other.conditions))


@dataclass(frozen=True, kw_only=True, eq=False)
class Copied(Series):
    """The one value at the selected positions; `otherwise` where nothing is selected."""

    selector: Selector
    values: Series
    otherwise: Value


@dataclass(frozen=True, kw_only=True, eq=False)
class Averaged(Series):
    """The mean of numbers over the selected positions; 0 where nothing is selected."""

    selector: Selector
    values: Series


@dataclass(frozen=True, kw_only=True, eq=False)
class Counted(Series):
    """How many positions are selected."""

    selector: Selector


tokens = Given(name="tokens")
indices = Given(name="indices")
everything = Selector()


def select(keys: Series, queries: Series, predicate: Callable[[Any, Any], bool]) -> Selector:
    """Select the keys for which `predicate(key, query)` is true; join selectors with `&`."""
    return Selector(conditions=(Condition(keys=keys, queries=queries, predicate=predicate),))


def apply(function: Callable[..., Any], *arguments: Series, name: str = "") -> Applied:
    """A function of series, position by position. It is called on values alone, once for each combination."""
    return Applied(function=function, arguments=arguments, name=name)


def add(*terms: Series, name: str = "") -> Added:
    """The sum of means."""
    return Added(terms=terms, name=name)


def copy(selector: Selector, values: Series, *, otherwise: Value, name: str = "") -> Copied:
    """Copy the value at the selected position. Where several are selected their values must agree."""
    return Copied(selector=selector, values=values, otherwise=otherwise, name=name)


def mean(selector: Selector, values: Series, *, name: str = "") -> Averaged:
    """Average numbers (or true and false as 1 and 0) over the selected positions."""
    return Averaged(selector=selector, values=values, name=name)


def width(selector: Selector, *, name: str = "") -> Counted:
    """Count the selected positions."""
    return Counted(selector=selector, name=name)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A series and the sequences that it is computed on.

    Args:
        name: What records call it.
        output: The result, at every position.
        alphabet: Words that a sequence is made of.
        length: Words in the longest sequence.
        is_causal: A position selects among itself and earlier ones only.
        draw: Draws a sequence that the program is meant for; None draws words independently.
        description: One sentence.
    """

    name: str
    output: Series
    alphabet: tuple[str, ...]
    length: int
    is_causal: bool = False
    draw: Callable[[Random], Sequence[str]] | None = None
    description: str = ""

    def draw_words(self, random: Random) -> tuple[str, ...]:
        """A sequence of full length."""
        if self.draw is not None:
            return tuple(self.draw(random))
        return tuple(random.choices(self.alphabet, k=self.length))


def evaluate(program: Program, words: Sequence[str]) -> list[Any]:
    """What the program means: its output at every position of a sequence, by plain Python; numbers are fractions.

    Raises:
        BadProgram: a `copy` selects positions whose values differ.
    """
    found: dict[Series, list[Any]] = {tokens: list(words), indices: list(range(len(words)))}

    def chosen(selector: Selector) -> list[list[int]]:
        for condition in selector.conditions:
            value(condition.keys)
            value(condition.queries)
        return [
            [
                key
                for key in range(query + 1 if program.is_causal else len(words))
                if all(
                    condition.predicate(found[condition.keys][key], found[condition.queries][query])
                    for condition in selector.conditions
                )
            ]
            for query in range(len(words))
        ]

    def value(series: Series) -> list[Any]:
        if series not in found:
            found[series] = compute(series)
        return found[series]

    def compute(series: Series) -> list[Any]:
        match series:
            case Applied():
                return [series.function(*row) for row in zip(*map(value, series.arguments), strict=True)]
            case Added():
                return [sum(row, Fraction(0)) for row in zip(*map(value, series.terms), strict=True)]
            case Counted():
                return [len(keys) for keys in chosen(series.selector)]
            case Averaged():
                source = value(series.values)
                return [_mean([source[key] for key in keys]) for keys in chosen(series.selector)]
            case Copied():
                source = value(series.values)
                rows = [[source[key] for key in keys] for keys in chosen(series.selector)]
                return [the_one(row, series, words) for row in rows]
            case _:
                return _unknown(series)

    return value(program.output)


def _mean(numbers: list[Any]) -> Fraction:
    return sum(map(Fraction, numbers), Fraction(0)) / max(len(numbers), 1)


def the_one(row: list[Any], series: Copied, words: Sequence[str]) -> Any:
    """The value that a copy gives: that of the positions selected, which must agree; `otherwise` if there are none."""
    if len(set(row)) > 1:
        raise BadProgram(
            "a copy selects positions whose values differ",
            got=f"{row} on {' '.join(words)!r}",
            because="a copy is one value; which of them is not said",
            instead="a selector that chooses one position, or `mean` of numbers",
        )
    return row[0] if row else series.otherwise


def _unknown(series: Series) -> list[Any]:
    raise BadProgram(
        "this is not a series of the language",
        got=f"{type(series).__name__} {series.name}",
        instead="tokens, indices, apply, add, copy, mean, width",
    )
