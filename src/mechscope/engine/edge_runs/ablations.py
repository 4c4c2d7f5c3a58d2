"""What removed edges carry, as data: another prompt's values, or a constant for each writer.

`Restored` is the other way round: constants everywhere, and the prompts' own values put back on some edges.
`zero` and `mean_of` make constants; `learn_constants` in `run.py` learns those that hurt least.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mechscope.engine.edge_runs.layer_parts import LayerParts
from mechscope.engine.edge_runs.recording import record_run
from mechscope.interventions.intervention import Value
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.wiring import wiring_of


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """Removed edges carry what they carry in other prompts, row by row and column by column.

    Args:
        prompts: As many, and padded alike.
    """

    prompts: TokenBatch = field(repr=False)

    @property
    def how(self) -> str:
        """The convention's name."""
        return "resample"

    def to_json(self) -> dict[str, Any]:
        """The convention, for a record."""
        return {"how": self.how}


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Removed edges carry one vector a writer.

    Args:
        how: "zero", "mean" or "optimal".
        values: [writer, d_model], writers in the order of `Wiring.writers`.
    """

    how: str
    values: Value = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The convention, for a record."""
        return {"how": self.how, "values": self.values.digest}


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Removed edges carry what they carry in the prompts' own run; all others start from constants.

    Where an edge is kept, it carries its writer's constant, plus what the writer adds in this circuit less what it
    adds where every edge carries its constant: what the restored edges set in motion. So with every edge kept
    each carries its constant, and with none it is the prompts' own run.

    Args:
        constants: Where it starts from.
    """

    constants: Constant

    @property
    def how(self) -> str:
        """The convention's name."""
        return f"restored over {self.constants.how}"

    def to_json(self) -> dict[str, Any]:
        """The convention, for a record."""
        return {"how": self.how, "constants": self.constants.to_json()}


EdgeAblation = Resampled | Constant | Restored


def zero(model: Model) -> Constant:
    """Removed edges carry nothing."""
    wiring = wiring_of(model)
    values = torch.zeros(len(wiring.writers), model.d_model, dtype=model.dtype, device=model.device)
    return Constant(how="zero", values=Value(values))


def mean_of(model: Model, reference: TokenBatch) -> Constant:
    """Removed edges carry each writer's mean over all real tokens of reference prompts.

    Cost: one forward pass over the reference prompts.
    """
    layers = [LayerParts(model.binding, layer) for layer in range(model.n_layers)]
    with model.ready():
        run = record_run(model.binding, layers, frame=Frame.of(reference))
    real = reference.mask.bool().flatten().to(run.embed.device)
    rows: list[Tensor] = [run.embed[real].mean(0, keepdim=True)]
    for layer in range(model.n_layers):
        rows.append(run.heads[layer][:, real].mean(1))
        if run.mlps:
            rows.append(run.mlps[layer][real].mean(0, keepdim=True))
    return Constant(how="mean", values=Value(torch.cat(rows)))
