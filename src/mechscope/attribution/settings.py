"""Settings of attribution: steps of an integral and their rule, what gradients see, what is verified."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mechscope.attribution.linearization import Linearization
from mechscope.vocabulary.errors import InterventionMismatch

Direction = Literal["denoising", "noising"]
StepRule = Literal["midpoint", "left", "right", "trapezoid"]
STEP_RULES = ("midpoint", "left", "right", "trapezoid")


def steps_of(n: int, rule: str) -> tuple[Tensor, Tensor]:
    """Places of an integral's steps between 0 (the corrupt run) and 1 (the clean run), and their weights.

    "left" holds the corrupt run and not the clean one, "right" the other way round, "trapezoid" both with half
    weights.

    >>> steps_of(2, "midpoint")[0].tolist(), steps_of(2, "left")[0].tolist()
    ([0.25, 0.75], [0.0, 0.5])
    >>> steps_of(3, "trapezoid")[1].tolist()
    [0.25, 0.5, 0.25]
    """
    if rule not in STEP_RULES or n < 1 + (rule == "trapezoid"):
        raise InterventionMismatch(
            "An integral needs steps and a rule.",
            got=f"{n} steps, {rule!r}",
            instead=f"one step at least (trapezoid: two), and one of {', '.join(STEP_RULES)}",
        )
    if rule == "trapezoid":
        weights = torch.full((n,), 1 / (n - 1), dtype=torch.float64)
        weights[0] = weights[-1] = 0.5 / (n - 1)
        return torch.linspace(0, 1, n, dtype=torch.float64), weights
    shift = {"midpoint": 0.5, "left": 0.0, "right": 1.0}[rule]
    places = (torch.arange(n, dtype=torch.float64) + shift) / n
    return places, torch.full((n,), 1 / n, dtype=torch.float64)


def refuse_unknown(name: str, wanted: str, known: Sequence[str]) -> None:
    """Refuse a method or direction that does not exist.

    Raises:
        InterventionMismatch
    """
    if wanted not in known:
        raise InterventionMismatch(f'"{wanted}" is no {name}.', got=wanted, instead=", ".join(known))


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    """What `attribute_edges` holds fixed.

    Args:
        steps: Of an integral.
        rule: Where between the corrupt (0) and the clean run (1) the steps lie; see `steps_of`.
        linearization: What gradients see.
        reference_compat: The published code's convention: "eap-ig" takes the left rule, "eap-ig-activations" the
            right one and adds the gradients of every interpolated node to every edge. Its sign is `importance`.
        keeps_pairs: Keep each pair's scores (bootstrap needs them), not only their mean.
    """

    steps: int = 5
    rule: StepRule = "midpoint"
    linearization: Linearization = field(default_factory=Linearization)
    reference_compat: bool = False
    keeps_pairs: bool = True

    def rule_for(self, method: str) -> str:
        """The rule in force."""
        if not self.reference_compat:
            return self.rule
        return "right" if method == "eap-ig-activations" else "left"

    def to_json(self, method: str) -> dict[str, Any]:
        """The whole convention of a method, for its record."""
        said: dict[str, Any] = {"linearization": self.linearization.to_json()}
        if "ig" in method:
            said |= {"steps": self.steps, "rule": self.rule_for(method)}
        if method == "eap-ig-activations":
            said["gradients_of"] = (
                "every node, for every edge" if self.reference_compat else "the edge's own writer"
            )
        return said | {"reference_compat": self.reference_compat}


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What `attribute` holds fixed.

    Args:
        linearization: What gradients see; None is the method's own.
        units: For neurons: which of them; None is every one.
        steps: Of "ig".
        rule: Of "ig"; see `steps_of`.
        n_verified: "atp*" patches this many of the strongest nodes for real.
        n_subsets: "atp*" patches this many random halves of the rest together, for the bound; 0 for none.
        seed: Of those subsets.
    """

    linearization: Linearization | None = None
    units: tuple[int, ...] | None = None
    steps: int = 10
    rule: StepRule = "midpoint"
    n_verified: int = 20
    n_subsets: int = 64
    seed: int = 0
