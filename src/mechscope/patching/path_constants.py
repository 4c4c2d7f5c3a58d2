"""What a sender carries along a path where it is not the other run's value: a mean, nothing, or a learned constant."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.engine.edge_runs.ablations import Constant, mean_of, zero
from mechscope.engine.edge_runs.layer_parts import LayerParts
from mechscope.engine.edge_runs.recording import Recorded, record_run
from mechscope.engine.pairs import Pairs
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.wiring import wiring_of
from mechscope.patching.path_settings import PathConvention
from mechscope.vocabulary.errors import InterventionMismatch


@dataclass(frozen=True)
class Constants:
    """What senders carry, by group of prompts.

    Args:
        values: Writers in the order of `Wiring.writers`; one column stands for all.
        groups: Each pair's group.
    """

    values: Float[Tensor, "group writer column d_model"]
    groups: Int[Tensor, " pair"]

    def of(self, writer: int, rows: Tensor, n_columns: int) -> Float[Tensor, "token d_model"]:
        """What a writer carries in some pairs at their last columns, flattened."""
        found = self.values[self.groups[rows].to(self.values.device), writer, -n_columns:]
        return found.expand(-1, n_columns, -1).flatten(0, 1)


def constants_of(
    model: Model, pairs: Pairs, convention: PathConvention, blocks: Sequence[Tensor]
) -> Constants | None:
    """The constants of a convention; None for "resample".

    Args:
        model: An open model.
        pairs: Whose clean prompts means are over.
        convention: Whose ablation it is.
        blocks: Rows of the pairs that fit into memory together.

    Cost: one run of the clean prompts for means.
    """
    ablation = convention.ablation
    if ablation == "resample":
        return None
    if ablation == "template-mean":
        return _means_by_template(model, pairs, blocks)
    if convention.constants is not None:
        made = convention.constants
        _refuse_other_writers(model, made)
    else:
        made = mean_of(model, pairs.clean) if ablation == "mean" else zero(model)
    everyone = torch.zeros(len(pairs.clean), dtype=torch.long)
    return Constants(made.values.tensor[None, :, None], everyone)


def _refuse_other_writers(model: Model, constants: Constant) -> None:
    got, wanted = list(constants.values.tensor.shape), [len(wiring_of(model).writers), model.d_model]
    if got != wanted:
        raise InterventionMismatch(
            "These constants are of another model.",
            got=f"shape {got}",
            because=f"its writers' constants are of shape {wanted}",
            instead="ms.circuits.learn_constants(model, ...).constants of this model",
        )


def _means_by_template(model: Model, pairs: Pairs, blocks: Sequence[Tensor]) -> Constants:
    """Each writer's mean at each column over the clean prompts of one template that are padded alike."""
    groups = groups_of(pairs)
    layers = [LayerParts(model.binding, layer) for layer in range(model.n_layers)]
    total: Tensor | None = None
    for rows in blocks:
        with model.ready():
            run = record_run(model.binding, layers, frame=Frame.of(pairs.clean.select(rows.tolist())))
        added = _by_writer(run).unflatten(1, (len(rows), -1)).transpose(0, 1)
        if total is None:
            n_writers, n_columns = added.shape[1], pairs.clean.shape[1]
            total = added.new_zeros(int(groups.max()) + 1, n_writers, n_columns, added.shape[-1])
        # Columns that are padding in a whole block are cut off its left.
        total[:, :, -added.shape[2] :].index_add_(0, groups[rows].to(added.device), added)
    assert total is not None
    counts = torch.bincount(groups).to(total)
    return Constants(total / counts[:, None, None, None], groups)


def groups_of(pairs: Pairs) -> Tensor:
    """Numbers of the pairs' groups: one wording, and as many tokens, so that columns are the same places. [pair]."""
    clean: TokenBatch = pairs.clean
    templates = getattr(pairs, "templates", None) or ("",) * len(clean)
    keys = list(zip(templates, clean.n_pad.tolist(), strict=True))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])


def _by_writer(run: Recorded) -> Float[Tensor, "writer token d_model"]:
    """What every writer adds, in the order of `Wiring.writers`."""
    rows = [run.embed[None]]
    for layer, heads in enumerate(run.heads):
        rows.append(heads)
        if run.mlps:
            rows.append(run.mlps[layer][None])
    return torch.cat(rows)
