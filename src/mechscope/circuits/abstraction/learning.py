"""Learning a subspace: an orthonormal basis moved by gradient until an interchange inside it says what is predicted.

    h = h_base + (h_source - h_base) R^T R,   R [dim, coordinate] with orthonormal rows

Owns: the basis and its optimiser. The loss is the cross entropy of the causal model's label (Geiger et al. 2023, arXiv
2303.02536). Early stop on validation pairs; the best basis seen is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from mechscope.circuits.abstraction.interchanges import Interchanges
from mechscope.circuits.abstraction.place import Place
from mechscope.circuits.abstraction.swapping import Choice, carried_by, donor_of, where_of
from mechscope.engine.execute import Progress
from mechscope.engine.naive import read_columns
from mechscope.interventions.donor import Donor
from mechscope.interventions.subspace import move_inside
from mechscope.models.frame import Frame
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.records.seeds import generator_for, seed_for
from mechscope.vocabulary.protocols import Facts, Tokens
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

LEAST_GAIN = 1e-3
"""A validation loss that is less lower than this, in nats, or than 1%, is no improvement."""


@dataclass(frozen=True, kw_only=True)
class Das:
    """How a subspace is learnt.

    Args:
        dim: Dimensions.
        n_steps: Adam steps at most.
        batch_size: Pairs a step.
        learning_rate: Of Adam, on the parametrisation of the basis; it falls linearly to a tenth.
        n_train: Interchanges drawn from the train examples, and a quarter as many from the validation examples.
        check_every: Steps between looks at the validation pairs.
        patience: Looks without improvement before it stops.
        choice: The loss and the answer are over the "vocabulary", or over the "answers".
        n_random: Random subspaces of the same dimension beside it.
        relabelled: Learn against the labels of wrong sources: a control that should find nothing.
        decisive: Share of the interchanges whose prediction should not be the base's own answer.
        seed: Root of the tree of seeds.
    """

    dim: int = 1
    n_steps: int = 400
    batch_size: int = 64
    learning_rate: float = 0.02
    n_train: int = 512
    check_every: int = 20
    patience: int = 6
    choice: Choice = "vocabulary"
    n_random: int = 10
    relabelled: bool = False
    decisive: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Rotated:
    """A patch inside a subspace that carries a gradient; satisfies `vocabulary.protocols.Write`."""

    at: str
    where: Where
    donor: Donor
    basis: Tensor

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "Rotated":
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        return move_inside(value, self.donor.gather(tokens, value), self.basis)


class Basis(nn.Module):
    """Orthonormal rows, by torch's orthogonal parametrisation.

    Args:
        dim: Rows.
        width: Coordinates.
        seed: Of the start, uniform over subspaces.
        dtype: At least float32.
    """

    def __init__(self, dim: int, width: int, *, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        start = generator_for(seed, "das", "start").standard_normal((width, dim))
        rows = np.linalg.qr(start)[0].T
        inner = nn.Linear(width, dim, bias=False, dtype=dtype)
        inner.weight = nn.Parameter(torch.as_tensor(rows, dtype=dtype))
        with torch.random.fork_rng(devices=[]):
            # The parametrisation fills the complement of the rows with random numbers of its own.
            torch.manual_seed(seed_for(seed, "das", "complement") % 2**32)
            self.inner = orthogonal(inner, "weight")

    def forward(self) -> Tensor:
        weight = self.inner.weight
        assert isinstance(weight, Tensor)
        return weight


@dataclass
class Rows:
    """Interchanges ready to be run under any basis.

    Args:
        model: An open model.
        pairs: Interchanges of one variable.
        place: Where; its subspace is not used.
        labels: Token ids that are learnt, [pair].
        choice: Over which tokens the loss is.
    """

    model: Model
    pairs: Interchanges
    place: Place
    labels: np.ndarray
    choice: Choice
    answer_ids: tuple[int, ...]
    _head: Callable[..., Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.site = self.model.binding.site(self.place.site)
        (self.variable,) = self.pairs.sources
        self._carried = carried_by(self.model, self.pairs, [self.site])
        self._chosen = self.place.coordinates(self.model)
        self._last = Site("resid_post", self.model.n_layers - 1)
        self._head = head_of(self.model.binding)
        self._start = self._inputs_of_layer()
        ids = torch.tensor(self.answer_ids)
        self._columns = ids if self.choice == "answers" else None
        wanted = torch.as_tensor(self.labels)
        self._targets = wanted if self._columns is None else torch.searchsorted(ids, wanted)

    def measure(self, rows: np.ndarray, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of the labels in nats, and whether each is the most probable, [pair] each."""
        part = self.pairs.select(rows)
        donor = donor_of(self.model, part, variable=self.variable, place=self.place, carried=self._carried)
        write = Rotated(self.place.site, where_of(part, self.place), donor, self._full(basis))
        batch = part.base_prompts
        start = None
        if self._start is not None and self.site.layer is not None:
            value = self._start[torch.as_tensor(rows)][:, -batch.ids.shape[1] :]
            start = (str(Site("resid_pre", self.site.layer)), value)
        run = self.model.run(
            batch,
            interventions=[write],
            capture=[self._last],
            stop_after=self._last,
            start=start,
            grad=torch.is_grad_enabled(),
        )
        columns = read_columns(Frame.of(batch), (part.examples.position,)).to(run.cache[self._last].device)
        index = torch.arange(len(rows), device=columns.device)[:, None]
        logits = self._head(run.cache[self._last][index, columns], self._columns)[:, 0]
        targets = self._targets[torch.as_tensor(rows)].to(logits.device)
        losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        return losses, (logits.argmax(-1) == targets).detach()

    def _full(self, basis: Tensor) -> Tensor:
        """The basis over all that a token carries at the site."""
        width = int(self._carried.values[self.site][0, 0].numel())
        full = basis.new_zeros(len(basis), width)
        return full.index_copy(1, self._chosen.to(basis.device), basis)

    def _inputs_of_layer(self) -> Tensor | None:
        """What arrives at the site's layer, so that the layers below run once."""
        if not self.site.layer:
            return None
        site = Site("resid_pre", self.site.layer)
        return self.model.run(self.pairs.base_prompts, capture=[site], stop_after=site).cache[site].detach()


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What learning gave.

    Args:
        basis: Orthonormal rows over the place's coordinates, [dim, coordinate], float64.
        losses: Mean cross entropy of each step's batch, in nats.
        checks: (step, validation loss, validation accuracy) of each look.
        stopped_early: Whether patience ran out.
    """

    basis: Tensor
    losses: tuple[float, ...]
    checks: tuple[tuple[int, float, float], ...]
    stopped_early: bool


def learn_basis(train: Rows, validation: Rows, settings: Das, *, progress: Progress | None = None) -> Learnt:
    """Learn a basis on some interchanges; the best on the validation ones is kept.

    Cost: a forward and a backward pass from the place's layer on, over a batch, each step.
    """
    model, width = train.model, len(train.place.coordinates(train.model))
    dtype = torch.promote_types(model.dtype, torch.float32)
    basis = Basis(settings.dim, width, seed=settings.seed, dtype=dtype).to(model.device)
    optimizer = torch.optim.Adam(basis.parameters(), lr=settings.learning_rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=settings.n_steps)
    random = generator_for(settings.seed, "das", "batches")
    losses: list[float] = []
    checks: list[tuple[int, float, float]] = []
    lowest, kept, since = 1e30, basis().detach().clone(), 0
    for step in range(settings.n_steps + 1):
        if step % settings.check_every == 0 or step == settings.n_steps:
            loss, right = _check(validation, basis, settings.batch_size)
            checks.append((step, loss, right))
            since += 1
            if loss < lowest:  # smoother than accuracy, which is the same for many bases
                since = 0 if loss < lowest - max(LEAST_GAIN, 0.01 * lowest) else since
                lowest, kept = loss, basis().detach().clone()
            if since > settings.patience:
                break
        if step < settings.n_steps:
            rows = random.choice(len(train.pairs), min(settings.batch_size, len(train.pairs)), replace=False)
            losses.append(_step(train, basis, rows, optimizer))
            falling.step()
        if progress is not None:
            progress(step, settings.n_steps)
    return Learnt(
        basis=torch.linalg.qr(kept.double().T)[0].T.cpu(),
        losses=tuple(losses),
        checks=tuple(checks),
        stopped_early=since > settings.patience,
    )


def _step(train: Rows, basis: Basis, rows: np.ndarray, optimizer: torch.optim.Optimizer) -> float:
    with torch.inference_mode(False), torch.enable_grad():
        loss = train.measure(rows, basis())[0].mean()
        optimizer.zero_grad()
        parameters = list(basis.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return float(loss.detach())


def _check(validation: Rows, basis: Basis, size: int) -> tuple[float, float]:
    """Mean loss and accuracy over the validation pairs."""
    losses, hits = [], []
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(validation.pairs)), max(1, len(validation.pairs) // size)):
            loss, right = validation.measure(rows, basis())
            losses.append(loss)
            hits.append(right)
    return float(torch.cat(losses).mean()), float(torch.cat(hits).float().mean())
