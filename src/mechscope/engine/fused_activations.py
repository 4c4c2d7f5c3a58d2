"""Fused activations: a GELU that a library writes as eight operators runs as one, inside a replay.

The tanh form of GELU, operator by operator, reads and writes the widest activation of a layer eight times: a sixth of
a packed replay of a GPT-2. torch has the same function as one operator; the two differ by rounding.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

from torch import nn
from transformers.activations import AccurateGELUActivation, NewGELUActivation

from mechscope.models.binding import Binding
from mechscope.models.running import standing_in

_fused_gelu = partial(nn.functional.gelu, approximate="tanh")


@contextmanager
def fused_activations(binding: Binding, layer: int) -> Generator[None, None, None]:
    """Let a layer's tanh GELUs be computed by one operator, inside the block. Other activations go on as they are."""
    spelled_out = [
        module
        for module in binding.layers[layer].modules()
        if type(module) in (NewGELUActivation, AccurateGELUActivation)
    ]
    with standing_in(dict.fromkeys(spelled_out, _fused_gelu)):
        yield
