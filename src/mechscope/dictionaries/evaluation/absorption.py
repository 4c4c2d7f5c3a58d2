"""Absorption: a concept's own latents stay silent because a more special latent has taken the concept's direction in.

A probe finds the concept in the activations; the latents that follow it are its main ones. At held-out tokens where
the probe sees the concept and no main latent fires, absorption is said to happen if a latent that is none of them
writes most of what the probe reads. Adapted to any labels; first letters of tokens come with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import Estimate, Estimator
from mechscope.dictionaries.evaluation.probing import (
    LEAST,
    auroc,
    fitted_probe,
    halves,
    ranked_latents,
    refuse_few,
)
from mechscope.dictionaries.evaluation.reading import fitted, pieces
from mechscope.models.inputs import Bos, Inputs
from mechscope.models.model import Model
from mechscope.vocabulary.errors import DictionaryMismatch, MissingTokenizer, NotEnoughEvidence

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CANDIDATES = 10


@dataclass(frozen=True, kw_only=True)
class AbsorptionSettings:
    """What counts as absorbed.

    Args:
        least_gain: A further latent is main if it raises the F1 of "any main latent fires" by this much.
        least_cosine: An absorbing latent's decoder points at least this much along the probe.
        least_share: ... and writes at least this fraction of what the activation has along it beyond tokens without
            the concept.
        most_absorbers: Of the fraction: so many latents may share in taking over.
        least_cosine_of_absorbers: ... each of which points at least this much along the probe.
        least_auroc: Below it the probe does not find the concept, and there is nothing to absorb.
        batch_size: Prompts at a time, where a text is read; changes no result.
        seed: Of the division into halves.
    """

    least_gain: float = 0.03
    least_cosine: float = 0.025
    least_share: float = 0.4
    most_absorbers: int = 3
    least_cosine_of_absorbers: float = 0.1
    least_auroc: float = 0.8
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Absorption:
    """What became of one concept.

    Args:
        absorbed: Share of the held-out tokens with the concept (that the probe gets right) that are absorbed.
        missed: Share at which no main latent fires, absorbed or not.
        fraction: How much of what is written along the probe others have taken over, whether main latents are silent
            or only weak; mean over the same tokens (SAEBench's "absorption fraction").
        main: The concept's own latents.
        absorbers: Latents that absorbed, and at how many tokens.
        probe_auroc: Of the probe, held out.
        n_tokens: Held-out tokens with the concept that the probe gets right.
        bos: What was done about the text's beginning-of-sequence token, as `TokenBatch` says it; None if nobody said.
    """

    absorbed: Estimate
    missed: Estimate
    fraction: Estimate
    main: tuple[int, ...]
    absorbers: dict[int, int]
    probe_auroc: float
    n_tokens: int
    bos: Bos | None = None


def absorption(
    dictionary: Dictionary,
    values: Float[Tensor, "token d"],
    *,
    labels: Bool[Tensor, " token"],
    units: Int[Tensor, " token"] | None = None,
    settings: AbsorptionSettings | None = None,
    bos: Bos | None = None,
) -> Absorption:
    """Measure the absorption of one concept in an SAE.

    Args:
        dictionary: Reads and writes one space.
        values: Activations.
        labels: Whether the concept is there.
        units: Prompt of each token; tokens if absent.
        settings: What counts.
        bos: Of the text that the activations are of, for the record: `model.tokens(text).bos`.

    Raises:
        DictionaryMismatch: a transcoder: what it reads and what it writes are different spaces.
        NotEnoughEvidence: too few examples, or a concept that the activations do not show.
    """
    chosen = settings or AbsorptionSettings()
    if dictionary.kind != "sae":
        raise DictionaryMismatch(
            "Absorption is measured in SAEs.",
            got=dictionary.kind,
            because="the probe reads where the decoder writes",
            instead="a dictionary that writes what it reads",
        )
    codes = dictionary.encode(values).detach().to("cpu", torch.float64).numpy()
    table, truth = values.detach().to("cpu", torch.float64).numpy(), labels.cpu().numpy().astype(bool)
    owner = np.arange(len(truth)) if units is None else units.cpu().numpy()
    train = halves(owner, np.random.default_rng(chosen.seed))
    refuse_few(truth, train)
    probe, mean, scale = fitted_probe(table[train], truth[train])
    score = probe.decision_function((table - mean) / scale)
    found = auroc(score[~train], truth[~train])
    if found < chosen.least_auroc:
        raise NotEnoughEvidence(
            "The activations do not show this concept.",
            got=f"probe AUROC {found:.3f}, held out",
            because="what is not there can't be absorbed",
            instead="another concept or site",
        )
    direction = probe.coef_[0] / scale
    direction = direction / np.linalg.norm(direction)
    main = main_latents(codes[train] > 0, truth[train], codes[train], chosen.least_gain)
    wanted = ~train & truth & (score > 0)
    rows = dictionary.decoder_rows().detach().to("cpu", torch.float64).numpy()
    along = table @ direction
    needed = along[wanted] - along[train & ~truth].mean()
    silent, absorber = _absorbers(codes[wanted], rows, direction, main, chosen, needed=needed)
    taken = fractions(codes[wanted], rows, direction=direction, main=main, settings=chosen, needed=needed)
    latents, counts = np.unique(absorber[absorber >= 0], return_counts=True)
    prompts, index = np.unique(owner[wanted], return_inverse=True)
    estimator = Estimator(max(1, len(prompts)), seed=chosen.seed)
    marks = (absorber >= 0, silent, np.ones(len(index)), taken)
    sums = [np.bincount(index, weights=one, minlength=max(1, len(prompts))) for one in marks]
    return Absorption(
        absorbed=estimator.ratio(sums[0], sums[2]),
        missed=estimator.ratio(sums[1], sums[2]),
        fraction=estimator.ratio(sums[3], sums[2]),
        main=tuple(main),
        absorbers=dict(zip(latents.tolist(), counts.tolist(), strict=True)),
        probe_auroc=found,
        n_tokens=int(wanted.sum()),
        bos=bos,
    )


def main_latents(
    fires: Bool[np.ndarray, "token latent"],
    truth: Bool[np.ndarray, " token"],
    codes: Float[np.ndarray, "token latent"],
    least_gain: float,
) -> list[int]:
    """Latents that say the concept by firing: the best by F1, then others while they add to it."""
    candidates = ranked_latents(codes, truth)[:CANDIDATES]
    main: list[int] = []
    says, best = np.zeros(len(truth), dtype=bool), 0.0
    while len(main) < len(candidates):
        scores = {int(one): _f1(says | fires[:, one], truth) for one in candidates if one not in main}
        latent = max(scores, key=lambda one: scores[one])
        if main and scores[latent] < best + least_gain:
            break
        main.append(latent)
        says, best = says | fires[:, latent], scores[latent]
    return main


def _f1(says: np.ndarray, truth: np.ndarray) -> float:
    right = float((says & truth).sum())
    return 2 * right / max(1.0, float(says.sum() + truth.sum()))


def _written_along(
    codes: np.ndarray, rows: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What each latent writes along a direction at each token, and the cosine of its decoder row with it."""
    along = rows @ direction
    return codes * along, along / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)


