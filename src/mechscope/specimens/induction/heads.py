"""What each of the 32 heads looks at and writes: the specimen's mechanism as one table.

Owns: `HEADS`. Two rows are the mechanism (see `truth.py`); the others are distractors, which attend to
    something and write something small that nothing needs. Some only look like the true ones.
Invariant: a head is one way of looking and one way of writing, both named here.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Plan:
    """One head in words.

    Args:
        looks: "back" (`steps` positions back), "at_first" (the first token), "at_same_token" (itself
            and earlier copies of its token), "after_same_token" (what followed earlier copies: the
            induction pattern), or "anywhere" (a random bilinear form).
        writes: "noise" (a random map of all it sees), or "token->SUBSPACE" (the token it looks at).
        steps: For "back" only; 0 is the head's own position.
        gain: Size of what a "token->..." head writes; the true heads write with gain 1.
    """

    looks: Literal["back", "at_first", "at_same_token", "after_same_token", "anywhere"]
    writes: str = "noise"
    steps: int = 0
    gain: float = 1.0


def _back(steps: int) -> Plan:
    return Plan("back", steps=steps)


COPY_SELF = 1 / 32
ANYWHERE = Plan("anywhere")
AT_FIRST = Plan("at_first")

HEADS: tuple[tuple[Plan, ...], tuple[Plan, ...]] = (
    (
        _back(2),
        ANYWHERE,
        Plan("back", "token->token", steps=0, gain=COPY_SELF),
        AT_FIRST,
        Plan("at_same_token", "token->token", gain=COPY_SELF),
        Plan("back", "token->previous", steps=1),  # the previous-token head
        _back(1),  # looks like it, and writes noise
        _back(3),
        ANYWHERE,
        _back(5),
        Plan("at_same_token"),
        ANYWHERE,
        _back(8),
        Plan("back", "token->token", steps=4, gain=COPY_SELF),
        ANYWHERE,
        AT_FIRST,
    ),
    (
        AT_FIRST,
        Plan("back", "token->copied", steps=0, gain=COPY_SELF),
        _back(1),
        ANYWHERE,
        Plan("after_same_token"),  # looks like the induction head, and writes noise
        _back(2),
        ANYWHERE,
        Plan("at_same_token", "token->copied", gain=COPY_SELF),
        ANYWHERE,
        _back(6),
        AT_FIRST,
        Plan("after_same_token", "token->copied"),  # the induction head
        Plan("at_same_token"),
        ANYWHERE,
        Plan("back", "token->copied", steps=3, gain=COPY_SELF),
        _back(12),
    ),
)
