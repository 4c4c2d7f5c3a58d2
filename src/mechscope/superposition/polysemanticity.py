"""How polysemantic are units? Four measures for neurons, latents or any other activations, beside two baselines.

Owns: kurtosis, selectivity, entropy of the contexts of maximal activations, and the number of unrelated contexts that
a unit answers to; the rotated basis and the shuffled contexts; and the comparison of neurons with latents.

A context is whatever the caller labels tokens with: a language, a topic, a token's class, a planted feature. The
positive part of an activation counts as an answer. Units that are never positive are dead and count in no mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri
from torch import Tensor

from mechscope.data.intervals import Interval, Resamples, bootstrap, mean_bootstrap
from mechscope.records.seeds import seed_for
from mechscope.superposition.geometry import connected
from mechscope.vocabulary.errors import NonFiniteActivations, ShapeError

if TYPE_CHECKING:
    from mechscope.figures.labelled import LabelledArray

MEASURES = ("kurtosis", "selectivity", "top contexts", "contexts")


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitMeasures:
    """One number a unit and measure; NaN for dead units.

    Args:
        kurtosis: Excess kurtosis of the activation: 0 for a Gaussian, large for a sparse unit.
        selectivity: (mean of the best context - mean of the others) / their sum: 1 answers to one context alone.
        top_contexts: exp of the entropy of contexts among the largest activations: how many there are.
        contexts: Unrelated contexts whose mean answer is above the unit's own, beyond chance and by half.
    """

    kurtosis: Float[np.ndarray, " unit"]
    selectivity: Float[np.ndarray, " unit"]
    top_contexts: Float[np.ndarray, " unit"]
    contexts: Float[np.ndarray, " unit"]

    def by_name(self) -> dict[str, np.ndarray]:
        """Each measure under its name in `MEASURES`."""
        values = (self.kurtosis, self.selectivity, self.top_contexts, self.contexts)
        return dict(zip(MEASURES, values, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Polysemanticity:
    """Measures of the units, and of the same activations where there is no privileged basis or no context.

    Args:
        units: The measures.
        rotated: Of the activations turned by a random rotation: what a basis without meaning would show.
        shuffled: Of the activations with contexts shuffled over tokens: what chance would show.
        means: Over live units, with 95% intervals over units.
        rotated_means: Of the rotated units.
        shuffled_means: Of the shuffled contexts.
        n_dead: Units that never answer.
    """

    units: UnitMeasures
    rotated: UnitMeasures
    shuffled: UnitMeasures
    means: Mapping[str, tuple[float, Interval]]
    rotated_means: Mapping[str, tuple[float, Interval]]
    shuffled_means: Mapping[str, tuple[float, Interval]]
    n_dead: int

    def array(self, measure: str = "contexts") -> "LabelledArray":
        """One measure's mean, beside both baselines."""
        from mechscope.figures.labelled import LabelledArray

        rows = [means[measure] for means in (self.means, self.rotated_means, self.shuffled_means)]
        return LabelledArray(
            np.array([value for value, _ in rows]),
            ("basis",),
            coords={"basis": ("units", "rotated basis", "shuffled contexts")},
            unit=measure,
            title=f"Polysemanticity: {measure}",
            conventions={"mean over": "live units", "interval": "95%, over units"},
            low=np.array([interval.low for _, interval in rows]),
            high=np.array([interval.high for _, interval in rows]),
        )

    def plot(self, measure: str = "contexts") -> Any:
        """Bars (Plotly)."""
        return self.array(measure).plot("bars")


def measure_polysemanticity(
    activations: Float[Tensor, "token unit"],
    contexts: Int[Tensor, " token"],
    *,
    related: Bool[Tensor, "context context"] | None = None,
    n_top: int = 50,
    seed: int = 0,
) -> Polysemanticity:
    """Measure every unit, and the two baselines.

    Args:
        activations: Of any basis; tokens as rows.
        contexts: The label of each token, 0 upwards.
        related: Contexts that are to count as one, such as a word in two spellings. None: none are.
        n_top: Largest activations of a unit whose contexts are looked at.
        seed: Of rotation, shuffle and intervals.

    Cost: three passes over the activations and one product with a [unit, unit] rotation.
    """
    _refuse_unless_labelled(activations, contexts, related)
    acts = activations.detach().cpu().double()
    labels = contexts.cpu()
    generator = torch.Generator().manual_seed(seed_for(seed, "polysemanticity"))
    shuffled = labels[torch.randperm(len(labels), generator=generator)]

    def measures(values: Tensor, of: Tensor) -> UnitMeasures:
        return measure_units(values, of, related=related, n_top=n_top)

    found = measures(acts, labels)
    rotated = measures(rotate_units(acts, generator=generator), labels)
    by_chance = measures(acts, shuffled)
    return Polysemanticity(
        units=found,
        rotated=rotated,
        shuffled=by_chance,
        means=_means(found, seed),
        rotated_means=_means(rotated, seed),
        shuffled_means=_means(by_chance, seed),
        n_dead=int(np.isnan(found.selectivity).sum()),
    )


