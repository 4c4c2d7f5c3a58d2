"""circuit-tracer: `config.yaml` with `layer_{i}.safetensors` (one transcoder a layer) or `W_enc_{i}` and `W_dec_{i}`
(a cross-layer transcoder).

Encoders and decoders are stored by rows. A set of transcoders is one dictionary here whose layers write to
themselves; `layer=` opens one of them alone. Top-k keeps selected negative values. Without a threshold and without a
word about the activation it is ReLU, as their own loaders have it. Position 0 is left out by their convention, which is
kept as a note.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.formats.answers import Answers
from mechscope.dictionaries.formats.files import (
    in_one_dtype,
    read_safetensors,
    read_yaml,
    refuse_others,
    refuse_shape,
    take,
    tensor_names,
)
from mechscope.dictionaries.formats.naming import hook_of, settle_site, site_from_hook
from mechscope.dictionaries.formats.writing import cannot_write, plainly
from mechscope.dictionaries.settings import Gate, Port, Settings, Source
from mechscope.records.files import save_tensors, save_text
from mechscope.vocabulary.errors import BadFile, DictionaryError, UnknownGate
from mechscope.vocabulary.sites import Site

CONFIG = "config.yaml"
_NAME = "circuit-tracer"
_THRESHOLD = "activation_function.threshold"
_ROWS = {"W_enc", "W_dec", "b_enc", "b_dec"}
_PER_LAYER = re.compile(r"layer_(\d+)\.safetensors")
_ENCODER = re.compile(r"W_enc_(\d+)\.safetensors")


def is_circuit_tracer(path: Path) -> bool:
    """Whether a folder, or one layer's file, holds transcoders of circuit-tracer."""
    if path.is_file():
        return bool(_PER_LAYER.fullmatch(path.name)) and tensor_names(path) >= _ROWS
    return any(tensor_names(file) >= _ROWS for file in _files(path, _PER_LAYER)[:1]) or bool(
        _files(path, _ENCODER)
    )


def open_circuit_tracer(path: Path, answers: Answers) -> Dictionary:
    """The transcoders of a folder, or those of one layer.

    Raises:
        BadFile: a layer is missing, or has another number of latents.
        AmbiguousDictionary: sites or activation are left open.
    """
    folder = path if path.is_dir() else path.parent
    config = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if path.is_dir() and _files(path, _ENCODER):
        return _cross_layer(path, config, answers)
    if path.is_file():
        answers = replace(answers, layer=answers.settled("layer", int(_PER_LAYER.fullmatch(path.name)[1])))  # pyright: ignore[reportOptionalSubscript]
    files = _whole(_files(folder, _PER_LAYER), _PER_LAYER) if answers.layer is None else []
    if answers.layer is not None:
        file = folder / f"layer_{answers.layer}.safetensors"
        return _single(file, answers.layer, config, answers)
    return _set(files, config, answers)


def _files(folder: Path, pattern: "re.Pattern[str]") -> list[Path]:
    found = {
        int(match[1]): file
        for file in folder.glob("*.safetensors")
        if (match := pattern.fullmatch(file.name))
    }
    return [found[layer] for layer in sorted(found)]


def _whole(files: list[Path], pattern: "re.Pattern[str]") -> list[Path]:
    layers = [int(pattern.fullmatch(file.name)[1]) for file in files]  # pyright: ignore[reportOptionalSubscript]
    if layers != list(range(len(files))):
        raise BadFile(
            "A layer of these transcoders is missing.",
            got=f"layers {layers}",
            because="a set covers every layer from 0 on",
            instead="the missing files, or layer= for one of them alone",
        )
    return files


def _read_layer(file: Path) -> dict[str, Tensor]:
    saved = read_safetensors(file)
    refuse_others(saved, _ROWS | {_THRESHOLD, "W_skip", "k"}, file)
    encoder, decoder, b_enc, b_dec = take(saved, "W_enc", "W_dec", "b_enc", "b_dec", path=file)
    n = len(b_enc)
    refuse_shape("W_enc", encoder, (n, encoder.shape[-1]), file)
    refuse_shape("W_dec", decoder, (n, decoder.shape[-1]), file)
    more = {name: saved[name] for name in ("W_skip", "k") if name in saved}
    if _THRESHOLD in saved:
        more["threshold"] = saved[_THRESHOLD]
    return {"W_enc": encoder.T, "W_dec": decoder, "b_enc": b_enc, "b_dec": b_dec} | more


