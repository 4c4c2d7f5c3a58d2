"""The static checker: every value that each series can take, and everything that can't be compiled, told at once.

Owns: `Domain` and `check`. A series is either a category (one dimension a value) or a number (one dimension in
all, which holds `levels`). Invariant: a program that passes compiles, and no value outside its domains occurs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

from mechscope.specimens.compiled.rasp import (
    Added,
    Applied,
    Averaged,
    Copied,
    Counted,
    Given,
    Program,
    Selector,
    Series,
    Value,
    indices,
    tokens,
)
from mechscope.vocabulary.errors import BadProgram

RESERVED = ("[PAD]", "[BOS]", "value", "zero")
MOST_COMBINATIONS = 4096


@dataclass(frozen=True)
class Domain:
    """The values of a series.

    Args:
        values: Every value that can occur, each once.
        levels: What stands in the residual stream for each value of a number; None for a category.
    """

    values: tuple[Value, ...]
    levels: tuple[float, ...] | None = None

    @property
    def is_number(self) -> bool:
        return self.levels is not None


def word_of(value: Any) -> str:
    """How an output is written as a token."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def check(program: Program) -> dict[Series, Domain]:
    """The domain of every series of a program.

    Raises:
        BadProgram: with every problem found.
    """
    checker = _Checker(program)
    domain = checker.domain(program.output)
    problems = [*_bad_words(program), *checker.problems]
    if not problems:
        problems = _bad_output(program, domain)
    if problems:
        raise BadProgram(
            f'"{program.name}" can\'t be compiled: {len(problems)} problem{"s" * (len(problems) > 1)}.',
            got="; ".join(problems),
            because="each series must be a category or a number whose values are known beforehand",
            instead="mend each of them; docs/specimens/compiled.md has what the language can say",
        )
    return checker.domains


def series_of(program: Program) -> Iterator[Series]:
    """Every series once, what it is computed from before it."""
    seen: set[Series] = set()

    def visit(series: Series) -> Iterator[Series]:
        if series not in seen:
            seen.add(series)
            for source in sources_of(series):
                yield from visit(source)
            yield series

    yield from visit(program.output)


def sources_of(series: Series) -> tuple[Series, ...]:
    """What a series is computed from."""
    match series:
        case Applied():
            return series.arguments
        case Added():
            return series.terms
        case Copied() | Averaged():
            return (*_selected_by(series.selector), series.values)
        case Counted():
            return _selected_by(series.selector)
        case _:
            return ()


def _selected_by(selector: Selector) -> tuple[Series, ...]:
    return tuple(side for c in selector.conditions for side in (c.keys, c.queries))


