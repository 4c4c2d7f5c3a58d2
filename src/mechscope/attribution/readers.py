"""Readers: the metric's gradient at what each node reads, kept in the width of a head.

With g the gradient at a projection's output, W the projection behind the norm's weight (centred for a LayerNorm), s the
norm's denominator and n its normalised input, the gradient at the block's input is

    W (g / s) - n (n . W (g / s)) / d_model

for the derivative of the norm, and its first term if denominators are held. So one needs g, s and n from an ordinary
run: no copies of the inputs, no gradient of the residual stream's width for each head. Steps of an integral add up.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechscope.attribution.passes import Pass
from mechscope.engine.edge_runs.layer_parts import LayerParts
from mechscope.models.anatomy import Norm
from mechscope.models.derived import centred, norm_scale, norm_weight
from mechscope.models.layouts import Columns
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True)
class Reading:
    """What a reader's block does to the stream that it reads.

    Args:
        input: Where that stream is.
        norm: Its norm; None for none.
        weight: [d_model] or None.
    """

    input: Site
    norm: Norm | None
    weight: Tensor | None

    def fold(self, matrix: Tensor) -> Tensor:
        """A projection [..., d_model, width] behind the norm's weight and centring."""
        if self.norm is None:
            return matrix
        matrix = matrix if self.weight is None else matrix * self.weight[:, None]
        return matrix - matrix.mean(-2, keepdim=True) if self.norm.kind == "layer" else matrix

    def normalised(self, stream: Tensor) -> tuple[Tensor, Tensor] | None:
        """Denominators and normalised inputs; None without a norm."""
        if self.norm is None:
            return None
        scale = norm_scale(stream, self.norm)
        return scale, centred(stream, self.norm) / scale


def reading_of(part: LayerParts, which: str) -> Reading:
    """What stands between the residual stream and a layer's "attention" or "mlp"."""
    anatomy = part.binding.anatomy
    stream = Site("resid_pre", part.index)
    point = "ln1" if "ln1" in part.parts else None
    if which == "mlp":
        stream = stream if anatomy.is_parallel else Site("resid_mid", part.index)
        point = "ln2" if "ln2" in part.parts else (point if anatomy.is_parallel else None)
    if point is None:
        return Reading(stream, None, None)
    norm = anatomy.norms[point]
    weight = norm_weight(part.layer.get_submodule(norm.module), norm)["weight"]
    return Reading(stream, norm, None if weight is None else weight.detach())


def projection_sites(model: Model, layer: int) -> tuple[Site, Site, Site]:
    """Where a layer's queries, keys and values leave their projections.

    A fused projection without rotation is read where attention takes it: the same tensor, not cut out of it again.
    """
    part = model.binding.parts_of(layer)["q_proj"]
    is_same = isinstance(part.layout, Columns) and not model.binding.anatomy.attention.is_rotary
    names = ("q", "k", "v") if is_same else ("q_proj", "k_proj", "v")
    query, key, value = (Site(name, layer) for name in names)
    return query, key, value


def reader_sites(model: Model, layers: list[LayerParts]) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """Sites whose values, and sites whose gradients, say what every reader's gradient is."""
    values: set[Site] = set()
    at: list[Site] = []
    for part in layers:
        values.add(reading_of(part, "attention").input)
        at += projection_sites(model, part.index)
        if part.has_mlp:
            values.add(reading_of(part, "mlp").input)
            at.append(Site("mlp_in", part.index))
    return tuple(sorted(values)), tuple(at)


@dataclass
class HeadReaders:
    """Queries, keys and values of one layer's heads.

    Args:
        reading: What they read.
        inner: Sum over steps of g / s, [reader, batch, pos, d_head].
        along: n and what is taken off along it, a step: [batch, pos, d_model] and [reader, batch, pos].
        largest: Of the gradient, by reader: zero marks edges that no gradient reaches.
    """

    reading: Reading
    inner: Tensor | None = None
    along: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def at(self, part: LayerParts, columns: Tensor | slice) -> Tensor:
        """Gradients at what the readers read, [reader, batch, column, d_model]."""
        assert self.inner is not None
        inner = self.inner[:, :, columns]
        folded = self.reading.fold(part.projection).to(inner)
        found = torch.bmm(inner.flatten(1, 2), folded.transpose(1, 2)).unflatten(1, inner.shape[1:3])
        for normalised, share in self.along:
            found.addcmul_(normalised[None, :, columns], share[:, :, columns, None], value=-1.0)
        return found


