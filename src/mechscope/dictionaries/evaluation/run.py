"""Evaluate: a dictionary on a text, right for every kind: replaced at the sites it writes, compared with what is there.

Streams batch by batch in double precision; the batch size changes no result. Costs the passes that it names.
"""

import numpy as np
import torch

from mechscope.data.firing import Which, is_dead, is_denser_than
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import Estimate, Estimator
from mechscope.dictionaries.evaluation.losses import Losses, refuse_losses
from mechscope.dictionaries.evaluation.per_latent import numbers_per_latent
from mechscope.dictionaries.evaluation.reading import batches, counted, fitted, pieces
from mechscope.dictionaries.evaluation.replacing import constant, reading_of, replacing
from mechscope.dictionaries.evaluation.result import Evaluation
from mechscope.dictionaries.evaluation.spec import EvaluationSettings
from mechscope.dictionaries.evaluation.sums import Sums
from mechscope.models.inputs import Inputs
from mechscope.models.model import Model
from mechscope.records.fingerprint import hash_tensors

_SHARES: dict[str, Which] = {
    "dead": is_dead,
    "dense_1_percent": is_denser_than(0.01),
    "dense_10_percent": is_denser_than(0.1),
}
"""Of latents; of this dictionary on such a text: intervals are over prompts."""


def evaluate(
    dictionary: Dictionary, model: Model, text: Inputs, *, settings: EvaluationSettings | None = None
) -> Evaluation:
    """Measure how well a dictionary stands for what the model computes.

    Args:
        dictionary: Any kind; values written are compared with what the model has at the sites written.
        model: The model that it was trained on.
        text: Prompts; they are what intervals resample.
        settings: Conventions.

    Returns:
        Figures with 95% intervals: fvu and r2 (pooled), l0, l1, mse (per token, summed over directions), cosine,
        norms, shrinkage (|output|^2 over target x output: 1 is none, 0 all of it), dead and dense fractions of
        latents, and with `losses` ce, kl and what is recovered of them.

    Raises:
        DictionaryMismatch: sites that the model does not form, or with another width.
        NonFiniteActivations: NaN or infinite activations.
        NoNextToken: `losses` of a masked language model.

    Cost: one forward pass to the last site, and three whole ones with `losses`.
    Caveat: recovered fractions depend on the ablation, on special tokens and on the text; all three are on record.
    """
    chosen = settings or EvaluationSettings()
    if chosen.losses:
        refuse_losses(model)
    skips = dictionary.settings.source.skips_special if chosen.skips_special is None else chosen.skips_special
    dictionary = fitted(dictionary, model)
    whole = model.tokens(text)
    sums, token_error = _measured(dictionary, model, whole, chosen, skips)
    estimator = Estimator(len(whole), seed=chosen.seed, n_resamples=chosen.n_resamples)
    figures = sums.figures(estimator)
    figures |= {name: Estimate.of(*sums.firing.share(which)) for name, which in _SHARES.items()}
    if chosen.losses:
        losses = _losses(dictionary, model, whole, chosen, skips, sums)
        figures |= losses.figures(estimator, way="replaced", ablation="ablated")
    return Evaluation(
        figures=figures,
        density=sums.density(),
        latents=numbers_per_latent(dictionary, sums, seed=chosen.seed, n_resamples=chosen.n_resamples),
        token_error=token_error / max(sums.variance, np.finfo(np.float64).tiny),
        n_tokens=sums.n_tokens,
        settings=chosen.to_json()
        | {
            "skips_special": skips,
            "bos": whole.bos,
            "reads": [str(site) for site in dictionary.reads],
            "replaced_at": [str(site) for site in dictionary.writes],
            "values_read_in": reading_of(dictionary),
        },
        dictionary=dictionary.settings.to_json(),
        model=model.fingerprint,
        data_sha256=hash_tensors({"ids": whole.ids, "n_pad": whole.n_pad}),
    )


def _measured(
    dictionary: Dictionary, model: Model, text: Inputs, settings: EvaluationSettings, skips: bool
) -> tuple[Sums, np.ndarray]:
    sums = Sums.empty(n_units=len(text), d_out=dictionary.settings.d_out, n_latents=dictionary.n_latents)
    errors: list[np.ndarray] = []
    for piece in pieces(dictionary, model, text=text, batch_size=settings.batch_size, skips_special=skips):
        codes = dictionary.encode_sparse(piece.read)
        output = dictionary.decode(codes, piece.read).reshape(len(piece.read), -1)
        sums.add(piece.units, target=piece.written, output=output, codes=codes)
        if settings.keeps_tokens:
            error = piece.written.to(torch.float64) - output.to(piece.written.device, torch.float64)
            errors.append(error.square().sum(1).cpu().numpy())
    return sums, np.concatenate(errors) if errors else np.zeros(0)


def _losses(
    dictionary: Dictionary, model: Model, text: Inputs, settings: EvaluationSettings, skips: bool, sums: Sums
) -> Losses:
    ablated = sums.mean if settings.ablation == "mean" else torch.zeros_like(sums.mean)
    losses, first = Losses.empty(len(text), ("replaced", "ablated")), 0
    for batch in batches(model, text, batch_size=settings.batch_size):
        counts = counted(model, batch, skips_special=skips)
        ways = {
            "replaced": replacing(dictionary, model, batch=batch, counts=counts),
            "ablated": constant(ablated, dictionary, batch, counts),
        }
        losses.add(model, batch, first, ways)
        first += len(batch)
    return losses
