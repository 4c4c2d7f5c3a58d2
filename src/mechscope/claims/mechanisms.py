"""Mechanisms that claims are about: components (heads and MLPs), subspaces, and directions.

Each satisfies the Mechanism protocol: it can be ablated, left alone intact, and saved by name.
`saved_mechanisms.py` rebuilds what a claim file remembers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mechscope.interventions.ablation import ablate
from mechscope.interventions.intervention import Value
from mechscope.interventions.replace import patch
from mechscope.interventions.steering import add, project_out
from mechscope.models.cache import Cache
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadClaim, NotEnoughEvidence, PositionOutOfRange
from mechscope.vocabulary.protocols import Mechanism, Write
from mechscope.vocabulary.sites import Site

Head = tuple[int, int]


@dataclass(frozen=True)
class ModelSize:
    """What isolating a mechanism needs to know of its model.

    Args:
        n_layers: Layers.
        n_heads: Query heads a layer.
    """

    n_layers: int
    n_heads: int


@runtime_checkable
class MeasurableMechanism(Mechanism, Protocol):
    """What testing needs beyond a name and a JSON form."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose values ablation and restoration use."""
        ...

    def ablation(self, how: str, reference: Any) -> Sequence[Write]:
        """Writes that remove the mechanism: the value is `how`, measured on (or, for "corrupt", taken from)
        `reference`."""
        ...

    def isolation(self, donor: Cache, size: ModelSize) -> Sequence[Write]:
        """Writes that leave the mechanism alone intact: all else of its kind gets the donor's (corrupt) values."""
        ...

    def without_each(self) -> Sequence["MeasurableMechanism"]:
        """The mechanism less each of its parts; empty if it has one part or none that can be taken out."""
        ...


@runtime_checkable
class RivalledMechanism(Protocol):
    """A mechanism of another kind than ours, that says itself what it can be held against."""

    def rivals(self, *, n_draws: int, seed: int) -> Sequence[MeasurableMechanism]:
        """At least `n_draws` mechanisms of its size that should not matter, or all that there are; the i-th depends
        on the seed and i only."""
        ...


