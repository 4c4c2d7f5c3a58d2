"""Words and prompts of the induction specimen.

Owns: 64 words, three disjoint parts of them for decisive words, repeated sequences, and clean/corrupt pairs.
Refuses: unknown splits and templates, and sequences that do not fit the model.
Invariant: equal arguments give equal prompts on every machine; a word repeats only where a prompt says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from jaxtyping import Int
from torch import Tensor

from mechscope.vocabulary.errors import BadPairs, PromptTooLong

PAD, BOS, FIRST_WORD = 0, 1, 2
N_CTX = 128
WORD_LIST = """
    acorn anchor apple arrow autumn badge basket beacon bell birch bottle branch bread bridge bucket
    butter button candle canvas carpet castle cedar cherry circle clock cloud copper corner cotton crystal
    desert dragon drum eagle ember engine falcon feather fiddle forest fountain garden ginger glacier
    hammer harbor island jacket kettle ladder lantern lemon marble meadow mirror needle ocean orchard
    pebble pepper ribbon saddle tunnel velvet
"""
WORDS = tuple(WORD_LIST.split())
TEMPLATES = ("key", "query", "value")
N_FILLERS = 10


@dataclass(frozen=True, kw_only=True)
class InductionPair:
    """A clean prompt, its corrupted twin of equal token length, and what each should be answered with.

    `entities` is the answer, the word that no other split answers with. `template` says in which role
    the twins differ: "key", "query" or "value".
    """

    clean: str
    corrupt: str
    answer: str
    wrong: str
    split: str
    entities: tuple[str, ...]
    template: str


def divide_words() -> dict[str, tuple[str, ...]]:
    """The words that may be decisive in each split: 20 for train, 20 for validation, 24 held out."""
    shuffled = list(WORDS)
    Random("mechscope induction splits").shuffle(shuffled)
    return {
        "train": tuple(shuffled[:20]),
        "validation": tuple(shuffled[20:40]),
        "held_out": tuple(shuffled[40:]),
    }


def draw_sequences(n: int, length: int, seed: int) -> Int[Tensor, "n pos"]:
    """Draw rows of `length` different words, said twice after the beginning-of-sequence token.

    Args:
        n: Rows.
        length: Words before they repeat, 1 to 63; a row has 1 + 2 * length tokens.
        seed: Equal seeds give equal rows.

    Returns:
        Token ids. Position 1 + length + i repeats position 1 + i.
    """
    import torch

    longest = min(len(WORDS), (N_CTX - 1) // 2)
    if not 1 <= length <= longest:
        raise PromptTooLong(
            "no such repeated sequence fits the specimen",
            got=f"length={length}",
            because=f"it knows {len(WORDS)} words and {N_CTX} positions",
            instead=f"a length from 1 to {longest}",
        )
    random = Random(f"mechscope induction sequences {length} {seed}")
    rows = [random.sample(range(FIRST_WORD, FIRST_WORD + len(WORDS)), length) for _ in range(n)]
    return torch.tensor([[BOS, *row, *row] for row in rows], dtype=torch.long).reshape(n, 1 + 2 * length)


def draw_pairs(
    *, split: str, n: int, seed: int, templates: Sequence[str] = ("key",)
) -> tuple[InductionPair, ...]:
    """Draw prompts that state two bigrams, "A B" and "C D", among other words and end in A: the answer is B.

    The corrupted twin, whose answer is D, differs in one role:
    "key" says "C B" and "A D" instead (found by the previous-token and the induction head together);
    "query" ends in C; "value" says "A D" and "C B" (both found by the induction head alone).

    Args:
        split: "train", "validation" or "held_out"; A, B, C and D come from that part of the words.
        n: Pairs; templates take turns.
        seed: Equal seeds give equal pairs.
        templates: Which roles to corrupt.

    Returns:
        Pairs of equal length (15 words, no beginning-of-sequence token: the tokenizer adds it).
    """
    parts = divide_words()
    unknown = [name for name in templates if name not in TEMPLATES]
    if split not in parts or unknown or not templates:
        raise BadPairs(
            "the induction specimen has no such pairs",
            got=f"split={split!r}, templates={list(templates)!r}",
            instead=f"a split of {', '.join(parts)}, and templates among {', '.join(TEMPLATES)}",
        )
    random = Random(f"mechscope induction pairs {split} {seed} {'+'.join(templates)}")
    decisive = parts[split]
    others = [word for word in WORDS if word not in decisive]
    return tuple(
        _draw_pair(random, decisive, others, split=split, template=templates[index % len(templates)])
        for index in range(n)
    )


def _draw_pair(
    random: Random, decisive: Sequence[str], others: Sequence[str], *, split: str, template: str
) -> InductionPair:
    a, b, c, d = random.sample(decisive, 4)
    fillers = random.sample(others, N_FILLERS)
    places = sorted(random.sample(range(N_FILLERS + 1), 2))
    is_swapped = random.random() < 0.5
    changed = {"key": ((c, b), (a, d), a), "query": ((a, b), (c, d), c), "value": ((a, d), (c, b), a)}
    prompts = [
        _say([one, two][:: -1 if is_swapped else 1], query, fillers=fillers, places=places)
        for one, two, query in (((a, b), (c, d), a), changed[template])
    ]
    return InductionPair(
        clean=prompts[0],
        corrupt=prompts[1],
        answer=b,
        wrong=d,
        split=split,
        entities=(b,),
        template=template,
    )


def _say(
    bigrams: Sequence[tuple[str, str]], query: str, *, fillers: Sequence[str], places: Sequence[int]
) -> str:
    first, second = places
    words = [*fillers[:first], *bigrams[0], *fillers[first:second], *bigrams[1], *fillers[second:], query]
    return " ".join(words)
