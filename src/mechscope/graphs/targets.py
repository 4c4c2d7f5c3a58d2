"""Targets: what a graph explains: logits of tokens, or differences of two, at one position.

A logit's vector is its unembedding less the mean over the vocabulary, so that rows say what sets a token apart. A
contrast's is the difference of two. A final soft-cap is left off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechscope.figures.shown import shown
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.vocabulary.errors import InterventionMismatch, PositionOutOfRange
from mechscope.vocabulary.sites import Site

SHARE = 0.95
MOST = 10


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target.

    Args:
        label: What a person reads.
        token: Its token.
        foil: The token subtracted, or None.
        weight: Its share of the influence: a token's probability; of a contrast, both tokens' together.
    """

    label: str
    token: int
    foil: int | None
    weight: float


def choose_targets(model: Model, wanted: Any, final: Tensor) -> list[Target]:
    """Targets from what people write.

    Args:
        model: An open model.
        wanted: None: the most probable tokens that together have 95%, at most ten. Else a token (text or id), a pair
            (a, b) for a minus b, or a list of both kinds.
        final: Residual stream at the position explained, [d_model].

    Raises:
        PositionOutOfRange: a token id outside the vocabulary.
        NotOneToken: a word that is none or several.
        InterventionMismatch: nothing to explain: no target, one named twice, a token less itself.
    """
    with torch.no_grad():
        logits = head_of(model.binding)(final.to(model.dtype))
    probabilities = logits.to(torch.float32).softmax(-1).cpu()
    if wanted is None:
        best = probabilities.topk(min(MOST, len(probabilities)))
        n = int((best.values.cumsum(0) < SHARE).sum()) + 1
        return [_token_target(model, int(token), probabilities) for token in best.indices[:n]]
    items = [wanted] if isinstance(wanted, str | int | tuple) else list(wanted)
    if not items:
        raise InterventionMismatch(
            "A graph needs something to explain.",
            got="no targets",
            instead='targets="Mary", targets=("Mary", "John") for a difference, or None for the likeliest tokens',
        )
    found = [_target(model, item, probabilities) for item in items]
    _refuse_twice(found)
    return found


def target_vectors(model: Model, targets: Sequence[Target], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Vectors [target, d_model] on the final norm's output and biases [target] that give the targets' values."""
    unembedding = model.weights["W_U"].detach()
    bias = (
        model.weights["b_U"].detach()
        if model.weights.has("b_U")
        else unembedding.new_zeros(unembedding.shape[1])
    )
    mean, mean_bias = unembedding.to(dtype).mean(1), bias.to(dtype).mean()
    vectors, biases = [], []
    for target in targets:
        foil, foil_bias = mean, mean_bias
        if target.foil is not None:
            foil, foil_bias = unembedding[:, target.foil].to(dtype), bias[target.foil].to(dtype)
        vectors.append(unembedding[:, target.token].to(dtype) - foil)
        biases.append(bias[target.token].to(dtype) - foil_bias)
    scale = model.binding.anatomy.head.scale
    return torch.stack(vectors) * scale, torch.stack(biases) * scale


def final_site(model: Model) -> Site:
    """Where the final norm's output is read; the last layer's where there is no norm."""
    norm = Site("ln_final")
    return norm if norm in model.binding.formed else Site("resid_post", model.n_layers - 1)


def _refuse_twice(found: Sequence[Target]) -> None:
    pairs = [(one.token, one.foil) for one in found]
    twice = sorted({one.label for one, pair in zip(found, pairs, strict=True) if pairs.count(pair) > 1})
    nothing = sorted({one.label for one in found if one.token == one.foil})
    if twice or nothing:
        raise InterventionMismatch(
            "A target is named once, and a contrast is of two tokens that differ.",
            got=", ".join([*twice, *nothing]),
            because="a target named twice would count twice, and a token less itself is always 0",
            instead='targets=["Mary", "John"], or targets=("Mary", "John") for a difference',
        )


def _target(model: Model, item: Any, probabilities: Tensor) -> Target:
    if not isinstance(item, tuple):
        return _token_target(model, _id(model, item), probabilities)
    if len(item) != 2:
        raise InterventionMismatch(
            "A contrast is of two tokens.", got=repr(item), instead='("Mary", "John"): Mary minus John'
        )
    first, second = (_token_target(model, _id(model, one), probabilities) for one in item)
    return Target(
        label=f"{first.label} − {second.label}",
        token=first.token,
        foil=second.token,
        weight=first.weight + second.weight,
    )


def _token_target(model: Model, token: int, probabilities: Tensor) -> Target:
    text = shown(model.reader.strings([token])[0])
    return Target(label=text, token=token, foil=None, weight=float(probabilities[token]))


def _id(model: Model, item: Any) -> int:
    token = model.token(item) if isinstance(item, str) else int(item)
    if not 0 <= token < model.sizes["d_vocab"]:
        raise PositionOutOfRange(
            "A target is outside the vocabulary.",
            got=f"id {token}",
            because=f"the unembedding has {model.sizes['d_vocab']} columns",
            instead="a word, or an id of this model's tokenizer",
        )
    return token
