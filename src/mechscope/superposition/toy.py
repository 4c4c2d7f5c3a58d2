"""Toy models of superposition: x' = relu(W W^T x + b), many of them trained at once as one batched tensor.

Owns: the tied ReLU model with importance and sparsity, trained on sampled inputs (`train_toy`) or on an exact
expectation over which features are on (`train_on_patterns`, for few features).
Invariant: instances never mix: an instance trained among others equals the same instance trained alone.

Inputs are 0 with probability 1 - density, else uniform on [0, 1]. All instances see the same uniform draws.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.records.seeds import seed_for
from mechscope.vocabulary.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ToySettings:
    """A row of toy models that differ in density alone.

    Args:
        n_features: Inputs.
        n_hidden: Dimensions that they must pass through.
        densities: Probability that a feature is on, one model each. Sparsity is 1 - density.
        importance_decay: Importance of feature i is importance_decay ** i.
        n_steps: Of Adam, with a cosine schedule.
        n_samples: Inputs a step.
        learning_rate: At its peak.
        seed: Of initial weights and inputs.
    """

    n_features: int = 80
    n_hidden: int = 8
    densities: tuple[float, ...] = (0.9, 0.7, 0.6, 0.5, 0.35, 0.25, 0.22, 0.19, 0.15, 0.08)
    importance_decay: float = 1.0
    n_steps: int = 2000
    n_samples: int = 256
    learning_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_unless_densities(self.densities)
        if not self.n_hidden > 0 or not self.n_features > 0 or not 0 < self.importance_decay <= 1:
            raise InputError(
                "These settings make no toy model.",
                got=f"n_features {self.n_features}, n_hidden {self.n_hidden}, decay {self.importance_decay}",
                instead="a feature and a hidden dimension or more, and a decay above 0, at most 1",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyModels:
    """Trained instances.

    Args:
        weights: W of each: rows are the features' directions.
        biases: b of each.
        losses: Importance-weighted squared error of each, on fresh inputs or exact.
    """

    weights: Float[Tensor, "instance feature hidden"]
    biases: Float[Tensor, "instance feature"]
    losses: Float[Tensor, " instance"]

    @property
    def dimensions_per_feature(self) -> Float[Tensor, " instance"]:
        """n_hidden over the squared Frobenius norm: how many dimensions each learnt feature has."""
        return self.weights.shape[2] / self.weights.square().sum((1, 2)).clamp(min=1e-9)

    def take(self, index: Tensor) -> "ToyModels":
        """Some of the instances."""
        return ToyModels(weights=self.weights[index], biases=self.biases[index], losses=self.losses[index])


def train_toy(settings: ToySettings) -> ToyModels:
    """Train all instances together on sampled inputs; losses are on 16 fresh batches.

    Cost: n_steps products of [n_samples, n_features] with [n_features, n_hidden], twice, each way, an instance.
    """
    generator = torch.Generator().manual_seed(seed_for(settings.seed, "toy"))
    densities = torch.tensor(settings.densities, dtype=torch.float32)[:, None, None]
    importance = settings.importance_decay ** torch.arange(settings.n_features, dtype=torch.float32)
    weights, biases = new_parameters(
        len(settings.densities), settings.n_features, settings.n_hidden, generator=generator
    )

    def loss() -> Tensor:
        uniform = torch.rand(settings.n_samples, settings.n_features, generator=generator)
        inputs = torch.where(uniform < densities, uniform / densities, 0.0)
        errors = (inputs - reconstruct(inputs, weights, biases)).square() * importance
        return errors.sum(2).mean(1)

    descend(loss, [weights, biases], n_steps=settings.n_steps, learning_rate=settings.learning_rate)
    with torch.no_grad():
        losses = torch.stack([loss() for _ in range(16)]).mean(0)
    return ToyModels(weights=weights.detach(), biases=biases.detach(), losses=losses)


def reconstruct(
    inputs: Float[Tensor, "#instance sample feature"],
    weights: Float[Tensor, "instance feature hidden"],
    biases: Float[Tensor, "instance feature"],
) -> Float[Tensor, "instance sample feature"]:
    """relu(W W^T x + b), for every instance."""
    return torch.relu((inputs @ weights) @ weights.transpose(1, 2) + biases[:, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Patterns:
    """Which features are on, and quadrature nodes for their values, so that an expected loss is a finite sum.

    Args:
        points: Inputs.
        n_on: Features on at each point.
        share: Weight of a point within its pattern; a pattern's sum to 1.
    """

    points: Float[Tensor, "point feature"]
    n_on: Float[Tensor, " point"]
    share: Float[Tensor, " point"]

    def weights(self, densities: Float[Tensor, " instance"]) -> Float[Tensor, "instance point"]:
        """The probability of each point at each density. Patterns that were left out have none."""
        p, n = densities[:, None], self.points.shape[1]
        return p**self.n_on * (1 - p) ** (n - self.n_on) * self.share


def make_patterns(n_features: int, *, n_nodes: int, most_on: int) -> Patterns:
    """All patterns of at most `most_on` features on, each with Gauss-Legendre nodes on [0, 1].

    Cost: sum over k of (n choose k) * n_nodes ** k points.
    """
    nodes, shares = np.polynomial.legendre.leggauss(n_nodes)
    nodes, shares = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(shares / 2)
    points, n_on, share = [], [], []
    for k in range(most_on + 1):
        grid = torch.cartesian_prod(*[nodes] * k).view(-1, k) if k else torch.zeros(1, 0, dtype=torch.float64)
        weight = torch.cartesian_prod(*[shares] * k).view(-1, k).prod(1) if k else torch.ones(1)
        for on in combinations(range(n_features), k):
            block = torch.zeros(len(grid), n_features, dtype=torch.float64)
            block[:, list(on)] = grid
            points.append(block)
            n_on.append(torch.full((len(grid),), float(k)))
            share.append(weight)
    return Patterns(
        points=torch.cat(points).float(), n_on=torch.cat(n_on).float(), share=torch.cat(share).float()
    )


def expected_loss(
    patterns: Patterns,
    weights: Float[Tensor, "instance feature hidden"],
    *,
    biases: Float[Tensor, "instance feature"],
    densities: Float[Tensor, " instance"],
    importance: Float[Tensor, "instance feature"],
) -> Float[Tensor, " instance"]:
    """The loss of each instance, as an exact expectation over patterns and a quadrature over values."""
    errors = (patterns.points - reconstruct(patterns.points[None], weights, biases)).square()
    return torch.einsum("ipf,if,ip->i", errors, importance, patterns.weights(densities))


def train_on_patterns(
    patterns: Patterns,
    *,
    n_hidden: int,
    densities: Float[Tensor, " instance"],
    importance: Float[Tensor, "instance feature"],
    n_restarts: int = 4,
    n_steps: int = 400,
    seed: int = 0,
) -> ToyModels:
    """Train instances on expected losses, each from several starts; the best of each is returned.

    Cost: n_restarts * n_instances * n_points * n_features numbers a step.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, "toy", "patterns"))
    n_instances, n_features = importance.shape
    p, weighing = densities.repeat(n_restarts), importance.repeat(n_restarts, 1)
    weights, biases = new_parameters(len(p), n_features, n_hidden, generator=generator)

    def loss() -> Tensor:
        return expected_loss(patterns, weights, biases=biases, densities=p, importance=weighing)

    # the loss vanishes with the density; without this Adam's epsilon would stop sparse instances
    descend(lambda: loss() / p, [weights, biases], n_steps=n_steps, learning_rate=0.05)
    with torch.no_grad():
        losses = loss()
    best = losses.view(n_restarts, n_instances).argmin(0) * n_instances + torch.arange(n_instances)
    found = ToyModels(weights=weights.detach(), biases=biases.detach(), losses=losses)
    return found.take(best)


def new_parameters(
    n_instances: int, n_features: int, n_hidden: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weights of Glorot's size and zero biases."""
    size = math.sqrt(2 / (n_features + n_hidden))
    weights = torch.randn(n_instances, n_features, n_hidden, generator=generator) * size
    return weights.requires_grad_(), torch.zeros(n_instances, n_features, requires_grad=True)


def descend(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], *, n_steps: int, learning_rate: float
) -> None:
    """Adam on the sum of the instances' losses: to each it is its own Adam, since none shares a parameter."""
    optimizer = torch.optim.Adam(list(parameters), lr=learning_rate, eps=1e-12)
    for step in range(n_steps):
        rate = (
            learning_rate
            * min(1.0, (step + 1) / 20)
            * (0.5 * (1 + math.cos(math.pi * step / n_steps)) + 0.01)
        )
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss().sum().backward()
        optimizer.step()


def refuse_unless_densities(densities: Sequence[float]) -> None:
    """Refuse a density that is no probability above 0."""
    bad = [density for density in densities if not 0 < density <= 1]
    if bad or not densities:
        raise InputError(
            "A density is the probability that a feature is on.",
            got=bad or "none",
            instead="above 0, at most 1",
        )
