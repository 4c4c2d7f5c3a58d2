"""What the tests of graphs share: tiny models whose norms are in double precision, dictionaries, prompts, an oracle.

The library computes RMS norms in single precision whatever the model's own, so double-precision identities would hold
to 1e-7 only. Here each such norm's forward is replaced by the same formula in the precision of its input.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.graphs.replacement import random_transcoders
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from tiny_models import VOCABULARY, tiny

FAMILIES = ("gpt2", "llama", "gemma2", "qwen3", "gpt_neox", "olmo2")
MORE_FAMILIES = ("mistral", "granite", "phi", "mixtral", "gpt_oss", "native_bidirectional")
KINDS = ("transcoder", "skip_transcoder", "cross_layer_transcoder", "sae")
N_TOKENS = 7


@cache
def exact_model(family: str) -> Model:
    """A tiny model in double precision throughout."""
    hf = tiny(family, torch.float64)
    for module in hf.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = _exact_norm(module)  # type: ignore[method-assign]
    return wrap(hf, check=False)


def _exact_norm(module: nn.Module) -> Any:
    offset = 1.0 if "Gemma" in type(module).__name__ else 0.0
    eps = getattr(module, "eps", None) or module.variance_epsilon  # type: ignore[assignment]

    def forward(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * (module.weight + offset)  # type: ignore[operator]

    return forward


@cache
def dictionaries(
    family: str, kind: str = "transcoder", n_latents: int = 32, k: int = 3
) -> tuple[Dictionary, ...]:
    """Random dictionaries that fit."""
    return tuple(random_transcoders(exact_model(family), n_latents, seed=1, k=k, kind=kind))


def prompt(n: int = N_TOKENS, seed: int = 5) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (n,), generator=generator).tolist()


def batch(n: int = N_TOKENS, seed: int = 5) -> TokenBatch:
    """The same as a batch."""
    return batch_of([prompt(n, seed)], pad_id=0)