@dataclass
class Readers:
    """Every reader's gradient, summed over passes with weights.

    Args:
        model: An open model.
        layers: Its layers.
        holds_norms: Denominators are held.
    """

    model: Model
    layers: list[LayerParts]
    holds_norms: bool = False
    heads: list[HeadReaders] = field(default_factory=list)
    mlps: list[Tensor | None] = field(default_factory=list)
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        self._readings = [
            (reading_of(part, "attention"), reading_of(part, "mlp") if part.has_mlp else None)
            for part in self.layers
        ]
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self.heads = [HeadReaders(reading) for reading, _ in self._readings]
        self.mlps = [None] * len(self.layers)
        self.logits = None

    def add(self, found: Pass, *, weights: Tensor, first_layer: int = 0) -> None:
        """Add a pass, each of its copies with its weight.

        Args:
            found: The pass; its batch is [copy * row].
            weights: [copy].
            first_layer: Readers of lower layers did not run.
        """
        n = len(weights)
        for index in range(first_layer, len(self.layers)):
            self._add_heads(index, found, weights)
            self._add_mlp(index, found, weights)
        any_input = found.values[self._readings[-1][0].input]
        final = torch.zeros_like(any_input)
        rows = torch.arange(len(final), device=final.device)[:, None]
        final.index_put_((rows, found.columns), found.final.to(final), accumulate=True)
        summed = _weighted(final, weights)
        self.logits = summed if self.logits is None else self.logits + summed
        assert len(final) % n == 0

    def _add_heads(self, index: int, found: Pass, weights: Tensor) -> None:
        mine, part = self.heads[index], self.layers[index]
        sites = projection_sites(self.model, index)
        gradient = torch.cat([_as_heads(found.gradients[site]) for site in sites])
        known = mine.reading.normalised(found.values[mine.reading.input])
        if known is not None:
            scale, normalised = known
            gradient = gradient / scale[None]
            if not self.holds_norms:
                self._keep_along(mine, part, gradient, normalised, weights)
        summed = _weighted(gradient.transpose(0, 1), weights).transpose(0, 1)
        mine.inner = summed if mine.inner is None else mine.inner + summed

    def _keep_along(
        self, mine: HeadReaders, part: LayerParts, gradient: Tensor, normalised: Tensor, weights: Tensor
    ) -> None:
        folded = mine.reading.fold(part.projection).to(gradient)
        width = normalised.shape[-1]
        seen = normalised @ folded.transpose(0, 1).flatten(1)
        seen = seen.unflatten(-1, folded.shape[::2]).movedim(-2, 0)
        share = (seen * gradient).sum(-1) / width
        for step, (n, s) in enumerate(
            zip(normalised.chunk(len(weights)), share.chunk(len(weights), dim=1), strict=True)
        ):
            mine.along.append((n, s * weights[step]))

    def _add_mlp(self, index: int, found: Pass, weights: Tensor) -> None:
        reading = self._readings[index][1]
        if reading is None:
            return
        gradient = found.gradients[Site("mlp_in", index)]
        known = reading.normalised(found.values[reading.input])
        if known is not None:
            scale, normalised = known
            gradient = gradient if reading.weight is None else gradient * reading.weight
            if reading.norm is not None and reading.norm.kind == "layer":
                gradient = gradient - gradient.mean(-1, keepdim=True)
            gradient = gradient / scale
            if not self.holds_norms:
                gradient = gradient - normalised * (normalised * gradient).mean(-1, keepdim=True)
        summed = _weighted(gradient, weights)
        before = self.mlps[index]
        self.mlps[index] = summed if before is None else before + summed


def _as_heads(gradient: Tensor) -> Tensor:
    """[batch, pos, head, d_head] to [head, batch, pos, d_head]."""
    return gradient.permute(2, 0, 1, 3)


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """The sum over copies, [copy * row, ...] to [row, ...]."""
    parts = values.unflatten(0, (len(weights), -1))
    if len(weights) == 1:
        return parts[0] * weights[0].to(values)
    return torch.tensordot(weights.to(values), parts, dims=1)
