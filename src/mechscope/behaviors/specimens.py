"""Behaviours of the bundled specimens, in their own languages.

Owns: how a specimen's language is recognised (by its words, not by the model's name) and how its pairs are read.
Serves any model whose tokenizer keeps every word of that language whole.
"""

from collections.abc import Sequence
from functools import lru_cache, partial

from mechscope.behaviors.registry import Source, add_source, behavior
from mechscope.data.pairs import PromptPair, TokenPair
from mechscope.models.inputs import Reader
from mechscope.specimens import compiled
from mechscope.specimens.induction import language as induction
from mechscope.specimens.village import lexicon
from mechscope.specimens.village.prompts import BEHAVIORS, draw_pairs

BOS = "[BOS]"


def missing_words(reader: Reader, words: tuple[str, ...]) -> str:
    """Why the tokenizer does not speak a language of whole words; "" if it does."""
    if reader.tokenizer is None:
        return "the model has no tokenizer"
    return _missing(reader.tokenizer, words)


@lru_cache(maxsize=32)
def _missing(tokenizer: object, words: tuple[str, ...]) -> str:
    vocabulary = tokenizer.get_vocab()  # type: ignore[attr-defined]
    n_missing = sum(word not in vocabulary for word in (BOS, *words))
    return f"its tokenizer lacks {n_missing} of {len(words) + 1} words" if n_missing else ""


def _speaks_village(reader: Reader) -> str:
    return missing_words(reader, lexicon.listed_words())


def _speaks_induction(reader: Reader) -> str:
    return missing_words(reader, induction.WORDS)


def _draw_village(name: str, reader: Reader, *, split: str, n: int, seed: int) -> Sequence[PromptPair]:
    del reader
    return [
        PromptPair(
            clean=pair.clean,
            corrupt=pair.corrupt,
            answers=pair.answers or (pair.answer,),
            wrong=pair.wrongs or (pair.wrong,),
            entities=pair.entities,
            template=pair.template,
        )
        for pair in draw_pairs(name, split=split, n=n, seed=seed)
    ]


for _name in BEHAVIORS:
    add_source(
        Source(
            name=_name,
            origin="village",
            draw=partial(_draw_village, _name),
            unavailable=_speaks_village,
            is_native=True,
        )
    )


@behavior("induction", origin="induction specimen", unavailable=_speaks_induction, is_native=True)
def draw_induction(reader: Reader, *, split: str, n: int, seed: int) -> Sequence[PromptPair]:
    """Two bigrams among other words; the prompt ends in the first word of one."""
    del reader
    return [
        PromptPair(
            clean=pair.clean,
            corrupt=pair.corrupt,
            answers=(pair.answer,),
            wrong=(pair.wrong,),
            entities=pair.entities,
            template=pair.template,
        )
        for pair in induction.draw_pairs(split=split, n=n, seed=seed)
    ]


def _speaks_program(vocabulary: frozenset[str], n_context: int, reader: Reader) -> str:
    if reader.tokenizer is None:
        return "the model has no tokenizer"
    if frozenset(reader.tokenizer.get_vocab()) == vocabulary and reader.n_context == n_context:
        return ""
    return f"not the {len(vocabulary)} tokens and {n_context} positions of that program"


def _draw_program(name: str, reader: Reader, *, split: str, n: int, seed: int) -> Sequence[TokenPair]:
    return _as_ids(compiled.draw_pairs(compiled.PROGRAMS[name], split=split, n=n, seed=seed), reader, name)


def _draw_symbolic(reader: Reader, *, split: str, n: int, seed: int) -> Sequence[TokenPair]:
    return _as_ids(compiled.symbolic_ioi.draw_ioi_pairs(split=split, n=n, seed=seed), reader, "symbolic_ioi")


def _as_ids(pairs: Sequence[compiled.ProgramPair], reader: Reader, template: str) -> list[TokenPair]:
    """As ids, since an answer is read at the last word and does not continue the prompt."""
    ids = reader.tokenizer.get_vocab()

    def prompt(words: Sequence[str]) -> tuple[int, ...]:
        return tuple(ids[word] for word in (BOS, *words))

    return [
        TokenPair(
            clean=prompt(pair.clean),
            corrupt=prompt(pair.corrupt),
            answers=(ids[pair.answer],),
            wrong=(ids[pair.wrong],),
            entities=(" ".join(pair.clean), " ".join(pair.corrupt)),
            template=template,
            texts=(" ".join(pair.clean), " ".join(pair.corrupt)),
        )
        for pair in pairs
    ]


for _name, _program in compiled.PROGRAMS.items():
    add_source(
        Source(
            name=f"compiled/{_name}",
            origin="compiled",
            draw=partial(_draw_program, _name),
            unavailable=partial(
                _speaks_program, frozenset(compiled.vocabulary_of(_program).words), _program.length + 1
            ),
            is_native=True,
            metric="logit_difference",
        )
    )
add_source(
    Source(
        name="compiled/symbolic_ioi",
        origin="compiled",
        draw=_draw_symbolic,
        unavailable=partial(
            _speaks_program,
            frozenset(compiled.symbolic_ioi.VOCABULARY.words),
            compiled.symbolic_ioi.LENGTH,
        ),
        is_native=True,
        metric="logit_difference",
    )
)
