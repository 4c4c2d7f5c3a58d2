"""Trainer: one stream of activations, any number of dictionaries, one loop.

Owns: calibration from the first tokens, the loop, when dead latents are looked for, checkpoints. Invariant: a run
that was interrupted and resumed gives the bits of one that was not.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mechscope.dictionaries.architectures.base import ARCHITECTURES
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Calibration, Source
from mechscope.dictionaries.training.checkpoint import open_checkpoint, save_checkpoint
from mechscope.dictionaries.training.learner import Learner, Moment
from mechscope.dictionaries.training.objective import Outcome
from mechscope.dictionaries.training.resampling import resample
from mechscope.dictionaries.training.spec import Job, Training, unknown_words
from mechscope.engine.harvest.blocks import Blocks
from mechscope.engine.harvest.stream import ActivationStream, Batch
from mechscope.records.canonical import to_plain
from mechscope.vocabulary.errors import DictionaryError, NonFiniteActivations

SAVE_EVERY_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How one dictionary does, measured on the batch at hand."""

    name: str
    loss: float
    fvu: float
    l0: float
    dead: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where a run is.

    Args:
        step: Steps done.
        n_steps: Steps in all.
        n_tokens: Tokens done.
        tokens_per_second: Since the run was started or resumed.
        figures: One for each dictionary.
    """

    step: int
    n_steps: int
    n_tokens: int
    tokens_per_second: float
    figures: tuple[Figures, ...]


Reporter = Callable[[Report], None]


class Trainer:
    """Trains dictionaries from blocks of activations.

    Args:
        blocks: From a model, a store, or tensors.
        jobs: One for each dictionary; they may read different sites.
        training: How.
        source: What the dictionaries say about where they come from.
        reads_ahead: Prepare the next block in a thread meanwhile.
        device: Where dictionaries are trained.

    Raises:
        DictionaryError: there is no job, or one needs a site that the blocks do not hold, or can't be resampled, or has
            no k for the schedule to begin above.
    """

    def __init__(
        self,
        blocks: Blocks,
        jobs: Sequence[Job],
        *,
        training: Training,
        source: Source | None = None,
        reads_ahead: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        _refuse_unless_trainable(blocks, jobs, training)
        self.jobs, self.training = tuple(jobs), training
        self.source = source or Source()
        self.stream = ActivationStream(
            blocks=blocks, batch=training.batch, seed=training.seed, reads_ahead=reads_ahead
        )
        self.learners = [Learner(job, training, shapes=blocks.shapes, device=device) for job in jobs]
        wanted = training.n_tokens
        self.n_steps = self.stream.per_epoch if wanted is None else max(1, wanted // training.batch)
        self.step = 0
        self.is_calibrated = False

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that the weights depend on."""
        return {
            "training": self.training.to_json(),
            "jobs": [job.to_json() for job in self.jobs],
            "blocks": list(self.stream.blocks.sizes),
            "weights": self.source.weights_sha256,
            "data": self.source.data_sha256,
        }

    def run(
        self, *, folder: Path | None = None, report: Reporter | None = None, stop_at: int | None = None
    ) -> list[Dictionary]:
        """Train to the end, from a checkpoint in `folder` if there is one.

        Args:
            folder: Where checkpoints go; None keeps none.
            report: Called every `revival.check_every` steps and at the end.
            stop_at: Stop before this step, as an interruption would.

        Returns:
            The dictionaries, in the order of the jobs.

        Raises:
            NonFiniteActivations: a loss was not finite; the last checkpoint stands.
            DiskFull: a checkpoint could not be written; the one before stands.
        """
        if folder is not None and self.step == 0:
            self._resume(folder)
        self._calibrate()
        last = self.n_steps if stop_at is None else min(stop_at, self.n_steps)
        started = saved = time.monotonic()
        first = self.step
        for batch in self.stream.batches(self.step, last):
            outcomes = self._step(batch)
            if self.step % self.training.revival.check_every == 0 or self.step == last:
                self._look(outcomes, report, started, first)
                if folder is not None and (
                    time.monotonic() - saved > SAVE_EVERY_SECONDS or self.step == last
                ):
                    save_checkpoint(folder, self.learners, step=self.step, recipe=self.recipe)
                    saved = time.monotonic()
        return self.dictionaries()

    def dictionaries(self) -> list[Dictionary]:
        """The dictionaries as they are now, with figures measured on the first block's first batch."""
        return [self._finished(learner, self.stream.first_batch) for learner in self.learners]

    def _resume(self, folder: Path) -> None:
        step = open_checkpoint(folder, self.learners, recipe=self.recipe)
        if step is not None:
            self.step, self.is_calibrated = step, True

    def _calibrate(self) -> None:
        if not self.is_calibrated:
            for learner in self.learners:
                learner.calibrate(self.stream.first_batch)
            self.is_calibrated = True

    def _step(self, batch: Batch) -> list[Outcome]:
        moment = Moment(self.step, self.n_steps)
        outcomes = [learner.step(batch, moment) for learner in self.learners]
        self.step += 1
        for at in self.training.revival.resample_at:
            if self.step == round(at * self.n_steps):
                for learner, outcome in zip(self.learners, outcomes, strict=True):
                    resample(learner, outcome, self.step)
        return outcomes

    def _look(self, outcomes: Sequence[Outcome], report: Reporter | None, started: float, first: int) -> None:
        """What waits for the device: who is dead, whether all is finite, figures."""
        for learner in self.learners:
            if self.step % self.training.revival.check_every == 0:  # elsewhere, stopping would change the run
                learner.look_for_dead()
            if bool(learner.state["is_bad"]):
                raise NonFiniteActivations(
                    f"The loss of {_name(learner)} is not finite.",
                    got=f"before step {self.step}",
                    because="its weights can't be used any more; the last checkpoint is from before",
                    instead="a lower rate, a longer warm-up, or another precision",
                )
        if report is None:
            return
        seconds = max(1e-9, time.monotonic() - started)
        report(
            Report(
                step=self.step,
                n_steps=self.n_steps,
                n_tokens=self.step * self.training.batch,
                tokens_per_second=(self.step - first) * self.training.batch / seconds,
                figures=tuple(
                    Figures(
                        name=_name(learner),
                        loss=float(outcome.loss.detach()),
                        fvu=float(outcome.fvu()),
                        l0=float(outcome.l0()),
                        dead=len(learner.dead) / learner.settings.n_latents,
                    )
                    for learner, outcome in zip(self.learners, outcomes, strict=True)
                ),
            )
        )

    def _finished(self, learner: Learner, batch: Batch) -> Dictionary:
        source = replace(
            self.source,
            n_tokens=self.step * self.training.batch,
            trained_as=learner.job.config.name,
            notes={
                **self.source.notes,
                **_plain({"config": learner.job.config.to_json(), "training": self.training.to_json()}),
            },
        )
        dictionary = learner.dictionary(source)
        return dictionary.with_settings(calibration=measured(dictionary, learner, batch))


