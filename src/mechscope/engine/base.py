"""The base run: one forward pass over the prompts that records what packed replays start from.

Recorded, by reference: each layer's residual stream, positional and keyword arguments, attention call (queries,
keys, values, mask), and the values at every site that some experiment writes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache as KeyValueCache

from mechscope.models.attention import Call, Desk, Tap, attend, tap_inputs
from mechscope.models.binding import Binding
from mechscope.models.frame import Frame
from mechscope.models.running import call_model
from mechscope.models.session import Plan, Stopped, session
from mechscope.vocabulary.sites import Site

LayerArguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Base:
    """What one block of prompts' base run recorded.

    Args:
        frame: The block's tokens: a part of the batch, with all of its columns.
        residuals: Residual stream at each layer's input, and after the last layer, [batch, pos, d_model] each.
        arguments: Positional and keyword arguments of each layer but the residual stream.
        calls: Attention call of each layer.
        mixed: What each layer's attention gave, [batch, pos, head, d_head].
        values: Values at the written sites, in the table's axes.
    """

    frame: Frame
    residuals: list[Tensor] = field(default_factory=list)
    arguments: list[LayerArguments] = field(default_factory=list)
    calls: dict[int, Call] = field(default_factory=dict)
    mixed: dict[int, Tensor] = field(default_factory=dict)
    values: dict[Site, Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, pos) of the block."""
        return self.frame.n_rows, self.frame.ids.shape[1]

    def arguments_for(self, layer: int, rows: Tensor, columns: Tensor) -> LayerArguments:
        """A layer's arguments for packed tokens: per-token tables gathered, masks left to the attention desk."""
        args, kwargs = self.arguments[layer]

        def cut(value: Any) -> Any:
            return self._for_tokens(value, rows, columns)

        return tuple(cut(value) for value in args), {name: cut(value) for name, value in kwargs.items()}

    def _for_tokens(self, value: Any, rows: Tensor, columns: Tensor) -> Any:
        if isinstance(value, tuple):
            return tuple(self._for_tokens(item, rows, columns) for item in value)
        if isinstance(value, KeyValueCache):
            return None
        if not isinstance(value, Tensor) or value.ndim < 2:
            return value
        if value.ndim == 4:
            return None  # a mask; the desk holds the recorded one
        batch, n = self.shape
        if value.shape[1] != n or value.shape[0] not in (1, batch):
            return value
        at = columns.to(value.device)
        which = torch.zeros_like(at) if value.shape[0] == 1 else rows.to(value.device)
        return value[which, at][None]


def record_base(
    binding: Binding,
    frame: Frame,
    sites: Sequence[Site],
    *,
    writers: Mapping[Site, Callable[[Tensor], Tensor]] = MappingProxyType({}),
) -> Base:
    """Run the block once and record it.

    Args:
        binding: An open model, held by the caller.
        frame: The block's tokens.
        sites: Sites that experiments write; their values are kept.
        writers: Writes to what enters the first layer that all experiments have in common.
    """
    base = Base(frame)
    plan = Plan(
        writers=dict(writers),
        readers={site: _keeper(base, site) for site in sites},
        stop_after=Site("resid_post", binding.n_layers - 1),
        desk=lambda layer, taps: _recording_desk(binding, base, layer, taps),
        shape=base.shape,
    )
    last = Site("resid_post", binding.n_layers - 1)
    kept_last = plan.readers.get(last)

    def keep_last(value: Tensor) -> None:
        base.residuals.append(value)
        if kept_last is not None:
            kept_last(value)

    plan.readers[last] = keep_last
    with torch.no_grad(), session(binding, plan), ExitStack() as stack:
        for layer in binding.layers:
            handle = layer.register_forward_pre_hook(_argument_recorder(base), with_kwargs=True)
            stack.callback(handle.remove)
        with suppress(Stopped):
            call_model(binding, frame)
    return base


def _keeper(base: Base, site: Site) -> Callable[[Tensor], None]:
    def keep(value: Tensor) -> None:
        base.values[site] = value

    return keep


def _argument_recorder(base: Base) -> Callable[..., None]:
    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            base.residuals.append(args[0])
            base.arguments.append((args[1:], kwargs))
        else:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            base.residuals.append(kwargs["hidden_states"])
            base.arguments.append(((), rest))

    return record


def _recording_desk(binding: Binding, base: Base, layer: int, taps: Mapping[str, Tap]) -> Desk:
    anatomy = binding.anatomy.attention
    late = {name: tap for name, tap in taps.items() if name not in ("q", "k", "v")}

    def desk(call: Call) -> tuple[Tensor, Tensor | None]:
        base.calls[layer] = tap_inputs(call, taps)
        z, pattern = attend(call, anatomy, late)
        base.mixed[layer] = z
        return z, pattern

    return desk
