"""Push: values carried up a frozen model at all positions, biases too. For constants, head loadings and tests.

`rise` carries many sources, each at the positions that it reaches.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mechscope.graphs.frozen import Frozen, FrozenLayer
from mechscope.graphs.stations import (
    ATTN_IN,
    ATTN_OUT,
    ATTN_RAW,
    LN_FINAL,
    MLP_IN,
    MLP_OUT,
    MLP_RAW,
    PER_LAYER,
    RESID_MID,
)
from mechscope.graphs.sweep import Cuts


def push(
    frozen: Frozen, cuts: Cuts, injected: Mapping[int, Tensor], *, with_bias: bool = False
) -> dict[int, Tensor]:
    """Values at every station when only `injected` is there, [..., pos, d_model] each.

    Args:
        frozen: The model.
        cuts: Stations whose own value is not computed: they hold what is injected, and skip connections.
        injected: By station, what is put there; station 0 is what enters the first layer.
        with_bias: Biases act too, so that the result is affine; otherwise it is linear.

    Returns:
        By station; what arrived at a station before a cut stands under -station - 1.
    """
    return _Push(frozen, cuts, injected, with_bias=with_bias).run()


class _Push:
    def __init__(
        self, frozen: Frozen, cuts: Cuts, injected: Mapping[int, Tensor], *, with_bias: bool
    ) -> None:
        self._frozen = frozen
        self._cuts = cuts
        self._injected = injected
        self._with_bias = with_bias
        self._seen: dict[int, Tensor] = {}

    def run(self) -> dict[int, Tensor]:
        frozen = self._frozen
        like = next(iter(self._injected.values()), None)
        d_model = frozen.layers[0].W_O.shape[-1]
        shape = (frozen.n_positions, d_model) if like is None else tuple(like.shape)
        zero = frozen.layers[0].W_O.new_zeros(shape)
        stream = self._at(0, zero)
        for index, layer in enumerate(frozen.layers):
            stream = self._layer(layer, PER_LAYER * index, stream)
        if frozen.norm_final is not None:
            stream = frozen.norm_final.forward(stream, with_bias=self._with_bias)
        self._at(PER_LAYER * frozen.n_layers + LN_FINAL, stream)
        return self._seen

    def _layer(self, layer: FrozenLayer, base: int, stream: Tensor) -> Tensor:
        read = self._at(base + ATTN_IN, self._normed(layer.norm1, stream))
        raw = self._at(base + ATTN_RAW, self._attention(layer, read))
        out = self._at(base + ATTN_OUT, _scaled(raw, layer.attn_factor))
        if not layer.has_mlp:
            return self._at(base + PER_LAYER, self._at(base + RESID_MID, stream + out))
        if self._frozen.is_parallel:
            added = self._mlp(layer, base, stream)
            return self._at(base + PER_LAYER, stream + out + added)
        middle = self._at(base + RESID_MID, stream + out)
        return self._at(base + PER_LAYER, middle + self._mlp(layer, base, middle))

    def _mlp(self, layer: FrozenLayer, base: int, stream: Tensor) -> Tensor:
        inner = self._at(base + MLP_IN, self._normed(layer.norm2, stream))
        result = torch.zeros_like(stream)
        if layer.mlp is not None:
            mlp = layer.mlp
            hidden = inner @ mlp.W_in
            hidden = hidden + mlp.b_in if self._with_bias and mlp.b_in is not None else hidden
            result = (hidden * mlp.gate) @ mlp.W_out
            result = result + mlp.b_out if self._with_bias and mlp.b_out is not None else result
        raw = self._at(base + MLP_RAW, result)
        return self._at(base + MLP_OUT, _scaled(raw, layer.mlp_factor))

    def _attention(self, layer: FrozenLayer, read: Tensor) -> Tensor:
        values = torch.einsum("...sd,kde->...ske", read, layer.W_V)
        values = values + layer.b_V if self._with_bias and layer.b_V is not None else values
        values = values.repeat_interleave(layer.W_O.shape[0] // layer.W_V.shape[0], dim=-2)
        mixed = torch.einsum("hqs,...she->...qhe", layer.pattern, values)
        out = torch.einsum("...qhe,hed->...qd", mixed, layer.W_O)
        return out + layer.b_O if self._with_bias and layer.b_O is not None else out

    def _normed(self, norm: "object", stream: Tensor) -> Tensor:
        return stream if norm is None else norm.forward(stream, with_bias=self._with_bias)  # pyright: ignore

    def _at(self, station: int, arriving: Tensor) -> Tensor:
        """The value that the rest of the model sees at a station."""
        self._seen[-station - 1] = arriving
        value = arriving
        if station in self._cuts.written:
            value = torch.zeros_like(arriving)
            for read, matrix in self._cuts.skips.get(station, ()):
                value = value + self._seen[read] @ matrix
        if station in self._injected:
            value = value + self._injected[station]
        self._seen[station] = value
        return value


def _scaled(value: Tensor, factor: Tensor | float | None) -> Tensor:
    return value if factor is None else value * factor
