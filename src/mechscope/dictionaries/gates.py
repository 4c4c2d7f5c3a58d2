"""Gates: from pre-activations to codes, one function a rule, dense and differentiable.

The dense functions are the definition; the sparse paths in training are held to them. Matching pursuit has no
pre-activations and lives in `pursuit.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.dictionaries.settings import Gate
from mechscope.vocabulary.errors import UnknownGate


@dataclass(frozen=True)
class Block:
    """What a gate may look at besides the pre-activations.

    Args:
        tensors: `threshold`, `b_gate`, `b_mag`, `r_mag` of the latents at hand.
        decoder_norm: Norm of each latent's decoder row, or None if the rule does not need it.
    """

    tensors: Mapping[str, Tensor]
    decoder_norm: Tensor | None = None


GateFunction = Callable[[Tensor, Gate, Block], Tensor]


def apply_gate(pre: Tensor, gate: Gate, block: Block) -> Tensor:
    """Codes of pre-activations [..., latents], same shape."""
    if gate.rule not in _GATES:
        raise UnknownGate(
            f'The gate "{gate.rule}" has no pre-activations to act on.',
            got=gate.rule,
            instead="dictionary.encode",
        )
    return _GATES[gate.rule](pre, gate, block)


def ranked(pre: Tensor, gate: Gate, block: Block) -> Tensor:
    """What a gate compares: the pre-activation, its size, or either times the decoder's norm."""
    value = pre.abs() if gate.negatives == "ranked_by_size" else pre
    if gate.compares == "pre_times_decoder_norm":
        assert block.decoder_norm is not None
        value = value * block.decoder_norm
    return value


def _relu(pre: Tensor, _gate: Gate, _block: Block) -> Tensor:
    return pre.relu()


def _gated(pre: Tensor, _gate: Gate, block: Block) -> Tensor:
    is_open = pre + block.tensors["b_gate"] > 0
    size = (pre * block.tensors["r_mag"].exp() + block.tensors["b_mag"]).relu()
    return torch.where(is_open, size, 0)


def _topk(pre: Tensor, gate: Gate, block: Block) -> Tensor:
    assert gate.k is not None
    k = min(gate.k, pre.shape[-1])
    chosen = ranked(pre, gate, block).topk(k, dim=-1, sorted=False).indices
    values = pre.gather(-1, chosen)
    if gate.negatives == "zeroed":
        values = values.relu()
    return torch.zeros_like(pre).scatter(-1, chosen, values)


def _jumprelu(pre: Tensor, gate: Gate, block: Block) -> Tensor:
    is_on = ranked(pre, gate, block) > block.tensors["threshold"]
    return torch.where(is_on, pre, 0)


def _groupmax(pre: Tensor, gate: Gate, _block: Block) -> Tensor:
    assert gate.k is not None
    groups = pre.unflatten(-1, (gate.k, -1))
    values, chosen = groups.max(-1, keepdim=True)
    return torch.zeros_like(groups).scatter(-1, chosen, values.relu()).flatten(-2)


_GATES: dict[str, GateFunction] = {
    "relu": _relu,
    "gated": _gated,
    "topk": _topk,
    "jumprelu": _jumprelu,
    "groupmax": _groupmax,
}
