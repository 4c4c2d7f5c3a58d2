"""Prompt pairs of a program: two sequences of equal length whose answers at the last position differ.

Owns: `ProgramPair`, `draw_pairs`, and the division of all sequences into three splits. Invariant: equal arguments
give equal pairs, more pairs extend fewer, no sequence is in two splits, and every answer is equally often drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from random import Random
from typing import Any

from mechscope.specimens.compiled.checking import word_of
from mechscope.specimens.compiled.rasp import Program, evaluate
from mechscope.specimens.compiled.tokenizer import NOTHING, NUMBER
from mechscope.vocabulary.errors import BadPairs

SHARES = {"train": 1 / 3, "validation": 1 / 6, "held_out": 1 / 2}
POOL = 400
"""Sequences of a split that pairs are made of."""


@dataclass(frozen=True, kw_only=True)
class ProgramPair:
    """Two sequences and the program's output on each.

    Args:
        clean: Words of the clean sequence.
        corrupt: Words of the corrupt sequence, as many.
        outputs: The program's output at every position of the clean sequence; numbers are fractions.
        corrupt_outputs: The same of the corrupt one. They differ at the last position; a number is larger on clean.
    """

    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    outputs: tuple[Any, ...]
    corrupt_outputs: tuple[Any, ...]

    @property
    def answer(self) -> str:
        """Token that the model should rank first after the clean sequence."""
        return NUMBER if self.is_number else word_of(self.outputs[-1])

    @property
    def wrong(self) -> str:
        """Token that it is measured against: the corrupt answer, or for a number the column that is always 0."""
        return NOTHING if self.is_number else word_of(self.corrupt_outputs[-1])

    @property
    def is_number(self) -> bool:
        return isinstance(self.outputs[-1], Fraction)


def draw_pairs(program: Program, *, split: str = "train", n: int, seed: int = 0) -> tuple[ProgramPair, ...]:
    """Draw pairs of full length.

    Args:
        program: Its `draw` makes the sequences.
        split: "train", "validation" or "held_out".
        n: Pairs.
        seed: Equal seeds give equal pairs.

    Raises:
        BadPairs: no such split, or all sequences of it have the same answer.
    """
    if split not in SHARES:
        raise BadPairs(f'There is no split "{split}".', got=split, instead=", ".join(SHARES))
    random = Random(f"mechscope compiled {program.name} {split} {seed}")
    pool = list(islice(_different(program, split, random), POOL))
    groups: dict[Any, list[tuple[tuple[str, ...], tuple[Any, ...]]]] = {}
    for words in pool:
        outputs = tuple(evaluate(program, words))
        groups.setdefault(outputs[-1], []).append((words, outputs))
    if len(groups) < 2:
        raise BadPairs(
            f'"{program.name}" has no two {split} sequences with different answers.',
            got=f"{len(pool)} sequences, answers {list(groups)}",
            because="a pair differs in its answer at the last position",
            instead="a longer sequence, or a program whose last output varies",
        )
    return tuple(_pair(groups, random) for _ in range(n))


def split_of(words: tuple[str, ...]) -> str:
    """The split that a sequence belongs to, whatever the program and the seed."""
    at = Random(f"mechscope compiled split {' '.join(words)}").random()
    for split, share in SHARES.items():
        if at < share:
            return split
        at -= share
    return "held_out"


def _different(program: Program, split: str, random: Random) -> Iterator[tuple[str, ...]]:
    """Different sequences of a split, until none was new for long."""
    seen: set[tuple[str, ...]] = set()
    for _ in range(20 * POOL):
        words = program.draw_words(random)
        if words not in seen and split_of(words) == split:
            seen.add(words)
            yield words


def _pair(groups: dict[Any, list[Any]], random: Random) -> ProgramPair:
    answers = sorted(random.sample(list(groups), 2), key=_size, reverse=True)
    (clean, outputs), (corrupt, others) = (random.choice(groups[answer]) for answer in answers)
    return ProgramPair(clean=clean, corrupt=corrupt, outputs=outputs, corrupt_outputs=others)


def _size(answer: Any) -> float:
    """Fractions are sorted, so that clean has the larger number; other answers stay as they were drawn."""
    return float(answer) if isinstance(answer, Fraction) else 0.0
