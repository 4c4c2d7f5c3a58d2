"""Blocks: pairs cut so that a pass fits into memory, with the positions that are asked for as masks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.attribution.passes import rows_at_once
from mechscope.engine.pairs import Pairs
from mechscope.engine.places import Places
from mechscope.interventions.metrics import Metric
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadPairs
from mechscope.vocabulary.where import Where


@dataclass(frozen=True)
class Block:
    """Some pairs.

    Args:
        clean: Their clean prompts.
        corrupt: Their corrupt prompts, padded alike.
        metric: For these pairs.
        masks: Tokens of each place, [batch, pos] truth values; padding is never in one.
        n_at_once: Rows of one pass.
    """

    clean: TokenBatch
    corrupt: TokenBatch
    metric: Metric
    masks: tuple[Tensor, ...]
    n_at_once: int


def blocks_of(model: Model, pairs: Pairs, places: Places) -> Iterator[Block]:
    """Pairs in order, as many at once as fit."""
    size = rows_at_once(model, pairs.clean.shape[1])
    for rows in torch.arange(len(pairs.clean)).split(size):
        clean, corrupt = pairs.clean.select(rows), pairs.corrupt.select(rows)
        some = places.select(rows.tolist())
        yield Block(clean, corrupt, pairs.metric.select(rows.tolist()), masks_of(model, clean, some), size)


def masks_of(model: Model, batch: TokenBatch, places: Places) -> tuple[Tensor, ...]:
    """Each place's tokens, [batch, pos] truth values."""
    frame, columns = Frame.of(batch), torch.arange(batch.shape[1])
    real = batch.mask.bool()
    found = [frame.selected(Where(positions=selection), columns) for selection in places.selections]
    return tuple((real if mask is None else mask & real).to(model.device) for mask in found)


def refuse_other_vocabulary(model: Model, pairs: Pairs) -> None:
    """Refuse prompts and answers with tokens that a model does not have: another model's behavior.

    Raises:
        BadPairs
    """
    columns = pairs.metric.reading().columns
    largest = max(int(pairs.clean.ids.max()), int(pairs.corrupt.ids.max()))
    answer = -1 if columns is None else int(columns.max())
    if largest >= model.d_vocab or answer >= model.sizes["d_vocab"]:
        raise BadPairs(
            "These pairs are of another model.",
            got=f"token {max(largest, answer)}",
            because=f"{model.identity.name} has {model.d_vocab} tokens",
            instead="the behavior loaded for this model: ms.behaviors.load(name, model)",
        )
