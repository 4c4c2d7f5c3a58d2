"""Agreement: how far a plan's results are from one whole forward per experiment, chosen experts compared first.

Owns: the comparison that the engine is held to. In a mixture a router may choose another expert at a near tie when a
product is taken over another batch; the numbers then differ by more than rounding and neither run is wrong. Such a
flip is reported with its margin and its experiment is left out of the difference; any other flip is a fault.
The yardstick is the range of the numbers that were measured, not of all logits: metrics are mostly differences of two
logits, so this range is the one that results are read on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.engine.execute import LocalExecutor
from mechscope.engine.experiment import Experiment
from mechscope.engine.naive import measure_logits
from mechscope.engine.plan import DEFAULT_MEMORY, lay_out
from mechscope.models.cache import Cache
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site

_NEAR_TIE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Margin below which two experts count as tied. Routers compare in single precision whatever the model's dtype."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A token whose experts differ between the two executors.

    Args:
        experiment: Its place in the list given.
        layer: Where.
        row: Prompt.
        column: Column of the left-padded batch.
        packed: Experts that the plan's run chose, sorted.
        whole: Experts that the whole forward chose, sorted.
        margin: Router logit of the last expert chosen less that of the first left out, over the range of the
            token's router logits.
        is_near_tie: Whether rounding can turn it.
    """

    experiment: int
    layer: int
    row: int
    column: int
    packed: tuple[int, ...]
    whole: tuple[int, ...]
    margin: float
    is_near_tie: bool


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a comparison found.

    Args:
        difference: Largest difference of a metric over the range of all that was measured, experiments with flips
            left out.
        worst: Place of the experiment where it is.
        n_compared: Experiments without flips.
        flips: Tokens whose experts differ.
    """

    difference: float
    worst: int
    n_compared: int
    flips: tuple[Flip, ...] = ()

    @property
    def is_explained(self) -> bool:
        """Whether every prompt's first flip is a near tie; what flips in later layers follows from it."""
        first: dict[tuple[int, int], int] = {}
        for flip in self.flips:
            key = (flip.experiment, flip.row)
            first[key] = min(flip.layer, first.get(key, flip.layer))
        return all(
            flip.is_near_tie for flip in self.flips if flip.layer == first[(flip.experiment, flip.row)]
        )

    def __str__(self) -> str:
        ties = sum(flip.is_near_tie for flip in self.flips)
        told = f"{self.n_compared} experiments agree to {self.difference:.2g} of the range"
        if not self.flips:
            return told
        return (
            f"{told}; {len(self.flips)} tokens chose other experts, {ties} of them at a near tie, "
            f"the smallest margin {min(flip.margin for flip in self.flips):.2g}"
        )


def compare_with_whole_forwards(
    model: Model, experiments: Sequence[Experiment], *, memory: int = DEFAULT_MEMORY
) -> Agreement:
    """Run experiments as a plan and one by one, and say how far apart the results are.

    Args:
        model: An open model.
        experiments: With equal numbers of rows.
        memory: The plan's budget in bytes.

    Cost: the plan, and a whole forward pass for each experiment.
    """
    plan = lay_out(model, experiments, memory=memory)
    executor = LocalExecutor(keeps_choices=True)
    packed = executor.execute(model, plan).table()
    chosen: dict[int, list[tuple[int, Tensor, Tensor, Tensor]]] = {}
    for layer, which, rows, columns, choice in executor.choices:
        for index in which.unique().tolist():
            here = which == index
            chosen.setdefault(index, []).append((layer, rows[here], columns[here], choice[here]))
    mixed = [Site(point, layer) for layer in model.binding.experts for point in _ROUTING]
    whole: list[Tensor] = []
    flips: list[Flip] = []
    for index, experiment in enumerate(plan.experiments):
        run = model.run(experiment.inputs, interventions=experiment.writes, capture=mixed)
        assert run.logits is not None
        whole.append(measure_logits(experiment.metric, experiment.inputs, run.logits).double().cpu())
        for found in chosen.get(index, []):
            flips += _flips(model, run.cache, index, found)
    return _agreement(packed, torch.stack(whole), flips)


_ROUTING = ("router_logits", "expert_choice")


def _flips(model: Model, cache: Cache, index: int, found: tuple[int, Tensor, Tensor, Tensor]) -> list[Flip]:
    """Tokens of one layer call of one experiment whose experts are not those of the whole forward."""
    layer, rows, columns, choice = found
    logits, wanted = (cache[Site(point, layer)][rows, columns].cpu() for point in _ROUTING)
    packed, whole = choice.sort(-1).values, wanted.sort(-1).values
    best = logits.double().sort(-1, descending=True).values
    n_chosen = choice.shape[-1]
    margins = (best[:, n_chosen - 1] - best[:, min(n_chosen, best.shape[-1] - 1)]) / (
        best[:, 0] - best[:, -1]
    )
    return [
        Flip(
            experiment=index,
            layer=layer,
            row=int(rows[at]),
            column=int(columns[at]),
            packed=tuple(packed[at].tolist()),
            whole=tuple(whole[at].tolist()),
            margin=float(margins[at]),
            is_near_tie=float(margins[at]) < _NEAR_TIE[model.dtype],
        )
        for at in (packed != whole).any(-1).nonzero()[:, 0].tolist()
    ]


def _agreement(packed: Tensor, whole: Tensor, flips: Sequence[Flip]) -> Agreement:
    span = float(whole.max() - whole.min()) or 1.0
    flipped = sorted({flip.experiment for flip in flips})
    differences = (packed - whole).abs().amax(1) / span
    differences[flipped] = 0.0
    worst = int(differences.argmax())
    return Agreement(
        difference=float(differences[worst]),
        worst=worst,
        n_compared=len(whole) - len(flipped),
        flips=tuple(flips),
    )
