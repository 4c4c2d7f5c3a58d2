"""Writers: how what each node writes differs between the two runs of a pair, for a few positions at a time.

Kept is what an ordinary run has: z of every head and what MLPs add. Vectors of the residual stream's width are formed
head by head for the positions at hand only. Behind a norm, a head's share divides by its own run's denominator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechscope.engine.edge_runs.layer_parts import LayerParts
from mechscope.models.model import Model
from mechscope.models.wiring import wiring_of
from mechscope.vocabulary.edges import Wiring
from mechscope.vocabulary.sites import Site

EMBEDDED = Site("resid_pre", 0)


def writer_sites(model: Model) -> tuple[Site, ...]:
    """Sites whose values say what every writer writes."""
    wiring = wiring_of(model)
    sites = [EMBEDDED, *(Site("z", layer) for layer in range(model.n_layers))]
    if wiring.has_mlps:
        sites += [Site("mlp_out", layer) for layer in range(model.n_layers)]
    return tuple(sites)


@dataclass
class Writers:
    """Differences of writers, donor less recipient.

    Args:
        layers: The model's layers.
        wiring: Its shape.
        embed: Difference of the embedding, [batch, pos, d_model].
        heads: z a layer, [batch, pos, head, d_head]: the difference, or both runs' where a norm stands behind.
        mlps: Difference a layer, [batch, pos, d_model].
    """

    layers: list[LayerParts]
    wiring: Wiring
    embed: Tensor
    heads: list[tuple[Tensor, ...]] = field(default_factory=list)
    mlps: list[Tensor] = field(default_factory=list)

    @classmethod
    def between(
        cls,
        layers: list[LayerParts],
        wiring: Wiring,
        donor: Mapping[Site, Tensor],
        recipient: Mapping[Site, Tensor],
    ) -> "Writers":
        """The differences of two runs."""
        found = cls(layers, wiring, donor[EMBEDDED] - recipient[EMBEDDED])
        for index, part in enumerate(layers):
            z, own = donor[Site("z", index)], recipient[Site("z", index)]
            found.heads.append((z - own,) if part.post_norm("attn") is None else (z, own))
            if wiring.has_mlps:
                site = Site("mlp_out", index)
                found.mlps.append(donor[site] - recipient[site])
        return found

    @property
    def n_columns(self) -> int:
        return self.embed.shape[1]

    def at(self, columns: Tensor | slice) -> Tensor:
        """What every writer changes at some columns, [writer, batch, column, d_model], in `Wiring`'s order."""
        embed = self.embed[:, columns]
        out = embed.new_empty((len(self.wiring.writers), *embed.shape))
        out[0] = embed
        place = 1
        for part, z, index in zip(self.layers, self.heads, range(len(self.layers)), strict=True):
            n = self.wiring.n_heads
            out[place : place + n] = part.added_by_heads(z[0][:, columns])
            if len(z) > 1:
                out[place : place + n] -= part.added_by_heads(z[1][:, columns])
            place += n
            if self.wiring.has_mlps:
                out[place] = self.mlps[index][:, columns]
                place += 1
        return out


def columns_at_once(n_writers: int, n_rows: int, *, d_model: int, itemsize: int, budget: int = 2**28) -> int:
    """Columns whose writers fit into a budget of bytes."""
    return max(1, budget // max(1, n_writers * n_rows * d_model * itemsize))


def real_columns(mask: Tensor) -> Tensor:
    """Columns at which any row is selected, from [batch, pos] truth values."""
    return torch.nonzero(mask.any(0))[:, 0]
