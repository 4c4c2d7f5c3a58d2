"""Per latent: what an evaluation says of each latent beside its density: firing in bursts, its encoder's weights."""

import numpy as np
import torch
from torch import Tensor

from mechscope.dictionaries.blocks import Block, Weights
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import N_RESAMPLES
from mechscope.dictionaries.evaluation.sums import Sums


def numbers_per_latent(
    dictionary: Dictionary, sums: Sums, *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> dict[str, np.ndarray]:
    """Numbers of each latent by name, [n_latents].

    Returns:
        "density_low" and "density_high": ends of its density's 95% interval, over prompts;
        "tokens_per_prompt": tokens at which it is active, per prompt in which it is at all (0 if in none);
        "encoder_bias" and "encoder_norm", of its encoder column (the gate's, where a gate has a path of its own);
        and of an SAE "encoder_decoder_cosine".
    """
    settings, weights = dictionary.settings, Weights(dictionary.settings, dictionary.tensors)
    columns = [_rows_of_encoder(weights, block).double() for block in weights.blocks]
    bias = dictionary.tensors.get("b_gate", dictionary.tensors.get("b_enc"))
    low, high = sums.firing.density_intervals(seed=seed, n_resamples=n_resamples)
    found = {
        "density_low": low,
        "density_high": high,
        "tokens_per_prompt": sums.firing.fires / np.maximum(sums.prompts, 1),
        "encoder_bias": np.zeros(dictionary.n_latents) if bias is None else _plain(bias.double()),
        "encoder_norm": np.concatenate([_plain(rows.norm(dim=1)) for rows in columns]),
    }
    if settings.reads == settings.writes and not settings.is_cross_layer:
        rows = weights.decoder(weights.blocks[0]).double()
        found["encoder_decoder_cosine"] = _plain(torch.cosine_similarity(columns[0], rows, dim=1))
    return found


def _rows_of_encoder(weights: Weights, block: Block) -> Tensor:
    """[latent, d_in]; where encoder and decoder are one, the decoder."""
    is_tied = "W_enc" not in weights.tensors
    return weights.decoder(block) if is_tied else weights.encoder(block).T


def _plain(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
