"""Llama Scope and its successors: `hyperparams.json` with `checkpoints/final.safetensors`, or `config.json` with
`sae_weights.safetensors`.

Inputs were scaled to a mean norm of sqrt(d); the scale lies in the settings and stays unfolded. The gate compares
either the pre-activation or its product with the decoder's norm: files of version 1 do not say which, published
readings differ by a factor of 37 in L0, and so the question goes to the caller.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.formats.answers import Answers, ambiguous
from mechscope.dictionaries.formats.files import (
    in_one_dtype,
    read_json,
    read_safetensors,
    refuse_others,
    take,
)
from mechscope.dictionaries.formats.naming import port_at, settle_site, site_from_hook
from mechscope.dictionaries.settings import Compares, Gate, Normalization, Port, Settings, Source
from mechscope.vocabulary.errors import DictionaryError, UnknownGate
from mechscope.vocabulary.sites import Site

HYPERPARAMETERS, FINAL = "hyperparams.json", "checkpoints/final.safetensors"
CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_LOG_THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")
_NORM = "dataset_average_activation_norm"
_QUESTION = "Does the gate compare the pre-activation, or its product with the decoder's norm?"
_READINGS = (
    '"pre_times_decoder_norm" as Llamascopium trains, or "pre" as SAELens reads it; compare L0 with the card'
)


def is_llama_scope(path: Path) -> bool:
    """Whether a folder holds a dictionary of Llama Scope, version 1 or later."""
    if (path / HYPERPARAMETERS).is_file() and (path / FINAL).is_file():
        return True
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file() and not (path / "cfg.json").is_file()


def open_llama_scope(path: Path, answers: Answers) -> Dictionary:
    """The dictionary in a folder of Llama Scope.

    Raises:
        AmbiguousDictionary: the gate's comparison, or the input scale, is left open.
        DictionaryError: a kind that can't be represented (sparse attention, mixtures of transforms).
    """
    if (path / HYPERPARAMETERS).is_file():
        config, file = read_json(path / HYPERPARAMETERS), path / FINAL
    else:
        config, file = read_json(path / CONFIG), path / WEIGHTS
    kind = config.get("sae_type", "sae")
    if kind not in ("sae", "clt"):
        raise DictionaryError(
            f'A "{kind}" of Llama Scope is not read.',
            got=f"sae_type {kind}",
            because="a crosscoder's sites, sparse attention and mixtures of transforms are laid out otherwise",
            instead="sae or clt",
        )
    saved = read_safetensors(file)
    return (_cross_layer if kind == "clt" else _single)(config, saved, answers, file)


def _single(config: Mapping[str, Any], saved: dict[str, Tensor], answers: Answers, file: Path) -> Dictionary:
    norms = {name: saved.pop(name) for name in [n for n in saved if n.startswith(_NORM)]}
    if "encoder.weight" in saved:
        names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
        refuse_others(saved, {*names, *_LOG_THRESHOLDS}, file)
        encoder, b_enc, decoder, b_dec = take(saved, *names, path=file)
        encoder, decoder = encoder.T, decoder.T
    else:
        refuse_others(saved, {"W_E", "b_E", "W_D", "b_D", *_LOG_THRESHOLDS}, file)
        encoder, b_enc, decoder, b_dec = take(saved, "W_E", "b_E", "W_D", "b_D", path=file)
    tensors = {"W_enc": encoder, "b_enc": b_enc, "W_dec": decoder, "b_dec": b_dec}
    gate = _gate(config, saved, tensors, answers, len(b_enc))
    hook, hook_out = str(config.get("hook_point_in") or ""), str(config.get("hook_point_out") or "")
    read = settle_site(answers, site_from_hook(hook), hook)
    written = read
    if hook_out and hook_out != hook:
        written = settle_site(answers, site_from_hook(hook_out), hook_out, which="writes")
    reads = (port_at(read, encoder.shape[0], answers),)
    writes = (port_at(written, decoder.shape[1], answers),)
    normalization = _normalization(config, norms, (hook, hook_out), (reads, writes), tensors, answers)
    settings = Settings(
        reads=reads,
        writes=writes,
        n_latents=len(b_enc),
        gate=gate,
        normalization=normalization,
        applies_b_dec_to_input=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
        source=_source(config, answers),
    )
    return Dictionary(settings, in_one_dtype(tensors))


def _gate(
    config: Mapping[str, Any],
    saved: Mapping[str, Tensor],
    tensors: dict[str, Tensor],
    answers: Answers,
    n_latents: int,
) -> Gate:
    stated = config.get("sparsity_include_decoder_norm")
    compares: Compares | None = None if stated is None else ("pre_times_decoder_norm" if stated else "pre")
    rule = str(config.get("act_fn") or "jumprelu")
    if rule == "relu":
        return Gate(rule="relu")
    compares = answers.settled("compares", compares, _QUESTION, readings=_READINGS)
    assert compares is not None
    if rule == "topk":
        k = answers.settled("k", config.get("top_k"), "How many latents does a token have?")
        return Gate(rule="topk", k=int(k), compares=compares)
    if rule not in ("jumprelu", "batchtopk"):
        raise UnknownGate(
            f'The activation "{rule}" is not known.',
            got=rule,
            because="a dictionary read under another rule gives other codes, silently",
            instead="relu, topk, batchtopk or jumprelu",
        )
    tensors["threshold"] = _threshold(config, saved, answers, n_latents)
    return Gate(rule="jumprelu", compares=compares)


def _threshold(
    config: Mapping[str, Any], saved: Mapping[str, Tensor], answers: Answers, n_latents: int
) -> Tensor:
    for name in _LOG_THRESHOLDS:
        if name in saved:
            return saved[name].exp().reshape(-1).expand(n_latents)
    question = "Where do latents open? The file holds no threshold"
    value = answers.settled("threshold", config.get("jump_relu_threshold"), question)
    return torch.full((n_latents,), float(value), dtype=torch.float64)


def _normalization(
    config: Mapping[str, Any],
    norms: Mapping[str, Tensor],
    hooks: tuple[str, str],
    ports: tuple[tuple[Port, ...], tuple[Port, ...]],
    tensors: dict[str, Tensor],
    answers: Answers,
) -> Normalization:
    """The scale that brought the mean norm to sqrt(d), at each side."""
    rule = config.get("norm_activation", "dataset-wise")
    if rule in ("inference", "none"):
        return Normalization()
    if rule == "token-wise":
        return Normalization(rule="token_norm")
    if rule != "dataset-wise":
        raise DictionaryError(
            f'"{rule}" is no normalisation that we know.',
            got=rule,
            because="codes of values that were scaled otherwise mean nothing",
            instead="dataset-wise, token-wise, inference",
        )
    stated = config.get(_NORM) or {}
    for side, name, hook, port in zip(("in", "out"), ("in_scale", "out_scale"), hooks, ports, strict=True):
        norm = norms.get(f"{_NORM}.{hook}")
        norm = stated.get(side, stated.get(hook)) if norm is None else float(norm)
        scale = None if norm is None else port[0].width ** 0.5 / float(norm)
        if scale is None and (side == "in" or ports[0] != ports[1]):
            verb = "read" if side == "in" else "written"
            question = f"By which number were the values {verb} multiplied in training?"
            scale = float(
                answers.needed("scale", question, readings="sqrt(d) / mean norm; 1 if it is folded")
            )
        if scale is not None and not (side == "out" and ports[0] == ports[1]):
            tensors[name] = torch.tensor(scale, dtype=torch.float64)
    return Normalization(rule="affine")


def _cross_layer(
    config: Mapping[str, Any], saved: dict[str, Tensor], answers: Answers, file: Path
) -> Dictionary:
    """Their decoders are grouped by the layer written; ours by the layer read."""
    norms = {name: float(saved.pop(name)) for name in [n for n in saved if n.startswith(_NORM)]}
    encoder, b_enc = take(saved, "W_E", "b_E", path=file)
    n, d_in, each = encoder.shape
    by_target = take(saved, *(f"W_D.{j}" for j in range(n)), path=file)
    b_dec = (
        saved["b_D"]
        if "b_D" in saved
        else torch.stack(take(saved, *(f"b_D.{j}" for j in range(n)), path=file))
    )
    tensors = {"W_enc": encoder, "b_enc": b_enc.reshape(-1), "b_dec": b_dec}
    for source in range(n):
        tensors[f"W_dec.{source}"] = torch.stack([by_target[j][source] for j in range(source, n)], dim=1)
    reads = _layer_ports(config, "hook_points_in", "site", answers, n, d_in)
    writes = _layer_ports(config, "hook_points_out", "writes", answers, n, by_target[0].shape[-1])
    known = {"W_E", "b_E", "b_D", *_LOG_THRESHOLDS} | {
        f"{stem}.{j}" for j in range(n) for stem in ("W_D", "b_D")
    }
    refuse_others(saved, known, file)
    gate = _gate(config, saved, tensors, answers, n * each)
    normalization = Normalization()
    if config.get("norm_activation", "dataset-wise") == "dataset-wise":
        for name, key, ports in (
            ("in_scale", "hook_points_in", reads),
            ("out_scale", "hook_points_out", writes),
        ):
            missing = [hook for hook in config.get(key, ()) if f"{_NORM}.{hook}" not in norms]
            if missing or not config.get(key):
                raise ambiguous(
                    "format",
                    "By which numbers were the values of each layer multiplied?",
                    f"tensors {_NORM}.<hook>",
                )
            scales = [
                port.width**0.5 / norms[f"{_NORM}.{hook}"]
                for hook, port in zip(config[key], ports, strict=True)
            ]
            widths = [port.width for port in ports]
            tensors[name] = torch.tensor(scales, dtype=torch.float64).repeat_interleave(torch.tensor(widths))
        normalization = Normalization(rule="affine")
    elif config["norm_activation"] not in ("inference", "none"):
        raise DictionaryError(
            f'A cross-layer transcoder normalised "{config["norm_activation"]}" is not read.',
            got=config["norm_activation"],
            because="each layer's values would have a scale of their own, token by token",
        )
    settings = Settings(
        reads=reads,
        writes=writes,
        n_latents=n * each,
        gate=gate,
        normalization=normalization,
        is_cross_layer=True,
        targets=tuple(tuple(range(index, n)) for index in range(n)),
        source=_source(config, answers),
    )
    return Dictionary(settings, in_one_dtype(tensors))


def _layer_ports(
    config: Mapping[str, Any], key: str, which: str, answers: Answers, n: int, width: int
) -> tuple[Port, ...]:
    hooks = [str(hook) for hook in config.get(key) or ()]
    sites = [site_from_hook(hook) for hook in hooks]
    if len(sites) == n and all(site is not None for site in sites):
        return tuple(Port(site=site, shape=(width,)) for site in sites if site is not None)
    first = settle_site(answers, None, hooks[0] if hooks else "", which=which)
    return tuple(Port(site=Site(first.point, layer), shape=(width,)) for layer in range(n))


def _source(config: Mapping[str, Any], answers: Answers) -> Source:
    kept = {
        name: config[name]
        for name in ("sae_type", "expansion_factor", "act_fn")
        if config.get(name) is not None
    }
    return Source(
        model=str(config.get("model_name") or answers.model or ""),
        trained_as=str(config.get("act_fn") or "jumprelu"),
        made_by="Llama Scope",
        notes=kept,
    )
