"""The causal model of a compiled program: every series at every position is a variable, `size@5`.

So what is true of a compiled specimen can be put to an interchange without writing it down twice.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from mechscope.circuits.abstraction.causal_model import CausalModel, Setting, Variable
from mechscope.specimens.compiled.checking import series_of
from mechscope.specimens.compiled.rasp import (
    Added,
    Applied,
    Averaged,
    Copied,
    Counted,
    Program,
    Selector,
    Series,
    indices,
    the_one,
    tokens,
)


def model_of_program(program: Program, *, position: int = -1) -> CausalModel:
    """The causal model of a program on sequences of full length.

    Args:
        program: The program.
        position: Position whose output is the model's output; counts words, without [BOS].

    Returns:
        Inputs `word@0` ...; variables `NAME@POSITION`, where a series without a name is numbered. Only what the
        output depends on is kept.
    """
    at = range(program.length)[position]
    names: dict[Series, str] = {tokens: "word", indices: "index"}
    for number, series in enumerate(series_of(program)):
        if series not in names:
            names[series] = series.name or f"{type(series).__name__.lower()}_{number}"
    found: dict[str, Variable] = {}
    _add(program.output, at, program, (names, found))
    return CausalModel(
        name=program.name,
        inputs=tuple(f"word@{place}" for place in range(program.length)),
        variables=tuple(found.values()),
        output=f"{names[program.output]}@{at}",
    )


def setting_of(words: Sequence[str]) -> Setting:
    """The setting of a sequence of words, without [BOS]."""
    return {f"word@{place}": word for place, word in enumerate(words)}


Known = tuple[dict[Series, str], dict[str, Variable]]


def _add(series: Series, at: int, program: Program, known: Known) -> str:
    """Add a variable, and before it all that it reads; its name."""
    names, found = known
    name = f"{names[series]}@{at}"
    if series is tokens or name in found:
        return name
    reads = _reads(series, at, program)
    parents = tuple(dict.fromkeys(_add(other, place, program, known) for other, place in reads))
    places = dict(zip(reads, (parents.index(f"{names[s]}@{place}") for s, place in reads), strict=True))
    found[name] = Variable(name=name, parents=parents, function=_function(series, at, program, places))
    return name


def _reads(series: Series, at: int, program: Program) -> list[tuple[Series, int]]:
    """What a series at a position is computed from."""
    match series:
        case Applied():
            return [(argument, at) for argument in series.arguments]
        case Added():
            return [(term, at) for term in series.terms]
        case Counted():
            return _selects(series.selector, at, program)
        case Averaged() | Copied():
            values = [(series.values, key) for key in _keys(at, program)]
            return [*_selects(series.selector, at, program), *values]
        case _:
            return []


def _selects(selector: Selector, at: int, program: Program) -> list[tuple[Series, int]]:
    keys = [(condition.keys, key) for condition in selector.conditions for key in _keys(at, program)]
    return [*keys, *((condition.queries, at) for condition in selector.conditions)]


def _keys(at: int, program: Program) -> range:
    return range(at + 1 if program.is_causal else program.length)


def _function(
    series: Series, at: int, program: Program, places: dict[tuple[Series, int], int]
) -> Callable[..., Any]:
    def compute(*values: Any) -> Any:
        def of(other: Series, place: int) -> Any:
            return values[places[other, place]]

        match series:
            case Applied():
                return series.function(*(of(argument, at) for argument in series.arguments))
            case Added():
                return sum((of(term, at) for term in series.terms), Fraction(0))
            case Counted():
                return len(_chosen(series.selector, at, program, of))
            case Averaged():
                keys = _chosen(series.selector, at, program, of)
                return sum((Fraction(of(series.values, key)) for key in keys), Fraction(0)) / max(
                    len(keys), 1
                )
            case Copied():
                found = [of(series.values, key) for key in _chosen(series.selector, at, program, of)]
                return the_one(found, series, ()) if found else series.otherwise
            case _:
                return at

    return compute


def _chosen(selector: Selector, at: int, program: Program, of: Callable[[Series, int], Any]) -> list[int]:
    """Positions that a position selects."""
    return [
        key
        for key in _keys(at, program)
        if all(c.predicate(of(c.keys, key), of(c.queries, at)) for c in selector.conditions)
    ]