def _absorbers(
    codes: np.ndarray,
    rows: np.ndarray,
    direction: np.ndarray,
    main: Sequence[int],
    settings: AbsorptionSettings,
    *,
    needed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether main latents are silent at each token, and which latent absorbed there (-1 for none)."""
    silent = np.asarray(~(codes[:, list(main)] > 0).any(axis=1))
    written, cosines = _written_along(codes, rows, direction)
    others = written.copy()
    others[:, list(main)] = -np.inf
    others[:, cosines < settings.least_cosine] = -np.inf
    latent = others.argmax(1)
    amount = others[np.arange(len(others)), latent]
    took = silent & (amount > 0) & (amount >= settings.least_share * needed)
    return silent, np.where(took, latent, -1)


def fractions(
    codes: np.ndarray,
    rows: np.ndarray,
    *,
    direction: np.ndarray,
    main: Sequence[int],
    settings: AbsorptionSettings,
    needed: np.ndarray,
) -> np.ndarray:
    """At each token, the share that a few other latents have in what they and the main ones write along the probe.

    0 where the main latents write enough, or the others too little of what is needed.
    """
    written, cosines = _written_along(codes, rows, direction)
    by_main = written[:, list(main)].sum(1)
    others = np.where(cosines >= settings.least_cosine_of_absorbers, written, 0).clip(min=0)
    others[:, list(main)] = 0
    strongest = np.sort(others, axis=1)[:, -settings.most_absorbers :].sum(1)
    enough = (by_main < needed) & (strongest >= settings.least_share * needed) & (needed > 0)
    taken = np.minimum(strongest, needed - by_main)
    main_too = taken + by_main.clip(min=0)
    return np.where(enough, np.divide(taken, main_too, out=np.zeros_like(taken), where=main_too > 0), 0)


def first_letters(model: Model, ids: Int[Tensor, " token"]) -> list[str]:
    """First letter of each token, lower case, whatever marks the beginning of a word; "" for what has none.

    Raises:
        MissingTokenizer: the model has none.
    """
    if model.tokenizer is None:
        raise MissingTokenizer(
            "First letters need a tokenizer.",
            got="a model without one",
            instead="absorption(..., labels=...)",
        )
    known = {one: model.tokenizer.decode([one]).strip().lower()[:1] for one in set(ids.tolist())}
    return [known[one] if known[one] in LETTERS else "" for one in ids.tolist()]


def first_letter_absorption(
    dictionary: Dictionary,
    model: Model,
    text: Inputs,
    *,
    settings: AbsorptionSettings | None = None,
) -> dict[str, Absorption]:
    """Absorption of "begins with this letter", for every letter that is frequent enough and that the model knows.

    Cost: one forward pass up to the site, and the text's activations in memory.
    """
    dictionary, whole = fitted(dictionary, model), model.tokens(text)
    skips = dictionary.settings.source.skips_special
    read: list[Tensor] = []
    ids: list[Tensor] = []
    units: list[Tensor] = []
    for piece in pieces(
        dictionary,
        model,
        text=whole,
        batch_size=(settings or AbsorptionSettings()).batch_size,
        skips_special=skips,
    ):
        read.append(piece.read)
        ids.append(piece.batch.ids[piece.counts])
        units.append(piece.units)
    values, owner = torch.cat(read), torch.cat(units)
    letters = first_letters(model, torch.cat(ids))
    is_word = torch.tensor([bool(one) for one in letters])
    found: dict[str, Absorption] = {}
    for letter in LETTERS:
        labels = torch.tensor([one == letter for one in letters])
        if int(labels.sum()) < 2 * LEAST:
            continue
        try:
            found[letter] = absorption(
                dictionary,
                values[is_word],
                labels=labels[is_word],
                units=owner[is_word],
                settings=settings,
                bos=whole.bos,
            )
        except NotEnoughEvidence:
            continue
    return found
