"""Expert runs: circuits that keep some experts of a mixture's layers.

A circuit is truth values by site ("expert_out.3"), [n_experts]. A layer adds what its kept experts add in this run, and
what the others add in the run that removed values are from. Oracle: tests/circuits/test_experts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mechscope.engine.kept_parts.run import MEMORY, Ablation, Kept, KeptRuns, where_unlike
from mechscope.interventions.metrics import Metric
from mechscope.interventions.replace import freeze
from mechscope.interventions.token_memory import TokenMemory
from mechscope.models.capturing import cache_at
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import PointUnavailable
from mechscope.vocabulary.protocols import Facts, Tokens, Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

Routing = Literal["recomputed", "frozen"]
ROUTINGS = ("recomputed", "frozen")


@dataclass(frozen=True)
class RemovedExperts:
    """What one layer's experts add where they are removed.

    Args:
        outputs: [batch, pos, choice, d_model]; [n_experts, d_model] for every token alike; None: nothing.
        choice: Whose the outputs are, [batch, pos, choice]; None where they are not of tokens.
        alike: Tokens where nothing is removed, [batch, pos]; None: nowhere.
    """

    outputs: Tensor | None = None
    choice: Tensor | None = None
    alike: Tensor | None = None

    def added(self, kept: Tensor, tokens: Tokens) -> Tensor | None:
        """What removed experts add at tokens, [n_tokens, d_model] or [d_model]."""
        if self.outputs is None:
            return None
        kept = kept.to(self.outputs.device)
        if self.choice is None:
            return self.outputs[~kept].sum(0)
        at = (tokens.rows.to(kept.device), tokens.columns.to(kept.device))
        is_removed = ~kept[self.choice[at]]
        return (self.outputs[at] * is_removed[..., None]).sum(-2)


@dataclass(frozen=True, eq=False)
class KeptExperts:
    """Some experts of one layer, kept in a run; satisfies `Write`.

    Args:
        layer: Of the mixture.
        kept: Which experts, [n_experts] truth values.
        removed: What the others add.
        where: At which tokens.
    """

    layer: int
    kept: Tensor
    removed: RemovedExperts
    where: Where = field(default_factory=Where)

    @property
    def at(self) -> str:
        return f"expert_choice.{self.layer},expert_out.{self.layer}"

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> Write:
        """With a memory of its own for one run, of who was chosen."""
        return _Listening(self)

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        return value


class _Listening:
    """Kept experts in one run; satisfies `Write`."""

    def __init__(self, kept: KeptExperts) -> None:
        self.at, self.where = kept.at, kept.where
        self._of = kept
        self._is_kept = TokenMemory(f"experts chosen in layer {kept.layer}")

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> Write:
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        acts = self._listen if tokens.site.point == "expert_choice" else self._put
        return where_unlike(value, tokens, self._of.removed.alike, acts)

    def _listen(self, value: Tensor, tokens: Tokens) -> Tensor:
        is_kept = self._of.kept.to(value.device)[value]
        self._is_kept.put(tokens, is_kept.to(torch.get_default_dtype()))
        return value

    def _put(self, value: Tensor, tokens: Tokens) -> Tensor:
        new = value * self._is_kept.of(tokens).to(value)[..., None]
        added = self._of.removed.added(self._of.kept, tokens)
        if added is None:
            return new
        # Experts' outputs are summed, so that it does not matter in which place the sum of the others stands.
        added = added.to(new).reshape(-1, 1, new.shape[-1])
        return torch.cat([new[:, :1] + added, new[:, 1:]], dim=1)


class ExpertRuns(KeptRuns):
    """Prompts ready to be run under circuits of experts.

    Args:
        model: An open mixture.
        tokens: Prompts.
        metric: What is read.
        routing: "recomputed": routers follow what they read; "frozen": who is chosen, and with what weight, is that of
            the prompts' own run without any removal.
        ablation: What removed experts add.
        other: For "resample" the twin prompts that it is from, for "mean" those that are averaged.
        memory: Budget in bytes.

    Raises:
        PointUnavailable: a model without experts.
        PairLengthMismatch: twins of other lengths.
    """

    def __init__(
        self,
        model: Model,
        tokens: TokenBatch,
        *,
        metric: Metric,
        routing: Routing,
        ablation: Ablation,
        other: TokenBatch,
        memory: int = MEMORY,
    ) -> None:
        self.layers, self.n_experts = mixture_of(model)
        super().__init__(model, tokens, metric=metric, ablation=ablation, other=other, memory=memory)
        self.routing = routing
        self._means: dict[str, RemovedExperts] = {}
        if ablation == "mean":
            with torch.no_grad():
                self._means = average_experts(model, [other.select(rows) for rows in self._cut()])

    @property
    def whole(self) -> dict[str, np.ndarray]:
        """All experts."""
        return {site_of(layer): np.ones(self.n_experts, dtype=bool) for layer in self.layers}

    @cached_property
    def active(self) -> dict[str, np.ndarray]:
        """Experts that some token of the prompts or their twins is sent to.

        Cost: two forward passes, once.
        """
        found = {name: np.zeros_like(every) for name, every in self.whole.items()}
        with torch.no_grad():
            for batch in (self.tokens, self.other):
                for rows in self._cut():
                    some = batch.select(rows)
                    for name, one in record_experts(self.model, some).items():
                        assert one.choice is not None
                        found[name][one.choice[some.mask.bool().to(one.choice.device)].cpu().numpy()] = True
        return found

    def _width(self, n_circuits: int) -> int:
        spec = self.model.binding.anatomy.experts
        n_chosen = 1 if spec is None else spec.n_chosen
        return len(self.layers) * n_chosen * (self.model.d_model + 2 + n_circuits)

    def _removed(
        self, tokens: TokenBatch, other: TokenBatch
    ) -> tuple[dict[str, RemovedExperts], tuple[Write, ...]]:
        frozen: tuple[Write, ...] = ()
        if self.routing == "frozen":
            own = cache_at(self.model, tokens, ["expert_choice.*", "expert_weight.*"])
            frozen = tuple(freeze(f"{point}.*", to=own) for point in ("expert_choice", "expert_weight"))
        if self.ablation == "zero":
            return {name: RemovedExperts() for name in self.whole}, frozen
        if self.ablation == "mean":
            return self._means, frozen
        alike = self._alike(tokens, other)
        found = record_experts(self.model, other)
        return {name: RemovedExperts(one.outputs, one.choice, alike) for name, one in found.items()}, frozen

    def _writes(
        self, kept: Kept, removed: tuple[dict[str, RemovedExperts], tuple[Write, ...]]
    ) -> tuple[Write, ...]:
        carried, frozen = removed
        found = tuple(
            KeptExperts(layer, torch.from_numpy(np.array(kept[name])), carried[name])
            for layer, name in ((layer, site_of(layer)) for layer in self.layers)
            if name in kept and not kept[name].all()
        )
        return (*frozen, *found) if found else ()


def site_of(layer: int) -> str:
    """Where a layer's experts are kept or removed."""
    return f"expert_out.{layer}"


