"""Losses: what replacing a site costs, in nats per predicted token, against the model and against an ablation.

Cross entropy of the next token and KL from the model's own prediction, for each way of changing the model. Recovered
is 1 where nothing is lost and 0 where as much is lost as by the ablation that is declared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.dictionaries.evaluation.estimates import Estimate, Estimator
from mechscope.models.inputs import TokenBatch
from mechscope.models.limits import refuse_own_predictions
from mechscope.models.model import Model
from mechscope.vocabulary.protocols import Write


@dataclass
class Losses:
    """Sums of losses, prompt by prompt.

    Args:
        n: Predicted tokens, [unit].
        entropies: Summed cross entropy under each way, [unit]; "clean" is the model's own.
        divergences: Summed KL from the model to each other way, [unit].
    """

    n: Float[np.ndarray, " unit"]
    entropies: dict[str, Float[np.ndarray, " unit"]]
    divergences: dict[str, Float[np.ndarray, " unit"]]

    @classmethod
    def empty(cls, n_units: int, ways: Sequence[str]) -> "Losses":
        """Nothing counted yet."""
        return cls(
            np.zeros(n_units),
            {way: np.zeros(n_units) for way in ("clean", *ways)},
            {way: np.zeros(n_units) for way in ways},
        )

    def add(self, model: Model, batch: TokenBatch, first: int, ways: Mapping[str, Sequence[Write]]) -> None:
        """Run a batch as it is and under each way; its prompts are `first` and on.

        Raises:
            NoNextToken: a masked language model.

        Cost: one forward pass for each way, and one more.
        """
        refuse_losses(model)
        rows = slice(first, first + len(batch))
        mask = batch.mask[:, :-1].bool()
        self.n[rows] += mask.sum(1).numpy()
        clean = _log_probabilities(model.logits(batch))
        self.entropies["clean"][rows] += _entropy(clean, batch, mask)
        for way, writes in ways.items():
            changed = _log_probabilities(model.logits(batch, interventions=list(writes)))
            self.entropies[way][rows] += _entropy(changed, batch, mask)
            divergence = (clean.exp() * (clean - changed)).sum(-1).cpu()
            self.divergences[way][rows] += divergence.masked_fill(~mask, 0).to(torch.float64).sum(1).numpy()

    def figures(self, estimator: Estimator, *, way: str, ablation: str) -> dict[str, Estimate]:
        """Cross entropies, KL, and how much of the ablation's loss is recovered."""
        entropies, divergences, n = self.entropies, self.divergences, self.n
        table = np.stack([entropies[ablation], entropies[way], entropies["clean"]], axis=1)
        lost = np.stack([divergences[ablation], divergences[way]], axis=1)
        return {
            "ce": estimator.ratio(entropies["clean"], n),
            "ce_replaced": estimator.ratio(entropies[way], n),
            "ce_ablated": estimator.ratio(entropies[ablation], n),
            "ce_increase": estimator.ratio(entropies[way] - entropies["clean"], n),
            "ce_gap": estimator.ratio(entropies[ablation] - entropies["clean"], n),
            "ce_recovered": estimator.of(
                table, lambda sums: (sums[:, 0] - sums[:, 1]) / (sums[:, 0] - sums[:, 2])
            ),
            "kl_replaced": estimator.ratio(divergences[way], n),
            "kl_ablated": estimator.ratio(divergences[ablation], n),
            "kl_recovered": estimator.of(lost, lambda sums: 1 - sums[:, 1] / sums[:, 0]),
        }

    def increase(self, estimator: Estimator, way: str) -> Estimate:
        """Nats per token that a way costs."""
        return estimator.ratio(self.entropies[way] - self.entropies["clean"], self.n)


def refuse_losses(model: Model) -> None:
    """Refuse a model that predicts no next tokens.

    Raises:
        NoNextToken
    """
    refuse_own_predictions(
        model.binding.anatomy,
        "The loss that a dictionary costs",
        instead="EvaluationSettings(losses=False): how well it reconstructs needs no prediction",
    )


def _log_probabilities(logits: Tensor) -> Tensor:
    """Of every next token; single precision at least."""
    return logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _entropy(log_probabilities: Tensor, batch: TokenBatch, mask: Tensor) -> np.ndarray:
    targets = batch.ids[:, 1:].to(log_probabilities.device)
    losses = -log_probabilities.gather(-1, targets[..., None])[..., 0].cpu()
    return losses.masked_fill(~mask, 0).to(torch.float64).sum(1).numpy()