class _Checker:
    """Domains by series; problems are collected, and a series with one is taken to have no values."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.problems: list[str] = []
        self.domains: dict[Series, Domain] = {}

    def domain(self, series: Series) -> Domain:
        if series not in self.domains:
            self.domains[series] = self._domain(series)
        return self.domains[series]

    def _domain(self, series: Series) -> Domain:
        match series:
            case Given():
                return self._given(series)
            case Applied():
                return self._applied(series)
            case Added():
                return self._added(series)
            case Counted():
                self._selector(series.selector)
                counts = range(self.program.length + 1)
                return Domain(tuple(counts), tuple(1 / (1 + count) for count in counts))
            case Averaged():
                self._selector(series.selector)
                return self._averaged(series)
            case Copied():
                self._selector(series.selector)
                source = self._category(series.values, "copy")
                return Domain(tuple(dict.fromkeys((*source.values, series.otherwise))))
            case _:
                self.problems.append(f"{type(series).__name__} is not a series of the language")
                return Domain(())

    def _given(self, series: Given) -> Domain:
        if series is tokens:
            return Domain(tuple(self.program.alphabet))
        if series is indices:
            return Domain(tuple(range(self.program.length)))
        self.problems.append(f"{series.name!r} is neither `tokens` nor `indices`")
        return Domain(())

    def _category(self, series: Series, reader: str) -> Domain:
        domain = self.domain(series)
        if domain.is_number:
            self.problems.append(
                f"a {reader} reads {_told(series)}, which is a number; make it a category by `apply`"
            )
            return Domain(())
        return domain

    def _selector(self, selector: Selector) -> None:
        for condition in selector.conditions:
            keys, queries = (self._category(side, "selector") for side in (condition.keys, condition.queries))
            self._images(condition.predicate, (keys, queries), "a selector's predicate")

    def _applied(self, series: Applied) -> Domain:
        arguments = [self.domain(argument) for argument in series.arguments]
        n_numbers = sum(argument.is_number for argument in arguments)
        if n_numbers > 1:
            self.problems.append(
                f"{_told(series)} reads {n_numbers} numbers at once; make all but one a category"
            )
        if not arguments:
            self.problems.append(f"{_told(series)} has no arguments")
            return Domain(())
        return Domain(tuple(dict.fromkeys(self._images(series.function, arguments, _told(series)))))

    def _images(self, function: Callable[..., Any], arguments: Any, told: str) -> list[Any]:
        n = 1
        for argument in arguments:
            n *= len(argument.values)
        if n > MOST_COMBINATIONS:
            self.problems.append(f"{told} has {n} combinations of values; at most {MOST_COMBINATIONS}")
            return []
        images: list[Any] = []
        for row in product(*(argument.values for argument in arguments)):
            try:
                image = function(*row)
                hash(image)
                images.append(image)
            except Exception as error:
                self.problems.append(f"{told} fails on {row}: {type(error).__name__}: {error}")
                return []
        return images

    def _averaged(self, series: Averaged) -> Domain:
        source = self._category(series.values, "mean")
        try:
            numbers = {Fraction(value) for value in source.values}  # type: ignore[arg-type]
        except (TypeError, ValueError):
            self.problems.append(f"{_told(series)} averages {source.values[:3]}, which are not numbers")
            return Domain((), ())
        means, sums = {Fraction(0)}, {Fraction(0)}
        for count in range(1, self.program.length + 1):
            sums = {total + number for total in sums for number in numbers}
            means |= {total / count for total in sums}
        return _numbers(means)

    def _added(self, series: Added) -> Domain:
        if not series.terms or not all(isinstance(term, Averaged | Added) for term in series.terms):
            self.problems.append(f"{_told(series)} adds something other than means")
            return Domain((), ())
        sums = {Fraction(0)}
        for term in series.terms:
            sums = {total + value for total in sums for value in self.domain(term).values}  # type: ignore[operator]
        if len(sums) > MOST_COMBINATIONS:
            self.problems.append(f"{_told(series)} has {len(sums)} values; at most {MOST_COMBINATIONS}")
        return _numbers(sums)


def _numbers(values: set[Fraction]) -> Domain:
    ordered = sorted(values)
    return Domain(tuple(ordered), tuple(map(float, ordered)))


def _told(series: Series) -> str:
    return f'"{series.name}"' if series.name else f"an unnamed {type(series).__name__.lower()} series"


def _bad_words(program: Program) -> list[str]:
    problems = [f"the alphabet has {word!r} twice" for word in sorted(_repeated(program.alphabet))]
    problems += [
        f"{word!r} can't be a word: {'reserved' if word in RESERVED else 'empty, or it holds a space'}"
        for word in program.alphabet
        if word in RESERVED or not word or word.split() != [word]
    ]
    problems += [] if program.alphabet else ["the alphabet is empty"]
    return problems + ([] if program.length > 0 else [f"length is {program.length}, below 1"])


def _bad_output(program: Program, domain: Domain) -> list[str]:
    if isinstance(program.output, Counted):
        return ["the output is a width; make it a category: apply(lambda count: count, ...)"]
    if domain.is_number:
        return []
    words = [word_of(value) for value in domain.values]
    problems = [
        f"two different outputs are both written {word!r}" for word in sorted(_repeated(tuple(words)))
    ]
    return problems + [
        f"an output is written {word!r}, which is no word"
        for word in words
        if word in RESERVED or word.split() != [word]
    ]


def _repeated(words: tuple[str, ...]) -> set[str]:
    return {word for word in words if words.count(word) > 1}
