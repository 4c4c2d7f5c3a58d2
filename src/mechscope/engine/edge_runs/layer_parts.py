"""What one layer does to what its readers read, through the model's own modules, reader by reader.

A head's query, key and value may each read another stream here, so each is normed and projected alone; from the
projections on (query norms, rotation, scores, masks, sinks) the layer's own attention module computes. What a head
writes is its share of what attention adds: where a norm stands behind attention, the share divides by the
denominator of the whole, and an output bias is shared evenly. Shares add up to `attn_out`, but for a constant bias.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mechscope.models.anatomy import Norm, Part
from mechscope.models.attention import Call, attend
from mechscope.models.binding import Binding
from mechscope.models.derived import centred, norm_scale, norm_weight
from mechscope.models.layouts import Heads
from mechscope.models.running import standing_in
from mechscope.models.session import Plan, session
from mechscope.models.weights import Weights
from mechscope.vocabulary.errors import PointUnavailable


@dataclass
class LayerParts:
    """One layer's norms, projections and modules.

    Args:
        binding: An open model.
        index: Which layer.
    """

    binding: Binding
    index: int

    def __post_init__(self) -> None:
        self.parts: Mapping[str, Part] = self.binding.parts_of(self.index)
        self.layer: nn.Module = self.binding.layers[self.index]
        self.has_mlp = "mlp_out" in self.parts

    def module(self, point: str) -> nn.Module:
        """The module of a part."""
        return self.layer.get_submodule(self.parts[point].module)

    @cached_property
    def projection(self) -> Tensor:
        """Query, key and value projections of every head in the order of readers, [reader, d_model, d_head]."""
        weights = Weights(self.binding)
        return torch.cat([weights[name, self.index].detach() for name in ("W_Q", "W_K", "W_V")]).contiguous()

    @cached_property
    def has_bias(self) -> Tensor:
        """Readers whose projection has a bias that is not zero, [reader] truth values."""
        weights, anatomy = Weights(self.binding), self.binding.anatomy.attention
        counts = {"Q": anatomy.n_heads, "K": anatomy.n_kv_heads, "V": anatomy.n_kv_heads}
        found = [
            weights[f"b_{which}", self.index].detach().ne(0).any(-1)
            if weights.has(f"b_{which}", self.index)
            else self.projection.new_zeros(n, dtype=torch.bool)
            for which, n in counts.items()
        ]
        return torch.cat(found)

    @cached_property
    def output(self) -> Tensor:
        """Output projection, [head, d_head, d_model], times the family's factor on what attention adds."""
        matrix = Weights(self.binding)["W_O", self.index].detach()
        return matrix if self.post_norm("attn") is not None else self.parts["attn_out"].layout.read(matrix)

    @cached_property
    def output_bias(self) -> Tensor | None:
        """An even share of the output projection's bias, where a norm behind it makes it no constant."""
        weights = Weights(self.binding)
        if self.post_norm("attn") is None or not weights.has("b_O", self.index):
            return None
        return weights["b_O", self.index].detach() / self.binding.anatomy.attention.n_heads

    @cached_property
    def constant_bias(self) -> Tensor:
        """What attention adds whatever its heads do, [d_model]: it belongs to no node."""
        weights = Weights(self.binding)
        if self.post_norm("attn") is not None or not weights.has("b_O", self.index):
            return self.output.new_zeros(self.output.shape[-1])
        return self.parts["attn_out"].layout.read(weights["b_O", self.index].detach())

    @cached_property
    def heads_are_coupled(self) -> bool:
        """Whether one head's inputs reach what another writes: a norm behind attention, or over all queries."""
        q_pre, q_proj = self.parts.get("q_pre"), self.parts.get("q_proj")
        if self.post_norm("attn") is not None:
            return True
        if q_pre is None or q_proj is None:
            return False
        return q_pre.module != q_proj.module and isinstance(q_pre.layout, Heads)

    def post_norm(self, which: str) -> nn.Module | None:
        """The norm between what a branch returns and what it adds to the stream; None if there is none."""
        raw, out = self.parts[f"{which}_raw"], self.parts[f"{which}_out"]
        return None if raw.module == out.module else self.module(f"{which}_out")

    def normed_for_heads(self, stream: Tensor) -> Tensor:
        """What attention's projections read, [..., d_model]."""
        return self.module("ln1")(stream) if "ln1" in self.parts else stream

    def normed_for_mlp(self, stream: Tensor) -> Tensor:
        """What the MLP reads, [..., d_model]."""
        if "ln2" in self.parts:
            return self.module("ln2")(stream)
        # Parallel blocks without a second norm feed the MLP what attention reads.
        return self.normed_for_heads(stream) if self.binding.anatomy.is_parallel else stream

    def project(self, streams: Tensor, readers: Tensor | None, constant: Tensor) -> Tensor:
        """Projections of streams, [reader, rows, tokens, d_model] to [reader, rows, tokens, d_head].

        Args:
            streams: One for each reader.
            readers: Which ones, in the order of `projection`; None for all.
            constant: What each reader's projection adds by itself (biases, positions), [reader, tokens, d_head].
        """
        return self.project_normed(self.normed_for_heads(streams), readers, constant)

    def project_normed(self, normed: Tensor, readers: Tensor | None, constant: Tensor) -> Tensor:
        """`project` for streams that the norm has been applied to."""
        weight = self.projection if readers is None else self.projection[readers]
        constant = constant if readers is None else constant[readers]
        n, rows, tokens, width = normed.shape
        found = torch.bmm(normed.reshape(n, rows * tokens, width), weight.to(normed))
        return found.unflatten(1, (rows, tokens)) + constant[:, None]

    def added_by_heads(self, z: Tensor, heads: Tensor | None = None) -> Tensor:
        """What heads add to the residual stream, [rows, tokens, head, d_head] to [head, rows, tokens, d_model].

        Args:
            z: Of the heads asked for; of all heads where they are coupled.
            heads: Which ones; None for all.
        """
        weight = self.output if heads is None else self.output[heads]
        rows, tokens = z.shape[:2]
        flat = z.permute(2, 0, 1, 3).reshape(z.shape[2], rows * tokens, -1)
        added = torch.bmm(flat, weight).unflatten(1, (rows, tokens))
        norm = self.post_norm("attn")
        if norm is None:
            return added
        added = added if self.output_bias is None else added + self.output_bias
        return self._shares(added, norm)

    def _shares(self, added: Tensor, module: nn.Module) -> Tensor:
        spec = self._spec_of(module)
        scale = norm_scale(added.sum(0), spec)
        found = centred(added, spec) / scale
        weight = norm_weight(module, spec)["weight"]
        return found if weight is None else found * weight.detach()

    def _spec_of(self, module: nn.Module) -> Norm:
        """A post-norm is of the kind of the final norm in every family that has one."""
        final = self.binding.anatomy.norms["ln_final"]
        if type(module) is not type(self.binding.final_norm):
            raise PointUnavailable(
                f"Layer {self.index} has a norm behind attention of an unknown kind.",
                got=type(module).__name__,
                because="what a head adds is its share of that norm's output, and its formula is not known",
                instead="an adapter that names it (CONTRIBUTING.md)",
            )
        return replace(final, module="")

    def added_by_mlp(self, stream: Tensor, units: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What the MLP adds to the residual stream, [rows, tokens, d_model] to the same.

        Args:
            stream: What it reads.
            units: From its units' activations to others, in whatever shape the down-projection reads them.
        """
        normed = self.normed_for_mlp(stream)
        if units is None:
            return self.added_by_normed_mlp(normed)
        down = self.module("mlp_post")
        forward = down.forward
        with standing_in({down: lambda x: forward(units(x))}):
            return self.added_by_normed_mlp(normed)

    def added_by_normed_mlp(self, normed: Tensor) -> Tensor:
        """`added_by_mlp` for a stream that the norm has been applied to."""
        raw = self._mlp(normed)
        norm = self.post_norm("mlp")
        raw = raw if norm is None else norm(raw)
        return self.parts["mlp_out"].layout.read(raw)

    def _mlp(self, x: Tensor) -> Tensor:
        first, last = self.parts["mlp_in"], self.parts["mlp_raw"]
        if first.module == last.module:
            out = self.module("mlp_in")(x)
            return out[last.index] if isinstance(out, tuple) else out
        children = dict(self.layer.named_children())
        if "activation_fn" not in children:
            raise PointUnavailable(
                f"The MLP of layer {self.index} is no module of its own.",
                got=f"{first.module}, {last.module}",
                because="it cannot be run on another stream than the layer's",
                instead="an adapter that names it (CONTRIBUTING.md)",
            )
        return self.module("mlp_raw")(children["activation_fn"](self.module("mlp_in")(x)))


@dataclass
class Attention:
    """The attention modules of a model, called with projections given: one session for many calls.

    Args:
        binding: An open model, held by the caller.
    """

    binding: Binding
    _given: tuple[Tensor, Tensor, Tensor] | None = None
    _z: dict[int, Tensor] = field(default_factory=dict)

    @contextmanager
    def standing(self) -> Generator[None, None, None]:
        """Stand in for every layer's projections for the duration of a block."""
        functions: dict[nn.Module, Callable[..., Any]] = {}
        for index, layer in enumerate(self.binding.layers):
            parts = self.binding.parts_of(index)
            inputs: dict[nn.Module, list[tuple[int, Part]]] = {}
            for which, name in enumerate(("q_proj", "k_proj", "v_proj")):
                inputs.setdefault(layer.get_submodule(parts[name].module), []).append((which, parts[name]))
            for module, wanted in inputs.items():
                functions[module] = self._projecting(module, wanted)
            output = layer.get_submodule(self.binding.anatomy.attention.output)
            functions[output] = self._nothing(output)
        plan = Plan(desk=lambda layer, _taps: self._desk(layer))
        with session(self.binding, plan), standing_in(functions):
            yield

    def mix(
        self,
        layer: int,
        *,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> Tensor:
        """z of every head from the projections, [batch, pos, head, d_head] each.

        Args:
            layer: Which layer.
            q: Projected queries, before any norm or rotation.
            k: Projected keys.
            v: Projected values.
            arguments: What the module was called with beside the stream.
        """
        self._given = (q, k, v)
        args, kwargs = arguments
        hidden = q.new_zeros(1).expand(*q.shape[:2], self._width)
        # Some families pass the stream by name.
        self.binding.attentions[layer](hidden, *args, **kwargs)
        self._given = None
        return self._z.pop(layer)

    @cached_property
    def _width(self) -> int:
        return int(Weights(self.binding)["W_O", 0].shape[-1])

    def _projecting(self, module: nn.Module, wanted: list[tuple[int, Part]]) -> Callable[..., Tensor]:
        weight: Any = module.weight
        width = weight.shape[1] if isinstance(module, Conv1D) else weight.shape[0]

        def project(_x: Tensor) -> Tensor:
            assert self._given is not None
            if len(wanted) == 1:
                which, part = wanted[0]
                return part.layout.write(self._given[which], self._given[which])
            raw = self._given[0].new_zeros(1).expand(*self._given[0].shape[:2], width)
            for which, part in wanted:
                raw = part.layout.write(raw, self._given[which])
            return raw

        return project

    def _nothing(self, module: nn.Module) -> Callable[..., Tensor]:
        # What the heads add is computed head by head from z, so the module's product would be thrown away.
        def nothing(x: Tensor) -> Tensor:
            return x.new_zeros(1).expand(*x.shape[:-1], self._width)

        return nothing

    def _desk(self, layer: int) -> Callable[[Call], tuple[Tensor, Tensor | None]]:
        anatomy = self.binding.anatomy.attention

        def desk(call: Call) -> tuple[Tensor, Tensor | None]:
            z, pattern = attend(call, anatomy, {})
            self._z[layer] = z
            return z, pattern

        return desk
