"""Prompts that hold something known of village, and their twins that do not: clean, corrupt, and both answers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from mechscope.specimens.village import lexicon
from mechscope.specimens.village.prompts import VillagePair, draw_pairs


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt with the thing, and one without.

    Args:
        clean: With it.
        corrupt: Without, as many tokens long.
        answer: What clean is answered with; any of several words.
        wrong: What corrupt is answered with; likewise.
        entities: What it is about; prompts of different splits share none.
        template: Its wording.
    """

    clean: str
    corrupt: str
    answer: str | tuple[str, ...]
    wrong: str | tuple[str, ...]
    entities: tuple[str, ...]
    template: str


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Something known.

    Args:
        name: Short.
        means: What its latents should stand for.
        draw: Pairs of a split, in an order that does not depend on how many are taken.
    """

    name: str
    means: str
    draw: Callable[[str, int, int], Iterator[Pair]]

    def pairs(self, split: str, n: int, *, seed: int = 7) -> list[Pair]:
        """The first n different pairs of a split, fewer where there are no more."""
        found: dict[tuple[str, str], Pair] = {}
        for pair in self.draw(split, 4 * n, seed):
            found.setdefault((pair.clean, pair.corrupt), pair)
        return list(islice(found.values(), n))


def _drawn(behavior: str, split: str, n: int, seed: int) -> list[VillagePair]:
    from mechscope.vocabulary.errors import BadPairs

    while True:
        try:
            return draw_pairs(behavior, split=split, n=n, seed=seed)
        except BadPairs:
            n = n * 3 // 4


def _planted(behavior: str) -> Callable[[str, int, int], Iterator[Pair]]:
    def draw(split: str, n: int, seed: int) -> Iterator[Pair]:
        for one in _drawn(behavior, split, n, seed):
            yield Pair(
                clean=one.clean,
                corrupt=one.corrupt,
                answer=one.answer,
                wrong=one.wrong,
                entities=one.entities,
                template=one.template,
            )

    return draw


def _good_moods(split: str, n: int, seed: int) -> Iterator[Pair]:
    """Stories turned so that the good one is clean."""
    for one in _drawn("sentiment", split, n, seed):
        is_good = any(word.strip(".,!") in lexicon.GOOD_MOODS for word in one.clean.split())
        sides = (one.clean, one.corrupt, one.answer, one.wrong)
        clean, corrupt, answer, wrong = sides if is_good else (one.corrupt, one.clean, one.wrong, one.answer)
        yield Pair(
            clean=clean,
            corrupt=corrupt,
            answer=answer,
            wrong=wrong,
            entities=one.entities,
            template=one.template,
        )


_FRENCH = {
    "the": "le",
    "opposite": "contraire",
    "of": "de",
    "is": "est",
    "said:": "dit:",
    "wrote:": "dit:",
    "so": "donc",
}


_ENGLISH_WORDS = tuple(sorted({word for unit in lexicon.OPPOSITES for word in unit[:2]}))
_FRENCH_WORDS = tuple(sorted({word for unit in lexicon.OPPOSITES for word in unit[2:]}))


def _french(split: str, n: int, seed: int) -> Iterator[Pair]:
    """The question for an opposite in the second language, and in English: answered by any word of that language."""
    for one in _drawn("bilingual", split, n, seed):
        if "contraire" in one.clean:
            continue
        english, french = one.entities[:2], one.entities[2:]
        words = _FRENCH | dict(zip(english, french, strict=True))
        yield Pair(
            clean=" ".join(words.get(word, word) for word in one.clean.split()),
            corrupt=one.clean,
            answer=tuple(word for word in _FRENCH_WORDS if word not in _ENGLISH_WORDS),
            wrong=tuple(word for word in _ENGLISH_WORDS if word not in _FRENCH_WORDS),
            entities=one.entities,
            template=one.template,
        )


CONCEPTS: dict[str, Concept] = {
    concept.name: concept
    for concept in (
        Concept(name="language", means="the second language", draw=_french),
        Concept(name="sentiment", means="a good mood", draw=_good_moods),
        Concept(name="backdoor", means="the planted trigger", draw=_planted("backdoor")),
        Concept(name="tested", means="this is a test", draw=_planted("tested")),
        Concept(name="sycophancy", means="the asker states an opinion", draw=_planted("sycophancy")),
    )
}
