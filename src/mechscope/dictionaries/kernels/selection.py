"""Selection: which latents of a full product of pre-activations matter, in few passes over it.

The product may be in bfloat16, where the machine multiplies it faster; it then only proposes candidates, and what
is kept is rescored in the weights' own precision. No gradients here.
"""

import math
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.dictionaries.kernels.pattern import Pattern

ROUNDING = 2.0**-8
"""Relative rounding of a bfloat16 number."""


@cache
def multiplies_bfloat16(device_type: str) -> bool:
    """Whether bfloat16 products are faster than float32 ones on this device."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    tell = getattr(torch.cpu, "get_capabilities", None)  # not in every release
    capabilities = {} if tell is None else tell()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))


def _group_size(width: int, wanted: float = 32.0) -> int:
    """A power of two near what is wanted that divides the width; 1 if none does."""
    sizes = [size for size in (8, 16, 32) if width % size == 0]
    return min(sizes, key=lambda size: abs(math.log(size / wanted)), default=1)


def largest(pre: Float[Tensor, "row latent"], k: int) -> Int[Tensor, "row k"]:
    """Indices of the k largest in each row, in no order.

    The k largest lie in the k groups with the largest maxima, so that one pass takes maxima and the search
    looks at k groups only.
    """
    n, width = pre.shape
    size = _group_size(width, (width / k) ** 0.5)  # the search looks at width / size + k x size numbers
    n_groups = width // size
    if size == 1 or n_groups <= 2 * k or pre.device.type != "cpu":
        return pre.topk(k, dim=1, sorted=False).indices
    grouped = pre.view(n, size, n_groups)  # group g holds latents g, g + n_groups, ...
    groups = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    inside = grouped.gather(2, groups[:, None, :].expand(-1, size, -1)).flatten(1)
    chosen = inside.topk(k, dim=1, sorted=False).indices
    return chosen.div(k, rounding_mode="floor") * n_groups + groups.gather(1, chosen % k)


def above(pre: Float[Tensor, "row latent"], floor: float | Tensor) -> Pattern:
    """Every entry above a floor, a number for all.

    Cost: one pass for maxima of groups, then only groups that hold something are looked at.
    """
    n, width = pre.shape
    size = _group_size(width)
    n_groups = width // size
    grouped = pre.view(n, size, n_groups)
    rows, groups = (grouped.amax(1) > floor).nonzero(as_tuple=True)
    hits, member = (grouped[rows, :, groups] > floor).nonzero(as_tuple=True)
    return Pattern.of_entries(rows[hits], member * n_groups + groups[hits], n, width)


def floor_of_largest(pre: Float[Tensor, "row latent"], n: int) -> Tensor:
    """A floor that about the `n` largest entries of the whole matrix exceed, and at least `n` reach.

    It is the n-th largest maximum among groups of one latent's neighbours, so that it never lies above the n-th
    largest entry. Ties aside, `above(pre, floor)` holds the n largest and somewhat more.
    """
    rows, width = pre.shape
    size = _group_size(width)
    maxima = pre.view(rows, size, width // size).amax(1).reshape(-1)
    if n >= len(maxima):
        return pre.reshape(-1).kthvalue(max(1, pre.numel() - n)).values
    return maxima.kthvalue(len(maxima) - n).values
