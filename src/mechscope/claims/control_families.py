"""Control families by name: what a claim may be compared with, drawn for a mechanism in a model.

    other components, same layers   as many heads in each layer (and as many MLPs), none of the mechanism's
    other components, any layer     as many heads in all, none of the mechanism's
    random subspaces                at the mechanism's sites, of its dimension, capturing as much variance
    covariance-matched directions   at a direction's site, spread as the activations are, of its norm
    random circuits                 connected, of a circuit's size, none of its edges

The first two are enumerable: all members are measured where there are at most 1,000. A family of fewer than 39
members is shown as a rank and can't gate; the others are always available.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mechscope.circuits.circuit import Circuit
from mechscope.claims.circuit_claims import draw_rivals
from mechscope.claims.controls import (
    ANY_LAYER,
    DIRECTIONS,
    FAMILIES,
    RIVALS,
    SAME_LAYERS,
    SUBSPACES,
    Family,
    draw_selections,
    n_selections,
)
from mechscope.claims.mechanisms import Components, Direction, Subspaces, captured_basis
from mechscope.claims.rule import FEWEST_THAT_GATE
from mechscope.claims.subspaces import matched_directions, random_subspaces
from mechscope.claims.testing import DrawnControls
from mechscope.interventions.intervention import Value
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadClaim


def draw_family(
    model: Model, mechanism: Any, *, reference: TokenBatch, family: str, n_draws: int, seed: int
) -> DrawnControls:
    """Draw the members of a family.

    Args:
        model: An open model.
        mechanism: What they are controls for.
        reference: Prompts whose activations continuous families are matched to.
        family: One of `FAMILIES`.
        n_draws: How many.
        seed: The claim's.

    Raises:
        BadClaim: no such family, or not for this kind of mechanism.
    """
    if family in (SAME_LAYERS, ANY_LAYER) and isinstance(mechanism, Components):
        drawn = draw_selections(
            selection_of(mechanism),
            universe_of(model, mechanism),
            n_draws=n_draws,
            seed=seed,
            name=family,
            anywhere=family == ANY_LAYER,
        )
        return _from_selections(drawn)
    if family == SUBSPACES and isinstance(mechanism, Components) and not mechanism.mlps:
        return _subspaces(model, mechanism, reference, n_draws=n_draws, seed=seed)
    if family == DIRECTIONS and isinstance(mechanism, Direction):
        return _directions(model, mechanism, reference, n_draws=n_draws, seed=seed)
    if family == RIVALS and isinstance(mechanism, Circuit):
        rivals = draw_rivals(mechanism, n_draws=n_draws, seed=seed)
        return DrawnControls(rivals, names=tuple(f"random {i}" for i in range(len(rivals))))
    raise BadClaim(
        f'no controls "{family}" for this mechanism',
        got=f"{type(mechanism).__name__}: {mechanism.name}",
        because="heads have other heads and random subspaces; directions have random directions",
        instead=", ".join(FAMILIES),
    )


def best_family(model: Model, mechanism: Components | Direction | Circuit) -> str:
    """The family that a claim about this mechanism should name: the strictest that can gate."""
    if isinstance(mechanism, Circuit):
        return RIVALS
    if isinstance(mechanism, Direction):
        return DIRECTIONS
    selection, universe = selection_of(mechanism), universe_of(model, mechanism)
    for family in (SAME_LAYERS, ANY_LAYER):
        n_members = n_selections(selection, universe, anywhere=family == ANY_LAYER)
        if n_members >= FEWEST_THAT_GATE:
            return family
    return SAME_LAYERS if mechanism.mlps else SUBSPACES


def selection_of(mechanism: Components) -> Mapping[Hashable, Sequence[Hashable]]:
    """The mechanism's members by group: heads by layer, and all MLPs in one group."""
    groups: dict[Hashable, Sequence[Hashable]] = {**mechanism.by_layer}
    return groups | ({"mlp": mechanism.mlps} if mechanism.mlps else {})


def universe_of(model: Model, mechanism: Components) -> Mapping[Hashable, Sequence[Hashable]]:
    """All members by group. MLPs are in it only if the mechanism has some."""
    groups: dict[Hashable, Sequence[Hashable]] = {
        layer: range(model.n_heads) for layer in range(model.n_layers)
    }
    return groups | ({"mlp": range(model.n_layers)} if mechanism.mlps else {})


def _from_selections(drawn: Family) -> DrawnControls:
    mechanisms = []
    for member in drawn.members:
        heads = tuple((group, head) for group, chosen in member.items() if group != "mlp" for head in chosen)
        mechanisms.append(Components(heads, tuple(member.get("mlp", ()))))  # pyright: ignore
    return DrawnControls(mechanisms, drawn.n_members, tuple(m.name for m in mechanisms))


def _subspaces(
    model: Model, mechanism: Components, reference: TokenBatch, *, n_draws: int, seed: int
) -> DrawnControls:
    draws: dict[str, np.ndarray] = {}
    for layer, heads in mechanism.by_layer.items():
        site = f"z.{layer}"
        basis = captured_basis(heads, model.n_heads, model.d_head)
        name = f"{SUBSPACES} {site}"
        covariance = covariance_at(model, site, reference)
        draws[site] = random_subspaces(basis, covariance, n_draws=n_draws, seed=seed, name=name)
    mechanisms = [
        Subspaces(
            tuple((site, Value(torch.from_numpy(found[i]))) for site, found in draws.items()), f"random {i}"
        )
        for i in range(n_draws)
    ]
    return DrawnControls(mechanisms, float("inf"), tuple(m.label for m in mechanisms))


def _directions(
    model: Model, mechanism: Direction, reference: TokenBatch, *, n_draws: int, seed: int
) -> DrawnControls:
    covariance = covariance_at(model, mechanism.site, reference)
    norm = float(mechanism.tensor.norm())
    found = matched_directions(covariance, norm=norm, n_draws=n_draws, seed=seed)
    mechanisms = [
        Direction(mechanism.site, tuple(row.tolist()), f"random {i}") for i, row in enumerate(found)
    ]
    return DrawnControls(mechanisms, float("inf"), tuple(m.label for m in mechanisms))


def covariance_at(model: Model, site: str, prompts: TokenBatch) -> np.ndarray:
    """Covariance of all that a position carries at a site, over the prompts' real tokens, [d, d]."""
    value = model.run(prompts, capture=[site], stop_after=site).cache[site]
    tokens = value[prompts.mask.bool().to(value.device)].flatten(1).double().cpu().numpy()
    return np.cov(tokens, rowvar=False)
