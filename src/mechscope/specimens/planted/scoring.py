"""A dictionary against the truth: what it recovers, and how it fails. Pure functions on tensors.

Owns: the definitions of matched cosine, recovered share, precision, firing precision and recall, splitting and
absorption. It knows no dictionary: directions are rows of a decoder, codes are `Firings`.

Cosines are signed: a latent that points the other way writes the opposite and has recovered nothing.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mechscope.specimens.planted.firings import Firings
from mechscope.vocabulary.errors import NonFiniteActivations, ShapeError

RECOVERED_ABOVE = 0.9
"""A feature counts as recovered where its latent's cosine is above this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Matching:
    """Features and latents paired one to one, so that the sum of cosines is largest (Hungarian).

    Args:
        latent: Of each feature; -1 where there are fewer latents than features.
        cosine: Of each feature with its latent; 0 where it has none.
        best_latent_cosine: The largest cosine of each feature with any latent, shared ones too.
        best_feature: Of each latent, the feature that it is nearest to.
        best_feature_cosine: That cosine.
    """

    latent: Int[Tensor, " feature"]
    cosine: Float[Tensor, " feature"]
    best_latent_cosine: Float[Tensor, " feature"]
    best_feature: Int[Tensor, " latent"]
    best_feature_cosine: Float[Tensor, " latent"]

    @property
    def feature_of(self) -> Int[Tensor, " latent"]:
        """The feature of each latent under the pairing; -1 for latents that have none."""
        feature_of = torch.full_like(self.best_feature, -1)
        paired = self.latent >= 0
        feature_of[self.latent[paired]] = paired.nonzero()[:, 0]
        return feature_of

    def recovered(self, threshold: float = RECOVERED_ABOVE) -> Bool[Tensor, " feature"]:
        """Which features have a latent of their own with a cosine above `threshold`."""
        return self.cosine > threshold


def match_directions(
    decoder: Float[Tensor, "latent d_model"], directions: Float[Tensor, "feature d_model"]
) -> Matching:
    """Pair planted directions with decoder rows, one to one.

    Args:
        decoder: Rows of any norm; a row of zeros has cosine 0 with everything. Take dead latents out first
            if they are not to count.
        directions: The truth's.

    Raises:
        ShapeError: the two have different widths.
        NonFiniteActivations: NaN or infinite decoder rows.

    Cost: one product of all pairs, and the assignment: cubic at worst, seconds for 4,096 of each.
    """
    if decoder.ndim != 2 or decoder.shape[1] != directions.shape[1]:
        raise ShapeError(
            "The decoder and the planted directions have different widths.",
            got=f"decoder {list(decoder.shape)}, directions {list(directions.shape)}",
            instead="a decoder of shape [latent, d_model]: its rows are the directions it writes",
        )
    if not bool(torch.isfinite(decoder).all()):
        raise NonFiniteActivations(
            "A decoder row is not finite.",
            got=f"{int((~torch.isfinite(decoder).all(1)).sum())} of {len(decoder)} rows",
            because="a cosine with them is not a number",
        )
    cosines = (_unit(directions.double().cpu()) @ _unit(decoder.double().cpu()).T).clamp(-1, 1)
    feature, latent = (torch.from_numpy(part) for part in linear_sum_assignment(cosines, maximize=True))
    of_feature = torch.full((len(directions),), -1)
    of_feature[feature] = latent
    paired = torch.zeros(len(directions), dtype=torch.float64)
    paired[feature] = cosines[feature, latent]
    nearest = cosines.max(dim=0)
    return Matching(
        latent=of_feature,
        cosine=paired,
        best_latent_cosine=cosines.amax(dim=1),
        best_feature=nearest.indices,
        best_feature_cosine=nearest.values,
    )


def direction_precision(
    matching: Matching, live: Bool[Tensor, " latent"], *, threshold: float = RECOVERED_ABOVE
) -> float:
    """Share of live latents that are some feature's own: paired with it at a cosine above `threshold`.

    1 says that every latent in use means one planted feature; duplicates and mixtures lower it.
    """
    return _share(int((own_latents(matching, threshold=threshold) & live.cpu()).sum()), int(live.sum()))


def own_latents(matching: Matching, *, threshold: float = RECOVERED_ABOVE) -> Bool[Tensor, " latent"]:
    """Which latents are paired with a feature at a cosine above `threshold`."""
    own = torch.zeros(len(matching.best_feature), dtype=torch.bool)
    own[matching.latent[matching.recovered(threshold)]] = True
    return own


def split_features(
    matching: Matching, live: Bool[Tensor, " latent"], *, threshold: float = RECOVERED_ABOVE
) -> Int[Tensor, " feature"]:
    """How many live latents each feature is split into: those nearest to it, with a cosine above `threshold`."""
    near = live.cpu() & (matching.best_feature_cosine > threshold)
    return torch.bincount(matching.best_feature[near], minlength=len(matching.latent))


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """How well each feature's latent says when the feature is on: counts of tokens."""

    both: Int[Tensor, " feature"]
    latent_on: Int[Tensor, " feature"]
    feature_on: Int[Tensor, " feature"]

    @property
    def precision(self) -> Float[Tensor, " feature"]:
        """Of the tokens where the latent fires, the share where the feature is on; 0 where it never fires."""
        return self.both / self.latent_on.clamp(min=1)

    @property
    def recall(self) -> Float[Tensor, " feature"]:
        """Of the tokens where the feature is on, the share where its latent fires; 0 where it is never on."""
        return self.both / self.feature_on.clamp(min=1)


