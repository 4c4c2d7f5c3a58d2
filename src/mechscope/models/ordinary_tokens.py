"""Ordinary tokens: which positions of a batch hold text, and not padding or a tokenizer's own marks.

Networks park vectors many times longer than a word's at [BOS] and its like, so that whatever is typical of a site's
values (the unit of doses, the spread that controls are matched to) is taken over ordinary tokens alone.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from mechscope.models.inputs import TokenBatch

if TYPE_CHECKING:
    import mechscope.models.model


def ordinary_tokens(
    model: "mechscope.models.model.Model", batch: TokenBatch, *, with_first: bool = True
) -> Bool[Tensor, "batch pos"]:
    """True where a batch holds text: no padding and none of the tokenizer's special tokens.

    Args:
        model: Whose tokenizer says what is special; without a tokenizer nothing is.
        batch: Token ids.
        with_first: False leaves out the token with which each row begins, too: where no [BOS] is put in front, it is
            there that models park their long vector.
    """
    special = [] if model.tokenizer is None else model.tokenizer.all_special_ids
    ordinary = batch.mask.bool() & ~torch.isin(batch.ids, torch.tensor(special, dtype=torch.long))
    if not with_first:
        ordinary[torch.arange(len(batch)), batch.n_pad] = False
    return ordinary
