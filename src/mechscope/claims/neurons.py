"""Neurons as a mechanism: units of MLPs, at all positions, read and written through `mlp_post`.

Alone means that every other neuron keeps the corrupt run's value; heads compute from what reaches them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechscope.claims.mechanisms import ModelSize
from mechscope.interventions.ablation import ablate
from mechscope.interventions.replace import patch
from mechscope.models.cache import Cache
from mechscope.vocabulary.protocols import Write

Unit = tuple[int, int]
NAMED = 6
"""Neurons that a name lists; of more it gives the number."""


@dataclass(frozen=True)
class Neurons:
    """A set of MLP neurons.

    Args:
        units: (layer, neuron) pairs.
    """

    units: tuple[Unit, ...]

    def __post_init__(self) -> None:
        units = tuple(sorted({(int(layer), int(unit)) for layer, unit in self.units}))
        object.__setattr__(self, "units", units)

    @property
    def name(self) -> str:
        """ "neurons 2.17, 3.4"."""
        names = [f"{layer}.{unit}" for layer, unit in self.units]
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        return f"{'neuron' if len(names) == 1 else 'neurons'} {shown}"

    @property
    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Neurons of each layer that has some."""
        layers = sorted({layer for layer, _ in self.units})
        return {layer: tuple(unit for at, unit in self.units if at == layer) for layer in layers}

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(f"mlp_post.{layer}" for layer in self.by_layer)

    def to_json(self) -> dict[str, Any]:
        """Canonical."""
        return {"kind": "neurons", "units": [list(unit) for unit in self.units]}

    def ablation(self, how: str, reference: Any) -> list[Write]:
        """The units of `mlp_post` set to the value of `how`."""
        if how == "corrupt":
            return [
                patch(f"mlp_post.{layer}", reference, units=list(units))
                for layer, units in self.by_layer.items()
            ]
        return [
            ablate(f"mlp_post.{layer}", how, reference=reference).only(units=list(units))
            for layer, units in self.by_layer.items()
        ]

    def isolation(self, donor: Cache, size: ModelSize) -> list[Write]:
        """All other neurons of all layers get the donor's values."""
        writes: list[Write] = []
        for layer in range(size.n_layers):
            mine = set(self.by_layer.get(layer, ()))
            d_mlp = int(donor[f"mlp_post.{layer}"].shape[-1])
            others = [unit for unit in range(d_mlp) if unit not in mine]
            writes.append(patch(f"mlp_post.{layer}", donor, units=others if mine else None))
        return writes

    def without_each(self) -> Sequence["Neurons"]:
        """The set less each neuron; of one neuron, the empty set."""
        return tuple(Neurons(tuple(u for u in self.units if u != unit)) for unit in self.units)
