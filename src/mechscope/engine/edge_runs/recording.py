"""Recording: what every writer adds and every reader's projections are, in one ordinary run of some prompts.

Tokens are flat here: [tokens] is rows times columns of the left-padded batch.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mechscope.engine.edge_runs.layer_parts import LayerParts
from mechscope.models.binding import Binding
from mechscope.models.frame import Frame
from mechscope.models.limits import refuse_normed_stream
from mechscope.models.running import Kept, Order, forward
from mechscope.vocabulary.sites import Site

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_POINTS = ("attn_in", "q_proj", "k_proj", "v", "z")


@dataclass
class Recorded:
    """One run.

    Args:
        embed: The residual stream before the first layer, [tokens, d_model].
        heads: What each layer's heads add, [head, tokens, d_model].
        mlps: What each layer's MLP adds, [tokens, d_model]; empty for attention-only models.
        rest: What attention adds beside its heads, a layer, [d_model]: an output bias, or zero.
        projections: Queries, keys and values as projected, a layer, [reader, tokens, d_head].
        constants: What each projection adds beside its matrix (biases, positions), like `projections`; empty if
            it was not wanted.
        units: Activations of each MLP's units, a layer, [tokens, d_mlp]; empty if they were not wanted.
        arguments: What each attention module was called with beside the stream.
    """

    embed: Tensor
    heads: list[Tensor] = field(default_factory=list)
    mlps: list[Tensor] = field(default_factory=list)
    rest: list[Tensor] = field(default_factory=list)
    projections: list[Tensor] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)
    arguments: list[Arguments] = field(default_factory=list)


def record_run(
    binding: Binding, layers: list[LayerParts], *, frame: Frame, constants: bool = True, units: bool = False
) -> Recorded:
    """Run the prompts once and record them. The caller holds the model.

    Args:
        binding: An open model.
        layers: Its layers.
        frame: Prompts.
        constants: Also take apart what projections add beside their matrices.
        units: Also keep the activations of MLPs' units.

    Raises:
        PointUnavailable: norms stand on the residual stream, so that it is no sum of what writers add.
    """
    refuse_normed_stream(binding.anatomy, "Edges")
    sites = [Site("resid_pre", 0)]
    sites += [Site(point, layer) for layer in range(binding.n_layers) for point in _POINTS]
    sites += [Site("mlp_out", part.index) for part in layers if part.has_mlp]
    sites += [Site("mlp_post", part.index) for part in layers if part.has_mlp and units]
    arguments: list[Arguments] = []
    with torch.no_grad(), ExitStack() as stack:
        for module in binding.attentions:
            handle = module.register_forward_pre_hook(_recorder(arguments), with_kwargs=True)
            stack.callback(handle.remove)
        kept = forward(
            binding,
            frame,
            Order(capture=tuple(sites), stop_after=Site("resid_post", binding.n_layers - 1)),
        )
        found = Recorded(kept.tensors[Site("resid_pre", 0)].flatten(0, 1), arguments=arguments)
        for part in layers:
            _keep_layer(found, part, kept, constants)
            if units and part.has_mlp:
                found.units.append(kept.tensors[Site("mlp_post", part.index)].flatten(0, 1))
    return found


def _keep_layer(found: Recorded, part: LayerParts, kept: Kept, constants: bool) -> None:
    def at(point: str) -> Tensor:
        return kept.tensors[Site(point, part.index)].flatten(0, 1)

    heads = part.added_by_heads(at("z")[None])[:, 0]
    found.heads.append(heads)
    found.rest.append(part.constant_bias)
    if part.has_mlp:
        found.mlps.append(at("mlp_out"))
    projected = torch.cat([at(point) for point in ("q_proj", "k_proj", "v")], dim=1).transpose(0, 1)
    found.projections.append(projected.contiguous())
    if constants:
        found.constants.append(_beside_the_matrix(at("attn_in"), projected, part))


def _beside_the_matrix(read: Tensor, projected: Tensor, part: LayerParts) -> Tensor:
    """What projections add beside their matrices, [reader, tokens, d_head]."""
    linear = torch.matmul(read, part.projection)
    constants = projected - linear
    # Rounding must not stand in for a bias that is not there: a post-norm would blow it up where all else is zero.
    # In half precision single roundings are large already, and sums are made in single precision.
    precision = torch.finfo(linear.dtype).eps
    n_roundings = 1e4 if precision < 1e-6 else 8
    noise = n_roundings * precision * linear.abs().amax((1, 2), keepdim=True)
    is_noise = constants.abs().amax((1, 2), keepdim=True) < noise
    return constants.masked_fill(is_noise & ~part.has_bias[:, None, None], 0.0)


def _recorder(arguments: list[Arguments]) -> Callable[..., None]:
    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        arguments.append((args[1:], rest))

    return record


def repeated(arguments: Arguments, n_rows: int, times: int) -> Arguments:
    """Arguments for `times` copies of a batch of `n_rows`, one after the other."""

    def again(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(again(item) for item in value)
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != n_rows or n_rows == 1:
            return value
        return value.repeat(times, *[1] * (value.ndim - 1))

    args, kwargs = arguments
    return tuple(again(value) for value in args), {name: again(value) for name, value in kwargs.items()}
