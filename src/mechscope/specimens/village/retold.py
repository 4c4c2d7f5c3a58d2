"""More wordings of three behaviours, read in the continuation and measured by nobody.

Owns: stories, agreement and spans of years in wordings nearer to the held-out templates than the trunk's were;
held-out nouns, adjectives, years and templates stay out of them as out of the others. Refuses nothing.
"""

from typing import ClassVar

from mechscope.specimens.village.grammar import Agreement
from mechscope.specimens.village.moods import Sentiment
from mechscope.specimens.village.numbers import GreaterThan


class RetoldAgreement(Agreement):
    """Agreement after other openings, every preposition with every tense."""

    templates: ClassVar[dict[str, str]] = {
        "yesterday beside": "I think that yesterday the {n} beside the {d} *was",
        "yesterday near": "I think that yesterday the {n} near the {d} *was",
        "week behind": "I think that last week the {n} behind the {d} *was",
        "yesterday behind": "Yesterday the {n} behind the {d} *was",
        "know behind": "You know that yesterday the {n} behind the {d} *was",
        "today near": "I think that today the {n} near the {d} *be",
        "today beside": "You know that today the {n} beside the {d} *be",
        "until near": "You know that until now the {n} near the {d} *have",
    }


class RetoldSentiment(Sentiment):
    """Stories that open and go on in other words."""

    templates: ClassVar[dict[str, str]] = {
        "morning": "It was a {adj} morning at the {place} . Then {name} felt *felt",
        "night": "It was a {adj} night at the {place} . {name} felt *felt",
        "later": "It was a {adj} day at the {place} . Later {name} began to *began",
        "evening at": "It was a {adj} evening . At the {place} {name} felt *felt",
        "letter": "It was a {adj} letter . Later at the {place} {name} felt *felt",
        "walk": "What a {adj} walk ! Later {name} felt *felt",
    }


class RetoldGreaterThan(GreaterThan):
    """Spans of years told with the held-out template's verbs, each in another place."""

    templates: ClassVar[dict[str, str]] = {
        "went on to": "The {event} went on from the year {c} {y} to the year {c}",
        "and ended": "The {event} lasted from the year {c} {y} and ended in the year {c}",
        "went on and": "From the year {c} {y} the {event} went on and ended in the year {c}",
        "began and": "The {event} began in the year {c} {y} and went on until the year {c}",
    }
