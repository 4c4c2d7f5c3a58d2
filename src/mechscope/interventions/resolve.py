"""Resolve: run reference sets once and give unresolved ablations their values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechscope.interventions.ablation import Ablation
from mechscope.interventions.donor import Donor
from mechscope.interventions.intervention import Value
from mechscope.models.capturing import cache_at
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.writing import from_token_form, to_token_form
from mechscope.vocabulary.errors import InterventionMismatch, UnresolvedIntervention
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site

Reference = tuple[object, ...]

TOKENS_AT_ONCE = 8_192
"""Tokens of a reference set that are run at once; bounds what is held besides the values that are asked for."""


@dataclass
class _Measured:
    """What a reference set's run gave, and the values that were already made of it."""

    batch: TokenBatch
    values: dict[Site, Tensor]
    made: dict[tuple[object, ...], Value]


def resolve(model: Model, interventions: Sequence[Write]) -> list[Write]:
    """The interventions with every ablation's values filled in; order is kept, and what was one object stays one.

    Args:
        model: An open model.
        interventions: Anything; what needs no values is returned as it is.

    Raises:
        UnresolvedIntervention: an optimal ablation, which has to be learnt.

    Cost: one forward pass over each distinct reference set.
    """
    measured = _measure(model, [write for write in interventions if _needs_values(write)])
    filled: dict[int, Write] = {}
    for write in interventions:
        if id(write) not in filled:
            filled[id(write)] = (
                _filled(model, write, measured[write.reference])
                if isinstance(write, Ablation) and not write.is_resolved
                else write
            )
    return [filled[id(write)] for write in interventions]


def sites_of(model: Model, write: Write) -> list[Site]:
    """The writable sites that an ablation means."""
    return [site for site in model.binding.select(write.at, readable=False) if site.row.is_writable]


def mean_over_tokens(value: Tensor, site: Site, batch: TokenBatch) -> Tensor:
    """Mean of a site's values over all real tokens, [*site]: special ones such as [BOS] are among them.

    Raises:
        InterventionMismatch: attention maps, whose rows have different keys, and choices, which are not numbers.
    """
    if site.row.is_attention_map:
        raise InterventionMismatch(
            f"A mean over all positions is not defined for {site}.",
            got=f'ms.ablate("{site}", how="mean")',
            because="each query sees another set of keys",
            instead="by_position=True with prompts of one length",
        )
    _refuse_choices(value, site)
    real = batch.mask.bool().to(value.device)
    return to_token_form(value, site.row)[real].mean(0)


def _needs_values(write: Write) -> bool:
    return isinstance(write, Ablation) and not write.is_resolved


def _measure(model: Model, writes: Sequence[Write]) -> dict[Reference, _Measured]:
    sites: dict[Reference, set[Site]] = {}
    for write in writes:
        assert isinstance(write, Ablation)
        if write.how == "optimal":
            raise UnresolvedIntervention(
                "An optimal ablation's constant is learnt against a metric.",
                got=f'ms.ablate("{write.at}", how="optimal")',
                because="which constant hurts least depends on what is measured",
                instead="ms.learn_optimal(model, [ablation], metric=...)",
            )
        sites.setdefault(write.reference, set()).update(sites_of(model, write))
    found: dict[Reference, _Measured] = {}
    for reference, wanted in sites.items():
        batch = reference_batch(model, reference)
        found[reference] = _Measured(batch, _captured(model, batch, sorted(wanted)), {})
    return found


def _captured(model: Model, batch: TokenBatch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Values at the sites, run up to the last of them in blocks of whole prompts."""
    n_rows = max(1, TOKENS_AT_ONCE // batch.shape[1])
    # Blocks keep all columns: `select` would cut those that are padding in a block.
    blocks = [
        TokenBatch(ids, n_pad, batch.bos)
        for ids, n_pad in zip(batch.ids.split(n_rows), batch.n_pad.split(n_rows), strict=True)
    ]
    caches = [cache_at(model, block, sites) for block in blocks]
    return {site: torch.cat([cache[site] for cache in caches]) for site in sites}


def reference_batch(model: Model, reference: Reference) -> TokenBatch:
    """A reference set as a batch."""
    return model.tokens([row if isinstance(row, str) else list(row) for row in reference])  # pyright: ignore


def _filled(model: Model, write: Ablation, measured: _Measured) -> Ablation:
    values = [(str(site), _value(write, site, measured)) for site in sites_of(model, write)]
    is_constant = write.how == "mean" and not write.by_position
    n_pad = None if is_constant else Value(torch.zeros(1, dtype=torch.long))
    return replace(write, donor=Donor(tuple(values), n_pad, repeats_rows=write.how == "resample"))


def _value(write: Ablation, site: Site, measured: _Measured) -> Value:
    kind = (site, write.how, write.by_position, write.seed)
    if kind not in measured.made:
        measured.made[kind] = Value(_computed(write, site, measured.values[site], measured.batch))
    return measured.made[kind]


def _computed(write: Ablation, site: Site, value: Tensor, batch: TokenBatch) -> Tensor:
    if write.how == "mean" and not write.by_position:
        return mean_over_tokens(value, site, batch)
    if batch.is_padded:
        raise InterventionMismatch(
            f"A {write.how} ablation by position needs reference prompts of one length.",
            got=f"lengths {sorted(set(batch.n_real.tolist()))}",
            because="values are matched by position",
            instead="reference prompts of the prompts' own length, or how='mean' over all positions",
        )
    if write.how == "mean":
        _refuse_choices(value, site)
        return from_token_form(to_token_form(value, site.row).mean(0, keepdim=True), site.row)
    return value[_one_cycle(len(batch), write.seed)]


def _one_cycle(n: int, seed: int) -> Tensor:
    """A random permutation that leaves nothing in its place (Sattolo's): no row is resampled to itself."""
    generator = torch.Generator().manual_seed(seed)
    order = list(range(n))
    for last in range(n - 1, 0, -1):
        other = int(torch.randint(0, last, (1,), generator=generator))
        order[last], order[other] = order[other], order[last]
    return torch.tensor(order)


def _refuse_choices(value: Tensor, site: Site) -> None:
    if not value.is_floating_point():
        raise InterventionMismatch(
            f"{site} holds choices, which have no mean.",
            got=f"values of type {value.dtype}",
            because="the average of two experts' numbers is no expert",
            instead='how="resample"',
        )
