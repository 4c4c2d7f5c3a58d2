"""Dark matter: what a dictionary leaves unexplained, and of which kind it is.

How much of the error is a linear map of the values read (a dictionary could still learn it as features), how much a
non-linear predictor finds as well, how much of the error's size is foreseeable, and what each part costs in nats.
Fitted on one half of the prompts, with the ridge chosen on a quarter of those, scored on the other half.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import Estimate, Estimator
from mechscope.dictionaries.evaluation.losses import Losses
from mechscope.dictionaries.evaluation.reading import batches, counted, fitted, pieces
from mechscope.dictionaries.evaluation.replacing import applied, replacing
from mechscope.dictionaries.evaluation.sums import fvu_of_sums
from mechscope.models.inputs import Bos, Inputs, TokenBatch
from mechscope.models.model import Model
from mechscope.models.splicing import Replacement
from mechscope.vocabulary.errors import NotEnoughEvidence

RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""Relative to the mean variance of a feature."""

LEAST_PROMPTS = 8


@dataclass(frozen=True, kw_only=True)
class DarkMatterSettings:
    """How the error is examined.

    Args:
        n_random: Random ReLU features of the non-linear predictor, beside the values themselves.
        costs: Measure what each part of the error costs: four forward passes over the scored half.
        batch_size: Prompts at a time; changes no result.
        seed: Of the random features and the resamples.
        n_resamples: Of the intervals.
    """

    n_random: int = 256
    costs: bool = True
    batch_size: int = 8
    seed: int = 0
    n_resamples: int = 1_000


@dataclass(frozen=True, eq=False)
class DarkMatter:
    """The parts of a dictionary's error, on held-out prompts.

    Args:
        linear: Share of the error that is linear in the values read; below 0 is worse than its mean.
        predictable: Share that the non-linear predictor finds, the linear part included.
        size_linear: Share of the variance of the squared error's size that is linear in the values read.
        fvu: Of the dictionary, on the same tokens.
        costs: Nats per token added by leaving out: "error" (all of it), "linear" (its linear part alone), "rest" (all
            but the linear part), "unpredictable" (all but what the predictor finds); empty unless measured.
        token_error: Squared error of each scored token.
        token_linear: What of it is left after the linear part.
        n_tokens: Tokens scored.
        bos: What was done about the text's beginning-of-sequence token, as `TokenBatch` says it.
    """

    linear: Estimate
    predictable: Estimate
    size_linear: Estimate
    fvu: Estimate
    costs: Mapping[str, Estimate]
    token_error: Float[np.ndarray, " token"]
    token_linear: Float[np.ndarray, " token"]
    n_tokens: int
    bos: Bos = "given"


Features = Callable[[Tensor], Tensor]


class Ridge:
    """Streaming least squares with an intercept, in double precision: sums of products, solved at the end."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.weights: Tensor | None = None
        self._fit: tuple[Tensor, Tensor] | None = None
        self._check: tuple[Tensor, Tensor] | None = None

    def add(self, values: Tensor, targets: Tensor, *, is_check: bool) -> None:
        """Count tokens, for the fit or for the choice of the ridge."""
        z = self._with_one(values)
        sums = (z.T @ z, z.T @ targets.to(z))
        old = self._check if is_check else self._fit
        new = sums if old is None else (old[0] + sums[0], old[1] + sums[1])
        if is_check:
            self._check = new
        else:
            self._fit = new

    def solve(self) -> None:
        """Choose the ridge on the tokens held for it, then fit on all."""
        assert self._fit is not None
        fit, check = self._fit, self._check if self._check is not None else self._fit
        both = (fit[0] + check[0], fit[1] + check[1])
        parts = []
        for columns in (slice(0, -1), slice(-1, None)):  # the last target has another unit
            losses = {ridge: _loss(_solved(fit, ridge)[:, columns], check, columns) for ridge in RIDGES}
            best = min(RIDGES, key=lambda ridge, found=losses: found[ridge])
            parts.append(_solved(both, best)[:, columns])
        self.weights = torch.cat(parts, dim=1)

    def __call__(self, values: Tensor) -> Tensor:
        """What is predicted, [token, target]."""
        assert self.weights is not None
        return self._with_one(values) @ self.weights

    def _with_one(self, values: Tensor) -> Tensor:
        z = self.features(values.to("cpu", torch.float64))
        return torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], dim=1)


def _solved(sums: tuple[Tensor, Tensor], ridge: float) -> Tensor:
    gram = sums[0].clone()
    n = gram[-1, -1]
    variance = (gram.diagonal()[:-1] - gram[-1, :-1] ** 2 / n).clamp_min(0).mean()
    gram.diagonal()[:-1] += ridge * variance.clamp_min(torch.finfo(gram.dtype).tiny)
    return torch.linalg.lstsq(gram, sums[1], driver="gelsd").solution


def _loss(weights: Tensor, sums: tuple[Tensor, Tensor], columns: slice) -> float:
    """Squared error less the targets' own squares, which are the same for every ridge."""
    return float((weights * (sums[0] @ weights)).sum() - 2 * (weights * sums[1][:, columns]).sum())