def measure_units(
    activations: Float[Tensor, "token unit"],
    contexts: Int[Tensor, " token"],
    *,
    related: Bool[Tensor, "context context"] | None = None,
    n_top: int = 50,
) -> UnitMeasures:
    """The four measures of each unit, without baselines."""
    answers = activations.clamp(min=0)
    n_contexts = int(contexts.max()) + 1
    counts = torch.bincount(contexts, minlength=n_contexts).double()
    sums = answers.new_zeros(n_contexts, answers.shape[1]).index_add_(0, contexts, answers)
    dead = (answers.sum(0) == 0).numpy()

    def settled(values: Tensor) -> np.ndarray:
        return np.where(dead, np.nan, values.double().numpy())

    answered = responding(answers, sums, counts=counts)
    return UnitMeasures(
        kurtosis=settled(excess_kurtosis(activations)),
        selectivity=settled(selectivity(sums, counts)),
        top_contexts=settled(top_context_count(answers, contexts, n_contexts=n_contexts, n_top=n_top)),
        contexts=settled(count_unrelated(answered, related)),
    )


def excess_kurtosis(activations: Float[Tensor, "token unit"]) -> Float[Tensor, " unit"]:
    """E (x - mean)^4 / variance^2 - 3; 0 for a constant."""
    centered = activations - activations.mean(0)
    variance = centered.square().mean(0)
    return torch.where(variance > 0, centered.pow(4).mean(0) / variance.square().clamp(min=1e-300) - 3, 0.0)


def selectivity(
    sums: Float[Tensor, "context unit"], counts: Float[Tensor, " context"]
) -> Float[Tensor, " unit"]:
    """(best - rest) / (best + rest), of the best context's mean answer and that of all other tokens."""
    means = sums / counts.clamp(min=1)[:, None]
    best = means.max(0)
    rest = (sums.sum(0) - sums.gather(0, best.indices[None])[0]) / (
        counts.sum() - counts[best.indices]
    ).clamp(min=1)
    return (best.values - rest) / (best.values + rest).clamp(min=1e-300)


def top_context_count(
    answers: Float[Tensor, "token unit"], contexts: Int[Tensor, " token"], *, n_contexts: int, n_top: int
) -> Float[Tensor, " unit"]:
    """exp(entropy) of the contexts of each unit's largest answers; answers of zero don't count."""
    top = answers.topk(min(n_top, len(answers)), dim=0)
    labels = contexts[top.indices]
    hits = answers.new_zeros(n_contexts, answers.shape[1]).scatter_add_(0, labels, (top.values > 0).double())
    share = hits / hits.sum(0).clamp(min=1)
    return torch.special.entr(share).sum(0).exp()


def responding(
    answers: Float[Tensor, "token unit"],
    sums: Float[Tensor, "context unit"],
    *,
    counts: Float[Tensor, " context"],
    level: float = 0.01,
    by: float = 1.5,
) -> Bool[Tensor, "context unit"]:
    """Contexts whose mean answer is `by` times the unit's mean, and above it beyond chance.

    Chance is a one-sided z-test of `level`, divided by the number of contexts.
    """
    mean, std = answers.mean(0), answers.std(0)
    means = sums / counts.clamp(min=1)[:, None]
    z = (means - mean) / (std / counts.clamp(min=1).sqrt()[:, None]).clamp(min=1e-300)
    bound = float(-ndtri(level / len(counts)))
    return (z > bound) & (means > by * mean) & (counts > 0)[:, None]


def count_unrelated(
    answered: Bool[Tensor, "context unit"], related: Bool[Tensor, "context context"] | None
) -> Float[Tensor, " unit"]:
    """How many groups of related contexts hold one that the unit answers to."""
    if related is None:
        return answered.sum(0).double()
    groups = connected(_related_vectors(related), touching=0.0)
    return torch.stack([answered[group].any(0) for group in groups]).sum(0).double()


