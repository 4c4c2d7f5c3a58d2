"""First-order effects of latents that write several sites: what each writes along the gradient of every one of them.

At each site latents and error make up the site's value, so their effects make up its effect.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.attribution.parts import real_tokens
from mechscope.engine.kept_parts.homes import Home
from mechscope.engine.kept_parts.removed_latents import CountedCodec
from mechscope.engine.kept_parts.several_sites import RemovedAcross, nothing_at, record_across
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.splicing import part_written
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True)
class Across:
    """One dictionary in a block of pairs.

    Args:
        codec: The dictionary.
        own: Its codes and the sites' values in the run where latents are exchanged.
        other: What they are exchanged for.
    """

    codec: CountedCodec
    own: RemovedAcross
    other: RemovedAcross


def record_both(
    model: Model, codec: CountedCodec, recipient: TokenBatch, other: TokenBatch | RemovedAcross
) -> Across:
    """Both ends, recorded.

    Cost: a forward pass for each that is prompts.
    """
    removed = other if isinstance(other, RemovedAcross) else record_across(model, codec, other)
    return Across(codec, record_across(model, codec, recipient), removed)


def exchanged_across(across: Across, site: Site) -> Tensor:
    """A site's value with everything exchanged, [batch, pos, d_out] or something that spreads to it."""
    if across.other.written is not None:
        return across.other.written[site]
    assert across.own.codes is not None
    return nothing_at(across.codec, across.own.codes, site)


def effects_across(
    across: Across, homes: Mapping[str, Home], *, gradients: Mapping[Site, Tensor], mask: Tensor, most: int
) -> dict[str, Tensor]:
    """Effects by home, [latents at home + 1] with the site's error last: sums over real tokens.

    Args:
        across: The dictionary in the block.
        homes: Its homes by name.
        gradients: Of the metric at each site, at real tokens, [n_tokens, d_out].
        mask: Real tokens, [batch, pos].
        most: Codes that are held at once.
    """
    codec = across.codec
    assert across.own.codes is not None and across.own.written is not None
    own = real_tokens(across.own.codes, mask)
    theirs = _at(across.other.codes, mask, own)
    latents = torch.zeros(codec.n_latents, dtype=torch.float64, device=own.device)
    errors: dict[Site, Tensor] = {}
    for site, gradient in gradients.items():
        here = torch.zeros_like(latents)
        for start in range(0, len(gradient), max(1, most // codec.n_latents)):
            at = slice(start, start + max(1, most // codec.n_latents))
            along = _along(codec, own[at], site, gradient[at])
            here += ((theirs[at] - own[at]) * along).sum(0, dtype=torch.float64)
        latents += here
        value = real_tokens(across.own.written[site], mask)
        change = _at(exchanged_across(across, site), mask, value) - value
        errors[site] = (change * gradient).sum(dtype=torch.float64) - here.sum()
    return {name: torch.cat([latents[home.latents], errors[home.site][None]]) for name, home in homes.items()}


def _at(tensor: Tensor | None, mask: Tensor, like: Tensor) -> Tensor:
    """Values of real tokens; a constant is spread over them, and None is zero."""
    if tensor is None:
        return torch.zeros_like(like)
    found = real_tokens(tensor, mask) if tensor.ndim > 2 else tensor
    return found.to(like).expand_as(like)


def _along(codec: CountedCodec, codes: Tensor, site: Site, gradient: Tensor) -> Tensor:
    """The gradient along what each latent writes to a site, [n_tokens, n_latents]."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = torch.zeros_like(codes).requires_grad_()
        written = part_written(codec, codec.decode(leaf), site).flatten(1)
        return torch.autograd.grad(written, leaf, gradient.to(written))[0]