def random_features(width: int, n_random: int, *, scale: float, seed: int) -> Features:
    """The values themselves, and ReLUs of random directions with random thresholds."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(width, n_random, generator=generator, dtype=torch.float64) / (scale * width**0.5)
    shifts = torch.randn(n_random, generator=generator, dtype=torch.float64)
    return lambda values: torch.cat([values, (values @ directions + shifts).relu()], dim=1)


def dark_matter(
    dictionary: Dictionary, model: Model, text: Inputs, *, settings: DarkMatterSettings | None = None
) -> DarkMatter:
    """Examine the error of a dictionary on a text.

    Args:
        dictionary: Any kind.
        model: The model that it was trained on.
        text: At least eight prompts; every second one is scored.
        settings: How.

    Raises:
        NotEnoughEvidence: fewer than eight prompts.

    Cost: two forward passes to the last site, and with `costs` five whole ones over half of the text.
    Caveat: "predictable" is what this predictor finds; a better one may find more.
    """
    chosen = settings or DarkMatterSettings()
    dictionary, whole = fitted(dictionary, model), model.tokens(text)
    if len(whole) < LEAST_PROMPTS:
        raise NotEnoughEvidence(
            "There are too few prompts to fit on some and score on others.",
            got=f"{len(whole)} prompts",
            instead=f"at least {LEAST_PROMPTS}",
        )
    linear, predictor = _fitted_predictors(dictionary, model, whole, chosen)
    scored = whole.select(range(1, len(whole), 2))
    table, errors, left = _scores(dictionary, model, scored, (linear, predictor), chosen)
    estimator = Estimator(len(scored), seed=chosen.seed, n_resamples=chosen.n_resamples)
    shares = {name: estimator.of(one, _explained) for name, one in table.items() if name != "fvu"}
    costs = _costs(dictionary, model, scored, (linear, predictor), chosen, estimator) if chosen.costs else {}
    return DarkMatter(
        linear=shares["linear"],
        predictable=shares["predictable"],
        size_linear=shares["size_linear"],
        fvu=estimator.of(table["fvu"], fvu_of_sums),
        costs=costs,
        token_error=errors,
        token_linear=left,
        n_tokens=len(errors),
        bos=whole.bos,
    )


def _explained(sums: np.ndarray) -> np.ndarray:
    return 1 - fvu_of_sums(sums)


def _error(dictionary: Dictionary, read: Tensor, written: Tensor) -> Tensor:
    codes = dictionary.encode_sparse(read)
    output = dictionary.decode(codes, read).reshape(len(read), -1)
    return written.to("cpu", torch.float64) - output.to("cpu", torch.float64)


def _with_size(error: Tensor) -> Tensor:
    """The error, and its squared size, as targets."""
    return torch.cat([error, error.square().sum(1, keepdim=True)], dim=1)


def _fitted_predictors(
    dictionary: Dictionary, model: Model, text: TokenBatch, settings: DarkMatterSettings
) -> tuple[Ridge, Ridge]:
    fitting = text.select(range(0, len(text), 2))
    linear = Ridge(lambda values: values)
    predictor: Ridge | None = None
    skips = dictionary.settings.source.skips_special
    for piece in pieces(dictionary, model, text=fitting, batch_size=settings.batch_size, skips_special=skips):
        values = piece.read.to("cpu", torch.float64)
        if predictor is None:
            scale = float(values[piece.units == piece.units[0]].square().mean().sqrt()) or 1.0
            features = random_features(values.shape[1], settings.n_random, scale=scale, seed=settings.seed)
            predictor = Ridge(features)
        targets = _with_size(_error(dictionary, piece.read, piece.written))
        for is_check in (False, True):
            mine = (piece.units % 4 == 3) == is_check
            if bool(mine.any()):
                linear.add(values[mine], targets[mine], is_check=is_check)
                predictor.add(values[mine], targets[mine], is_check=is_check)
    assert predictor is not None
    linear.solve()
    predictor.solve()
    return linear, predictor


def _scores(
    dictionary: Dictionary,
    model: Model,
    text: TokenBatch,
    predictors: tuple[Ridge, Ridge],
    settings: DarkMatterSettings,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Per-prompt sums from which shares are computed, and each token's error before and after the linear part."""
    tables: dict[str, np.ndarray] = {}
    errors: list[Tensor] = []
    left: list[Tensor] = []
    pivots: dict[str, Tensor] = {}
    skips = dictionary.settings.source.skips_special

    def count(name: str, units: Int[Tensor, " token"], target: Tensor, output: Tensor) -> None:
        pivot = pivots.setdefault(name, target[units == units[0]].mean(0))
        about = target - pivot
        first = [(target - output).square().sum(1), about.square().sum(1), torch.ones(len(target)).double()]
        rows = torch.cat([torch.stack(first, 1), about], 1).numpy()
        table = tables.setdefault(name, np.zeros((len(text), rows.shape[1])))
        np.add.at(table, units.numpy(), rows)

    for piece in pieces(dictionary, model, text=text, batch_size=settings.batch_size, skips_special=skips):
        written = piece.written.to("cpu", torch.float64)
        error = _error(dictionary, piece.read, piece.written)
        linear, predicted = (one(piece.read) for one in predictors)
        count("fvu", piece.units, written, written - error)
        count("linear", piece.units, error, linear[:, :-1])
        count("predictable", piece.units, error, predicted[:, :-1])
        count("size_linear", piece.units, error.square().sum(1, keepdim=True), linear[:, -1:])
        errors.append(error.square().sum(1))
        left.append((error - linear[:, :-1]).square().sum(1))
    return tables, torch.cat(errors).numpy(), torch.cat(left).numpy()


