"""Conversion: a TopK (or any ranked) dictionary as a JumpReLU with the same number of active latents."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.sums import fvu_of
from mechscope.dictionaries.gates import Block, ranked
from mechscope.dictionaries.settings import Calibration, Gate
from mechscope.vocabulary.errors import DictionaryError


def to_jumprelu(
    dictionary: Dictionary,
    values: Float[Tensor, "..."],
    *,
    l0: float | None = None,
    threshold: Literal["one", "each"] = "one",
) -> Dictionary:
    """The same encoder with thresholds in place of ranks, calibrated on some values.

    Args:
        dictionary: With a topk or relu gate, of one block.
        values: What it reads; thresholds are set on these.
        l0: Active latents per token to arrive at; None means what the dictionary has on `values`.
        threshold: "one" for all latents, the value that `l0` per token exceed; "each" latent its own, so that it fires
            as often as it does now.

    Returns:
        A dictionary with gate jumprelu. A token's code no longer depends on what other latents do. The figures on
        record are its own, measured on `values`; notes of its source say from what it was made.

    Raises:
        DictionaryError: a gate that does not rank positive pre-activations.
    """
    gate = dictionary.settings.gate
    if gate.rule not in ("topk", "relu") or gate.negatives != "zeroed" or dictionary.settings.is_cross_layer:
        raise DictionaryError(
            "This dictionary can't be turned into a JumpReLU.",
            got=f"{dictionary.kind}, gate {gate.rule}, negatives {gate.negatives}",
            because="a threshold stands for the rank of positive pre-activations of one encoder",
            instead="a topk or relu dictionary",
        )
    codes = dictionary.encode(values).reshape(-1, dictionary.n_latents)
    bare = dictionary.with_settings(gate=Gate(rule="relu"))
    pre = bare.encode(values).reshape(-1, dictionary.n_latents)
    norms = dictionary.decoder_norms() if gate.compares == "pre_times_decoder_norm" else None
    size = ranked(pre, gate, Block({}, norms))
    if threshold == "one":
        n = round((float((codes != 0).sum()) / len(codes) if l0 is None else l0) * len(codes))
        limits = torch.full_like(dictionary.b_enc, float(_limit(size.reshape(-1), n)))
    else:
        counts = (codes != 0).sum(0).double()
        counts = counts if l0 is None else counts * (l0 * len(codes) / counts.sum().clamp_min(1))
        limits = torch.stack([_limit(size[:, i], round(float(count))) for i, count in enumerate(counts)])
    source = dictionary.settings.source
    note = {"from": gate.rule, "k": gate.k, "l0": l0, "threshold": threshold}
    settings = replace(
        dictionary.settings,
        gate=Gate(rule="jumprelu", compares=gate.compares),
        source=replace(
            source,
            trained_as=source.trained_as or gate.rule,
            notes={**source.notes, "converted_to_jumprelu": note},
        ),
    )
    found = Dictionary(settings, dictionary.tensors | {"threshold": limits.to(dictionary.b_enc)})
    return found.with_settings(calibration=_measured(found, values))


def _measured(dictionary: Dictionary, values: Tensor) -> Calibration:
    """Figures on the values read; FVU only where these are what is to be written."""
    settings = dictionary.settings
    codes = dictionary.encode(values).reshape(-1, dictionary.n_latents)
    fvu = None
    if settings.reads == settings.writes:
        flat = values.reshape(len(codes), -1)
        fvu = fvu_of(flat, dictionary(values).reshape(flat.shape))
    is_on = codes != 0
    return Calibration(
        l0=float(is_on.sum()) / len(codes),
        fvu=fvu,
        dead=float((~is_on.any(0)).double().mean()),
        n_tokens=len(codes),
    )


def _limit(sizes: Tensor, n: int) -> Tensor:
    """A limit halfway between the n-th and the next largest, so that n exceed it; never below zero."""
    n = min(n, len(sizes) - 1)
    if n <= 0:
        return sizes.max() * (1 + 1e-6) + 1e-6
    low = sizes.kthvalue(len(sizes) - n).values
    high = sizes.kthvalue(len(sizes) - n + 1).values
    return ((low + high) / 2).clamp_min(0.0)