def detect_features(latents: Firings, features: Firings, matching: Matching) -> Detection:
    """Compare when latents fire with when their features are on, over the same tokens."""
    as_features = latents_as_features(latents, features, matching)
    is_true = torch.isin(as_features.cells, features.cells, assume_unique=True)
    return Detection(
        both=torch.bincount(as_features.unit[is_true], minlength=features.n_units),
        latent_on=as_features.counts,
        feature_on=features.counts,
    )


def latents_as_features(latents: Firings, features: Firings, matching: Matching) -> Firings:
    """The latents' firings under the numbers of the features that they are paired with."""
    if latents.n_tokens != features.n_tokens or latents.n_units != len(matching.best_feature):
        raise ShapeError(
            "These codes are not of these tokens and this decoder.",
            got=f"{latents.n_tokens} tokens and {latents.n_units} latents",
            because=f"the truth has {features.n_tokens} tokens, the decoder {len(matching.best_feature)} rows",
        )
    return latents.relabeled(matching.feature_of, n_units=features.n_units)


@dataclass(frozen=True, kw_only=True, eq=False)
class Absorption:
    """How often a parent's latent is silent because a child's latent speaks for it.

    Args:
        with_child: Share of (token, parent, child) firings where the child's latent fires and the parent's
            does not. 0 where there is none.
        alone: Share of parent firings with no child on where the parent's latent is silent: plain misses.
        cosine: Mean cosine of children's decoder rows with their parents' directions; random directions
            give about 0.
        n_with_child: Firings that `with_child` is a share of.
        n_alone: Firings that `alone` is a share of.
        by_parent: Of each parent: firings absorbed, with a child on, missed, and alone.
    """

    with_child: float
    alone: float
    cosine: float
    n_with_child: int
    n_alone: int
    by_parent: Int[Tensor, "parent 4"]

    @property
    def rate(self) -> float:
        """Absorbed share beyond the plain misses, 0 to 1."""
        return float(absorbed_share(self.by_parent.double().sum(0)))


def absorbed_share(sums: Float[Tensor, "*draw 4"]) -> Float[Tensor, "*draw"]:
    """From sums (absorbed, with a child on, missed, alone): the absorbed share beyond the plain misses, 0 to 1."""
    absorbed, with_child, missed, alone = sums.unbind(-1)
    swallowed, misses = absorbed / with_child.clamp(min=1), missed / alone.clamp(min=1)
    beyond = (swallowed - misses).clamp(min=0) / (1 - misses).clamp(min=1e-12)
    return torch.where(misses < 1, beyond, torch.zeros_like(beyond))


def measure_absorption(
    latents: Firings,
    features: Firings,
    *,
    matching: Matching,
    decoder: Float[Tensor, "latent d_model"],
    directions: Float[Tensor, "feature d_model"],
    parents: Int[Tensor, " feature"],
) -> Absorption:
    """Absorption in planted hierarchies; all zero where no feature has a parent.

    Only pairs whose child has a latent near it count (cosine above 0.5), since an unlearnt child absorbs
    nothing; the parent's latent is whatever latent is paired with it.
    """
    on, features_on = latents_as_features(latents, features, matching), features
    learnt = (matching.cosine > 0.5) & (parents >= 0)
    child_on = learnt[features_on.unit]
    token, child = features_on.token[child_on], features_on.unit[child_on]
    parent_cells = token * features.n_units + parents[child]
    child_cells = token * features.n_units + child
    absorbed = torch.isin(child_cells, on.cells) & ~torch.isin(parent_cells, on.cells)

    has_child_on = features_on.token * features.n_units + parents[features_on.unit]
    has_child_on = has_child_on[parents[features_on.unit] >= 0]
    is_parent = torch.zeros(features.n_units, dtype=torch.bool)
    is_parent[parents[parents >= 0]] = True
    lone = features_on.cells[is_parent[features_on.unit]]
    lone = lone[~torch.isin(lone, has_child_on)]
    missed = ~torch.isin(lone, on.cells)
    owners = is_parent.nonzero()[:, 0]
    lone_parent = lone % features.n_units
    by_parent = [parents[child[absorbed]], parents[child], lone_parent[missed], lone_parent]
    children = learnt.nonzero()[:, 0]
    rows = _unit(decoder.double().cpu())[matching.latent[children]]
    cosines = (rows * _unit(directions.double().cpu())[parents[children]]).sum(1)
    return Absorption(
        with_child=_share(int(absorbed.sum()), len(absorbed)),
        alone=_share(int(missed.sum()), len(missed)),
        cosine=float(cosines.mean()) if len(children) else 0.0,
        n_with_child=len(absorbed),
        n_alone=len(missed),
        by_parent=torch.stack(
            [torch.bincount(one, minlength=features.n_units)[owners] for one in by_parent], dim=1
        ),
    )


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
