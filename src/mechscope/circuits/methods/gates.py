"""Hard-concrete gates: random weights between 0 and 1 whose gradients reach the probability of being exactly 0.

u ~ U(0, 1), s = sigmoid((log u - log(1 - u) + logit) / beta), z = clip(s (zeta - gamma) + gamma, 0, 1)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GAMMA, ZETA, BETA = -0.1, 1.1, 2 / 3


@dataclass
class Gates:
    """Gates under training.

    Args:
        logits: One a gate; trained.
        generator: Of the noise.
    """

    logits: Tensor
    generator: torch.Generator

    @classmethod
    def new(cls, n: int, *, start: float, seed: int, like: Tensor) -> "Gates":
        """n gates that are open with probability `start`."""
        logits = torch.full((n,), math.log(start / (1 - start)), dtype=like.dtype, device=like.device)
        return cls(logits.requires_grad_(), torch.Generator().manual_seed(seed))

    def sample(self, n: int) -> Tensor:
        """n draws of all gates, [n, gate]."""
        noise = torch.rand(n, len(self.logits), generator=self.generator, dtype=torch.float64)
        noise = noise.clamp(1e-6, 1 - 1e-6).to(self.logits)
        s = torch.sigmoid((noise.log() - (1 - noise).log() + self.logits) / BETA)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def open_probability(self) -> Tensor:
        """Probability that each gate is not exactly 0, [gate]."""
        return torch.sigmoid(self.logits - BETA * math.log(-GAMMA / ZETA))

    def score(self) -> Tensor:
        """What each gate is without noise, before it is clipped, [gate]: larger is more open."""
        return torch.sigmoid(self.logits.detach())
