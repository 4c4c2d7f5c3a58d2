"""What the tests of interventions share: small models, prompts of two lengths, and a forward by hand."""

from functools import cache

import torch
from torch import Tensor

from family_cases import opened
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site
from tiny_models import VOCABULARY


def model_of(name: str = "llama") -> Model:
    """A tiny model in double precision, opened once."""
    return opened(name)


def random_rows(lengths: tuple[int, ...], seed: int = 0) -> TokenBatch:
    """Random prompts of given lengths, left-padded."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return batch_of(rows, pad_id=0)


@cache
def prompts(seed: int = 0) -> TokenBatch:
    """Two prompts, of 8 and 5 tokens."""
    return random_rows((8, 5), seed)


def direction(d: int, seed: int = 0, n: int | None = None) -> Tensor:
    """A random direction [d], or n of them [n, d]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((d,) if n is None else (n, d), generator=generator, dtype=torch.float64)


def effect(model: Model, writes: list[Write], batch: TokenBatch | None = None) -> float:
    """Largest change that interventions make to the logits of real tokens."""
    batch = prompts() if batch is None else batch
    return biggest(model.logits(batch, interventions=writes), model.logits(batch), batch)


def biggest(a: Tensor, b: Tensor, batch: TokenBatch) -> float:
    """Largest difference of two [batch, pos, *] tensors over real tokens."""
    real = batch.mask.bool()
    return float((a - b)[real].abs().max())


class LinearCodec:
    """A toy dictionary: three directions, read by their pseudo-inverse."""

    def __init__(self, at: Site, writes: Site | None = None) -> None:
        self.decoder = direction(32, n=3)
        self.encoder = torch.linalg.pinv(self.decoder)
        self.reads, self.writes = (at,), (writes or at,)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        return values @ self.encoder.to(values)

    def decode(self, codes: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        return codes @ self.decoder.to(codes)