def _refuse_unless_trainable(blocks: Blocks, jobs: Sequence[Job], training: Training) -> None:
    missing = sorted({str(s) for job in jobs for s in job.sites if s not in blocks.shapes})
    if not jobs or missing:
        raise DictionaryError(
            "There is nothing to train on." if missing else "There is nothing to train.",
            got=", ".join(missing) or "no jobs",
            because=f"the activations are those of {', '.join(map(str, blocks.shapes))}",
            instead="harvest these sites too" if missing else "at least one job",
        )
    _refuse_empty_aims(jobs)
    if training.revival.resample_at and any(job.is_cross_layer for job in jobs):
        raise DictionaryError(
            "Dead latents of a cross-layer transcoder are not resampled.",
            got=f"resample_at={training.revival.resample_at}",
            because="their errors lie at several sites, and no one input explains them",
            instead="Revival(aux_k=...), which revives them by the error that is left",
        )
    aimless = sorted({job.config.name for job in jobs if not job.config.has_aim})
    if training.schedule.k_start > 1 and aimless:
        aiming = sorted(name for name, one in ARCHITECTURES.items() if one.has_aim)
        raise DictionaryError(
            "The schedule's k_start has nothing to begin above.",
            got=f"k_start={training.schedule.k_start:g} for {', '.join(aimless)}",
            because="these have no k, or a fixed one, and no L0 that they aim at",
            instead=f"k_start=1, or one of {', '.join(aiming)}",
        )


def _refuse_empty_aims(jobs: Sequence[Job]) -> None:
    """Refuse a k or an L0 that no token can have, and words that an architecture does not know."""
    problems: list[str] = []
    for config in (job.config for job in jobs):
        for name in ("k", "l0"):
            aim = getattr(config, name, None)
            if aim is not None and (aim <= 0 or (name == "k" and config.has_aim and aim > config.width)):
                problems.append(f"{config.name} of {config.width} latents with {name}={aim:g}")
        problems += [f"{config.name} with {name}={getattr(config, name)!r}" for name in unknown_words(config)]
    if problems:
        raise DictionaryError(
            "No dictionary can be trained so.",
            got=", ".join(dict.fromkeys(problems)),
            because="some of the latents are active at a token, no more than there are, and words are those listed",
            instead="ms.dictionaries.TopK(width=4096, k=32)",
        )


def measured(dictionary: Dictionary, learner: Learner, batch: Batch) -> Calibration:
    """L0 and FVU of a dictionary on a batch, and the fraction of latents that are dead."""
    settings = dictionary.settings
    with torch.no_grad():
        x = torch.cat([batch[site].to(dictionary.b_dec) for site in learner.job.reads], dim=1)
        y = torch.cat([batch[site].to(dictionary.b_dec) for site in learner.job.targets], dim=1)
        codes = dictionary.encode_sparse(_stacked(x, settings.reads))
        written = dictionary.decode(codes, _stacked(x, settings.reads)).reshape(len(y), -1)
        fvu = (written - y).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    return Calibration(
        l0=len(codes.values) / len(y),
        fvu=float(fvu),
        dead=len(learner.dead) / settings.n_latents,
        n_tokens=len(y),
    )


def _stacked(flat: torch.Tensor, ports: Sequence[Any]) -> torch.Tensor:
    widths = {port.width for port in ports}
    return flat.unflatten(1, (len(ports), -1)) if len(ports) > 1 and len(widths) == 1 else flat


def _plain(notes: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: lists for tuples."""
    found = to_plain(notes)
    assert isinstance(found, dict)
    return found


def _name(learner: Learner) -> str:
    job = learner.job
    return job.name or f"{job.config.name} at {', '.join(map(str, job.reads))}"
