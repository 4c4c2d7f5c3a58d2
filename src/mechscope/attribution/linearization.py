"""Linearization: what a backward pass holds constant, as one frozen value; named settings are functions.

Plain attribution patching, relevance propagation (RelP) and attribution graphs differ in nothing else. Whatever is
held, the forward pass is the model's own.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Held = Literal["free", "held"]


@dataclass(frozen=True, kw_only=True)
class Linearization:
    """What gradients see of each nonlinear part.

    Args:
        patterns: "held": attention weights are constants, so queries and keys get no gradient.
        norms: "held": what the norms of the residual stream divide by is constant (norms before and behind
            attention and MLP, and the final one; norms of queries and keys belong to the pattern).
        mlps: "held": an MLP's output is a constant, so nothing flows back through it.
        activations: "derivative": the activation function's own derivative. "ratio": output over input held, so that
            f(x) counts as (f(x) / x) * x (the identity rule).
        gates: In f(gate) * up: "free": both factors get their gradient. "half": each gets half of it. "held": f(gate)
            is a constant.
    """

    patterns: Held = "free"
    norms: Held = "free"
    mlps: Held = "free"
    activations: Literal["derivative", "ratio"] = "derivative"
    gates: Literal["free", "half", "held"] = "free"

    @property
    def is_plain(self) -> bool:
        """Nothing is held: gradients are the model's."""
        return self == Linearization()

    @property
    def has_mlp_rule(self) -> bool:
        """Something other than the derivative applies inside MLPs."""
        return self.mlps == "free" and (self.activations, self.gates) != ("derivative", "free")

    def to_json(self) -> dict[str, Any]:
        """As a record keeps it."""
        return asdict(self)


def plain() -> Linearization:
    """The model's own gradients: attribution patching and edge attribution patching."""
    return Linearization()


def relp() -> Linearization:
    """Relevance propagation: patterns and denominators held, activations by their ratio, gates split in halves."""
    return Linearization(patterns="held", norms="held", activations="ratio", gates="half")


def attribution_graph() -> Linearization:
    """The local replacement model of attribution graphs: patterns, denominators and MLP outputs held."""
    return Linearization(patterns="held", norms="held", mlps="held")
