"""Optimal ablation: the constant that hurts least, learnt by gradient on a reference set.

What is lost even under the best constant is information that the site carries about the prompt (Li and Janson,
2024, arXiv 2409.09951). Refuses metrics without a gradient and sites whose values have no mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechscope.engine.naive import measure_logits
from mechscope.interventions.ablation import Ablation
from mechscope.interventions.donor import Donor
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import KL, Accuracy, Metric, Rank
from mechscope.interventions.resolve import mean_over_tokens, reference_batch, resolve, sites_of
from mechscope.interventions.subspace import move_inside
from mechscope.models.capturing import cache_at
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.writing import to_token_form
from mechscope.vocabulary.errors import InterventionMismatch
from mechscope.vocabulary.protocols import Facts, Tokens, Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How constants are learnt.

    Args:
        n_steps: Adam steps, each one forward and one backward pass over the reference set.
        learning_rate: Step in standard deviations of the site's values.
    """

    n_steps: int = 100
    learning_rate: float = 0.1


def learn_optimal(
    model: Model,
    interventions: Sequence[Write],
    *,
    metric: Metric | None = None,
    learning: Learning | None = None,
) -> list[Write]:
    """Fill in optimal ablations: one constant a site (and head), which hurts the metric least on the reference set.

    Several optimal ablations are learnt together, under the other interventions of the list, so the constants are
    those of that list. They start at the reference set's means and the best ones seen are kept, so on the reference
    set they never hurt more than the means do.

    Args:
        model: An open model.
        interventions: Those with how="optimal" share one reference set; the others are applied as they are.
        metric: What must not be hurt, with answers for the reference rows; it is maximised, a KL is minimised.
            None minimises the KL from the model's own output at each prompt's last position.
        learning: Steps and learning rate.

    Returns:
        The interventions in their order, with values.

    Raises:
        InterventionMismatch: several reference sets, a metric without a gradient, or attention maps.

    Cost: `n_steps` forward and backward passes over the reference set.
    Caveat: a lower bound of what is lost only as far as the optimiser finds the optimum; judge it on other prompts
        than the reference set. Maximising a logit difference may exceed the model's own; the KL cannot.
    """
    learning = learning or Learning()
    ready = resolve(model, [write for write in interventions if not _is_open(write)])
    resolved = iter(ready)
    writes = [write if _is_open(write) else next(resolved) for write in interventions]
    mine = [write for write in writes if isinstance(write, Ablation) and _is_open(write)]
    if not mine:
        return writes
    _refuse_what_cannot_be_learnt(mine, metric)
    batch = reference_batch(model, mine[0].reference)
    objective = KL(reference=Value(model.logits(batch)[:, -1])) if metric is None else metric
    starts = _starts(model, mine, batch)
    constants = _learn(model, writes, starts, (batch, objective, learning))
    return [
        _with_values(write, sites_of(model, write), constants[place]) if _is_open(write) else write
        for place, write in enumerate(writes)
    ]


Constants = dict[Site, Tensor]


@dataclass(frozen=True)
class _Start:
    """Where learning begins at a site: the mean, and the size of a step."""

    mean: Tensor
    size: Tensor


@dataclass(frozen=True)
class _Held:
    """An ablation to constants that carry a gradient."""

    at: str
    where: Where
    constants: Mapping[Site, Tensor]
    subspace: Value | None

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "_Held":
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        new = self.constants[tokens.site].to(value).expand_as(value)
        return new if self.subspace is None else move_inside(value, new, self.subspace.tensor)


def _learn(
    model: Model,
    writes: Sequence[Write],
    starts: Mapping[Site, _Start],
    task: tuple[TokenBatch, Metric, Learning],
) -> dict[int, Constants]:
    batch, metric, learning = task
    sign = 1.0 if isinstance(metric, KL) else -1.0
    moves: dict[tuple[int, Site], Tensor] = {}
    for place, write in enumerate(writes):
        if _is_open(write):
            for site in sites_of(model, write):
                moves[place, site] = torch.zeros_like(starts[site].mean, requires_grad=True)
    keys = list(moves)
    optimiser = torch.optim.Adam(list(moves.values()), lr=learning.learning_rate)
    best, lowest = {}, float("inf")
    for step in range(learning.n_steps + 1):
        with torch.enable_grad():
            constants = {key: starts[key[1]].mean + starts[key[1]].size * moves[key] for key in keys}
            run = model.run(batch, interventions=_holding(writes, constants), grad=True)
            assert run.logits is not None
            loss = sign * measure_logits(metric, batch, run.logits).mean()
        if float(loss.detach()) < lowest:
            lowest = float(loss.detach())
            best = {key: constant.detach().clone() for key, constant in constants.items()}
        if step < learning.n_steps:
            grads = torch.autograd.grad(loss, [moves[key] for key in keys], allow_unused=True)
            for key, grad in zip(keys, grads, strict=True):
                moves[key].grad = grad
            optimiser.step()
    found: dict[int, Constants] = {}
    for (place, site), constant in best.items():
        found.setdefault(place, {})[site] = constant
    return found


def _holding(writes: Sequence[Write], constants: Mapping[tuple[int, Site], Tensor]) -> list[Write]:
    held: list[Write] = []
    for place, write in enumerate(writes):
        if isinstance(write, Ablation) and _is_open(write):
            mine = {site: constant for (at, site), constant in constants.items() if at == place}
            held.append(_Held(write.at, write.where, mine, write.subspace))
        else:
            held.append(write)
    return held


def _starts(model: Model, writes: Sequence[Ablation], batch: TokenBatch) -> dict[Site, _Start]:
    sites = sorted({site for write in writes for site in sites_of(model, write)})
    cache = cache_at(model, batch, sites)
    starts: dict[Site, _Start] = {}
    for site in sites:
        value = cache[site]
        wide = (
            value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
        )
        mean = mean_over_tokens(wide, site, batch)
        real = to_token_form(wide, site.row)[batch.mask.bool().to(wide.device)]
        spread = (real - mean).square().mean().sqrt()
        starts[site] = _Start(mean, spread)
    return starts


def _with_values(write: Write, sites: Sequence[Site], constants: Constants) -> Write:
    assert isinstance(write, Ablation)
    return replace(write, donor=Donor(tuple((str(site), Value(constants[site])) for site in sites)))


def _is_open(write: Write) -> bool:
    return isinstance(write, Ablation) and write.how == "optimal" and not write.is_resolved


def _refuse_what_cannot_be_learnt(writes: Sequence[Ablation], metric: Metric | None) -> None:
    if len({write.reference for write in writes}) > 1:
        raise InterventionMismatch(
            "Optimal ablations that are learnt together need one reference set.",
            got=", ".join(write.at for write in writes),
            because="one metric is measured on one set of prompts",
            instead="the same reference= for all, or one call each",
        )
    if isinstance(metric, Rank | Accuracy):
        raise InterventionMismatch(
            f"A constant can't be learnt on {metric.kind}.",
            got=metric.kind,
            because="it is a step function, whose gradient is zero",
            instead="a logit difference, a log-probability, or metric=None for the KL",
        )
