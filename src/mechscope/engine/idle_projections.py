"""Idle projections: a layer call in which no query, key or value is read does not compute them.

Rows that join at a layer behind its attention (a patch of `z`, `attn_out`, `mlp_post`) take the base run's mixed
values. The library's layer would still project them to queries, keys and values, a quarter of the layer's products.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mechscope.models.binding import Binding
from mechscope.models.running import standing_in

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@contextmanager
def idle_projections(binding: Binding, layer: int) -> Generator[None, None, None]:
    """Let a layer's query, key and value projections answer with zeros that take no memory, inside the block.

    Projections that are no plain linear maps go on as they are: right, and no faster.
    """
    idle = {module: partial(_zeros, width=width) for module, width in _linear_maps(binding, layer).items()}
    with standing_in(idle):
        yield


def _linear_maps(binding: Binding, layer: int) -> dict[nn.Module, int]:
    found: dict[nn.Module, int] = {}
    parts = binding.parts_of(layer)
    for point in _PROJECTIONS:
        part = parts.get(point)
        module = None if part is None else binding.layers[layer].get_submodule(part.module)
        if type(module) is nn.Linear:
            found[module] = module.out_features
        elif type(module) is Conv1D:
            found[module] = module.nf
    return found


def _zeros(x: Tensor, *, width: int) -> Tensor:
    return x.new_zeros(()).expand(*x.shape[:-1], width)
