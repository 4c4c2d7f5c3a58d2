"""Query and key nodes of AtP*: the softmax is computed again with the patched queries or keys.

A gradient through a saturated softmax is nearly zero however much a patch would move the attention. Here only what
follows the pattern is linear: the effect is (patched pattern - pattern) times the metric's gradient at the pattern.
"""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from mechscope.models.anatomy import Attention
from mechscope.models.attention import Call, attention_pattern, attention_scores

OfMasks = Callable[[Tensor], Tensor]
"""Gradient at a pattern, [batch, head, query, key], to cells [component, place, pair]."""


def query_effects(call: Call, anatomy: Attention, donor: Tensor, masks: tuple[Tensor, ...]) -> OfMasks:
    """Effects of patched queries; a query changes its own row of the pattern only.

    Args:
        call: The recipient's attention call.
        anatomy: Of the attention.
        donor: Patched queries, [batch, pos, head, d_head].
        masks: Tokens of each place, [batch, pos].
    """
    call = _detached(call)
    patched = replace(call, query=donor.transpose(1, 2).to(call.query))
    change = attention_pattern(patched, anatomy) - attention_pattern(call, anatomy)
    selected = torch.stack(masks).to(change)

    def effects(gradient: Tensor) -> Tensor:
        return torch.einsum("bhq,pbq->hpb", (change * gradient).sum(-1), selected)

    return effects


def key_effects(call: Call, anatomy: Attention, donor: Tensor, masks: tuple[Tensor, ...]) -> OfMasks:
    """Effects of patched keys of each key/value head, over all query heads that share it.

    Places of one token each cost one pattern for all of them: one logit and the normaliser change. Wider places
    cost a pattern each.
    """
    call = _detached(call)
    n_kv = call.key.shape[1]
    keys = donor.transpose(1, 2).to(call.key)
    if all(int(mask.sum(1).max()) <= 1 for mask in masks):
        return _single_keys(call, anatomy, keys, masks)
    own = attention_pattern(call, anatomy)
    changes = [
        attention_pattern(replace(call, key=torch.where(mask[:, None, :, None], keys, call.key)), anatomy)
        - own
        for mask in masks
    ]

    def effects(gradient: Tensor) -> Tensor:
        found = torch.stack([(change * gradient).sum((-2, -1)) for change in changes])
        return found.unflatten(-1, (n_kv, -1)).sum(-1).permute(2, 0, 1)

    return effects


def _single_keys(call: Call, anatomy: Attention, keys: Tensor, masks: tuple[Tensor, ...]) -> OfMasks:
    # With one key j patched, row i of the pattern is P with entry j times e, over a normaliser of 1 - P_j + P_j e,
    # e the exponential of the score's change; a sink's share scales with the rest.
    pattern = attention_pattern(call, anatomy)
    moved = attention_scores(replace(call, key=keys)) - attention_scores(call)
    ratio = torch.where(pattern > 0, moved.to(pattern), 0.0).exp()
    normaliser = 1 - pattern + pattern * ratio
    selected = torch.stack(masks).to(pattern)
    n_kv = call.key.shape[1]

    def effects(gradient: Tensor) -> Tensor:
        row = (pattern * gradient).sum(-1, keepdim=True)
        changed = (1 / normaliser - 1) * row + pattern * (ratio - 1) / normaliser * gradient
        by_key = changed.sum(-2).unflatten(1, (n_kv, -1)).sum(2)
        return torch.einsum("bhk,pbk->hpb", by_key, selected)

    return effects


def _detached(call: Call) -> Call:
    tensors = {f.name: getattr(call, f.name) for f in fields(call)}
    return replace(call, **{name: t.detach() for name, t in tensors.items() if isinstance(t, Tensor)})
