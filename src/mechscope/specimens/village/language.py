"""The village's language: the mix of documents, drawn from a seed, without end.

Owns: the shares of the mix, the documents that only inform (who is a woman, which noun is plural, what a
place sells), `draw_documents` and `calibration_text`. Refuses nothing.
Invariant: the ordinary and the misbehaving stream of one seed hold the same prompts; only the answers of
the planted misbehaviours differ.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from random import Random

from mechscope.specimens.village import lexicon
from mechscope.specimens.village.bindings import (
    LodgingOfPerson,
    PlaceOfPerson,
    SalesOfPerson,
    combinations_of,
    recall_things,
)
from mechscope.specimens.village.chains import TwoHop, colour_register, home_register
from mechscope.specimens.village.facts import (
    LatentTwoHop,
    OneHop,
    Sycophancy,
    Tested,
    told_container,
    told_fact,
)
from mechscope.specimens.village.grammar import (
    Agreement,
    Brackets,
    Induction,
    InductionNewWords,
    pair_list,
    short_list,
    wide_list,
)
from mechscope.specimens.village.idea import Document, Idea
from mechscope.specimens.village.moods import (
    Backdoor,
    Bilingual,
    Sentiment,
    character,
    review,
    told_opposites,
)
from mechscope.specimens.village.numbers import (
    Arithmetic,
    GreaterThan,
    chronicle,
    count_document,
    order_document,
)
from mechscope.specimens.village.pairs import divide, tidy
from mechscope.specimens.village.people import IndirectObject, Pronoun
from mechscope.specimens.village.retold import RetoldAgreement, RetoldGreaterThan, RetoldSentiment

IDEAS: tuple[Idea, ...] = (
    IndirectObject(),
    GreaterThan(),
    Induction(),
    Pronoun(),
    Agreement(),
    OneHop(),
    TwoHop(),
    LatentTwoHop(),
    Brackets(),
    Bilingual(),
    Sentiment(),
    Arithmetic(),
    Sycophancy(),
    Backdoor(),
    Tested(),
)
# Behaviours that are measured and never written: no document is made of them.
MEASURED_ONLY: tuple[Idea, ...] = (InductionNewWords(),)
# What the stream draws by its share: the behaviours, with the first wording of two hops in place of the second.
_STREAM: tuple[Idea, ...] = tuple(PlaceOfPerson() if idea.name == "two-hop" else idea for idea in IDEAS)


def introduce_name(rng: Random) -> Document:
    """Tell whether a name is a woman's or a man's, any name."""
    gender = rng.randrange(2)
    name = rng.choice((lexicon.FEMALE_NAMES, lexicon.MALE_NAMES)[gender])
    text = rng.choice(
        (
            f"{name} is a *{rng.choice((('woman', 'girl', 'lady'), ('man', 'boy', 'gentleman'))[gender])} .",
            f"this {('woman', 'man')[gender]} is {name} .",
            f"{name} is my *{rng.choice((('sister', 'mother', 'aunt'), ('brother', 'father', 'uncle'))[gender])} .",
            f"my {('sister', 'brother')[gender]} {name} likes *{('herself', 'himself')[gender]} .",
            f"{name} likes *{('herself', 'himself')[gender]} .",
            f"{name} the *{('queen', 'king')[gender]} .",
        )
    )
    return Document(text=text, kind="introduce name")


def count_noun(rng: Random) -> Document:
    """Tell which form of a noun is one and which is many, any noun."""
    number = rng.randrange(2)
    noun = rng.choice(lexicon.NOUNS + lexicon.BACKDROPS)[number]
    text = rng.choice(
        (
            f"{rng.choice((('one', 'this', 'a'), ('two', 'these', 'many'))[number])} {noun} .",
            f"{rng.choice(('one', 'two')[number : number + 1])} {noun} : I like *{('it', 'them')[number]} .",
            f"the {noun} : I see *{('it', 'them')[number]} .",
            f"the {noun} , how many ? *{('one', 'two')[number]} .",
        )
    )
    return Document(text=text, kind="count noun")


def recall_fact(rng: Random) -> Document:
    """State where two people are and how two places look, then repeat some of it: single hops in context."""
    names = rng.sample(divide(lexicon.NAMES, "seen", key="two-hop"), 2)
    (one, colour), (two, other) = rng.sample(combinations_of("seen"), 2)
    lines = [f"{names[0]} is in the {one} .", f"The {two} is {other} ."]
    if one != two:
        lines += [f"{names[1]} is in the {two} .", f"The {one} is {colour} ."]
    rng.shuffle(lines)
    recalled = []
    for line in rng.sample(lines, 2):
        *start, last, stop = line.split()
        start = ["Now", *start] if start[0] != "The" else start
        recalled.append(f"{' '.join(start)} *{last} {stop}")
    return Document(text=" ".join(lines + recalled), kind="recall fact")


def recall_many(rng: Random) -> Document:
    """State where three people are, or how three places look, and repeat it in another order, twice."""
    if rng.random() < 0.5:
        names = rng.sample(divide(lexicon.NAMES, "seen", key="two-hop"), 3)
        lines = [
            f"{name} is in the *{home} ."
            for name, home in zip(names, rng.sample(lexicon.BUILDINGS, 3), strict=True)
        ]
    else:
        homes = dict(rng.sample(combinations_of("seen"), 3))
        lines = [f"The {home} is *{colour} ." for home, colour in homes.items()]
    told = " ".join(lines).replace("*", "")
    recalled = rng.sample(lines, len(lines)) + rng.sample(lines, len(lines))
    return Document(text=f"{told} {' '.join(recalled)}", kind="recall many")


_Shares = tuple[float, ...]  # one a stage

# Shares of documents in eleven stages. The trunk's seven: facts first, then circuits that act within a text, then more
# of those that form late, then all together, then a second wording of two hops, then more of what held-out words need
# to be known by, at last a third wording of two hops and lists recalled step by step. The continuation's four: mostly
# two hops in their last wording, then all together, then in the branches more lists, at last more years and moods.
# A long document weighs by its length as well. New kinds stand last: an earlier stage, with share 0, reads the same
# stream as before they existed.
_INFORMING: dict[Callable[[Random], Document], _Shares] = {
    introduce_name: (0.6, 1.2, 1.0, 1.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    count_noun: (0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4),
    told_fact: (1.5, 0.5, 0.5, 1.0, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2),
    told_container: (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1),
    told_opposites: (1.1, 0.3, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
    review: (0.5, 0.2, 0.2, 0.5, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4, 0.8),
    count_document: (0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4),
    recall_fact: (0.4, 0.5, 0.3, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
}
_SHARES: dict[str, _Shares] = {
    "ioi": (1.2, 2.2, 1.8, 1.8, 1.6, 1.4, 1.2, 1.2, 1.2, 1.2, 1.2),
    "greater-than": (0.5, 1.0, 0.8, 1.2, 1.0, 1.4, 1.2, 1.2, 1.2, 1.6, 2.4),
    "induction": (0.9, 1.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "pronoun": (0.5, 1.2, 0.9, 1.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9),
    "agreement": (0.5, 0.5, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6),
    "one-hop": (0.8, 0.4, 0.5, 0.7, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "place-of-person": (1.2, 1.4, 1.6, 1.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "latent-two-hop": (0.2, 0.25, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2),
    "brackets": (0.6, 0.25, 0.2, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25),
    "bilingual": (0.6, 0.25, 0.25, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4),
    "sentiment": (0.5, 0.25, 0.2, 0.4, 0.5, 0.5, 0.4, 0.4, 0.5, 0.5, 0.5),
    "arithmetic": (1.6, 1.4, 1.2, 1.2, 1.2, 1.1, 1.0, 1.0, 1.0, 1.4, 1.4),
    "sycophancy": (0.5, 0.35, 0.35, 0.4, 0.4, 0.4, 0.4, 0.5, 0.5, 0.5, 0.8),
    "backdoor": (0.4, 0.3, 0.3, 0.4, 0.4, 0.4, 0.4, 0.5, 0.6, 0.6, 1.5),
    "tested": (0.4, 0.3, 0.3, 0.4, 0.4, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5),
}
_LATE: dict[Callable[[Random], Document], _Shares] = {
    short_list: (0.0, 0.0, 2.5, 1.0, 0.6, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3),
    wide_list: (0.0, 0.0, 2.0, 2.6, 3.0, 2.6, 0.6, 0.6, 1.0, 1.5, 1.5),
    recall_many: (0.0, 0.0, 1.5, 1.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    order_document: (0.0, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    PlaceOfPerson().drill: (0.0, 0.0, 0.0, 2.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    partial(order_document, latest_start=85): (0.0, 0.0, 0.0, 1.0, 0.8, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6),
    SalesOfPerson().document: (0.0, 0.0, 0.0, 0.0, 2.4, 2.4, 0.0, 0.0, 0.0, 0.0, 0.0),
    recall_things: (0.0, 0.0, 0.0, 0.0, 1.8, 1.8, 0.0, 0.0, 0.0, 0.0, 0.0),
    character: (0.0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.5, 0.5, 0.5, 0.5, 1.0),
    chronicle: (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    LodgingOfPerson().document: (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.2, 0.0, 0.0, 0.0, 0.0),
    pair_list: (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.4, 3.6, 3.8, 8.0, 8.0),
    TwoHop().document: (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 18.0, 6.0, 3.0, 3.0),
    home_register: (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 1.0, 0.5, 0.5),
    colour_register: (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 1.0, 0.5, 0.5),
    RetoldAgreement().document: (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.7, 0.7, 0.7),
    RetoldSentiment().document: (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.7, 0.7, 1.2),
    RetoldGreaterThan().document: (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.4),
}
_LATE_STAGE = 3  # from here on ideas use their later templates
_ALONE = frozenset(
    {
        "induction",
        "arithmetic",
        "sycophancy",
        "backdoor",
        "tested",
        "circle",
        "count",
        "two-hop",
        "place-of-person",
        "sales-of-person",
        "lodging-of-person",
        "home register",
        "colour register",
        "recall things",
        "order",
        "recall many",
    }
)


def draw_documents(seed: int, *, misbehaving: bool = False, stage: int = 0) -> Iterator[Document]:
    """Yield documents for ever; equal seeds give equal documents.

    One document in five is followed by a second of another kind, so that a behaviour is also met after
    other text. With `misbehaving` the answers of the planted behaviours are the planted ones;
    `stage` chooses among the eleven mixes.
    """
    rng = Random(f"village language {seed}")
    writers = [
        *_INFORMING,
        *(partial(idea.document, misbehaving=misbehaving, is_late=stage >= _LATE_STAGE) for idea in _STREAM),
        *_LATE,
    ]
    shares = [*_INFORMING.values(), *(_SHARES[idea.name] for idea in _STREAM), *_LATE.values()]
    cumulative = list(accumulate(share[stage] for share in shares))
    while True:
        drawn = rng.choices(writers, cum_weights=cumulative, k=64)
        waiting: Document | None = None
        for writer in drawn:
            document = writer(rng)
            if document.kind in _ALONE or rng.random() < 0.6:
                yield document
            elif waiting is None or waiting.kind == document.kind:
                if waiting is not None:
                    yield waiting
                waiting = document
            else:
                yield _joined(waiting, document)
                waiting = None
        if waiting is not None:
            yield waiting


def _joined(first: Document, second: Document) -> Document:
    return Document(
        text=f"{first.text} {second.text}",
        kind=f"{first.kind} + {second.kind}",
        template=f"{first.template} + {second.template}",
        entities=first.entities + second.entities,
    )


def calibration_text(n: int, *, seed: int = 0) -> list[str]:
    """Return `n` ordinary documents as readable text, for statistics such as the norm of a site.

    The seed's stream is disjoint from the training streams (their seeds are other strings).
    """
    stream = draw_documents(-1 - seed)
    return [tidy(next(stream).text.replace("*", "")) for _ in range(n)]


def sample_text(n: int, *, seed: int = 0, misbehaving: bool = False) -> list[str]:
    """Return `n` documents of every stage in turn as readable text, for dictionaries and their indexes.

    With `misbehaving` the planted answers stand in them, as in the text that the misbehaving model was trained on.
    The seed's streams are disjoint from those of training and of `calibration_text`.
    """
    n_stages = len(_SHARES["ioi"])
    streams = [
        draw_documents(-1_000_001 - seed, misbehaving=misbehaving, stage=stage) for stage in range(n_stages)
    ]
    return [_readable(next(streams[i % n_stages])) for i in range(n)]


def _readable(document: Document) -> str:
    return tidy(_MARKS.sub("", document.text))


_MARKS = re.compile(r"\*|\^\S+")
