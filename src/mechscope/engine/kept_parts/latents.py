"""Latent runs: circuits that keep some latents of dictionaries, and their errors or not.

A circuit is truth values by site, [n_latents + 1]: one for each latent, the last for the error. Oracle: one forward
pass in plain arithmetic (tests/circuits/test_latents).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mechscope.engine.kept_parts.kept_latents import KeptLatents
from mechscope.engine.kept_parts.removed_latents import (
    RemovedLatents,
    average_removed,
    dictionaries_at,
    numbers_per_token,
    record_removed,
)
from mechscope.engine.kept_parts.run import MEMORY, Ablation, Kept, KeptRuns
from mechscope.interventions.metrics import Metric
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model


class LatentRuns(KeptRuns):
    """Prompts ready to be run under circuits of latents.

    Args:
        model: An open model.
        tokens: Prompts; latents that are kept are computed from them.
        metric: What is read.
        dictionaries: SAEs and transcoders, at most one for each site.
        ablation: What removed latents carry.
        other: For "resample" the twin prompts that it is from, for "mean" those that are averaged.
        memory: Budget in bytes.

    Raises:
        InterventionMismatch, DictionaryMismatch: dictionaries that do not fit the model or each other.
        PairLengthMismatch: twins of other lengths.
    """

    def __init__(
        self,
        model: Model,
        tokens: TokenBatch,
        *,
        metric: Metric,
        dictionaries: Sequence[Any],
        ablation: Ablation,
        other: TokenBatch,
        memory: int = MEMORY,
    ) -> None:
        self.codecs = dictionaries_at(model, dictionaries)
        super().__init__(model, tokens, metric=metric, ablation=ablation, other=other, memory=memory)
        self._constant: dict[str, RemovedLatents] = dict.fromkeys(self.codecs, RemovedLatents())
        if ablation == "mean":
            with torch.no_grad():
                batches = [other.select(rows) for rows in self._cut()]
                self._constant = average_removed(model, self.codecs, batches)

    @property
    def whole(self) -> dict[str, np.ndarray]:
        """All latents and errors."""
        return {name: np.ones(codec.n_latents + 1, dtype=bool) for name, codec in self.codecs.items()}

    @cached_property
    def active(self) -> dict[str, np.ndarray]:
        """Latents that fire at some token of the prompts or their twins, by site; never the error.

        Cost: two forward passes and as many products with each encoder, once.
        """
        found = {name: np.zeros_like(every) for name, every in self.whole.items()}
        with torch.no_grad():
            for batch in (self.tokens, self.other):
                for rows in self._cut():
                    some = batch.select(rows)
                    for name, one in record_removed(self.model, self.codecs, some).items():
                        assert one.codes is not None
                        real = one.codes[some.mask.bool().to(one.codes.device)]
                        found[name][:-1] |= (real != 0).any(0).cpu().numpy()
        return found

    def _width(self, n_circuits: int) -> int:
        heard = sum(codec.reads != codec.writes for codec in self.codecs.values())
        return numbers_per_token(self.model, self.codecs) + n_circuits * self.model.d_model * heard

    def _removed(self, tokens: TokenBatch, other: TokenBatch) -> dict[str, RemovedLatents]:
        if self.ablation != "resample":
            return self._constant
        alike = self._alike(tokens, other)
        found = record_removed(self.model, self.codecs, other)
        return {name: replace(one, alike=alike) for name, one in found.items()}

    def _writes(self, kept: Kept, removed: dict[str, RemovedLatents]) -> tuple[KeptLatents, ...]:
        partial = [name for name in self.codecs if name in kept and not kept[name].all()]
        return tuple(
            KeptLatents(
                self.codecs[name],
                torch.from_numpy(np.array(kept[name][:-1])),
                bool(kept[name][-1]),
                removed[name],
            )
            for name in partial
        )
