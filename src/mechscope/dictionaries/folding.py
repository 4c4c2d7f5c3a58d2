"""Folding: the same function with the normalisation, or the decoder's norms, inside the weights.

With in-statistics m, s and out-statistics M, S (vectors, numbers, or matrices on the right):
    pre = ((x - m) s - b) W + c      becomes   pre = (x - b') W' + c'   with W' = s W
    y   = (f D + d) / S + M          becomes   y   = f D' + d'          with D' = D / S, d' = d / S + M
where b is b_dec if it is subtracted from the input, else 0. Where the sites read are the sites written, b' = d', so
that c' = c; otherwise c' takes up what is left. Codes stay the same numbers.
Refuses: folding twice, scales that belong to tokens, and scales that would change what a gate ranks.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mechscope.dictionaries.blocks import Weights
from mechscope.dictionaries.normalizing import out_statistics, undo
from mechscope.dictionaries.settings import Gate, Settings
from mechscope.vocabulary.errors import FoldingError

Folded = tuple[Settings, dict[str, Tensor]]


def fold_normalization(settings: Settings, tensors: Mapping[str, Tensor]) -> Folded:
    """Settings and tensors that take raw values and give the same codes and the same reconstruction.

    Raises:
        FoldingError: folded already, nothing to fold, or weights can't express it.
    """
    _refuse_unless_foldable(settings)
    out_mean, out_scale = out_statistics(settings, tensors)
    _refuse_changed_ranking(settings, out_scale)
    _refuse_pursuit_of_a_mean(settings, tensors)
    settings, tensors = _with_threshold_on_pre(settings, dict(tensors))
    new = dict(tensors)
    new |= _folded_encoder(settings, tensors, same=_is_same_space(settings, tensors))
    for block in Weights(settings, tensors).blocks:
        name = "W_dec" if block.sites is None else f"W_dec.{block.index}"
        new[name] = _undone(tensors[name], out_scale, settings, block.sites or ())
    b_dec = undo(tensors["b_dec"].reshape(1, -1), out_scale)[0]
    b_dec = b_dec if out_mean is None else b_dec + out_mean
    if settings.has_skip:
        skip = undo(tensors["W_skip"].T, out_scale)  # [d_in, d_out]
        skip = _scaled_rows(skip, tensors.get("in_scale"))
        new["W_skip"] = skip.T
        if (mean := tensors.get("in_mean")) is not None:
            b_dec = b_dec - mean @ skip
    new["b_dec"] = b_dec.reshape(tensors["b_dec"].shape)
    gate = settings.gate
    if gate.rule == "matching_pursuit" and out_scale is not None:
        gate = replace(gate, stop_at=gate.stop_at / float(out_scale))
    keeps = settings.applies_b_dec_to_input and _is_same_space(settings, tensors)
    folded = replace(
        settings,
        gate=gate,
        normalization=replace(settings.normalization, is_folded=True),
        applies_b_dec_to_input=keeps,
    )
    return folded, new


def fold_decoder_norm(settings: Settings, tensors: Mapping[str, Tensor]) -> Folded:
    """Decoder rows of norm one; encoder, biases and thresholds take the norms, so that codes are larger by them.

    Raises:
        FoldingError: a top-k that ranks bare pre-activations, which the norms would reorder; a gated encoder's gate
            is scale-free, and is folded in its magnitude path.
    """
    gate = settings.gate
    if gate.rule in ("topk", "groupmax") and gate.compares == "pre":
        raise FoldingError(
            "The decoder's norms can't be folded into this encoder.",
            got=f"gate {gate.rule} that compares {gate.compares}",
            because="which latents are the largest would change",
            instead='a gate that compares "pre_times_decoder_norm", or the dictionary as it is',
        )
    settings, tensors = _with_threshold_on_pre(settings, dict(tensors))
    weights = Weights(settings, tensors)
    norms = weights.decoder_norms().clamp_min(torch.finfo(weights.tensors["b_dec"].dtype).tiny)
    new = dict(tensors)
    for block in weights.blocks:
        name = "W_dec" if block.sites is None else f"W_dec.{block.index}"
        rows = tensors[name]
        new[name] = rows / norms[block.latents].reshape(-1, *[1] * (rows.ndim - 1))
    if gate.rule == "gated":
        new["r_mag"] = tensors["r_mag"] + norms.log()
        new["b_mag"] = tensors["b_mag"] * norms
    elif gate.rule != "matching_pursuit":
        per_block = norms.reshape(settings.n_blocks, 1, -1) if settings.is_cross_layer else norms
        new["W_enc"], new["b_enc"] = tensors["W_enc"] * per_block, tensors["b_enc"] * norms
        if "threshold" in tensors:
            new["threshold"] = tensors["threshold"] * norms
    if gate.compares == "pre_times_decoder_norm":
        settings = replace(settings, gate=replace(gate, compares="pre"))
    return settings, new


def _refuse_unless_foldable(settings: Settings) -> None:
    norm = settings.normalization
    if norm.is_folded:
        raise FoldingError(
            "The normalisation is folded already.",
            got=f"{norm.rule}, is_folded=True",
            because="folding twice would scale twice",
            instead="the dictionary as it is",
        )
    if norm.rule == "none":
        raise FoldingError(
            "There is no normalisation to fold.", got="rule none", instead="the dictionary as it is"
        )
    if norm.is_per_token:
        raise FoldingError(
            f'The normalisation "{norm.rule}" can\'t be folded.',
            got=norm.rule,
            because="its scale is each token's own, and weights are the same for all tokens",
            instead="the dictionary as it is: encode and decode normalise by themselves",
        )


def _refuse_changed_ranking(settings: Settings, out_scale: Tensor | None) -> None:
    gate = settings.gate
    ranks_norms = gate.compares == "pre_times_decoder_norm" and gate.rule != "jumprelu"
    if (ranks_norms or gate.rule == "matching_pursuit") and out_scale is not None and out_scale.ndim > 0:
        raise FoldingError(
            "A scale of its own for each direction can't be folded under this gate.",
            got=f"gate {gate.rule}, scale {list(out_scale.shape)}",
            because="it would change the decoder's relative norms, by which the gate chooses",
            instead="the dictionary as it is, or with_unit_decoder() first",
        )


def _refuse_pursuit_of_a_mean(settings: Settings, tensors: Mapping[str, Tensor]) -> None:
    is_subtracted = settings.applies_b_dec_to_input and _is_same_space(settings, tensors)
    if settings.gate.rule == "matching_pursuit" and "in_mean" in tensors and not is_subtracted:
        raise FoldingError(
            "Matching pursuit has no place for a mean.",
            got="in_mean, and b_dec is not subtracted from the input",
            because="its only bias is b_dec",
            instead="the dictionary as it is",
        )


def _with_threshold_on_pre(settings: Settings, tensors: dict[str, Tensor]) -> Folded:
    """A threshold on pre x norm as the equal threshold on pre, so that rescaled decoders do not move it."""
    gate = settings.gate
    if gate.rule != "jumprelu" or gate.compares == "pre":
        return settings, tensors
    norms = Weights(settings, tensors).decoder_norms()
    tensors["threshold"] = tensors["threshold"] / norms
    return replace(settings, gate=replace(gate, compares="pre")), tensors


def _is_same_space(settings: Settings, tensors: Mapping[str, Tensor]) -> bool:
    return settings.reads == settings.writes and not {"out_mean", "out_scale"} & set(tensors)


def _folded_encoder(settings: Settings, tensors: Mapping[str, Tensor], *, same: bool) -> dict[str, Tensor]:
    if settings.gate.rule == "matching_pursuit":
        return {}
    weights = Weights(settings, tensors)
    mean, scale = tensors.get("in_mean"), tensors.get("in_scale")
    b = tensors["b_dec"].reshape(-1) if settings.applies_b_dec_to_input else None
    encoders: list[Tensor] = []
    shifts: list[Tensor] = []
    for block in weights.blocks:
        w = weights.encoder(block)
        folded = _scaled_rows(w, _cut(scale, block.read))
        shift = w.new_zeros(w.shape[-1])
        if not (same and b is not None):  # otherwise the new b_dec does it
            if mean is not None:
                shift = shift + mean[block.read] @ folded
            if b is not None:
                shift = shift + b[block.read] @ w
        encoders.append(folded)
        shifts.append(shift)
    old = tensors["W_enc"]
    new = torch.stack(encoders) if settings.is_cross_layer else encoders[0].reshape(old.shape)
    return {"W_enc": new} | _shifted_biases(settings.gate, tensors, torch.cat(shifts))


def _shifted_biases(gate: Gate, tensors: Mapping[str, Tensor], shift: Tensor) -> dict[str, Tensor]:
    if gate.rule != "gated":
        return {"b_enc": tensors["b_enc"] - shift}
    return {
        "b_gate": tensors["b_gate"] - shift,
        "b_mag": tensors["b_mag"] - shift * tensors["r_mag"].exp(),
    }


def _cut(scale: Tensor | None, part: slice) -> Tensor | None:
    if scale is None or scale.ndim == 0:
        return scale
    return scale[part] if scale.ndim == 1 else scale[part, part]


def _scaled_rows(w: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return w
    if scale.ndim == 2:
        return scale @ w
    return w * (scale if scale.ndim == 0 else scale[:, None])


def _undone(rows: Tensor, scale: Tensor | None, settings: Settings, targets: tuple[int, ...]) -> Tensor:
    if scale is None or scale.ndim == 0 or not settings.is_cross_layer:
        return undo(rows.flatten(1), scale).reshape(rows.shape)
    if scale.ndim == 1:
        return rows / scale.reshape(len(settings.writes), -1)[list(targets)]
    raise FoldingError(
        "A cross-layer decoder does not fold a matrix.",
        got=f"scale {list(scale.shape)}",
        because="its rows cover some of the sites written, and the matrix mixes them",
        instead="the dictionary as it is",
    )
