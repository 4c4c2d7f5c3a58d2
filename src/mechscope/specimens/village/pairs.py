"""The prompt pair, and how the words of a role are divided into splits.

Owns: `VillagePair`, `divide` (three parts of a word list, one division per behaviour's key) and
`tidy` (tokens to readable English). Refuses: an unknown split.
Invariant: "train", "validation" and "held_out" never share a word of the divided list, and the language
model never sees a "held_out" word in the role for which the list was divided.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TypeVar

Thing = TypeVar("Thing")
SPLITS = ("train", "validation", "held_out")


@dataclass(frozen=True, kw_only=True)
class VillagePair:
    """A clean prompt, its corrupted twin of equal token length, and what each should be answered with."""

    clean: str
    corrupt: str
    answer: str
    wrong: str
    answers: tuple[str, ...] = ()
    wrongs: tuple[str, ...] = ()
    split: str
    entities: tuple[str, ...]
    template: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One filled template before it is tidied: words separated by single spaces."""

    clean: str
    corrupt: str
    answer: str
    wrong: str
    entities: tuple[str, ...]
    answers: tuple[str, ...] = ()
    wrongs: tuple[str, ...] = ()
    tail: str = "."


@lru_cache(maxsize=256)
def divide(things: tuple[Thing, ...], split: str, *, key: str) -> tuple[Thing, ...]:
    """Return the part of `things` that belongs to `split` under the fixed shuffle named `key`.

    `split` may also be "seen": what the language model saw in this role, train and validation together.
    """
    shuffled = list(things)
    Random(f"village {key}").shuffle(shuffled)
    third = len(shuffled) // 3
    parts = {
        "held_out": shuffled[:third],
        "validation": shuffled[third : 2 * third],
        "train": shuffled[2 * third :],
        "seen": shuffled[third:],
    }
    return tuple(parts[split])


def couple(things: tuple[Thing, ...]) -> tuple[tuple[Thing, Thing], ...]:
    """Return disjoint neighbours, so that prompts about different couples share no word."""
    return tuple(zip(things[0::2], things[1::2], strict=False))


def tidy(words: str) -> str:
    """Attach closing punctuation to the word before it: "store , John" becomes "store, John"."""
    return re.sub(r" ([,.?!;:])", r"\1", words)
