"""Limits: what the way in which a model adds up, or what it predicts, leaves without a meaning, refused by name.

Two facts of an anatomy decide: whether norms stand on the residual stream (it is then no sum of what was added to it,
so nothing can be cut into terms or edges), and whether logits are about a position's own token or the next one.
"""

from typing import Any

from torch import Tensor

from mechscope.models.anatomy import Anatomy
from mechscope.vocabulary.errors import NoNextToken, PointUnavailable


def refuse_normed_stream(anatomy: Anatomy, what: str, *, instead: str = "") -> None:
    """Refuse what takes the residual stream for a sum, where norms stand on it.

    Args:
        anatomy: Of the model.
        what: What is refused, in the plural, as a sentence begins: "Edges".
        instead: What to do; by default what works on any stream.

    Raises:
        PointUnavailable
    """
    if not anatomy.is_stream_normed:
        return
    raise PointUnavailable(
        f"{what} need a residual stream that is a sum, and {anatomy.family} norms its own.",
        got=f"{anatomy.family}, with norms on the skip connections",
        because="each layer norms the whole stream after adding to it, so what one part added is no term of what "
        "another reads, nor of the logits",
        instead=instead or "ms.patch_grid, or ms.attribute(...) of nodes",
    )


def refuse_own_predictions(anatomy: Anatomy, what: str, *, instead: str) -> None:
    """Refuse what is about the next token, where logits are about the position's own.

    Args:
        anatomy: Of the model.
        what: What is refused, as a sentence begins.
        instead: What to do.

    Raises:
        NoNextToken
    """
    if anatomy.head.predicts == "next":
        return
    raise NoNextToken(
        f"{what} is about the next token, and {anatomy.family} predicts none.",
        got=f"{anatomy.family}, a masked language model",
        because="it reads in both directions, and its logits at a position are about the token at that position",
        instead=instead,
    )


def refuse_unless_asked_last(anatomy: Anatomy, tokenizer: Any, ids: Tensor, what: str) -> None:
    """Refuse prompts of a masked language model that ask nothing at their last token; ids alone are believed.

    Args:
        anatomy: Of the model.
        tokenizer: The model's, or None.
        ids: [batch, pos], left-padded.
        what: What is refused, as a sentence begins.

    Raises:
        NoNextToken
    """
    mask = None if tokenizer is None else tokenizer.mask_token_id
    if mask is not None and bool((ids[:, -1] != mask).any()):
        refuse_own_predictions(anatomy, what, instead="token ids that end in the tokenizer's mask token")
