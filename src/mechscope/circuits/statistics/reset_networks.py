"""Reset networks: the same architecture with weights that know nothing, as a control for discovery.

A method that finds a circuit of equal worth in a network that was never trained tells of the architecture, the prompts
or itself. Every weight tensor keeps its own mean and spread, so that activations keep their size.
Invariant: the model given is not touched; the reset one is a copy, and equal seeds give equal weights.
"""

import copy
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor

from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.records.seeds import seed_for
from mechscope.vocabulary.errors import InterventionMismatch

RESETS = ("redrawn", "permuted")


@dataclass(frozen=True, kw_only=True)
class WeightReset:
    """How a network is made to know nothing.

    Args:
        how: "redrawn" (normal values of each tensor's own mean and deviation) or "permuted" (each tensor's own
            entries in another order, so that its distribution is kept exactly).
        keeps: Patterns of parameter names that keep their weights, such as "*wte*" for GPT-2's embedding.
        seed: Of the draws; each tensor has its own below it.
    """

    how: Literal["redrawn", "permuted"] = "redrawn"
    keeps: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.how not in RESETS:
            raise InterventionMismatch(
                "There is no such reset of weights.",
                got=f"how={self.how!r}",
                instead=" or ".join(f'"{how}"' for how in RESETS),
            )

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return asdict(self) | {"keeps": list(self.keeps)}


def reset_weights(model: Model, reset: WeightReset | None = None) -> Model:
    """A copy of a model with weights that know nothing.

    Args:
        model: Left as it is.
        reset: How; redrawn by default.

    Returns:
        An open model of the same shape. Tied weights stay tied; a tensor whose entries are all equal (a norm that
        was never trained, a bias of zeros) stays as it is under either convention.

    Raises:
        InterventionMismatch: a pattern of `keeps` that no parameter matches.

    Cost: the memory of a second model.
    """
    reset = reset or WeightReset()
    hf = copy.deepcopy(model.hf)
    names = [name for name, _ in hf.named_parameters()]
    unmatched = [pattern for pattern in reset.keeps if not any(fnmatch(name, pattern) for name in names)]
    if unmatched:
        raise InterventionMismatch(
            "Weights to keep that this model does not have.",
            got=", ".join(unmatched),
            because="patterns are matched against the names of parameters",
            instead=", ".join(names[:4]) + ", ...",
        )
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if weight.is_floating_point() and not any(fnmatch(name, pattern) for pattern in reset.keeps):
                weight.copy_(_reset(weight, reset.how, seed_for(reset.seed, "reset", name)))
    return wrap(hf, model.tokenizer, name=f"{model.identity.name} with {reset.how} weights", check=False)


def _reset(weight: Tensor, how: str, seed: int) -> Tensor:
    """On the CPU, so that a seed means the same weights on every device."""
    generator = torch.Generator().manual_seed(seed)
    values = weight.detach().to("cpu", torch.float64)
    if how == "permuted":
        order = torch.randperm(values.numel(), generator=generator)
        return values.flatten()[order].reshape(values.shape)
    drawn = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    spread = values.std(correction=0) if values.numel() > 1 else torch.zeros((), dtype=torch.float64)
    return values.mean() + spread * drawn
