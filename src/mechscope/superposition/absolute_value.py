"""Computation in superposition: relu(W2 relu(W1 x)) learns |x| of more features than its neurons could do one by one.

Without superposition |x| takes two neurons a feature, relu(x) + relu(-x), so m neurons do the m / 2 most important
features and predict the rest by their means; `cost_without` is what that leaves. A model below it computes in
superposition; dense inputs are the twin where none should.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.records.seeds import seed_for
from mechscope.superposition.toy import descend, new_parameters, refuse_unless_densities

if TYPE_CHECKING:
    from mechscope.figures.labelled import LabelledArray


@dataclass(frozen=True, kw_only=True)
class AbsoluteValueSettings:
    """Models that differ in density alone.

    Args:
        n_features: Inputs on [-1, 1], and outputs.
        n_neurons: Hidden units.
        densities: Probability that a feature is on, one model each.
        importance_decay: Importance of feature i is importance_decay ** i.
        n_restarts: Starts of each model; the best is kept.
        n_steps: Of Adam.
        n_samples: Inputs a step.
        seed: Of initial weights and inputs.
    """

    n_features: int = 12
    n_neurons: int = 8
    densities: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01)
    importance_decay: float = 0.8
    n_restarts: int = 4
    n_steps: int = 1500
    n_samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_unless_densities(self.densities)


@dataclass(frozen=True, kw_only=True, eq=False)
class AbsoluteValueModels:
    """Trained models.

    Args:
        settings: Theirs.
        reading: W1 of each: what a neuron reads.
        writing: W2 of each: what it writes.
        losses: On fresh inputs.
        cost_without: The best loss without superposition.
    """

    settings: AbsoluteValueSettings
    reading: Float[Tensor, "instance feature neuron"]
    writing: Float[Tensor, "instance neuron feature"]
    losses: Float[Tensor, " instance"]
    cost_without: Float[Tensor, " instance"]

    @property
    def features_per_neuron(self) -> Float[Tensor, "instance neuron"]:
        """1 / sum of squared shares of |W1| * |W2|: 1 for a monosemantic neuron, k for one that serves k alike."""
        strength = self.reading.abs() * self.writing.abs().transpose(1, 2)
        share = strength / strength.sum(1, keepdim=True).clamp(min=1e-9)
        return 1 / share.square().sum(1).clamp(min=1e-9)

    @property
    def advantage(self) -> Float[Tensor, " instance"]:
        """1 - loss / cost_without: above 0 only by computing in superposition."""
        return 1 - self.losses / self.cost_without

    def array(self) -> "LabelledArray":
        """Advantage and mean features per neuron, by density."""
        from mechscope.figures.labelled import LabelledArray

        return LabelledArray(
            torch.stack([self.advantage, self.features_per_neuron.mean(1)]).numpy(),
            ("measure", "density"),
            coords={
                "measure": ("advantage", "features per neuron"),
                "density": [float(p) for p in self.settings.densities],
            },
            title="Absolute values computed in superposition",
            conventions={"advantage": "1 - loss / best loss at two neurons a feature"},
        )


def train_absolute_value(settings: AbsoluteValueSettings | None = None) -> AbsoluteValueModels:
    """Train all densities together.

    Cost: some seconds on one core.
    """
    settings = settings or AbsoluteValueSettings()
    generator = torch.Generator().manual_seed(seed_for(settings.seed, "absolute value"))
    densities = torch.tensor(settings.densities)
    p = densities.repeat(settings.n_restarts)
    n_instances, n_features = len(p), settings.n_features
    importance = settings.importance_decay ** torch.arange(n_features, dtype=torch.float32)
    reading, biases = new_parameters(n_instances, n_features, settings.n_neurons, generator=generator)
    writing = reading.detach().transpose(1, 2).abs().clone().requires_grad_()

    def loss() -> Tensor:
        uniform = torch.rand(settings.n_samples, n_features, generator=generator)
        signs = torch.randint(0, 2, uniform.shape, generator=generator) * 2 - 1
        inputs = torch.where(uniform < p[:, None, None], uniform / p[:, None, None], 0.0) * signs
        outputs = torch.relu(torch.relu(inputs @ reading) @ writing + biases[:, None])
        return ((inputs.abs() - outputs).square() * importance).sum(2).mean(1)

    # divided by the density so that sparse instances have losses of the same size
    descend(lambda: loss() / p, [reading, writing, biases], n_steps=settings.n_steps, learning_rate=1e-2)
    with torch.no_grad():
        losses = torch.stack([loss() for _ in range(32)]).mean(0)
    best = losses.view(settings.n_restarts, -1).argmin(0) * len(densities) + torch.arange(len(densities))
    left_out = importance[settings.n_neurons // 2 :].sum()
    return AbsoluteValueModels(
        settings=settings,
        reading=reading.detach()[best],
        writing=writing.detach()[best],
        losses=losses[best],
        cost_without=left_out * (densities / 3 - densities**2 / 4),
    )