def _gate(config: Mapping[str, Any], layer: Mapping[str, Tensor], answers: Answers) -> Gate:
    if "threshold" in layer:
        return Gate(rule="jumprelu")
    stated = config.get("activation", config.get("activation_function"))
    question = "Which activation do these transcoders have? They hold a k, and the settings do not say"
    if stated is None and answers.gate is None and "k" not in layer:
        stated = "relu"
    activation = str(answers.settled("gate", stated, question, readings='"relu" or "topk"'))
    if activation == "relu":
        return Gate(rule="relu")
    if activation != "topk":
        raise UnknownGate(
            f'The activation "{activation}" is not known.',
            got=activation,
            because="a dictionary read under another rule gives other codes, silently",
            instead="relu, topk, or a threshold in the weights",
        )
    inside = int(layer["k"]) if "k" in layer else config.get("k")
    k = answers.settled("k", inside, "How many latents does a token have?")
    return Gate(rule="topk", k=int(k), negatives="kept")


def _hooks(config: Mapping[str, Any], layer: int, answers: Answers) -> tuple[Site, Site]:
    read, written = str(config.get("feature_input_hook") or ""), str(config.get("feature_output_hook") or "")
    return (
        settle_site(answers, site_from_hook(f"blocks.{layer}.{read}") if read else None, read),
        settle_site(
            answers, site_from_hook(f"blocks.{layer}.{written}") if written else None, written, which="writes"
        ),
    )


def _single(file: Path, layer: int, config: Mapping[str, Any], answers: Answers) -> Dictionary:
    tensors = _read_layer(file)
    gate = _gate(config, tensors, answers)
    read, written = _hooks(config, layer, answers)
    tensors.pop("k", None)
    settings = Settings(
        reads=(Port(site=read, shape=(tensors["W_enc"].shape[0],)),),
        writes=(Port(site=written, shape=(tensors["W_dec"].shape[1],)),),
        n_latents=len(tensors["b_enc"]),
        gate=gate,
        has_skip="W_skip" in tensors,
        source=_source(config, answers),
    )
    return Dictionary(settings, in_one_dtype(tensors))


def _set(files: list[Path], config: Mapping[str, Any], answers: Answers) -> Dictionary:
    layers = [_read_layer(file) for file in files]
    each = {len(layer["b_enc"]) for layer in layers}
    if len(each) != 1:
        raise BadFile(
            "The layers have different numbers of latents.",
            got=[len(layer["b_enc"]) for layer in layers],
            because="a set is one dictionary of equal layers",
            instead="layer= to open them one by one",
        )
    gate = _gate(config, layers[0], answers)
    if gate.rule == "topk":
        raise DictionaryError(
            "A set of top-k transcoders is opened layer by layer.",
            got=f"{len(layers)} layers, k={gate.k}",
            because="k counts within a layer, which one gate over all of them would state wrongly",
            instead="layer=0, layer=1, ...",
        )
    tensors = {
        name: torch.cat([layer[name] for layer in layers])
        for name in ("b_enc", "threshold")
        if name in layers[0]
    }
    tensors |= {
        "W_enc": torch.stack([layer["W_enc"] for layer in layers]),
        "b_dec": torch.stack([layer["b_dec"] for layer in layers]),
    }
    for index, layer in enumerate(layers):
        tensors[f"W_dec.{index}"] = layer["W_dec"][:, None, :]
    if "W_skip" in layers[0]:
        tensors["W_skip"] = torch.block_diag(*(layer["W_skip"] for layer in layers))
    targets = tuple((index,) for index in range(len(layers)))
    return _layered(tensors, gate, targets, config, answers)


