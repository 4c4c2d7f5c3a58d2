"""Derived points: tensors computed from formed ones when they are read, never stored by the model.

Readers hold views of the few weights that they need, not the model, so a cache can outlive it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mechscope.models.anatomy import Attention, Norm
from mechscope.models.attention import Call, attention_pattern, attention_scores, blocked_entries
from mechscope.models.binding import Binding
from mechscope.models.weights import Weights
from mechscope.vocabulary.sites import Site

Read = Callable[[Site], Tensor]
"""Gives a formed site's captured tensor."""

_NORM_INPUT = {"ln1": "resid_pre", "ln2": "resid_mid"}


class Derivations:
    """What can be computed from a run's captured tensors.

    Args:
        binding: Used once, to find weights; not kept.
        weights: Canonical weights.
    """

    def __init__(self, binding: Binding, weights: Weights) -> None:
        self._n_layers = binding.n_layers
        self._norms = dict(binding.anatomy.norms)
        self._is_parallel = binding.anatomy.is_parallel
        self._readable = frozenset(binding.readable)
        self._W_O = (
            [weights.view("W_O", layer).detach() for layer in range(binding.n_layers)]
            if weights.has("W_O")
            else []
        )

    def sources(self, site: Site) -> tuple[Site, ...]:
        """The formed sites that a derived site is computed from."""
        if site.point == "head_out":
            return (Site("z", site.layer),)
        return (self._norm_input(site),)

    def compute(self, site: Site, read: Read) -> Tensor:
        """The derived tensor, in the table's axes."""
        if site.point == "head_out":
            assert site.layer is not None
            z = read(Site("z", site.layer))
            return torch.einsum("bphd,hdm->bphm", z, self._W_O[site.layer].to(z.device))
        norm = self._norms[_norm_name(site)]
        arriving = read(self._norm_input(site))
        scale = norm_scale(arriving, norm)
        if site.point.endswith("_scale"):
            return scale
        return centred(arriving, norm) / scale

    def _norm_input(self, site: Site) -> Site:
        name = _norm_name(site)
        if name == "ln_final":
            return Site("resid_post", self._n_layers - 1)
        point = "resid_pre" if self._is_parallel else _NORM_INPUT[name]
        return Site(point, site.layer)


def norm_scale(arriving: Tensor, norm: Norm) -> Tensor:
    """What a norm divides by, [..., 1], in at least float32 as the models compute it."""
    wide = centred(arriving.to(torch.promote_types(arriving.dtype, torch.float32)), norm)
    return (wide.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt().to(arriving.dtype)


def centred(arriving: Tensor, norm: Norm) -> Tensor:
    """What a norm divides: the input, less its mean for LayerNorm."""
    return arriving - arriving.mean(-1, keepdim=True) if norm.kind == "layer" else arriving


def normed(arriving: Tensor, module: nn.Module, norm: Norm) -> Tensor:
    """A norm's output by its formula: what it divides over its scale, times its weight, plus its bias."""
    found = norm_weight(module, norm)
    out = centred(arriving, norm) / norm_scale(arriving, norm)
    out = out if found["weight"] is None else out * found["weight"]
    return out if found["bias"] is None else out + found["bias"]


def _norm_name(site: Site) -> str:
    return site.point.rsplit("_", 1)[0]


def map_from_call(call: Call, point: str, anatomy: Attention) -> Tensor:
    """Scores or pattern of a recorded attention call, formed when somebody reads them."""
    if point == "pattern":
        return attention_pattern(call, anatomy)
    scores, blocked = attention_scores(call), blocked_entries(call)
    return scores if blocked is None else scores.masked_fill(blocked, float("-inf"))


def norm_weight(module: nn.Module, norm: Norm) -> Mapping[str, Tensor | None]:
    """A norm's multiplicative weight and bias as they act."""
    weight, bias = dict(module.named_parameters()).get("weight"), dict(module.named_parameters()).get("bias")
    return {"weight": None if weight is None else weight + norm.weight_offset, "bias": bias}
