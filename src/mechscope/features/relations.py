"""Relations: which latents lie near each other, and what each one does to the logits by itself.

Neighbours are by the cosine of decoder rows and of encoder columns. Logit effects are the decoder's direction
through the final norm's weight (and centring, for a LayerNorm) and the unembedding, over the norm's median scale on
the text: logits for each unit of activation, by the direct path alone. Nothing where the dictionary does not write
into the residual stream, or where no direct path is linear (BERT's norms on the stream, and its head).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.kernels.selection import largest
from mechscope.engine.harvest.corpus import TokenCorpus
from mechscope.models.capturing import cache_at
from mechscope.models.derived import norm_weight
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site

RESIDUAL = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_ROWS_AT_ONCE = 2048
_NORM_ROWS = 16


def relations_of(
    model: Model, dictionary: Dictionary, *, n_neighbors: int, n_effects: int, norm_scale: float
) -> dict[str, np.ndarray]:
    """Arrays by name: `decoder` and `encoder` neighbours with cosines, `top` and `bottom` tokens with logits.

    Cost: n_latents^2 x width multiplications, and n_latents x d_model x d_vocab.
    """
    found: dict[str, np.ndarray] = {}
    for name, rows_of in _ROWS.items():
        table = rows_of(dictionary)
        if table is not None:
            latents, cosines = nearest(table, n_neighbors)
            found |= {f"{name}/latents": latents, f"{name}/cosines": cosines}
    if writes_to_residual(dictionary, model):
        found |= _effects(model, dictionary, n_effects, norm_scale)
    return found


def encoder_rows(dictionary: Dictionary) -> Tensor | None:
    """What each latent reads, [latent, d_in]; None for matching pursuit, which has no encoder."""
    if "W_enc" not in dictionary.tensors:
        return None
    weight = dictionary.W_enc
    if dictionary.settings.is_cross_layer:
        return weight.transpose(1, 2).flatten(0, 1)
    return weight.reshape(-1, weight.shape[-1]).T


def nearest(table: Float[Tensor, "latent width"], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row, the n others with the largest cosine, and the cosines."""
    unit = torch.nn.functional.normalize(table.detach().float(), dim=1)
    n = min(n, len(unit) - 1)
    latents, cosines = [], []
    for start in range(0, len(unit), _ROWS_AT_ONCE):
        rows = unit[start : start + _ROWS_AT_ONCE]
        product = rows @ unit.T
        product[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = -2
        some = largest(product, n)
        found = product.gather(1, some).sort(dim=1, descending=True, stable=True)
        latents.append(some.gather(1, found.indices).int().cpu().numpy())
        cosines.append(found.values.half().cpu().numpy())
    return np.concatenate(latents), np.concatenate(cosines)


_ROWS: dict[str, Callable[[Dictionary], Tensor | None]] = {
    "decoder": Dictionary.decoder_rows,
    "encoder": encoder_rows,
}


def nearest_to(dictionary: Dictionary, latent: int, *, by: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k others with the largest cosine with one latent, and the cosines, however many an index keeps."""
    table = _ROWS[by](dictionary)
    assert table is not None
    unit = torch.nn.functional.normalize(table.detach().float(), dim=1)
    cosines = unit @ unit[latent]
    cosines[latent] = -2
    found = cosines.sort(descending=True, stable=True)
    k = min(k, len(unit) - 1)
    return found.indices[:k].numpy(), found.values[:k].numpy()


def writes_to_residual(dictionary: Dictionary, model: Model) -> bool:
    """Whether every site written is a part of a residual stream that is a sum, or added to it."""
    if model.binding.anatomy.is_stream_normed:
        return False
    return all(
        port.site.point in RESIDUAL and port.width == model.d_model for port in dictionary.settings.writes
    )


def logit_directions(model: Model, norm_scale: float) -> Float[Tensor, "d_model d_vocab"]:
    """What a vector added to the residual stream is multiplied with, at a fixed scale of the final norm."""
    binding = model.binding
    toward = model.weights["W_U"].detach().float() * binding.anatomy.head.scale
    norm, module = binding.anatomy.norms.get("ln_final"), binding.final_norm
    if norm is None or module is None:
        return toward
    weight = norm_weight(module, norm)["weight"]
    if weight is not None:
        toward = toward * weight.detach().float()[:, None].to(toward.device)
    if norm.kind == "layer":
        toward = toward - toward.mean(0, keepdim=True)
    return toward / norm_scale


def final_norm_scale(model: Model, corpus: TokenCorpus) -> float:
    """Median of what the final norm divides by, over tokens that count of the first rows; 1 without a norm."""
    if Site("ln_final_scale") not in model.binding.readable:
        return 1.0
    batch, mask = corpus.batch(range(min(_NORM_ROWS, corpus.n_rows)), model.reader.pad_id)
    scales = cache_at(model, batch, "ln_final_scale")["ln_final_scale"][..., 0][mask.to(model.device)]
    return float(scales.float().median()) if len(scales) else 1.0


def _effects(model: Model, dictionary: Dictionary, n: int, norm_scale: float) -> dict[str, np.ndarray]:
    toward = logit_directions(model, norm_scale)
    rows = dictionary.decoder_rows().detach().float()
    summed = rows.reshape(len(rows), -1, model.d_model).sum(1).to(toward.device)
    n = min(n, toward.shape[1])
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(summed), _ROWS_AT_ONCE):
        logits = summed[start : start + _ROWS_AT_ONCE] @ toward
        for name, is_top in (("top", True), ("bottom", False)):
            best = logits.topk(n, dim=1, largest=is_top)
            found.setdefault(f"{name}/tokens", []).append(best.indices.int())
            found.setdefault(f"{name}/logits", []).append(best.values)
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}