def _cross_layer(folder: Path, config: Mapping[str, Any], answers: Answers) -> Dictionary:
    files = _whole(_files(folder, _ENCODER), _ENCODER)
    n = len(files)
    encoders = [read_safetensors(file) for file in files]
    tensors: dict[str, Tensor] = {}
    for index, (file, saved) in enumerate(zip(files, encoders, strict=True)):
        known = {f"{stem}_{index}" for stem in ("W_enc", "b_enc", "b_dec", "threshold")}
        refuse_others(saved, known, file)
        take(saved, *(known - {f"threshold_{index}"}), path=file)
        beside = folder / f"W_dec_{index}.safetensors"
        decoder = take(read_safetensors(beside), f"W_dec_{index}", path=beside)[0]
        each = len(saved[f"b_enc_{index}"])
        refuse_shape(f"W_dec_{index}", decoder, (each, n - index, decoder.shape[-1]), beside)
        tensors[f"W_dec.{index}"] = decoder
    tensors["W_enc"] = torch.stack([saved[f"W_enc_{i}"].T for i, saved in enumerate(encoders)])
    for name, join in (("b_enc", torch.cat), ("b_dec", torch.stack), ("threshold", torch.cat)):
        if f"{name}_0" in encoders[0]:
            tensors[name] = join([saved[f"{name}_{i}"] for i, saved in enumerate(encoders)])
    gate = _gate(config, tensors, answers)
    targets = tuple(tuple(range(index, n)) for index in range(n))
    return _layered(tensors, gate, targets, config, answers)


def _layered(
    tensors: dict[str, Tensor],
    gate: Gate,
    targets: tuple[tuple[int, ...], ...],
    config: Mapping[str, Any],
    answers: Answers,
) -> Dictionary:
    n, d_in, each = tensors["W_enc"].shape
    read, written = _hooks(config, 0, answers)
    settings = Settings(
        reads=tuple(Port(site=Site(read.point, layer), shape=(d_in,)) for layer in range(n)),
        writes=tuple(
            Port(site=Site(written.point, layer), shape=(tensors["b_dec"].shape[1],)) for layer in range(n)
        ),
        n_latents=n * each,
        gate=gate,
        has_skip="W_skip" in tensors,
        is_cross_layer=True,
        targets=targets,
        source=_source(config, answers),
    )
    return Dictionary(settings, in_one_dtype(tensors))


def _source(config: Mapping[str, Any], answers: Answers) -> Source:
    kept = {name: config[name] for name in ("scan", "model_kind") if config.get(name) is not None}
    return Source(
        model=str(config.get("model_name") or answers.model or ""),
        made_by="circuit-tracer",
        notes=kept | {"zero_positions": 1},
    )


def write_circuit_tracer(dictionary: Dictionary, path: str | Path) -> None:
    """Write a transcoder, a set of them, or a cross-layer transcoder, with `config.yaml`.

    Raises:
        DictionaryError: another kind or gate, or sites that are not the same point in layers 0, 1, ...
    """
    kinds = ("transcoder", "skip_transcoder", "cross_layer_transcoder")
    written = plainly(dictionary, _NAME, kinds=kinds)
    settings = written.settings
    _refuse_gate(written)
    folder = Path(path)
    if written.kind == "cross_layer_transcoder":
        _refuse_layers(written)
        own = all(targets == (index,) for index, targets in enumerate(settings.targets))
        (_write_set if own else _write_cross_layer)(written, folder)
        kind = "transcoder_set" if own else "cross_layer_transcoder"
    else:
        layer = settings.reads[0].site.layer or 0
        _save_layer(folder, layer, dict(written.tensors), settings.gate.k)
        kind = "transcoder_set"
    _write_config(written, folder, kind)


def _refuse_gate(dictionary: Dictionary) -> None:
    gate = dictionary.settings.gate
    is_known = gate.rule in ("relu", "jumprelu") or (gate.rule == "topk" and gate.negatives == "kept")
    if not is_known or gate.compares != "pre" or dictionary.settings.applies_b_dec_to_input:
        raise cannot_write(
            _NAME,
            f"gate {gate.rule}, comparing {gate.compares}, negatives {gate.negatives}",
            "it knows relu, a threshold on the pre-activation, and a top-k that keeps negative values",
        )
    if gate.rule == "topk" and dictionary.kind == "cross_layer_transcoder":
        raise cannot_write(_NAME, "a top-k across layers", "its k counts within a layer")


