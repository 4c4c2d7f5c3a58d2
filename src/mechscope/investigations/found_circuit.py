"""What every investigation of one circuit found, whatever the circuit is made of."""

from dataclasses import dataclass

from mechscope.behaviors.behavior import Behavior
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.faithfulness import Faithfulness
from mechscope.circuits.parts.experts import ExpertCircuit
from mechscope.circuits.parts.latents import LatentCircuit
from mechscope.claims.claim_file import ClaimRecord

N_TRAIN = 48
"""Train pairs that the search looks at."""

N_EVALUATED = 60
"""Held-out pairs of the evaluation; the claim reads all of them."""


@dataclass(frozen=True, kw_only=True)
class FoundCircuit:
    """A behaviour's circuit and the claim about it.

    Args:
        model_name: Of the model.
        behavior: Of the circuit.
        circuit: Found on train prompts.
        evaluation: On held-out prompts.
        record: The tested claim.
        command: How to ask for it again.
        examples: Some (clean, corrupt, answer, foil) as text.
    """

    model_name: str
    behavior: Behavior
    circuit: Circuit | LatentCircuit | ExpertCircuit
    evaluation: Faithfulness
    record: ClaimRecord
    command: str = ""
    examples: tuple[tuple[str, str, str, str], ...] = ()
