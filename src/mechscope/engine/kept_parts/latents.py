"""Latent runs: circuits that keep some latents of dictionaries, and their errors or not.

A circuit is truth values by site, [n_latents + 1]: one for each latent at home there, the last for the error. Oracle:
one forward pass in plain arithmetic (tests/circuits/test_latents, test_latents_of_several_sites).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mechscope.engine.kept_parts.homes import homes_at
from mechscope.engine.kept_parts.kept_latents import KeptLatents
from mechscope.engine.kept_parts.removed_latents import (
    CountedCodec,
    RemovedLatents,
    average_removed,
    numbers_per_token,
    record_removed,
)
from mechscope.engine.kept_parts.run import MEMORY, Ablation, Kept, KeptRuns
from mechscope.engine.kept_parts.several_sites import (
    KeptAcross,
    RemovedAcross,
    average_across,
    record_across,
    removed_across,
)
from mechscope.interventions.metrics import Metric
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model

_Removed = tuple[dict[str, RemovedLatents], list[RemovedAcross]]
"""What removed latents carry: of dictionaries of one site by site, and of those of several."""


class LatentRuns(KeptRuns):
    """Prompts ready to be run under circuits of latents.

    Args:
        model: An open model.
        tokens: Prompts; latents that are kept are computed from them.
        metric: What is read.
        dictionaries: SAEs, transcoders, crosscoders; at most one writes each site.
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
        self.homes = homes_at(model, dictionaries)
        self.codecs = {name: home.codec for name, home in self.homes.items() if home.is_alone}
        several = [home.codec for home in self.homes.values() if not home.is_alone]
        self._several: list[CountedCodec] = list({id(one): one for one in several}.values())
        super().__init__(model, tokens, metric=metric, ablation=ablation, other=other, memory=memory)
        self._constant: dict[str, RemovedLatents] = dict.fromkeys(self.codecs, RemovedLatents())
        self._constants = [RemovedAcross() for _ in self._several]
        if ablation == "mean":
            with torch.no_grad():
                batches = [other.select(rows) for rows in self._cut()]
                self._constant = average_removed(model, self.codecs, batches) if self.codecs else {}
                self._constants = [average_across(model, one, batches) for one in self._several]

    @property
    def whole(self) -> dict[str, np.ndarray]:
        """All latents and errors."""
        return {name: np.ones(home.n_latents + 1, dtype=bool) for name, home in self.homes.items()}

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
                    for name, fires in self._fires(some).items():
                        found[name][:-1] |= fires
        return found

    def _width(self, n_circuits: int) -> int:
        heard = sum(codec.reads != codec.writes for codec in self.codecs.values())
        heard += sum(len(codec.reads) for codec in self._several)
        held = sum(
            2 * codec.n_latents + 2 * len(codec.writes) * self.model.d_model for codec in self._several
        )
        return numbers_per_token(self.model, self.codecs) + held + n_circuits * self.model.d_model * heard

    def _fires(self, batch: TokenBatch) -> dict[str, np.ndarray]:
        """Latents that fire at some real token, by site."""
        codes = {}
        if self.codecs:
            codes = {name: one.codes for name, one in record_removed(self.model, self.codecs, batch).items()}
        for codec in self._several:
            every = record_across(self.model, codec, batch).codes
            assert every is not None
            codes |= {n: every[..., h.latents] for n, h in self.homes.items() if h.codec is codec}
        real = batch.mask.bool()
        return {
            name: (one[real.to(one.device)] != 0).any(0).cpu().numpy()
            for name, one in codes.items()
            if one is not None
        }

    def _removed(self, tokens: TokenBatch, other: TokenBatch) -> _Removed:
        alike = self._alike(tokens, other)
        is_twin = self.ablation == "resample"
        found = record_removed(self.model, self.codecs, other) if is_twin and self.codecs else self._constant
        several = []
        for codec, constant in zip(self._several, self._constants, strict=True):
            like = other if is_twin else constant
            several.append(replace(removed_across(self.model, codec, tokens, like=like), alike=alike))
        return {name: replace(one, alike=alike) for name, one in found.items()}, several

    def _writes(self, kept: Kept, removed: _Removed) -> tuple[KeptLatents | KeptAcross, ...]:
        across = [
            self._across(codec, kept, one) for codec, one in zip(self._several, removed[1], strict=True)
        ]
        return (*self._alone(kept, removed[0]), *(one for one in across if one is not None))

    def _across(self, codec: CountedCodec, kept: Kept, removed: RemovedAcross) -> KeptAcross | None:
        """The write of a dictionary of several sites; None where all is kept."""
        latents, errors = torch.ones(codec.n_latents, dtype=torch.bool), {}
        for name, home in self.homes.items():
            if home.codec is codec:
                which = torch.from_numpy(np.array(kept.get(name, self.whole[name])))
                latents[home.latents] = which[:-1]
                errors[home.site] = bool(which[-1])
        if latents.all() and all(errors.values()):
            return None
        return KeptAcross(codec, latents, errors, removed)

    def _alone(self, kept: Kept, removed: dict[str, RemovedLatents]) -> tuple[KeptLatents, ...]:
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
