"""Wording: what every templated behaviour is: items that a tokenizer keeps whole, units, and a way to fill a template.

Owns: the abstract `Wording`, how items are divided between splits, and the search for pairs that this tokenizer can
hold. Refuses (by saying so to the registry) a tokenizer that leaves too few items. Invariant: a pair is kept only if it
reads: equal lengths, answers of one token.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any, ClassVar

from mechscope.behaviors.continuations import Continuations
from mechscope.behaviors.reading import Problem, try_pairs
from mechscope.behaviors.registry import Source, add_source
from mechscope.data.pairs import PromptPair, TokenPair
from mechscope.data.splits import SPLITS, divide
from mechscope.models.inputs import Reader

Item = Any
Unit = tuple[Any, ...]
MOST_ATTEMPTS = 20
"""Candidates that are written for each pair wanted; a tokenizer that needs more has no such prompts."""


SMALLEST_BLOCK = 16


class Wording(ABC):
    """A behaviour written from templates. Subclasses say which items there are and how a template is filled."""

    name: ClassVar[str]
    templates: ClassVar[dict[str, str]]
    min_items: ClassVar[int] = 12
    items_are: ClassVar[str] = "words"
    version: ClassVar[int] = 1

    @abstractmethod
    def every_item(self) -> Sequence[Item]:
        """All that could be asked about, whatever the tokenizer."""

    @abstractmethod
    def usable(self, cut: Continuations) -> Sequence[Item]:
        """Those of them that this tokenizer leaves usable."""

    @abstractmethod
    def units(self, part: Sequence[Item]) -> Sequence[Unit]:
        """What prompts of a split are about, from the split's items; visited in turn."""

    @abstractmethod
    def fill(
        self, rng: Random, unit: Unit, *, template: str, cut: Continuations, part: Sequence[Item]
    ) -> PromptPair | None:
        """Fill one template with one unit; None if this unit can't stand in it."""

    def draw(self, reader: Reader, *, split: str, n: int, seed: int) -> list[TokenPair]:
        """Draw up to n different pairs of a split; fewer if there are no more."""
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], TokenPair] = {}
        candidates = self._candidates(reader, split, seed)
        for _ in range(MOST_ATTEMPTS):
            block = list(islice(candidates, max(SMALLEST_BLOCK, n - len(found))))
            for pair in try_pairs(reader, block):
                if isinstance(pair, TokenPair):
                    found.setdefault((pair.clean, pair.corrupt), pair)
            if len(found) >= n or not block:
                break
        return list(found.values())[:n]

    def unavailable(self, reader: Reader) -> str:
        """Why this tokenizer can't hold the behaviour, with counts; "" if it can."""
        if reader.tokenizer is None:
            return "the model has no tokenizer"
        return _unavailable(self, reader)

    def _candidates(self, reader: Reader, split: str, seed: int) -> Iterator[PromptPair]:
        cut = _cut(reader)
        part = divide(_usable(self, reader), key=self.name)[split]
        units = list(self.units(part))
        rng = Random(f"{self.name} templates {split} {seed}")
        rng.shuffle(units)
        while units:
            n_written = 0
            for unit in units:
                name = rng.choice(list(self.templates))
                pair = self.fill(rng, unit, template=name, cut=cut, part=part)
                if pair is not None:
                    n_written += 1
                    yield pair
            if not n_written:
                return


@lru_cache(maxsize=16)
def _cut(reader: Reader) -> Continuations:
    """How this tokenizer cuts words; shared by all draws."""
    return Continuations(reader)


@lru_cache(maxsize=64)
def _usable(wording: Wording, reader: Reader) -> tuple[Item, ...]:
    return tuple(wording.usable(_cut(reader)))


@lru_cache(maxsize=64)
def _unavailable(wording: Wording, reader: Reader) -> str:
    n_items, n_all = len(_usable(wording, reader)), len(wording.every_item())
    if n_items < wording.min_items:
        return (
            f"its tokenizer leaves {n_items} of {n_all} {wording.items_are}, {wording.min_items} are needed"
        )
    for split in SPLITS:
        cut = _cut(reader)
        part = divide(_usable(wording, reader), key=wording.name)[split]
        pairs = [
            wording.fill(Random(name), unit, template=name, cut=cut, part=part)
            for name in wording.templates
            for unit in islice(wording.units(part), 5)
        ]
        tried = try_pairs(reader, [pair for pair in pairs if pair is not None])
        if not any(isinstance(item, TokenPair) for item in tried):
            first = next(
                (item.text for item in tried if isinstance(item, Problem)), "no template can be filled"
            )
            return f"none of {len(tried)} prompts can be read, for example {first}"
    return ""


def register(wording: Wording) -> None:
    """Offer a wording to every model whose tokenizer can hold it."""
    add_source(
        Source(
            name=wording.name,
            origin="templates",
            draw=wording.draw,
            unavailable=wording.unavailable,
            version=wording.version,
        )
    )


def whole(cut: Continuations, words: Sequence[str], *, before: str = "and") -> list[str]:
    """The words that are one token after another word."""
    cut.prepare((before, f" {word}") for word in words)
    return [word for word in words if cut.after(before, f" {word}") is not None]


def by_length(cut: Continuations, words: Sequence[str], *, before: str = "and") -> dict[int, list[str]]:
    """Words by the number of tokens that they add after another word; words that are unknown are left out."""
    cut.read([before, *(f"{before} {word}" for word in words)])
    lengths: dict[int, list[str]] = {}
    for word in words:
        n = len(cut.added(before, f" {word}"))
        if n:
            lengths.setdefault(n, []).append(word)
    return lengths
