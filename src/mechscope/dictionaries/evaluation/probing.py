"""k-sparse probing: how much of a concept a few latents hold, chosen on one part of the prompts and tested on another.

Latents are ranked by the difference of their means between the classes; a logistic regression on the best k is scored
on held-out prompts. Beside it stand the dense probe on the activations and the same procedure on shuffled labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.evaluation.estimates import Estimate, Estimator
from mechscope.models.inputs import Bos
from mechscope.vocabulary.errors import NotEnoughEvidence, ShapeError

Numbers = Float[np.ndarray, "token column"]
LEAST, _N_RESAMPLES = 10, 300
"""Examples of each class that either part must have."""


@dataclass(frozen=True, eq=False)
class Probing:
    """What k-sparse probes of one concept reach.

    Args:
        auroc: By k, on held-out prompts.
        latents: By k, which latents the probe reads, best first.
        dense: AUROC of a probe on the activations themselves; None without them.
        shuffled: AUROC of the largest k where labels are shuffled in both parts: 0.5 but for noise.
        bos: What was done about the text's beginning-of-sequence token, as `TokenBatch` says it; None if nobody said.
        accuracy: By k, the share of held-out tokens that the probe says right.
        dense_accuracy: Of the probe on the activations; None without them.
        share_with: Of held-out tokens, those with the concept: what saying it always, or never, would get right.
    """

    auroc: dict[int, Estimate]
    latents: dict[int, tuple[int, ...]]
    dense: Estimate | None
    shuffled: Estimate
    bos: Bos | None = None
    accuracy: dict[int, Estimate] = field(default_factory=dict)
    dense_accuracy: Estimate | None = None
    share_with: float = float("nan")


def sparse_probing(
    codes: SparseCodes | Float[Tensor, "token n_latents"],
    labels: Bool[Tensor, " token"],
    *,
    units: Int[Tensor, " token"] | None = None,
    k: Sequence[int] = (1, 2, 5),
    values: Float[Tensor, "token d"] | None = None,
    seed: int = 0,
    bos: Bos | None = None,
) -> Probing:
    """Probe a concept with a few latents.

    Args:
        codes: Of every token.
        labels: Whether the concept is there.
        units: Prompt of each token: parts are divided, and intervals resampled, by prompt. Tokens if absent.
        k: Numbers of latents.
        values: Activations, for the dense probe.
        seed: Of the division, the shuffling and the resamples.
        bos: Of the text that the codes are of, for the record: `model.tokens(text).bos`.

    Raises:
        NotEnoughEvidence: fewer than ten examples of a class in either part.
    """
    dense = codes if isinstance(codes, Tensor) else codes.to_dense().reshape(codes.n_tokens, -1)
    table = dense.detach().to("cpu", torch.float32).numpy()
    truth = labels.cpu().numpy().astype(bool)
    owner = np.arange(len(truth)) if units is None else units.cpu().numpy()
    if len(truth) != len(table) or len(owner) != len(table):
        raise ShapeError(
            "Codes, labels and units belong to the same tokens.",
            got=f"{len(table)} codes, {len(truth)} labels, {len(owner)} units",
            because="a label says something of its own token only",
        )
    rng = np.random.default_rng(seed)
    train = halves(owner, rng)
    refuse_few(truth, train)
    order = ranked_latents(table[train], truth[train])
    scores = {n: _scored(table[:, order[:n]], truth, train) for n in k}
    shuffled = truth.copy()
    for part in (train, ~train):
        shuffled[part] = rng.permutation(truth[part])
    most = max(k)
    lost = ranked_latents(table[train], shuffled[train])[:most]
    test, is_so = owner[~train], truth[~train]
    dense_score = (
        None if values is None else _scored(values.detach().to("cpu", torch.float32).numpy(), truth, train)
    )
    return Probing(
        auroc={n: auroc_with_interval(score, is_so, test, seed) for n, score in scores.items()},
        accuracy={n: _accuracy(score, is_so, test, seed) for n, score in scores.items()},
        dense_accuracy=None if dense_score is None else _accuracy(dense_score, is_so, test, seed),
        share_with=float(is_so.mean()),
        latents={n: tuple(order[:n].tolist()) for n in k},
        dense=None if dense_score is None else auroc_with_interval(dense_score, is_so, test, seed),
        shuffled=auroc_with_interval(_scored(table[:, lost], shuffled, train), shuffled[~train], test, seed),
        bos=bos,
    )


def halves(owner: Int[np.ndarray, " token"], rng: np.random.Generator) -> Bool[np.ndarray, " token"]:
    """True for tokens of a random half of the prompts."""
    prompts = rng.permutation(np.unique(owner))
    return np.isin(owner, prompts[: len(prompts) // 2])


def refuse_few(truth: np.ndarray, train: np.ndarray) -> None:
    """Refuse, with NotEnoughEvidence, parts that lack examples of a class."""
    counts = [int((truth[part] == want).sum()) for part in (train, ~train) for want in (True, False)]
    if min(counts) < LEAST:
        raise NotEnoughEvidence(
            "There are too few examples to probe with.",
            got=f"{counts[0]} with and {counts[1]} without to fit on, {counts[2]} and {counts[3]} to test on",
            because=f"each needs at least {LEAST}",
            instead="more text, or a more frequent concept",
        )


def ranked_latents(table: Numbers, truth: np.ndarray) -> Int[np.ndarray, " column"]:
    """Columns by the size of the difference between class means, over the spread."""
    gap = np.abs(table[truth].mean(0) - table[~truth].mean(0))
    return np.argsort(-gap / (table.std(0) + 1e-12), kind="stable")


def fitted_probe(table: Numbers, truth: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """A logistic regression on standardised columns, with their means and scales."""
    from sklearn.linear_model import LogisticRegression  # slow to import, and most evaluations do without

    mean, scale = table.mean(0), table.std(0)
    scale = np.where(scale > 0, scale, 1)
    return LogisticRegression(max_iter=500).fit((table - mean) / scale, truth), mean, scale


def _scored(table: Numbers, truth: np.ndarray, train: np.ndarray) -> np.ndarray:
    probe, mean, scale = fitted_probe(table[train], truth[train])
    return probe.decision_function((table[~train] - mean) / scale)


def _accuracy(score: np.ndarray, truth: np.ndarray, owner: np.ndarray, seed: int) -> Estimate:
    """Share that is said right, with an interval over prompts."""
    prompts, of_token = np.unique(owner, return_inverse=True)
    right, tokens = (
        np.bincount(of_token, weights=one, minlength=len(prompts))
        for one in ((score > 0) == truth, truth >= 0)
    )
    return Estimator(len(prompts), seed=seed, n_resamples=_N_RESAMPLES).ratio(right, tokens)


def auroc(score: Float[np.ndarray, " token"], truth: Bool[np.ndarray, " token"]) -> float:
    """Chance that a token with the concept scores above one without; ties count half."""
    n_with, n_without = int(truth.sum()), int((~truth).sum())
    if not n_with or not n_without:
        return float("nan")
    return float((rankdata(score)[truth].sum() - n_with * (n_with + 1) / 2) / (n_with * n_without))


def auroc_with_interval(score: np.ndarray, truth: np.ndarray, owner: np.ndarray, seed: int) -> Estimate:
    """AUROC with a percentile interval over resampled prompts."""
    rng = np.random.default_rng(seed)
    prompts, of_token = np.unique(owner, return_inverse=True)
    drawn = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=_N_RESAMPLES)
    weights = drawn[:, of_token].astype(np.float64)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])  # tokens of one score count together
    n_with, n_without = (
        np.add.reduceat(weights[:, order] * part[order], starts, axis=1) for part in (truth, ~truth)
    )
    below = np.cumsum(n_without, axis=1) - n_without / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (n_with * below).sum(1) / (n_with.sum(1) * n_without.sum(1))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Estimate(auroc(score, truth), float(low), float(high), "percentile")