@dataclass(frozen=True)
class Components:
    """A set of attention heads and MLPs, at all positions.

    Args:
        heads: (layer, head) pairs.
        mlps: Layers.
    """

    heads: tuple[Head, ...] = ()
    mlps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        try:
            heads = {(index(layer), index(head)) for layer, head in self.heads}
            mlps = {index(layer) for layer in self.mlps}
        except (TypeError, ValueError) as error:
            raise BadClaim(
                "these are no heads and MLPs",
                got=f"heads={self.heads!r}, mlps={self.mlps!r}",
                because="a head is a layer and a number, an MLP is a layer",
                instead="Components(heads=((3, 4),), mlps=(2,))",
            ) from error
        object.__setattr__(self, "heads", tuple(sorted(heads)))
        object.__setattr__(self, "mlps", tuple(sorted(mlps)))

    @property
    def name(self) -> str:
        """ "heads 2.1 and 3.4, MLP 2"."""
        parts = []
        if self.heads:
            names = [f"{layer}.{head}" for layer, head in self.heads]
            parts.append(("head " if len(names) == 1 else "heads ") + _listed(names))
        if self.mlps:
            parts.append(
                ("MLP " if len(self.mlps) == 1 else "MLPs ") + _listed([str(layer) for layer in self.mlps])
            )
        return ", ".join(parts) or "nothing"

    @property
    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Heads of each layer that has some."""
        layers = sorted({layer for layer, _ in self.heads})
        return {layer: tuple(head for at, head in self.heads if at == layer) for layer in layers}

    @property
    def sites(self) -> tuple[str, ...]:
        return (*(f"z.{layer}" for layer in self.by_layer), *(f"mlp_out.{layer}" for layer in self.mlps))

    def to_json(self) -> dict[str, Any]:
        """Canonical."""
        return {"kind": "components", "heads": [list(h) for h in self.heads], "mlps": list(self.mlps)}

    def ablation(self, how: str, reference: Any) -> list[Write]:
        """Heads through `z`, MLPs through `mlp_out`."""
        heads = self.by_layer
        if how == "corrupt":
            return _donated(heads, self.mlps, reference)
        writes: list[Write] = [
            ablate(f"z.{layer}", how, reference=reference, heads=list(chosen))
            for layer, chosen in heads.items()
        ]
        return writes + [ablate(f"mlp_out.{layer}", how, reference=reference) for layer in self.mlps]

    def isolation(self, donor: Cache, size: ModelSize, *, holds_mlps: bool | None = None) -> list[Write]:
        """All other heads get the donor's values; all other MLPs too, if the mechanism has MLPs of its own.

        Args:
            holds_mlps: Decide about the MLPs otherwise.
        """
        mine = self.by_layer
        others = {
            layer: tuple(h for h in range(size.n_heads) if h not in mine.get(layer, ()))
            for layer in range(size.n_layers)
        }
        mlps = tuple(layer for layer in range(size.n_layers) if layer not in self.mlps)
        mlps = mlps if (bool(self.mlps) if holds_mlps is None else holds_mlps) else ()
        return _donated({layer: heads for layer, heads in others.items() if heads}, mlps, donor)

    def without_each(self) -> tuple["Components", ...]:
        """The set less each head and each MLP; of one part, the empty set."""
        less_a_head = [
            Components(tuple(h for h in self.heads if h != head), self.mlps) for head in self.heads
        ]
        less_an_mlp = [Components(self.heads, tuple(m for m in self.mlps if m != mlp)) for mlp in self.mlps]
        return (*less_a_head, *less_an_mlp)


@dataclass(frozen=True)
class Subspaces:
    """Subspaces of sites: what a random control of the same size is, or what DAS finds.

    Args:
        bases: (site, orthonormal rows) pairs; rows are as wide as all that a position carries there.
        label: Text for reports.
    """

    bases: tuple[tuple[str, Value], ...]
    label: str = "subspaces"

    @property
    def name(self) -> str:
        sizes = [
            f"{value.tensor.shape[0]} of {value.tensor.shape[1]} at {site}" for site, value in self.bases
        ]
        return f"{self.label} ({', '.join(sizes)})"

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(site for site, _ in self.bases)

    def to_json(self) -> dict[str, Any]:
        """By digest; the tensors are rebuilt from their seed."""
        return {"kind": "subspaces", "bases": [[site, value.digest] for site, value in self.bases]}

    def ablation(self, how: str, reference: Any) -> list[Write]:
        """Each subspace's component set to the value of `how`."""
        if how == "corrupt":
            return [patch(site, reference, subspace=value.tensor) for site, value in self.bases]
        return [ablate(site, how, reference=reference, subspace=value.tensor) for site, value in self.bases]

    def isolation(self, donor: Cache, size: ModelSize) -> list[Write]:
        """The donor's values of all heads (or neurons, if the subspaces are of those), but inside the subspaces."""
        inside = dict(self.bases)
        point = Site.parse(self.bases[0][0]).point
        writes: list[Write] = []
        for site in (f"{point}.{layer}" for layer in range(size.n_layers)):
            basis = inside.get(site)
            kept = None if basis is None else patch(site, donor, subspace=basis.tensor).outside_subspace()
            writes.append(kept or patch(site, donor))
        return writes

    def without_each(self) -> tuple["Subspaces", ...]:
        """A random subspace has no parts of its own."""
        return ()


