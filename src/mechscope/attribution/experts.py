"""attribute_experts: a first-order effect for every expert of a mixture.

What a layer adds is the sum of its experts' outputs, so an expert's effect is the change of what it adds times the
gradient of that sum, and effects of a layer's experts add up to the layer's.
"""

import torch
from torch import Tensor

from mechscope.attribution.blocks import Block, blocks_of
from mechscope.attribution.holding import Writer
from mechscope.attribution.part_scores import PartScores
from mechscope.attribution.parts import Asked, add_effects, gradients_at, real_tokens
from mechscope.attribution.settings import Direction, NodeSettings, refuse_unknown
from mechscope.engine.kept_parts.experts import (
    ROUTINGS,
    RemovedExperts,
    Routing,
    average_experts,
    mixture_of,
    record_experts,
    site_of,
)
from mechscope.engine.kept_parts.run import Ablation
from mechscope.engine.pairs import Pairs, hash_of_prompts
from mechscope.engine.places import places_of
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site


def attribute_experts(
    model: Model,
    behavior: Pairs,
    *,
    method: str = "attribution",
    direction: Direction = "noising",
    removed: Ablation = "resample",
    routing: Routing = "recomputed",
    settings: NodeSettings | None = None,
) -> PartScores:
    """Predict, for every expert at once, how the metric changes if what it adds is exchanged at all tokens.

    Args:
        model: An open mixture.
        behavior: A behavior, one of its splits, or anything with `clean`, `corrupt` and `metric`.
        method: As in `attribute_latents`.
        direction: "noising" puts what experts add in the corrupt run into the clean run, "denoising" the reverse.
        removed: What is put there: what the expert adds in the twin, its mean over clean prompts, or nothing.
        routing: "recomputed": gradients go through routers' weights; "frozen": weights are constants.
        settings: Steps and what gradients see.

    Returns:
        Effects by site ("expert_out.3"), [n_experts], in the metric's unit.

    Raises:
        PointUnavailable: a model without experts.
        BadPairs, PairLengthMismatch, NoGradient: as `attribute_latents`.

    Cost: three forward passes and one backward pass; "ig": a forward and a backward pass a step and layer.
    Caveat: who is chosen has no gradient.
    """
    asked = Asked(
        method=method,
        direction=direction,
        removed=removed,
        settings=settings or NodeSettings(),
        writers=_held_weights(model) if routing == "frozen" else {},
    )
    refuse_unknown("routing", routing, ROUTINGS)
    layers, n_experts = mixture_of(model)
    asked.refuse_unless_sound(model, behavior)
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        blocks = list(blocks_of(model, behavior, places_of("all", model, behavior.clean, behavior.corrupt)))
        means = average_experts(model, [block.clean for block in blocks]) if removed == "mean" else {}
        for block in blocks:
            for name, found in _effects(model, block, asked, means).items():
                add_effects(sums, name, found)
    return PartScores(
        part="expert",
        effects={site_of(layer): (sums[site_of(layer)] / len(behavior.clean)).numpy() for layer in layers},
        unit=behavior.metric.unit,
        settings=asked.to_json(behavior) | {"routing": routing, "n_experts": n_experts},
        model=model.fingerprint,
        data_sha256=hash_of_prompts(behavior.clean, behavior.corrupt),
    )


def _held_weights(model: Model) -> dict[Site, Writer]:
    return {Site("expert_weight", layer): Tensor.detach for layer in mixture_of(model)[0]}


def _effects(model: Model, block: Block, asked: Asked, means: dict[str, RemovedExperts]) -> dict[str, Tensor]:
    """By site, [n_experts]: sums over tokens of a block."""
    layers, n_experts = mixture_of(model)
    is_noising = asked.direction == "noising"
    recipient, donor = (block.clean, block.corrupt) if is_noising else (block.corrupt, block.clean)
    own = record_experts(model, recipient)
    other = record_experts(model, donor) if asked.removed == "resample" else means
    mask = block.masks[0]
    ends: dict[Site, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        outputs = own[site_of(layer)].outputs
        assert outputs is not None
        ends[Site("expert_out", layer)] = (outputs, _exchanged(outputs, other.get(site_of(layer))))
    gradients = gradients_at(model, block, asked, ends)
    found: dict[str, Tensor] = {}
    for layer in layers:
        name = site_of(layer)
        # What experts add is summed, so the gradient is the same in every place of the choice.
        gradient = real_tokens(gradients[Site("expert_out", layer)][..., 0, :], mask)
        mine = _along(own[name], gradient, mask, n_experts)
        theirs = _along(other[name], gradient, mask, n_experts) if name in other else torch.zeros_like(mine)
        found[name] = theirs - mine
    return found


def _along(one: RemovedExperts, gradient: Tensor, mask: Tensor, n_experts: int) -> Tensor:
    """What experts add along a gradient, summed over tokens, [n_experts]."""
    assert one.outputs is not None
    if one.choice is None:
        return one.outputs.to(gradient) @ gradient.sum(0)
    along = (real_tokens(one.outputs, mask) * gradient[:, None]).sum(-1).flatten()
    choice = real_tokens(one.choice, mask).flatten()
    return along.new_zeros(n_experts).index_add(0, choice, along)


def _exchanged(own: Tensor, other: RemovedExperts | None) -> Tensor:
    """A layer's experts' outputs with all of them exchanged, shaped as they are."""
    if other is None or other.outputs is None:
        return torch.zeros_like(own)
    if other.choice is not None:
        return other.outputs
    whole = torch.zeros_like(own)
    whole[..., 0, :] = other.outputs.sum(0)
    return whole
