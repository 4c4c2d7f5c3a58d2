"""Induction in running text: an invented name of two tokens recurs, and its first token calls for its second.

Owns: two names in a short story, written as token ids so that every tokenizer can hold them. Corrupt: the two names
exchange their second tokens, so both prompts hold the same tokens. Small models of stories do this long before they
continue random sequences.
"""

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

from mechscope.behaviors.continuations import Continuations
from mechscope.behaviors.registry import behavior
from mechscope.data.pairs import TokenPair
from mechscope.data.splits import divide
from mechscope.models.inputs import Reader

FRAMES = {
    "friends": ("Once upon a time, there were two friends named", " and", ". One day,"),
    "pets": ("Once there was a boy who had a dog named", " and a cat named", ". In the morning,"),
    "girls": ("There were two girls in the park, named", " and", ". They liked to play. Then"),
}
MIN_FIRST, MIN_SECOND = 4, 12
STARTS = "Ġ▁"
"""How tokenizers write the space before a word."""


@lru_cache(maxsize=32)
def name_parts(reader: Reader) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that begin a name (a space and one or two letters, the first a capital) and ids that end one."""
    tokenizer: Any = reader.tokenizer
    ids = range(min(len(tokenizer), reader.d_vocab))
    texts = list(zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True))
    first = [
        index
        for index, text in texts
        if text[:1] in STARTS and 1 <= len(text[1:]) <= 2 and text[1:].istitle()
    ]
    second = [index for index, text in texts if text.isascii() and text.isalpha() and text.islower()]
    return tuple(first), tuple(second)


def _unavailable(reader: Reader) -> str:
    if reader.tokenizer is None:
        return "the model has no tokenizer"
    n_first, n_second = map(len, name_parts(reader))
    if n_first < MIN_FIRST or n_second < MIN_SECOND:
        return (
            f"its tokenizer has {n_first} beginnings and {n_second} ends of names, "
            f"{MIN_FIRST} and {MIN_SECOND} are needed"
        )
    return "" if all(_segments(reader).values()) else "its tokenizer does not know the words of the story"


@lru_cache(maxsize=32)
def _segments(reader: Reader) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Ids of each frame's pieces; () where one has unknown words."""
    cut = Continuations(reader)
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name, (opening, between, after) in FRAMES.items():
        is_known = bool(cut.added("There", opening[opening.index(" ") :]))
        pieces = cut[opening], cut.added("Sam", between), cut.added("Sam", after)
        found[name] = pieces if is_known and all(pieces) else ()
    return found


@lru_cache(maxsize=32)
def _couples(reader: Reader) -> dict[str, tuple[tuple[int, int], ...]]:
    ends = list(name_parts(reader)[1])
    Random("mechscope invented names").shuffle(ends)
    return divide(list(zip(ends[0::2], ends[1::2], strict=False)), key="invented names")


@behavior("name-induction", origin="templates", unavailable=_unavailable)
def draw_invented_names(reader: Reader, *, split: str, n: int, seed: int) -> Sequence[TokenPair]:
    """Draw stories of two names. A couple of name endings (answer and foil) belongs to one split only."""
    rng = Random(f"invented names {split} {seed}")
    couples = list(_couples(reader)[split])
    rng.shuffle(couples)
    return [_pair(reader, rng, couples[index % len(couples)]) for index in range(n)]


def _pair(reader: Reader, rng: Random, couple: tuple[int, int]) -> TokenPair:
    frame = rng.choice(list(FRAMES))
    opening, between, after = _segments(reader)[frame]
    asked, other = rng.sample(name_parts(reader)[0], 2)
    answer, foil = rng.sample(couple, 2)
    is_first = rng.random() < 0.5

    def prompt(ends: tuple[int, int]) -> tuple[int, ...]:
        names = [(asked, ends[0]), (other, ends[1])][:: 1 if is_first else -1]
        return (*opening, *names[0], *between, *names[1], *after, asked)

    clean, corrupt = prompt((answer, foil)), prompt((foil, answer))
    return TokenPair(
        clean=clean,
        corrupt=corrupt,
        answers=(answer,),
        wrong=(foil,),
        entities=(f"token {answer}", f"token {foil}"),
        template=frame,
        texts=tuple(str(reader.tokenizer.decode(list(ids))) for ids in (clean, corrupt)),  # type: ignore[arg-type]
    )