@dataclass(frozen=True)
class Direction:
    """A direction at a site.

    Args:
        site: Where.
        vector: [d].
        label: Text for reports.
        position: Where on train prompts it was estimated by `mean_difference`; None if it came otherwise.
    """

    site: str
    vector: tuple[float, ...]
    label: str = "direction"
    position: int | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.vector).all() or not np.any(self.vector):
            raise BadClaim(
                "this is no direction",
                got="zeros, or values that are not finite",
                because="removing it changes nothing, so that nothing could be found of it",
                instead="Direction.mean_difference(model, pairs, site=...), or a vector with a length",
            )

    @classmethod
    def mean_difference(
        cls, model: Model, pairs: Any, *, site: str, position: int = -1, label: str = "clean less corrupt"
    ) -> "Direction":
        """The mean on clean prompts less the mean on corrupt ones, at one position of each.

        It remembers how it was estimated, so that a claim about it can be held against label-shuffled re-estimates.

        Args:
            model: An open model.
            pairs: Clean and corrupt prompts; of a behaviour, its train split.
            site: One whose values are a vector for each position: "resid_post.2".
            position: Of each prompt's real tokens; -1 is the last.
            label: Text for reports.

        Raises:
            NotEnoughEvidence: the two means are equal.
        """
        clean, corrupt = (values_at(model, site, side, position) for side in (pairs.clean, pairs.corrupt))
        labels = np.repeat([1, 0], [len(clean), len(corrupt)])
        found = difference_of_means(np.concatenate([clean, corrupt]), labels)
        return cls(site, tuple(found.tolist()), label, position)

    @property
    def name(self) -> str:
        return f"{self.label} at {self.site}"

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    @property
    def tensor(self) -> Tensor:
        """The direction, float64."""
        return torch.tensor(self.vector, dtype=torch.float64)

    def to_json(self) -> dict[str, Any]:
        """Canonical: every coordinate, and how it was estimated if it says so."""
        estimate = {} if self.position is None else {"estimate": "mean difference", "position": self.position}
        vector = list(self.vector)
        return {"kind": "direction", "site": self.site, "vector": vector, "label": self.label} | estimate

    def ablation(self, how: str, reference: Any) -> list[Write]:
        """Zero projects the direction out; corrupt puts in the corrupt run's component."""
        if how == "corrupt":
            return [patch(self.site, reference, subspace=self.tensor[None])]
        if how != "zero":
            return Subspaces(((self.site, Value(self.tensor[None])),)).ablation(how, reference)
        return [project_out(self.site, self.tensor)]

    def isolation(self, donor: Cache, size: ModelSize) -> list[Write]:
        """The donor's values at the site, but along the direction."""
        return [patch(self.site, donor, subspace=self.tensor[None]).outside_subspace()]

    def without_each(self) -> tuple["Direction", ...]:
        """A direction has one part."""
        return ()

    def steering(self, dose: float) -> list[Write]:
        """The direction added, in reference norms."""
        return [add(self.site, self.tensor, dose=dose)]


def values_at(model: Model, site: str, prompts: TokenBatch, position: int) -> np.ndarray:
    """What each prompt carries at a site and a position, flattened, [prompt, d], float64.

    Raises:
        PositionOutOfRange: a prompt is too short.
    """
    lengths = prompts.n_real
    if (lengths < max(position + 1, -position)).any():
        raise PositionOutOfRange(
            "A prompt has no such position.",
            got=f"position {position}, the shortest prompt has {int(lengths.min())} tokens",
            instead="-1, the last token of each",
        )
    value = model.run(prompts, capture=[site], stop_after=site).cache[site]
    columns = prompts.n_pad + (lengths + position if position < 0 else position)
    picked = value[torch.arange(len(value)), columns.to(value.device)]
    return picked.flatten(1).double().cpu().numpy()


def difference_of_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean of the rows labelled 1 less mean of those labelled 0.

    Raises:
        NotEnoughEvidence: there is no difference.
    """
    found = values[labels == 1].mean(axis=0) - values[labels == 0].mean(axis=0)
    if not np.any(found):
        raise NotEnoughEvidence(
            "there is no difference between the two means",
            got=f"{len(labels)} prompts whose values are equal on both sides",
            instead="a site and a position at which clean and corrupt prompts differ",
        )
    return found


def _donated(heads: Mapping[int, Sequence[int]], mlps: Sequence[int], donor: Cache) -> list[Write]:
    writes: list[Write] = [patch(f"z.{layer}", donor, heads=list(chosen)) for layer, chosen in heads.items()]
    return writes + [patch(f"mlp_out.{layer}", donor) for layer in mlps]


def captured_basis(heads: Sequence[int], n_heads: int, d_head: int) -> np.ndarray:
    """The coordinate rows that some heads occupy in `z` flattened to [n_heads * d_head]."""
    rows = [head * d_head + i for head in heads for i in range(d_head)]
    return np.eye(n_heads * d_head)[rows]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