def _costs(
    dictionary: Dictionary,
    model: Model,
    text: TokenBatch,
    predictors: tuple[Ridge, Ridge],
    settings: DarkMatterSettings,
    estimator: Estimator,
) -> dict[str, Estimate]:
    """Nats per token that leaving out a part of the error costs."""
    linear, predictor = predictors

    def output(read: Tensor) -> Tensor:
        return applied(dictionary, read)

    def part(predict: Ridge, read: Tensor) -> Tensor:
        return predict(read)[:, :-1].to(read)

    replacements = {
        "error": Replacement(output),
        "linear": Replacement(lambda read: -part(linear, read), is_added=True),
        "rest": Replacement(lambda read: output(read) + part(linear, read)),
        "unpredictable": Replacement(lambda read: output(read) + part(predictor, read)),
    }
    losses, first = Losses.empty(len(text), tuple(replacements)), 0
    for batch in batches(model, text, batch_size=settings.batch_size):
        counts = counted(model, batch, skips_special=dictionary.settings.source.skips_special)
        ways = {
            name: replacing(dictionary, model, batch=batch, counts=counts, replacement=one)
            for name, one in replacements.items()
        }
        losses.add(model, batch, first, ways)
        first += len(batch)
    return {name: losses.increase(estimator, name) for name in replacements}
