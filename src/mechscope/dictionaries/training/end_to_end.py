"""End to end: a trained dictionary fine-tuned on what the model says with it in place (Braun et al. 2024)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Calibration, Source
from mechscope.engine.harvest.corpus import Text, corpus_of
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import NonFiniteActivations


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How.

    Args:
        objective: "kl": nats between the model's predictions and those with the dictionary in place; "ce": its
            cross-entropy on the text.
        n_steps: Steps.
        n_rows: Rows of the corpus in a step.
        rate: Of Adam.
        mse_weight: Weight of the squared error over the values' variance, beside the objective.
        seed: Of the order of rows.
    """

    objective: Literal["kl", "ce"] = "kl"
    n_steps: int = 100
    n_rows: int = 8
    rate: float = 1e-4
    mse_weight: float = 0.0
    seed: int = 0


def fine_tune(
    model: Model,
    dictionary: Dictionary,
    *,
    text: Text,
    how: FineTuning | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Dictionary:
    """A dictionary whose reconstruction changes the model's predictions less.

    The dictionary takes the place of the value it writes (its error is dropped), at every token; thresholds and
    statistics of the input stay as they are, everything else learns. The model's weights do not change.

    Args:
        model: What it was trained on.
        dictionary: Left as it is.
        text: As in `train`.
        how: Objective, steps, rate.
        report: Called as report(step, objective in nats).

    Returns:
        The dictionary, with a note of this in its source. No figures are on record, since those that were are
        another dictionary's: `tuned.with_settings(calibration=ms.dictionaries.card(tuned, model).calibration())`.

    Raises:
        DictionaryMismatch: a dictionary of another model.
        NonFiniteActivations: the objective is not finite.

    Cost: two forward passes and one backward pass a step.
    """
    how = how or FineTuning()
    dictionary.refuse_unless_fits(model)
    corpus = corpus_of(model, text)
    fixed = {"threshold", "in_mean", "in_scale", "out_mean", "out_scale"}
    with torch.inference_mode(False):
        tensors = {
            name: value.detach().clone().requires_grad_(name not in fixed)
            for name, value in dictionary.tensors.items()
        }
        learning = Dictionary(dictionary.settings, tensors)
        trained = [value for value in tensors.values() if value.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=how.rate)
        order = generator_for(how.seed, "fine-tuning rows")
        for step in range(how.n_steps):
            rows = order.choice(corpus.n_rows, min(how.n_rows, corpus.n_rows), replace=False).tolist()
            batch, _counts = corpus.batch(rows, model.reader.pad_id)
            loss, shown = _objective(model, learning, batch, how)
            if not bool(loss.isfinite()):
                raise NonFiniteActivations(
                    "The objective is not finite.", got=f"step {step}", instead="a lower rate, or float32"
                )
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
            for value, grad in zip(trained, grads, strict=True):
                value.grad = grad
            optimizer.step()
            if report is not None:
                report(step + 1, float(shown))
    settings = replace(
        dictionary.settings,
        source=_noted(dictionary.settings.source, how, corpus.data_sha256),
        calibration=Calibration(),
    )
    return Dictionary(settings, {name: value.detach() for name, value in tensors.items()})


def _noted(source: Source, how: FineTuning, data_sha256: str) -> Source:
    """The source with one more fine-tuning in its notes."""
    before = source.notes.get("fine_tuned", [])
    return replace(
        source,
        notes={**source.notes, "fine_tuned": [*before, {**asdict(how), "data_sha256": data_sha256}]},
    )


def _objective(model: Model, learning: Dictionary, batch: Any, how: FineTuning) -> tuple[Tensor, Tensor]:
    reads = list(dict.fromkeys((*learning.reads, *learning.writes)))
    with torch.no_grad():
        clean = model.run(batch, capture=reads)
    run = model.run(batch, splice=[(learning, "drop")], grad=True)
    assert run.logits is not None and clean.logits is not None
    real = batch.mask.bool().to(run.logits.device)
    with torch.enable_grad():
        ours = run.logits.float().log_softmax(-1)
        if how.objective == "kl":
            theirs = clean.logits.float().log_softmax(-1)
            objective = (theirs.exp() * (theirs - ours)).sum(-1)[real].mean()
        else:
            follows = real[:, 1:] & real[:, :-1]
            targets = batch.ids[:, 1:].to(ours.device)
            objective = F.nll_loss(ours[:, :-1][follows], targets[follows])
        loss = objective
        if how.mse_weight:
            loss = loss + how.mse_weight * _error(learning, clean, real)
    return loss, objective.detach()


def _error(learning: Dictionary, clean: Any, real: Tensor) -> Tensor:
    values = [clean[site][real] for site in learning.reads]
    wanted = [clean[site][real] for site in learning.writes]
    read = values[0] if len(values) == 1 else torch.stack(values, 1)
    target = wanted[0] if len(wanted) == 1 else torch.stack(wanted, 1)
    target = target.to(learning.dtype)
    return (learning(read) - target).pow(2).mean() / (target - target.mean(0)).pow(2).mean()
