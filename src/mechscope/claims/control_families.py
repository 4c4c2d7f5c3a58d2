"""Control families by name: what a claim may be compared with, drawn for a mechanism in a model.

    other components, same layers   as many heads (or neurons) in each layer, as many MLPs, none of the mechanism's
    other components, any layer     as many heads (or neurons) and as many MLPs in all, none of the mechanism's
    random subspaces                at the mechanism's sites, of its dimension, capturing as much variance
    covariance-matched directions   at a direction's site, spread as ordinary tokens are there, of its norm
    label-shuffled re-estimates     a direction estimated again from labels in another order, of its norm
    the mechanism's own rivals      of a kind that this project does not know, as `RivalledMechanism` says
    other positions, same sites     of sites: as many other positions at each; see `site_controls.py`
    other positions, any layer      the same kinds of sites at any layer, as many positions of each kind
    random circuits                 connected, of a circuit's size, none of its edges; of latents or experts as many
                                    at each site, of those that are active, none of its own

Circuits of latents or experts can also be held against as many at any layer; both are drawn in `part_claims.py`.

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
    ANY_SITE,
    DIRECTIONS,
    FAMILIES,
    OWN,
    POSITIONS,
    RIVALS,
    SAME_LAYERS,
    SHUFFLED,
    SUBSPACES,
    Family,
    draw_selections,
    n_selections,
    shuffled_estimates,
)
from mechscope.claims.mechanisms import (
    Components,
    Direction,
    RivalledMechanism,
    Subspaces,
    captured_basis,
    difference_of_means,
    values_at,
)
from mechscope.claims.neurons import Neurons
from mechscope.claims.part_claims import Parts, family_for_parts
from mechscope.claims.rule import FEWEST_THAT_GATE
from mechscope.claims.sites import Sites
from mechscope.claims.subspaces import matched_directions, random_subspaces
from mechscope.claims.testing import DrawnControls
from mechscope.interventions.intervention import Value
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.ordinary_tokens import ordinary_tokens
from mechscope.vocabulary.errors import BadClaim, NotEnoughEvidence, ShapeError


def draw_family(
    model: Model,
    mechanism: Any,
    *,
    reference: TokenBatch,
    family: str,
    n_draws: int,
    seed: int,
    corrupt: TokenBatch | None = None,
) -> DrawnControls:
    """Draw the members of a family.

    Args:
        model: An open model.
        mechanism: What they are controls for.
        reference: Prompts whose activations continuous families are matched to.
        family: One of `FAMILIES`.
        n_draws: How many.
        seed: The claim's.
        corrupt: The reference's corrupt twins, for estimates that tell the two apart.

    Raises:
        BadClaim: no such family, or not for this kind of mechanism.
        NotEnoughEvidence: whatever captures as much variance is the mechanism itself.
    """
    if family in (SAME_LAYERS, ANY_LAYER) and isinstance(mechanism, Components | Neurons):
        drawn = draw_selections(
            selection_of(mechanism),
            universe_of(model, mechanism),
            n_draws=n_draws,
            seed=seed,
            name=family,
            anywhere=family == ANY_LAYER,
            kind_of=_kind_of,
        )
        return _from_selections(drawn, of=type(mechanism))
    if family == SUBSPACES and isinstance(mechanism, Components | Neurons) and _is_in_parts(mechanism):
        return _subspaces(model, mechanism, reference, n_draws=n_draws, seed=seed)
    if family == DIRECTIONS and isinstance(mechanism, Direction):
        return _directions(model, mechanism, reference, n_draws=n_draws, seed=seed)
    if family == SUBSPACES and isinstance(mechanism, Direction):
        covariance = _covariance_for(mechanism, model, reference)
        basis = mechanism.tensor.numpy()[None]
        found = random_subspaces(basis, covariance, n_draws=n_draws, seed=seed)
        return _along(mechanism, found[:, 0])
    if (
        family == SHUFFLED
        and isinstance(mechanism, Direction)
        and SHUFFLED in families_for(mechanism)
        and corrupt is not None
    ):
        return _shuffled(model, mechanism, (reference, corrupt), n_draws=n_draws, seed=seed)
    if family == RIVALS and isinstance(mechanism, Circuit):
        rivals = draw_rivals(mechanism, n_draws=n_draws, seed=seed)
        return DrawnControls(rivals, names=tuple(f"random {i}" for i in range(len(rivals))))
    if family == OWN and isinstance(mechanism, RivalledMechanism):
        found = list(mechanism.rivals(n_draws=n_draws, seed=seed))
        n_members = float("inf") if len(found) >= n_draws else len(found)
        return DrawnControls(found, n_members, tuple(rival.name for rival in found))
    raise _no_family(family, mechanism)


def families_for(mechanism: Any) -> tuple[str, ...]:
    """The families that can be drawn for a mechanism of this kind; () for kinds that this file does not know."""
    match mechanism:
        case Circuit():
            return (RIVALS,)
        case Parts():
            return (RIVALS, ANY_LAYER)
        case Direction():
            return (DIRECTIONS, SUBSPACES, *([] if mechanism.position is None else [SHUFFLED]))
        case Sites():
            return (POSITIONS, ANY_SITE)
        case Neurons():
            return (SAME_LAYERS, ANY_LAYER, SUBSPACES)
        case Components():
            return (SAME_LAYERS, ANY_LAYER, *([SUBSPACES] if _is_in_parts(mechanism) else []))
        case _:
            return (OWN,) if isinstance(mechanism, RivalledMechanism) else ()


def best_family(model: Model, mechanism: Any) -> str:
    """The family that a claim about this mechanism should name: the strictest that can gate.

    Raises:
        BadClaim: a mechanism that no family is known for.
    """
    if isinstance(mechanism, Parts):
        return family_for_parts(mechanism)
    if not isinstance(mechanism, Components | Neurons):
        known = families_for(mechanism)
        if not known:
            raise _no_family("", mechanism)
        return known[0]
    selection, universe = selection_of(mechanism), universe_of(model, mechanism)
    for family in (SAME_LAYERS, ANY_LAYER):
        n_members = n_selections(selection, universe, anywhere=family == ANY_LAYER, kind_of=_kind_of)
        if n_members >= FEWEST_THAT_GATE:
            return family
    has_room = all(len(selection[layer]) < len(universe[layer]) for layer in selection)
    return SUBSPACES if _is_in_parts(mechanism) and has_room else SAME_LAYERS


def _is_in_parts(mechanism: Components | Neurons) -> bool:
    """True if it is a part of each of its sites; an MLP is all of one."""
    return isinstance(mechanism, Neurons) or not mechanism.mlps


def refuse_outside(model: Model, mechanism: Components | Neurons) -> None:
    """Refuse heads, MLPs or neurons that the model has not.

    Raises:
        BadClaim: naming them.
    """
    n_selections(selection_of(mechanism), universe_of(model, mechanism))


def selection_of(mechanism: Components | Neurons) -> Mapping[Hashable, Sequence[Hashable]]:
    """The mechanism's members by group: heads or neurons by layer, and all MLPs in one group."""
    groups: dict[Hashable, Sequence[Hashable]] = {**mechanism.by_layer}
    if isinstance(mechanism, Neurons):
        return groups
    return groups | ({"mlp": mechanism.mlps} if mechanism.mlps else {})


