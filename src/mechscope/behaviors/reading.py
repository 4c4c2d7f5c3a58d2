"""Reading: pairs of texts become pairs of token ids, or are refused, all at once.

An answer's id is the token that follows the prompt when prompt and answer are tokenised together, verified to leave
the prompt's ids as they were. Refuses unequal lengths with both tokenisations shown, answers that are not one token,
and pairs in which nothing differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mechscope.behaviors.continuations import Continuations
from mechscope.data.pairs import PromptPair, TokenPair
from mechscope.models.inputs import Reader
from mechscope.models.limits import refuse_own_predictions
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadPairs, PairLengthMismatch

MOST_TOLD = 8


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a pair can't be used.

    Args:
        kind: "length", "answer", "same", "context" or "fields".
        text: What to tell, with the place where the pair was read.
    """

    kind: str
    text: str


def read_pairs(reader: Reader, pairs: Sequence[PromptPair]) -> list[TokenPair]:
    """Read all pairs, or refuse with every problem that they have.

    Raises:
        PairLengthMismatch: all problems are of length.
        BadPairs: there are other problems.
        MissingTokenizer: the model has none.
    """
    found = try_pairs(reader, pairs)
    refuse_problems([item for item in found if isinstance(item, Problem)], n_pairs=len(pairs))
    return [item for item in found if isinstance(item, TokenPair)]


def refuse_text(model: Model, what: str) -> None:
    """Refuse texts with answers that follow them, for a model that predicts no next token.

    Raises:
        NoNextToken
    """
    refuse_own_predictions(
        model.binding.anatomy,
        what,
        instead="ms.behaviors.from_tokens, with prompts that end in the tokenizer's mask token",
    )


def refuse_problems(problems: Sequence[Problem], *, n_pairs: int) -> None:
    """Raise once for all problems; nothing if there are none."""
    if not problems:
        return
    told = [problem.text for problem in problems[:MOST_TOLD]]
    if len(problems) > MOST_TOLD:
        told.append(f"and {len(problems) - MOST_TOLD} more")
    is_length = all(problem.kind == "length" for problem in problems)
    if is_length:
        raise PairLengthMismatch(
            f"{len(problems)} of {n_pairs} pairs have prompts of different token lengths.",
            got="\n            ".join(told),
            because="a position of the corrupt prompt must have its counterpart in the clean one",
            instead="choose words that the tokenizer cuts into equally many tokens",
        )
    raise BadPairs(
        f"{len(problems)} of {n_pairs} pairs can't be used.",
        got="\n            ".join(told),
        because="pairs are not dropped silently",
        instead="correct or remove them",
    )


def try_pairs(reader: Reader, pairs: Sequence[PromptPair]) -> list[TokenPair | Problem]:
    """Each pair read, or its problem."""
    tokens = Continuations(reader)
    tokens.read(text for pair in pairs for text in (pair.clean, pair.corrupt))
    tokens.prepare(
        (text, pair.glue + answer)
        for pair in pairs
        for text in (pair.clean, pair.corrupt)
        for answer in (*pair.answers, *pair.wrong)
    )
    return [_read(tokens, pair, f"{pair.origin or f'pair {index}'}: ") for index, pair in enumerate(pairs)]


def _read(tokens: Continuations, pair: PromptPair, place: str) -> TokenPair | Problem:
    too_long = [text for text in (pair.clean, pair.corrupt) if tokens.refused(text)]
    if too_long:
        return Problem(kind="context", text=f"{place}{tokens.refused(too_long[0])}")
    clean, corrupt = tokens[pair.clean], tokens[pair.corrupt]
    if len(clean) != len(corrupt):
        text = (
            f"{place}clean has {len(clean)} tokens {tokens.strings(pair.clean)}, "
            f"corrupt {len(corrupt)} {tokens.strings(pair.corrupt)}"
        )
        return Problem(kind="length", text=text)
    if clean == corrupt:
        return Problem(kind="same", text=f"{place}clean and corrupt are the same tokens: {pair.clean!r}")
    answers, wrong = (_ids(tokens, pair, words) for words in (pair.answers, pair.wrong))
    lost = [word for word, found in {**answers, **wrong}.items() if found is None]
    if lost:
        cut = tokens.strings(pair.clean + pair.glue + lost[0])[-4:]
        told = f"{place}{lost[0]!r} is not one token after the prompt: it ends in {cut}"
        return Problem(kind="answer", text=told)
    both = set(answers.values()) & set(wrong.values())
    if both:
        return Problem(kind="answer", text=f"{place}an answer is also wrong: {sorted(set(pair.answers))}")
    return TokenPair(
        clean=clean,
        corrupt=corrupt,
        answers=tuple(found for found in answers.values() if found is not None),
        wrong=tuple(found for found in wrong.values() if found is not None),
        entities=pair.entities,
        template=pair.template,
        texts=(pair.clean, pair.corrupt),
    )


def _ids(tokens: Continuations, pair: PromptPair, words: Sequence[str]) -> Mapping[str, int | None]:
    """Id of each word after both prompts; None unless it is one token, and the same after either."""
    found: dict[str, int | None] = {}
    for word in words:
        clean, corrupt = (tokens.after(prompt, pair.glue + word) for prompt in (pair.clean, pair.corrupt))
        found[word] = clean if clean == corrupt else None
    return found
