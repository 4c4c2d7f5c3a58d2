"""Run: what one forward pass gave."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mechscope.models.cache import Cache, Name
from mechscope.models.inputs import TokenBatch


@dataclass(frozen=True)
class Run:
    """What one forward pass gave.

    Args:
        tokens: The batch that ran.
        logits: [batch, pos, d_vocab]; None if the run stopped earlier.
        cache: What was captured.
    """

    tokens: TokenBatch
    logits: Float[Tensor, "batch pos d_vocab"] | None
    cache: Cache

    def __getitem__(self, name: Name) -> Tensor:
        return self.cache[name]
