"""The row space of what reads a place: the directions along which a change there can be seen by the next matrices.

A learnt subspace may mix a direction that carries the variable but that nothing reads with one that is read but does
not vary; a patch along the mixture then works through a path that the model never uses (Makelov et al. 2023, arXiv
2311.17030). Re-patching only the part inside the row space shows it. Owns: which matrices read which point. Refuses
points that no matrix reads directly.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mechscope.circuits.abstraction.place import Place
from mechscope.interventions.subspace import orthonormal
from mechscope.models.anatomy import Norm
from mechscope.models.derived import norm_weight
from mechscope.models.model import Model
from mechscope.vocabulary.errors import PointUnavailable
from mechscope.vocabulary.sites import Site

TOLERANCE = 1e-5
"""Directions whose singular value is less than this share of the largest are not read: float32 rounding."""
LEAST_INSIDE = 1e-3
"""Length of a unit vector's projection below which nothing of it lies in the row space."""

_OF_STREAM = ("embed", "pos_embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
_AFTER = {
    "resid_pre": "attention",
    "attn_out": "mlp",
    "resid_mid": "mlp",
    "mlp_out": "next",
    "resid_post": "next",
}
_QKV, _MLP = ("W_Q", "W_K", "W_V"), ("W_in", "W_gate")


@dataclass(frozen=True, kw_only=True)
class RowSpace:
    """What is read of a place.

    Args:
        basis: Orthonormal rows over the place's coordinates, [rank, coordinate], float64.
        matrix: Which matrices, in words.
    """

    basis: Tensor = field(repr=False)
    matrix: str

    @property
    def rank(self) -> int:
        return len(self.basis)

    @property
    def width(self) -> int:
        """Coordinates of the place."""
        return self.basis.shape[1]

    @property
    def is_everything(self) -> bool:
        """True if every direction is read, so that the re-patch is the patch and controls nothing."""
        return self.rank == self.width

    def inside(self, subspace: Tensor) -> Tensor:
        """The part of a subspace that is read: an orthonormal basis of its projection, [n, coordinate]; n may be 0."""
        projected = subspace.double().cpu() @ self.basis.T @ self.basis
        kept = projected.norm(dim=1).max() > LEAST_INSIDE if len(projected) else False
        if not kept:
            return projected[:0]
        _, sizes, rows = torch.linalg.svd(projected, full_matrices=False)
        return rows[sizes > LEAST_INSIDE]

    def shares(self, subspace: Tensor) -> list[float]:
        """How much of the subspace is read: its principal cosines with the row space, largest first."""
        inner = orthonormal(subspace.double().cpu()) @ self.basis.T
        return [float(size) for size in torch.linalg.svdvals(inner)]


def row_space_of(model: Model, place: Place) -> RowSpace:
    """The row space of everything that reads a place directly, that is, before the next non-linearity but norms.

    For the residual stream and what is added to it: queries, keys, values and MLP inputs of all later layers and the
    unembedding, each through its norm's weight (and centring). For `mlp_post`: W_out. For `z`: W_O of its heads. For
    what a layer's attention or MLP reads: that layer's matrices.

    Raises:
        PointUnavailable: no matrix of this architecture reads the point directly, or one is out of reach.

    Caveat: a norm's denominator reads every direction; that is not counted.
    """
    site = model.binding.site(place.site)
    chosen = place.coordinates(model)
    gram = torch.zeros(len(chosen), len(chosen), dtype=torch.float64)
    names: list[str] = []
    for name, matrix in _readers(model, site):
        part = matrix.detach().double().cpu()[:, chosen]
        scale = float(part.square().sum())
        gram += part.T @ part / scale if scale else 0.0
        names.append(name)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values.max() * TOLERANCE**2
    return RowSpace(basis=vectors[:, kept].T.contiguous(), matrix=_said(names))


def _readers(model: Model, site: Site) -> Iterator[tuple[str, Tensor]]:
    """Matrices that read a site, [output, all that a token carries]."""
    weights, layer = model.weights, site.layer
    if site.point == "mlp_post" and layer is not None:
        yield f"W_out of layer {layer}", weights["W_out", layer].T
    elif site.point == "z" and layer is not None:
        yield f"W_O of layer {layer}", weights["W_O", layer].flatten(0, 1).T
    elif site.point in ("ln1", "attn_in") and layer is not None:
        yield from _named(model, _QKV, layer)
        if site.point == "ln1" and _mlp_reads_first_norm(model, layer):
            yield from _named(model, _MLP, layer)
    elif site.point in ("ln2", "mlp_in") and layer is not None:
        yield from _named(model, _MLP, layer)
    elif site.point == "ln_final":
        yield "W_U", weights["W_U"].T
    elif site.point in _OF_STREAM:
        yield from _of_stream(model, site)
    else:
        raise PointUnavailable(
            f"No matrix reads {site} directly.",
            got=str(site),
            because="between it and the next matrix stands something that is not linear",
            instead=", ".join((*_OF_STREAM, "z", "mlp_post", "ln1", "ln2")),
        )


def _of_stream(model: Model, site: Site) -> Iterator[tuple[str, Tensor]]:
    binding = model.binding
    start = _AFTER.get(site.point, "attention")
    first = 0 if site.layer is None else site.layer + (start == "next")
    for layer in range(first, model.n_layers):
        is_own = layer == site.layer
        if not is_own or start == "attention":
            yield from _through(model, _QKV, layer, "ln1")
        # A parallel block's MLP reads what its attention reads, so it doesn't see what attention adds.
        if not (is_own and start == "mlp" and binding.anatomy.is_parallel):
            yield from _through(model, _MLP, layer, "ln1" if _mlp_reads_first_norm(model, layer) else "ln2")
    norm = binding.anatomy.norms.get("ln_final")
    unembedding = model.weights["W_U"].T
    module = binding.final_norm
    yield "W_U", unembedding if norm is None or module is None else _normed(unembedding, module, norm)


def _through(model: Model, names: tuple[str, ...], layer: int, norm: str) -> Iterator[tuple[str, Tensor]]:
    parts = model.binding.parts_of(layer)
    spec = model.binding.anatomy.norms.get(norm)
    for name, matrix in _named(model, names, layer):
        if norm not in parts or spec is None:
            yield name, matrix
            continue
        module = model.binding.layers[layer].get_submodule(parts[norm].module)
        yield name, _normed(matrix, module, spec)


def _named(model: Model, names: tuple[str, ...], layer: int) -> Iterator[tuple[str, Tensor]]:
    if names == _MLP and "mlp_out" not in model.binding.parts_of(layer):
        return  # attention-only
    for name in names:
        if name == "W_gate" and not model.weights.has(name, layer):
            continue
        matrix = model.weights[name, layer]
        flat = matrix.movedim(1, 0).flatten(1) if matrix.ndim == 3 else matrix
        yield f"{name} of layer {layer}", flat.T


def _mlp_reads_first_norm(model: Model, layer: int) -> bool:
    return model.binding.anatomy.is_parallel and "ln2" not in model.binding.parts_of(layer)


def _normed(matrix: Tensor, module: nn.Module, norm: Norm) -> Tensor:
    """A matrix as it reads what arrives at the norm before it, up to the denominator."""
    weight = norm_weight(module, norm)["weight"]
    scaled = matrix if weight is None else matrix * weight.to(matrix)
    return scaled - scaled.mean(-1, keepdim=True) if norm.kind == "layer" else scaled


def _said(names: list[str]) -> str:
    """Names with the layers of each put together: "W_Q of layers 1 to 3"."""
    layers: dict[str, list[int]] = {}
    for name in names:
        kind, _, layer = name.partition(" of layer ")
        layers.setdefault(kind, []).extend([int(layer)] if layer else [])
    said = []
    for kind, own in layers.items():
        if not own:
            said.append(kind)
        elif len(own) == 1:
            said.append(f"{kind} of layer {own[0]}")
        else:
            said.append(f"{kind} of layers {own[0]} to {own[-1]}")
    return ", ".join(said)