def universe_of(model: Model, mechanism: Components | Neurons) -> Mapping[Hashable, Sequence[Hashable]]:
    """All members by group. MLPs are in it only if the mechanism has some."""
    if isinstance(mechanism, Neurons):
        widths = [int(model.weights["W_out", layer].shape[0]) for layer in range(model.n_layers)]
        return {layer: range(width) for layer, width in enumerate(widths)}
    groups: dict[Hashable, Sequence[Hashable]] = {
        layer: range(model.n_heads) for layer in range(model.n_layers)
    }
    return groups | ({"mlp": range(model.n_layers)} if mechanism.mlps else {})


def _kind_of(group: Hashable) -> Hashable:
    return "mlp" if group == "mlp" else "layer"


def _no_family(family: str, mechanism: Any) -> BadClaim:
    if family == SUBSPACES and isinstance(mechanism, Components):
        return BadClaim(
            f'no controls "{family}" for a mechanism that holds whole MLPs',
            got=mechanism.name,
            because="an MLP is all that its site carries, and the only subspace of that dimension is the site itself",
            instead=f"{SAME_LAYERS}, {ANY_LAYER}, or the MLP's neurons as ms.Neurons",
        )
    return BadClaim(
        f'no controls "{family}" for this mechanism',
        got=f"{type(mechanism).__name__}: {mechanism.name}",
        because="each kind of mechanism has its own families; only a direction that says how it was estimated can "
        "be estimated again",
        instead=", ".join(families_for(mechanism)) or ", ".join(FAMILIES),
    )