def mixture_of(model: Model) -> tuple[tuple[int, ...], int]:
    """Layers with experts, and how many experts each has.

    Raises:
        PointUnavailable: a model without them.
    """
    spec, layers = model.binding.anatomy.experts, tuple(model.binding.experts)
    if spec is None or not layers:
        raise PointUnavailable(
            f"{model.identity.name} has no experts.",
            got=f"{model.binding.anatomy.family}, {model.n_layers} layers",
            because="every token goes through the whole of each MLP",
            instead="ms.circuits.choose_units, for units of MLPs; or a mixture (Mixtral, Qwen3-MoE, gpt-oss)",
        )
    return layers, spec.n_experts


def record_experts(model: Model, batch: TokenBatch) -> dict[str, RemovedExperts]:
    """Who was chosen and what each added, by site.

    Cost: one forward pass.
    """
    layers, _ = mixture_of(model)
    last = Site("expert_out", layers[-1])
    sites = [Site(point, layer) for layer in layers for point in ("expert_choice", "expert_out")]
    run = model.run(batch, capture=sites, stop_after=last)
    return {
        site_of(layer): RemovedExperts(
            run.cache[Site("expert_out", layer)], run.cache[Site("expert_choice", layer)]
        )
        for layer in layers
    }


def average_experts(model: Model, batches: Iterable[TokenBatch]) -> dict[str, RemovedExperts]:
    """What each expert adds, mean over all real tokens of prompts (nothing where it was not chosen), by site.

    Cost: one forward pass.
    """
    _, n_experts = mixture_of(model)
    sums: dict[str, Tensor] = {}
    n_tokens = 0
    for batch in batches:
        n_tokens += int(batch.mask.sum())
        for name, one in record_experts(model, batch).items():
            assert one.outputs is not None and one.choice is not None
            real = batch.mask.bool().to(one.outputs.device)
            outputs, choice = one.outputs[real].flatten(0, 1), one.choice[real].flatten()
            mine = outputs.new_zeros(n_experts, outputs.shape[-1]).index_add(0, choice, outputs)
            sums[name] = sums[name] + mine if name in sums else mine
    return {name: RemovedExperts(total / n_tokens) for name, total in sums.items()}