def rotate_units(
    activations: Float[Tensor, "token unit"], *, generator: torch.Generator
) -> Float[Tensor, "token unit"]:
    """The activations about their mean in a basis turned at random (Haar), then moved back to it."""
    n_units = activations.shape[1]
    random = torch.randn(n_units, n_units, generator=generator, dtype=activations.dtype)
    rotation, upper = torch.linalg.qr(random)
    rotation = rotation * upper.diagonal().sign()
    mean = activations.mean(0)
    return (activations - mean) @ rotation


def compare_units(
    first: Float[Tensor, "token unit"],
    second: Float[Tensor, "token latent"],
    *,
    contexts: Int[Tensor, " token"],
    related: Bool[Tensor, "context context"] | None = None,
    n_top: int = 50,
    seed: int = 0,
) -> dict[str, tuple[float, Interval]]:
    """Mean of the second's units minus mean of the first's, for each measure, with 95% intervals over units.

    `compare_units(neurons, latents, contexts=contexts)["contexts"]` is negative where latents answer to fewer contexts.
    """
    for activations in (first, second):
        _refuse_unless_labelled(activations, contexts, related)
    measured = [
        measure_units(acts.detach().cpu().double(), contexts.cpu(), related=related, n_top=n_top).by_name()
        for acts in (first, second)
    ]
    return {name: _difference(measured[0][name], measured[1][name], seed) for name in MEASURES}


def _difference(first: np.ndarray, second: np.ndarray, seed: int) -> tuple[float, Interval]:
    first, second = first[~np.isnan(first)], second[~np.isnan(second)]
    is_first = np.repeat([1.0, 0.0], [len(first), len(second)])
    values = np.concatenate([first, second])
    table = np.stack([values * is_first, is_first, values * (1 - is_first), 1 - is_first], axis=1)

    def second_minus_first(sums: np.ndarray) -> np.ndarray:
        return sums[..., 2] / sums[..., 3] - sums[..., 0] / sums[..., 1]

    return _estimate(table, second_minus_first, seed)


def _estimate(
    table: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> tuple[float, Interval]:
    found = bootstrap(Resamples(np.arange(len(table)), seed=seed, n_resamples=2000), table, statistic)
    return found.value, found.interval()


def _means(measures: UnitMeasures, seed: int) -> dict[str, tuple[float, Interval]]:
    means: dict[str, tuple[float, Interval]] = {}
    for name, values in measures.by_name().items():
        live = values[~np.isnan(values)]
        if not len(live):
            means[name] = (float("nan"), Interval(-np.inf, np.inf, 0.95, "none"))
            continue
        found = mean_bootstrap(Resamples(np.arange(len(live)), seed=seed, n_resamples=2000), live)
        means[name] = (found.value, found.interval())
    return means


def _related_vectors(related: Tensor) -> Tensor:
    """Vectors with an overlap exactly where two contexts are related: a column for each relation."""
    links = (related | related.T).triu(1).nonzero()
    vectors = torch.zeros(len(related), len(links) + len(related))
    rows = torch.arange(len(links))
    vectors[links[:, 0], rows] = vectors[links[:, 1], rows] = 1.0
    vectors[torch.arange(len(related)), len(links) + torch.arange(len(related))] = 1.0
    return vectors


def _refuse_unless_labelled(activations: Tensor, contexts: Tensor, related: Tensor | None) -> None:
    if activations.ndim != 2 or contexts.shape != activations.shape[:1] or not len(contexts):
        raise ShapeError(
            "Every token needs one context.",
            got=f"activations {list(activations.shape)}, contexts {list(contexts.shape)}",
            instead="activations [token, unit] and contexts [token]",
        )
    if contexts.is_floating_point() or int(contexts.min()) < 0:
        raise ShapeError(
            "Contexts are numbered from 0.",
            got=f"{contexts.dtype}, from {contexts.min().item()}",
            instead="whole numbers: torch.unique(names, return_inverse=True)[1]",
        )
    n_contexts = int(contexts.max()) + 1
    if related is not None and tuple(related.shape) != (n_contexts, n_contexts):
        raise ShapeError(
            "What is related has a row and a column for each context.",
            got=f"related {list(related.shape)}",
            because=f"there are {n_contexts} contexts, and those without a row would not be counted",
            instead=f"[{n_contexts}, {n_contexts}]",
        )
    if not bool(torch.isfinite(activations).all()):
        raise NonFiniteActivations(
            "An activation is not finite.",
            got=f"shape {list(activations.shape)}",
            because="no mean over tokens exists",
        )
