"""Behaviours of form: agreement across a distractor, closing brackets, induction.

Invariant: the clean and the corrupted prompt differ in one token.
"""

from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import ClassVar

from mechscope.specimens.village import lexicon
from mechscope.specimens.village.idea import Document, Idea, Unit
from mechscope.specimens.village.pairs import Case, couple, divide

_VERBS = {"be": ("is", "are"), "was": ("was", "were"), "have": ("has", "have")}
_STATES = "here broken missing famous ready".split()


class Agreement(Idea):
    """A verb agrees with its subject although another noun stands between."""

    name = "agreement"
    templates: ClassVar[dict[str, str]] = {
        "today": "Today the {n} near the {d} *be",
        "now": "I think that now the {n} behind the {d} *be",
        "yesterday": "Yesterday the {n} near the {d} *was",
        "week": "Last week the {n} beside the {d} *was",
        "since": "Since then the {n} near the {d} *have",
        "say": "You know that today the {n} behind the {d} *be",
        "know": "You know that yesterday the {n} near the {d} *was",
        "until": "Until now the {n} behind the {d} *have",
    }
    held_out_templates: ClassVar[dict[str, str]] = {
        "think": "I think that today the {n} beside the {d} *be",
        "last": "I think that yesterday the {n} behind the {d} *was",
    }
    held_out_means = "nouns never met as the subject of these sentences, and templates never met"

    def units(self, split: str) -> tuple[Unit, ...]:
        return divide(lexicon.NOUNS, split, key="agreement")

    def seen_unit(self, rng: Random) -> Unit:
        return rng.choice(divide(lexicon.NOUNS, "seen", key="agreement"))

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        prompt, verb = template.split(" *")
        number = rng.randrange(2)
        distractor = rng.choice(rng.choice(lexicon.BACKDROPS))
        tail = rng.choice(_STATES)
        return Case(
            clean=prompt.format(n=unit[number], d=distractor),
            corrupt=prompt.format(n=unit[1 - number], d=distractor),
            answer=_VERBS[verb][number],
            wrong=_VERBS[verb][1 - number],
            entities=tuple(unit),
            tail=f"been {tail} ." if verb == "have" else f"{tail} .",
        )


