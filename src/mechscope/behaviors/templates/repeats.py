"""Induction, for any model and with no tokenizer: a random sequence of tokens recurs.

Owns: repeated sequences as token ids. The corrupt prompt exchanges, in the first copy, the token that followed the last
one with a later token, so both prompts hold the same tokens and only their order says what comes next.
"""

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

from mechscope.behaviors.registry import behavior
from mechscope.data.pairs import TokenPair
from mechscope.data.splits import divide
from mechscope.models.inputs import Reader

LENGTH, SHORTEST = 12, 6
MIN_TOKENS = 24
"""Six that fill, and nine couples of decisive tokens for three splits."""
MANY_TOKENS = 160
"""Three quarters of them make sixty couples, thirty of which are held out: more than the 20 units of a verdict."""


@lru_cache(maxsize=32)
def plain_ids(reader: Reader) -> tuple[int, ...]:
    """Ids to make sequences of: words of letters where there are enough of them, else whatever is not special."""
    if reader.tokenizer is None:
        return tuple(range(reader.d_vocab))
    tokenizer: Any = reader.tokenizer
    special = {*tokenizer.all_special_ids}
    ids = [index for index in range(min(len(tokenizer), reader.d_vocab)) if index not in special]
    texts = tokenizer.convert_ids_to_tokens(ids)
    # "Ġ" and "▁" are how tokenizers write the space before a word
    starts = [
        index for index, text in zip(ids, texts, strict=True) if text[:1] in "Ġ▁" and text[1:].isalpha()
    ]
    lettered = [index for index, text in zip(ids, texts, strict=True) if text.lstrip("Ġ▁").isalpha()]
    return tuple(next((pool for pool in (starts, lettered) if len(pool) >= MANY_TOKENS), ids))


def _length(reader: Reader) -> int:
    """Tokens before they repeat."""
    n_fillers = len(_fillers(reader))
    return min(LENGTH, n_fillers + 2, (reader.n_context - 1) // 2)


def _unavailable(reader: Reader) -> str:
    n = len(plain_ids(reader))
    if n < MIN_TOKENS:
        return f"its vocabulary has {n} plain tokens, {MIN_TOKENS} are needed"
    if _length(reader) < SHORTEST:
        return f"its context holds {reader.n_context} tokens, {2 * SHORTEST + 1} are needed"
    return ""


@lru_cache(maxsize=32)
def _shuffled(reader: Reader) -> tuple[int, ...]:
    ids = list(plain_ids(reader))
    Random("mechscope repeats").shuffle(ids)
    return tuple(ids)


def _fillers(reader: Reader) -> tuple[int, ...]:
    ids = _shuffled(reader)
    return ids[: len(ids) // 4]


@lru_cache(maxsize=32)
def _couples(reader: Reader) -> dict[str, tuple[tuple[int, int], ...]]:
    ids = _shuffled(reader)[len(_fillers(reader)) :]
    return divide(list(zip(ids[0::2], ids[1::2], strict=False)), key="repeats")


@behavior("induction", origin="templates", unavailable=_unavailable)
def draw_repeats(reader: Reader, *, split: str, n: int, seed: int) -> Sequence[TokenPair]:
    """Draw repeated sequences. A couple of tokens (the answer and the foil) belongs to one split only."""
    rng = Random(f"repeats {split} {seed}")
    couples = list(_couples(reader)[split])
    rng.shuffle(couples)
    return [_pair(reader, rng, couples[index % len(couples)]) for index in range(n)]


def _pair(reader: Reader, rng: Random, couple: tuple[int, int]) -> TokenPair:
    length = _length(reader)
    answer, foil = rng.sample(couple, 2)
    clean = rng.sample(_fillers(reader), length - 2)
    # positions, in the sequence, of the token repeated last (`asked`), of what follows it, and of the foil
    asked = rng.randrange(1, length - 2)
    clean.insert(asked + 1, answer)
    clean.insert(rng.randrange(asked + 2, length), foil)
    corrupt = [{answer: foil, foil: answer}.get(token, token) for token in clean]
    tail = clean[: asked + 1]
    bos = _bos(reader)
    start = [] if bos is None else [bos]
    rows = [(*start, *copy, *tail) for copy in (clean, corrupt)]
    return TokenPair(
        clean=rows[0],
        corrupt=rows[1],
        answers=(answer,),
        wrong=(foil,),
        entities=(f"token {answer}", f"token {foil}"),
        template=f"length {length}",
        texts=(_text(reader, rows[0]), _text(reader, rows[1])),
    )


def _bos(reader: Reader) -> int | None:
    bos = None if reader.tokenizer is None else reader.tokenizer.bos_token_id
    return None if bos is None or bos >= reader.d_vocab else int(bos)


def _text(reader: Reader, ids: Sequence[int]) -> str:
    return "" if reader.tokenizer is None else str(reader.tokenizer.decode(list(ids)))
