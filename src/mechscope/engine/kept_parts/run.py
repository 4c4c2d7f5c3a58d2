"""Runs of prompts under circuits that keep some parts: what latents and experts have in common.

A circuit is truth values by site, one for each part that can be removed there. Owns the cut into rows that fit the
memory, and the way through the engine: one experiment a circuit, over shared prompts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.interventions.metrics import Metric
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import PairLengthMismatch
from mechscope.vocabulary.protocols import Tokens, Write
from mechscope.vocabulary.sites import Site

Kept = Mapping[str, np.ndarray]
"""What a circuit keeps, by site: truth values."""

Ablation = Literal["resample", "mean", "zero"]

MEMORY = 2**28
"""Bytes of other runs' values that are held at once."""


class KeptRuns(ABC):
    """Prompts ready to be run under circuits.

    Args:
        model: An open model.
        tokens: Prompts; what is kept is computed from them.
        metric: What is read.
        ablation: What removed parts carry.
        other: For "resample" the twin prompts that it is from, for "mean" those that are averaged.
        memory: Budget in bytes.

    Raises:
        PairLengthMismatch: twins of other lengths.
    """

    def __init__(
        self,
        model: Model,
        tokens: TokenBatch,
        *,
        metric: Metric,
        ablation: Ablation,
        other: TokenBatch,
        memory: int = MEMORY,
    ) -> None:
        self.model, self.tokens, self.metric = model, tokens, metric
        self.ablation, self.other, self._memory = ablation, other, memory
        if tokens.shape != other.shape or not torch.equal(tokens.n_pad, other.n_pad):
            raise PairLengthMismatch(
                "The prompts that removed parts' values come from are of other lengths.",
                got=f"{list(tokens.shape)} tokens and {list(other.shape)}",
                because="values are taken from the same position of the twin prompt",
                instead="pairs of equal lengths",
            )

    @property
    @abstractmethod
    def whole(self) -> dict[str, np.ndarray]:
        """All parts of all sites."""

    @cached_property
    @abstractmethod
    def active(self) -> dict[str, np.ndarray]:
        """Parts that do something at some token of the prompts or their twins."""

    @abstractmethod
    def _width(self, n_circuits: int) -> int:
        """Numbers that are held for a token."""

    @abstractmethod
    def _removed(self, tokens: TokenBatch, other: TokenBatch) -> Any:
        """What removed parts carry in some rows."""

    @abstractmethod
    def _writes(self, kept: Kept, removed: Any) -> tuple[Write, ...]:
        """A circuit's writes; none where all is kept."""

    def measure(
        self, circuits: Sequence[Kept], *, progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """The metric under circuits, [circuit, row], float64; circuits that are given twice are run once.

        Args:
            circuits: What each keeps; a site that is not named keeps all.
            progress: Told rows done and rows in all.
        """
        keys = [tuple((site, which.tobytes()) for site, which in kept.items()) for kept in circuits]
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        distinct = [circuits[keys.index(key)] for key in places]
        values = np.zeros((len(distinct), len(self.tokens)))
        done = 0
        for rows in self._cut(len(distinct)):
            tokens, metric = self.tokens.select(rows), self.metric.select(rows.tolist())
            with torch.no_grad():
                removed = self._removed(tokens, self.other.select(rows))
                experiments = [
                    Experiment(inputs=tokens, writes=self._writes(kept, removed), metric=metric)
                    for kept in distinct
                ]
                values[:, rows.numpy()] = run_experiments(self.model, experiments).table().numpy()
            done += len(rows)
            if progress is not None:
                progress(done, len(self.tokens))
        return values[[places[key] for key in keys]]

    def _cut(self, n_circuits: int = 1) -> list[Tensor]:
        """Rows in order, as many at once as fit."""
        per_row = self.tokens.shape[1] * self.model.dtype.itemsize * self._width(n_circuits)
        return list(torch.arange(len(self.tokens)).split(max(1, self._memory // per_row)))

    def _alike(self, tokens: TokenBatch, other: TokenBatch) -> Tensor | None:
        """Tokens before the first in which a row and its twin differ: nothing is removed there, [batch, pos]."""
        if self.ablation != "resample" or not self.model.binding.anatomy.is_causal:
            return None
        return torch.cumsum(tokens.ids.ne(other.ids).long(), 1) == 0


@dataclass(frozen=True)
class SomeTokens:
    """Some of the tokens that a write is told about; satisfies `vocabulary.protocols.Tokens`."""

    rows: Tensor
    positions: Tensor
    columns: Tensor
    site: Site
    n_columns: int


def where_unlike(
    value: Tensor, tokens: Tokens, alike: Tensor | None, new: Callable[[Tensor, Tokens], Tensor]
) -> Tensor:
    """The new value of tokens in which prompts and twins may differ; that of the others stays as it is.

    Args:
        value: [n_tokens, ...].
        tokens: Which they are.
        alike: Tokens where nothing is removed, [batch, pos]; None: nowhere.
        new: From some tokens' value to their new one.
    """
    if alike is None:
        return new(value, tokens)
    at = torch.nonzero(~alike[tokens.rows.cpu(), tokens.columns.cpu()])[:, 0]
    if not len(at):
        return value
    some = SomeTokens(
        tokens.rows[at.to(tokens.rows.device)],
        tokens.positions[at.to(tokens.positions.device)],
        tokens.columns[at.to(tokens.columns.device)],
        tokens.site,
        tokens.n_columns,
    )
    at = at.to(value.device)
    return value.index_put((at,), new(value[at], some))