def _from_selections(drawn: Family, *, of: type[Components] | type[Neurons]) -> DrawnControls:
    mechanisms: list[Components | Neurons] = []
    for member in drawn.members:
        if of is Neurons:
            mechanisms.append(
                Neurons(tuple((group, unit) for group, chosen in member.items() for unit in chosen))  # pyright: ignore
            )
            continue
        heads = tuple((group, head) for group, chosen in member.items() if group != "mlp" for head in chosen)
        mechanisms.append(Components(heads, tuple(member.get("mlp", ()))))  # pyright: ignore
    return DrawnControls(mechanisms, drawn.n_members, tuple(m.name for m in mechanisms))


def _subspaces(
    model: Model, mechanism: Components | Neurons, reference: TokenBatch, *, n_draws: int, seed: int
) -> DrawnControls:
    draws: dict[str, np.ndarray] = {}
    for layer, members in mechanism.by_layer.items():
        site = f"{'mlp_post' if isinstance(mechanism, Neurons) else 'z'}.{layer}"
        covariance = covariance_at(model, site, reference)
        if isinstance(mechanism, Neurons):
            basis = np.eye(len(covariance))[list(members)]
        else:
            basis = captured_basis(members, model.n_heads, model.d_head)
        name = f"{SUBSPACES} {site}"
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
    covariance = _covariance_for(mechanism, model, reference)
    norm = float(mechanism.tensor.norm())
    return _along(mechanism, matched_directions(covariance, norm=norm, n_draws=n_draws, seed=seed))


def _shuffled(
    model: Model, mechanism: Direction, prompts: tuple[TokenBatch, TokenBatch], *, n_draws: int, seed: int
) -> DrawnControls:
    """The difference of means with "clean" and "corrupt" dealt anew among the same prompts, at equal norm."""
    assert mechanism.position is not None
    values = [values_at(model, mechanism.site, side, mechanism.position) for side in prompts]
    labels = np.repeat([1, 0], [len(side) for side in values])
    norm = float(mechanism.tensor.norm())

    def estimate(some: np.ndarray) -> np.ndarray:
        found = difference_of_means(np.concatenate(values), some)
        return found * (norm / np.linalg.norm(found))

    return _along(mechanism, np.stack(shuffled_estimates(estimate, labels, n_draws=n_draws, seed=seed)))


def _along(mechanism: Direction, found: np.ndarray) -> DrawnControls:
    mechanisms = [
        Direction(mechanism.site, tuple(row.tolist()), f"random {i}") for i, row in enumerate(found)
    ]
    return DrawnControls(mechanisms, float("inf"), tuple(m.label for m in mechanisms))


def _covariance_for(mechanism: Direction, model: Model, reference: TokenBatch) -> np.ndarray:
    found = covariance_at(model, mechanism.site, reference)
    if len(found) != len(mechanism.vector):
        raise ShapeError(
            "a direction of another width than its site",
            got=f"{len(mechanism.vector)} coordinates",
            because=f"{mechanism.site} carries {len(found)} at each position",
        )
    return found


def covariance_at(model: Model, site: str, prompts: TokenBatch) -> np.ndarray:
    """Covariance of all that a position carries at a site, over the prompts' ordinary tokens, [d, d].

    The first token of each prompt is left out with [BOS]: what models park there would fill the covariance, and every
    control would be the same direction.

    Raises:
        NotEnoughEvidence: there are fewer than two such tokens.
    """
    ordinary = ordinary_tokens(model, prompts, with_first=False)
    if int(ordinary.sum()) < 2:
        raise NotEnoughEvidence(
            "controls can't be matched to prompts without ordinary tokens",
            got=f"{len(prompts)} prompts with {int(ordinary.sum())} tokens besides special and first ones",
            because="a direction is matched to how the activations of text are spread",
            instead="longer prompts, or another family of controls",
        )
    value = model.run(prompts, capture=[site], stop_after=site).cache[site]
    tokens = value[ordinary.to(value.device)].flatten(1).double().cpu().numpy()
    return np.cov(tokens, rowvar=False)