def _refuse_layers(dictionary: Dictionary) -> None:
    settings = dictionary.settings
    n = len(settings.reads)
    for ports in (settings.reads, settings.writes):
        if [port.site for port in ports] != [Site(ports[0].site.point, layer) for layer in range(n)]:
            raise cannot_write(
                _NAME, ", ".join(str(port.site) for port in ports), "its files are layers 0, 1, ..."
            )
    own = tuple((index,) for index in range(n))
    later = tuple(tuple(range(index, n)) for index in range(n))
    if settings.targets not in (own, later):
        raise cannot_write(
            _NAME, f"targets {settings.targets}", "a layer writes to itself, or to itself and all later"
        )
    if settings.has_skip and settings.targets == later:
        raise cannot_write(
            _NAME, "a cross-layer transcoder with a skip connection", "its writer leaves that out"
        )


def _save_layer(folder: Path, layer: int, own: dict[str, Tensor], k: int | None) -> None:
    tensors = {"W_enc": own["W_enc"].T, "W_dec": own["W_dec"], "b_enc": own["b_enc"], "b_dec": own["b_dec"]}
    if "threshold" in own:
        tensors[_THRESHOLD] = own["threshold"]
    if "W_skip" in own:
        tensors["W_skip"] = own["W_skip"]
    if k is not None:
        tensors["k"] = torch.tensor(k)
    save_tensors(
        folder / f"layer_{layer}.safetensors", {name: one.contiguous() for name, one in tensors.items()}
    )


def _write_set(dictionary: Dictionary, folder: Path) -> None:
    own, settings = dictionary.tensors, dictionary.settings
    n = len(settings.reads)
    each, d_in, d_out = settings.n_latents // n, settings.reads[0].width, settings.writes[0].width
    for layer in range(n):
        mine = slice(layer * each, (layer + 1) * each)
        tensors = {
            "W_enc": own["W_enc"][layer],
            "W_dec": own[f"W_dec.{layer}"][:, 0],
            "b_dec": own["b_dec"][layer],
        }
        tensors |= {name: own[name][mine] for name in ("b_enc", "threshold") if name in own}
        if settings.has_skip:
            rows, columns = slice(layer * d_out, (layer + 1) * d_out), slice(layer * d_in, (layer + 1) * d_in)
            tensors["W_skip"] = own["W_skip"][rows, columns]
        _save_layer(folder, layer, tensors, None)


def _write_cross_layer(dictionary: Dictionary, folder: Path) -> None:
    own, settings = dictionary.tensors, dictionary.settings
    each = settings.n_latents // len(settings.reads)
    for layer in range(len(settings.reads)):
        mine = slice(layer * each, (layer + 1) * each)
        tensors = {f"W_enc_{layer}": own["W_enc"][layer].T, f"b_dec_{layer}": own["b_dec"][layer]}
        tensors |= {f"{name}_{layer}": own[name][mine] for name in ("b_enc", "threshold") if name in own}
        save_tensors(
            folder / f"W_enc_{layer}.safetensors", {name: one.contiguous() for name, one in tensors.items()}
        )
        save_tensors(
            folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": own[f"W_dec.{layer}"].contiguous()}
        )


def _write_config(dictionary: Dictionary, folder: Path, kind: str) -> None:
    import yaml

    settings = dictionary.settings
    config: dict[str, Any] = {
        "model_name": settings.source.model,
        "model_kind": kind,
        "feature_input_hook": hook_of(settings.reads[0].site).split(".", 2)[2],
        "feature_output_hook": hook_of(settings.writes[0].site).split(".", 2)[2],
        "scan": str(settings.source.notes.get("scan", folder.name)),
    }
    if settings.gate.rule != "jumprelu":
        config["activation"] = settings.gate.rule
    if settings.gate.k is not None:
        config["k"] = settings.gate.k
    save_text(folder / CONFIG, yaml.safe_dump(config, sort_keys=False))
