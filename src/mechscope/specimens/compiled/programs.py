"""The ten programs that are compiled and tested: small enough to know everything about them.

Owns: `PROGRAMS`. Each is written as one would explain it; the compiler finds layers and heads. "." is the blank
that fills a sequence up; `reverse` and `length` mean the letters only, the others treat it as a word like any other.
"""

import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from random import Random

from mechscope.specimens.compiled.rasp import (
    Program,
    Series,
    add,
    apply,
    copy,
    everything,
    indices,
    mean,
    select,
    tokens,
    width,
)

BLANK = "."
LETTERS = ("a", "b", "c", "d")


def _is_letter(word: str, _: object) -> bool:
    return word != BLANK


def _letters_after_blanks(random: Random) -> Sequence[str]:
    n = random.randint(1, 6)
    return [BLANK] * (6 - n) + random.choices(LETTERS, k=n)


def _count(number: int | Fraction) -> int | Fraction:
    return number


def reverse() -> Program:
    """Letters stand at the end, after blanks: ". . a b c" becomes ". . c b a"."""
    length = 6
    size = width(select(tokens, tokens, _is_letter), name="size")
    mirror = apply(lambda n, index: 2 * length - 1 - n - index, size, indices, name="mirror")
    output = copy(select(indices, mirror, operator.eq), tokens, otherwise=BLANK, name="reversed")
    return Program(
        name="reverse",
        output=output,
        alphabet=(*LETTERS, BLANK),
        length=length,
        draw=_letters_after_blanks,
        description="The letters in reverse order; blanks stay in front.",
    )


def sort() -> Program:
    """Equal words keep their order: a word's key is its rank in the alphabet and its position."""
    length, alphabet = 5, LETTERS
    key = apply(lambda word, index: alphabet.index(word) * length + index, tokens, indices, name="key")
    place = apply(_count, width(select(key, key, operator.lt), name="smaller"), name="place")
    output = copy(select(place, indices, operator.eq), tokens, otherwise="a", name="sorted")
    return Program(
        name="sort",
        output=output,
        alphabet=alphabet,
        length=length,
        description="The words in alphabetical order.",
    )


def sort_unique() -> Program:
    """Words that occur once sort rightly; a repeated word leaves its second place blank."""
    alphabet = (*LETTERS, "e", "f")
    smaller = width(select(tokens, tokens, lambda key, query: key < query), name="smaller")
    place = apply(_count, smaller, name="place")
    output = copy(select(place, indices, operator.eq), tokens, otherwise=BLANK, name="sorted")
    return Program(
        name="sort_unique",
        output=output,
        alphabet=alphabet,
        length=5,
        draw=lambda random: random.sample(alphabet, 5),
        description="The words in alphabetical order, for sequences that repeat none.",
    )


def histogram() -> Program:
    count = width(select(tokens, tokens, operator.eq), name="same")
    return Program(
        name="histogram",
        output=apply(_count, count, name="count"),
        alphabet=LETTERS,
        length=6,
        description="How often the word at each position occurs in the sequence.",
    )


def fraction_of_previous() -> Program:
    is_x = apply(lambda word: int(word == "x"), tokens, name="is_x")
    return Program(
        name="fraction_of_previous",
        output=mean(everything, is_x, name="fraction"),
        alphabet=("a", "b", "c", "x"),
        length=6,
        is_causal=True,
        description='The fraction of "x" among the words up to and including this one.',
    )


def most_frequent() -> Program:
    """A position knows how often its word occurs; those that no other beats are copied, the first word of a tie."""
    alphabet, length = ("a", "b", "c"), 5
    same = width(select(tokens, tokens, operator.eq), name="same")
    rank = apply(
        lambda n, word: n * len(alphabet) + len(alphabet) - 1 - alphabet.index(word),
        same,
        tokens,
        name="rank",
    )
    better = width(select(rank, rank, operator.gt), name="better")
    is_best = apply(lambda n: n == 0, better, name="is_best")
    winner = select(is_best, indices, lambda key, _: key)
    return Program(
        name="most_frequent",
        output=copy(winner, tokens, otherwise="a", name="winner"),
        alphabet=alphabet,
        length=length,
        description="The most frequent word of the sequence, at every position; the first in the alphabet of a tie.",
    )


def _balance(opening: str, closing: str, name: str) -> Series:
    step = apply(lambda word: (word == opening) - (word == closing), tokens, name=f"step_{name}")
    return mean(everything, step, name=f"balance_{name}")


def _sign(number: int | Fraction) -> int:
    return (number > 0) - (number < 0)


def _verdict(n_broken: int | Fraction, *signs: int | Fraction) -> str:
    if n_broken > 0:
        return "broken"
    return "open" if any(signs) else "balanced"


def bracket_balance() -> Program:
    """Dyck-1: a prefix is broken once it closed more than it opened, else balanced or still open."""
    sign = apply(_sign, _balance("(", ")", "round"), name="sign")
    is_broken = apply(lambda value: int(value < 0), sign, name="is_broken")
    ever = mean(everything, is_broken, name="ever_broken")
    return Program(
        name="bracket_balance",
        output=apply(_verdict, ever, sign, name="verdict"),
        alphabet=("(", ")", "a"),
        length=8,
        is_causal=True,
        description="Whether the brackets up to here are balanced, open or broken; other words do not count.",
    )


def pair_balance() -> Program:
    """Two kinds of brackets, each balanced for itself: they may interleave, "( [ ) ]" is balanced (shuffle-Dyck-2)."""
    signs = [
        apply(_sign, _balance(pair[0], pair[1], name), name=f"sign_{name}")
        for pair, name in (("()", "round"), ("[]", "square"))
    ]
    ever = [
        mean(everything, apply(lambda value: int(value < 0), sign), name=f"ever_broken_{index}")
        for index, sign in enumerate(signs)
    ]
    return Program(
        name="pair_balance",
        output=apply(_verdict, add(*ever, name="n_broken"), *signs, name="verdict"),
        alphabet=("(", ")", "[", "]"),
        length=6,
        is_causal=True,
        description="Whether both kinds of brackets up to here are balanced, open or broken, each for itself.",
    )


def token_shift() -> Program:
    before = select(indices, indices, lambda key, query: key == query - 1)
    return Program(
        name="token_shift",
        output=copy(before, tokens, otherwise="a", name="previous"),
        alphabet=LETTERS,
        length=6,
        is_causal=True,
        description="The word before this one; a at the first position.",
    )


def length() -> Program:
    return Program(
        name="length",
        output=apply(_count, width(select(tokens, tokens, _is_letter), name="size"), name="length"),
        alphabet=(*LETTERS, BLANK),
        length=6,
        draw=_letters_after_blanks,
        description="How many letters the sequence has, blanks not counted, at every position.",
    )


_MAKERS: tuple[Callable[[], Program], ...] = (
    reverse,
    sort,
    sort_unique,
    histogram,
    fraction_of_previous,
    most_frequent,
    bracket_balance,
    pair_balance,
    token_shift,
    length,
)
PROGRAMS: dict[str, Program] = {maker.__name__: maker() for maker in _MAKERS}
"""The programs by name."""
