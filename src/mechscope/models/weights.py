"""Weights: canonical views of a model's matrices, cut head by head, without copying where memory order allows.

    W_Q W_K W_V [head, d_model, d_head]    b_Q b_K b_V [head, d_head]
    W_O [head, d_head, d_model]            b_O [d_model]
    W_in W_gate [d_model, d_mlp]           W_out [d_mlp, d_model]       b_in b_gate [d_mlp], b_out [d_model]
    W_E [d_vocab, d_model]   W_pos [pos, d_model]   W_U [d_model, d_vocab]   b_U [d_vocab]

Keys and values count key/value heads. Nothing is folded or centred.
"""

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mechscope.models.anatomy import Part
from mechscope.models.binding import Binding
from mechscope.vocabulary.errors import PointUnavailable, PositionOutOfRange

_HEADED = {"Q": "q_proj", "K": "k_proj", "V": "v_proj"}
_MLP = {"in": "mlp_pre", "gate": "mlp_gate", "out": "mlp_post"}
_ONCE = ("W_E", "W_pos", "W_U", "b_U")


class Weights:
    """`model.weights["W_Q", 3]`, or `model.weights["W_U"]`.

    Raises:
        PointUnavailable: this architecture has no such matrix (or no such bias).
    """

    def __init__(self, binding: Binding) -> None:
        self._binding = binding

    def __getitem__(self, key: "str | tuple[str, int]") -> Tensor:
        name, layer = (key, None) if isinstance(key, str) else key
        return self.view(name, layer)

    def has(self, name: str, layer: int = 0) -> bool:
        """True if this architecture has that matrix."""
        try:
            self.view(name, None if name in _ONCE else layer)
        except PointUnavailable:
            return False
        return True

    def view(self, name: str, layer: int | None) -> Tensor:
        """The matrix or bias called `name`; a view of the parameter where its memory order allows."""
        kind, _, which = name.partition("_")
        if name in _ONCE:
            return self._once(name)
        if kind not in ("W", "b") or which not in (*_HEADED, *_MLP, "O"):
            raise _no_such(name, "names are W_Q W_K W_V W_O W_in W_gate W_out W_E W_pos W_U and b_ likewise")
        if layer is None or not -self._binding.n_layers <= layer < self._binding.n_layers:
            raise PositionOutOfRange(
                f'"{name}" needs a layer that exists.',
                got=f"layer {layer}",
                because=f"the model has {self._binding.n_layers} layers",
                instead=f'model.weights["{name}", 0]',
            )
        layer %= self._binding.n_layers
        if which == "O":
            return self._output(kind, layer)
        part = self._binding.parts_of(layer).get((_HEADED | _MLP)[which])
        if part is None:
            raise _no_such(
                name, self._binding.anatomy.why_missing.get(name, "this architecture has no such module")
            )
        module = self._binding.layers[layer].get_submodule(part.module)
        return _cut(module, part, kind, name, is_headed=which in _HEADED)

    def _output(self, kind: str, layer: int) -> Tensor:
        attention = self._binding.anatomy.attention
        module = self._binding.layers[layer].get_submodule(attention.output)
        if kind == "b":
            return _bias(module, "b_O")
        return _matrix(module).unflatten(0, (attention.n_heads, -1))

    def _once(self, name: str) -> Tensor:
        binding = self._binding
        if name == "W_U":
            return _matrix(binding.head)
        if name == "b_U":
            return _bias(binding.head, name)
        part = binding.anatomy.ends.get("embed" if name == "W_E" else "pos_embed")
        if part is None:
            raise _no_such(name, "positions are not learned embeddings in this architecture")
        return binding.hf.get_submodule(part.module).weight  # pyright: ignore[reportReturnType]


def _cut(module: nn.Module, part: Part, kind: str, name: str, *, is_headed: bool) -> Tensor:
    layout = part.layout
    if kind == "b":
        bias = _bias(module, name)
        return bias if part.side == "input" else layout.read(bias)
    matrix = _matrix(module)
    if part.side == "input":
        return matrix
    cut = layout.read(matrix)
    return cut.movedim(-2, 0) if is_headed else cut


def _matrix(module: nn.Module) -> Tensor:
    """A projection's weight as [in, out]."""
    weight: Any = module.weight
    return weight if isinstance(module, Conv1D) else weight.T


def _bias(module: nn.Module, name: str) -> Tensor:
    bias = dict(module.named_parameters(recurse=False)).get("bias")
    if bias is None:
        raise _no_such(name, "that projection has no bias")
    return bias


def _no_such(name: str, because: str) -> PointUnavailable:
    return PointUnavailable(
        f'This model has no "{name}".', got=name, because=because, instead="model.weights.has(name) tells"
    )