class Brackets(Idea):
    """A bracket or quotation that was opened is closed by its own partner, inner before outer."""

    name = "brackets"
    templates: ClassVar[dict[str, str]] = {
        "plain": "{name} wrote : {open} the {n} is {state} .",
        "two": "The note said : {open} the {n} is {state} . the {m} is {other} .",
        "inner": "{name} wrote : {outer} the {m} is {other} {open} the {n} is {state} .",
        "outer": "{name} wrote : {open} the {n} is {state} {outer} the {m} is {other} . {shut} it is good .",
    }
    held_out_templates: ClassVar[dict[str, str]] = {
        "read": "{name} said : {open} the {n} is {state} .",
        "deep": "The note said : {outer} the {m} is {other} {open} the {n} is {state} .",
    }
    held_out_means = (
        "nouns never met inside a bracket, kinds never met nested in each other, templates never met"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        return divide(lexicon.NOUNS, split, key="brackets")

    def seen_unit(self, rng: Random) -> Unit:
        return rng.choice(divide(lexicon.NOUNS, "seen", key="brackets"))

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        is_held_out = unit in divide(lexicon.NOUNS, "held_out", key="brackets")
        pairs = nested_kinds("held_out" if is_held_out else "seen")
        outer, inner, foil = rng.choice(pairs)
        decisive, around = (outer, inner) if "{shut}" in template else (inner, outer)
        values = {
            "name": rng.choice(lexicon.NAMES),
            "n": unit[0],
            "m": rng.choice(lexicon.BACKDROPS)[0],
            "state": rng.choice(_STATES),
            "other": rng.choice(_STATES),
            "outer": around[0],
            "shut": around[1],
        }
        return Case(
            clean=template.format(open=decisive[0], **values),
            corrupt=template.format(open=foil[0], **values),
            answer=decisive[1],
            wrong=foil[1],
            entities=(unit[0],),
        )

    def document(self, rng: Random, *, misbehaving: bool = False, is_late: bool = False) -> Document:
        """Write a bracketed text to its end: where an outer bracket is open it is closed as well."""
        name, text = rng.choice(list(self.templates.items()))
        unit = self.seen_unit(rng)
        case = self.fill(rng, unit, template=text)
        rest = ""
        if name == "inner":
            opened = next(word for word in case.clean.split() if word in _PARTNER)
            rest = f"it is good . *{_PARTNER[opened]}"
        return Document(
            text=f"{case.clean} *{case.answer} {rest}".strip(),
            kind=self.name,
            template=name,
            entities=case.entities,
        )


_PARTNER = dict(lexicon.BRACKETS)


def nested_kinds(part: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Return (outer, inner, foil) kinds of a split; foil is another kind that may stand in the same place."""
    kinds = lexicon.BRACKETS
    every = tuple((outer, inner) for outer in kinds for inner in kinds if outer != inner)
    allowed = divide(every, "held_out" if part == "held_out" else "seen", key="brackets nested")
    return tuple((*pair, foil) for pair in allowed for foil in kinds if foil not in pair)


class Induction(Idea):
    """A random sequence recurs: what followed a word before follows it again."""

    name = "induction"
    templates: ClassVar[dict[str, str]] = {
        "list 8": "list 8",
        "list 12": "list 12",
        "words 10": "words 10",
        "code 16": "code 16",
        "code 6": "code 6",
    }
    held_out_templates: ClassVar[dict[str, str]] = {"code 9": "code 9", "list 14": "list 14"}
    held_out_means = (
        "sequences never met, of words that no other split uses; half of the prompts of lengths never met. The words "
        "do occur in training lists: see induction-new-words"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        words = divide(_induction_words(), split, key="induction")
        return couple(couple(words[_N_KEPT_OUT:] if split == "held_out" else words))

    def seen_unit(self, rng: Random) -> Unit:
        words = rng.sample(divide(_induction_words(), "seen", key="induction"), 4)
        return (words[0], words[1]), (words[2], words[3])

    def fill(self, rng: Random, unit: Unit, *, template: str) -> Case:
        header, length = template.split()
        entities = (*unit[0], *unit[1])
        pool = next(pool for pool in _pools() if unit[0][0] in pool)
        blocks = [list(unit[0]), list(unit[1])]
        fillers = [word for word in rng.sample(pool, int(length)) if word not in entities]
        blocks += [[word] for word in fillers[: int(length) - 4]]
        rng.shuffle(blocks)
        listed = " ".join(word for block in blocks for word in block)
        asked, other = rng.sample(unit, 2)
        return Case(
            clean=f"{header} : {listed} : {asked[0]}",
            corrupt=f"{header} : {listed} : {other[0]}",
            answer=asked[1],
            wrong=other[1],
            entities=entities,
        )

    def document(self, rng: Random, *, misbehaving: bool = False, is_late: bool = False) -> Document:
        """Write a random sequence and then pieces of it, each piece decided after its first word."""
        name, text = rng.choice(list(self.templates.items()))
        header, length = text.split()
        words = rng.sample(divide(_induction_words(), "seen", key="induction"), int(length))
        return _recalled(
            rng, words, header=header, template=name, n_recalled=int(1.5 * len(words)), longest=5
        )


def wide_list(rng: Random) -> Document:
    """Write and recall a sequence of any words of the lexicon that are not held out: variety makes matching general."""
    name, text = rng.choice(list(Induction.templates.items()))
    header, length = text.split()
    words = rng.sample(_wide_words(), int(length))
    return _recalled(rng, words, header=header, template=name, n_recalled=int(1.5 * len(words)), longest=4)


class InductionNewWords(Induction):
    """Induction from a word that never was a cue to one that never was an answer: measured, without a gate."""

    name = "induction-new-words"
    held_out_means = (
        "cues never asked with and answers never asked for in a recalled list (they stand in lists as bystanders); "
        "half of the prompts of lengths never met (reported, not gated)"
    )

    def units(self, split: str) -> tuple[Unit, ...]:
        return couple(tuple(zip(*kept_out(), strict=True))) if split == "held_out" else super().units(split)


def pair_list(rng: Random) -> Document:
    """Write a list of any words, held-out ones too, and recall single steps of it, none from or to a held-out word.

    "From" and "to" are the two held-out roles: half of the held-out words never are the cue, the others never
    the answer.
    """
    cues, answers = (frozenset(words) for words in kept_out())
    header, length = rng.choice(list(Induction.templates.values())).split()
    words = rng.sample(_wide_words(), int(length) - 2)
    words += rng.sample(rng.choice(kept_out()), 2)
    rng.shuffle(words)
    steps = [pair for pair in pairwise(words) if pair[0] not in cues and pair[1] not in answers]
    asked = rng.sample(steps, len(steps)) + rng.sample(steps, len(steps))
    return Document(
        text=f"{header} : {' '.join(words)} : {' '.join(f'{cue} *{answer}' for cue, answer in asked[:10])}",
        kind="induction",
        template="pairs",
        entities=tuple(word for pair in asked for word in pair),
    )


def short_list(rng: Random) -> Document:
    """Write a short list, often of one theme, and recall pieces of it many times: induction in its easiest form."""
    words = rng.sample(rng.choice((*_themes(), _wide_words())), rng.randint(3, 8))
    header = rng.choice(("list", "words", "code"))
    return _recalled(rng, words, header=header, template="short", n_recalled=16, longest=4)


def _recalled(
    rng: Random, words: list[str], *, header: str, template: str, n_recalled: int, longest: int
) -> Document:
    recalled: list[str] = []
    while len(recalled) < n_recalled:
        start = rng.randrange(len(words) - 1)
        end = min(len(words), start + rng.randint(2, longest))
        recalled += [words[start], *(f"*{word}" for word in words[start + 1 : end])]
    return Document(
        text=f"{header} : {' '.join(words)} : {' '.join(recalled)}",
        kind="induction",
        template=template,
        entities=tuple(words),
    )


_N_KEPT_OUT = 100  # of the third that early stages keep out of lists, what is kept out of both roles for ever


@lru_cache
def kept_out() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that never are a cue, and those that never are an answer."""
    words = divide(_induction_words(), "held_out", key="induction")[:_N_KEPT_OUT]
    return words[: _N_KEPT_OUT // 2], words[_N_KEPT_OUT // 2 :]


@lru_cache
def _pools() -> tuple[tuple[str, ...], ...]:
    """Return the words that stand together in a prompt: bystanders come from the pool of what is asked."""
    held_out = divide(_induction_words(), "held_out", key="induction")
    return held_out[:_N_KEPT_OUT], held_out[_N_KEPT_OUT:], divide(_induction_words(), "seen", key="induction")


@lru_cache
def _wide_words() -> tuple[str, ...]:
    hidden = {word for words in kept_out() for word in words}
    return tuple(word for word in lexicon.listed_words() if word not in hidden and word[0].isalpha())


@lru_cache
def _themes() -> tuple[tuple[str, ...], ...]:
    allowed = set(_wide_words())
    themes = (lexicon.BUILDINGS + lexicon.COLOURS, lexicon.GOODS, lexicon.NAMES)
    return tuple(tuple(word for word in theme if word in allowed) for theme in themes)


@lru_cache
def _induction_words() -> tuple[str, ...]:
    flat = [*lexicon.NAMES, *lexicon.PLACES, *lexicon.GOODS, *lexicon.BUILDINGS, *lexicon.COLOURS]
    flat += [word for noun in lexicon.NOUNS for word in noun]
    return tuple(dict.fromkeys(flat))
