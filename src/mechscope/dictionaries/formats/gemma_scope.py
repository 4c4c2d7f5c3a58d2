"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`, for cross-layer transcoders `layer_{n}.safetensors`).

JumpReLU without input bias or normalisation (folded by its authors). Where a dictionary belongs stands in the path
(1) or in `config.json` (2); where neither says it, it is asked for. Dictionaries of the embedding are rescaled by
sqrt(d), so that they take embeddings with the model's own scale.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.formats.answers import Answers
from mechscope.dictionaries.formats.files import (
    in_one_dtype,
    read_json,
    read_npz,
    read_safetensors,
    refuse_others,
    take,
    tensor_names,
)
from mechscope.dictionaries.formats.naming import port_at, settle_site, site_from_module
from mechscope.dictionaries.settings import Calibration, Gate, Port, Settings, Source
from mechscope.vocabulary.errors import BadFile, DictionaryError, UnknownGate
from mechscope.vocabulary.sites import Site

WEIGHTS_1, WEIGHTS_2, CONFIG = "params.npz", "params.safetensors", "config.json"
_KEYS: tuple[str, ...] = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_SITES_1 = {"res": "resid_post", "mlp": "mlp_out", "att": "z"}
_REPOSITORY = re.compile(r"gemma-scope-(?P<size>\w+)-(?P<tuning>pt|it)-(?P<site>res|mlp|att|transcoders)")


def is_gemma_scope(path: Path) -> bool:
    """Whether a folder or file holds a dictionary of Gemma Scope 1."""
    return (path / WEIGHTS_1).is_file() or (path.is_file() and path.suffix == ".npz")


def open_gemma_scope(path: Path, answers: Answers) -> Dictionary:
    """The dictionary in `params.npz`; its path names layer, site and model as the repositories lay them out.

    Raises:
        AmbiguousDictionary: the path does not say which site.
    """
    file = path / WEIGHTS_1 if path.is_dir() else path
    saved = read_npz(file)
    refuse_others(saved, set(_KEYS), file)
    tensors = dict(zip(_KEYS, take(saved, *_KEYS, path=file), strict=True))
    tensors["threshold"] = tensors["threshold"].clamp_min(0)  # the positive part is taken as well
    text = file.absolute().as_posix()  # not resolved: the hub's cache holds links to files without names
    repository = _REPOSITORY.search(text)
    read, written = _sites_1(text, repository, answers)
    if read.point == "embed":
        root = tensors["W_enc"].shape[0] ** 0.5
        tensors |= {"W_enc": tensors["W_enc"] / root, "W_dec": tensors["W_dec"] * root}
        tensors["b_dec"] = tensors["b_dec"] * root
    l0 = re.search(r"average_l0_(\d+)", text)
    settings = Settings(
        reads=(port_at(read, tensors["W_enc"].shape[0], answers),),
        writes=(port_at(written, tensors["W_dec"].shape[1], answers),),
        n_latents=len(tensors["b_enc"]),
        gate=Gate(rule="jumprelu"),
        source=Source(
            model=f"google/gemma-2-{repository['size']}" + ("-it" if repository["tuning"] == "it" else "")
            if repository
            else answers.model or "",
            bos=True,
            skips_special=True,
            trained_as="jumprelu",
            made_by="Gemma Scope 1",
        ),
        calibration=Calibration(l0=float(l0[1]) if l0 else None),
    )
    return Dictionary(settings, in_one_dtype(tensors))


def _sites_1(text: str, repository: "re.Match[str] | None", answers: Answers) -> tuple[Site, Site]:
    layer = re.search(r"/layer_(\d+)/", text)
    kind = repository["site"] if repository else ""
    if "/embedding/" in text:
        site = settle_site(answers, Site("embed"), "embedding")
        return site, site
    if layer is None or not kind:
        site = settle_site(answers, None, "")
        return site, settle_site(answers, None, "", which="writes") if answers.writes else site
    if kind == "transcoders":
        read = settle_site(answers, Site("ln2_normalized", int(layer[1])), kind)
        return read, settle_site(answers, Site("mlp_out", int(layer[1])), kind, which="writes")
    site = settle_site(answers, Site(_SITES_1[kind], int(layer[1])), kind)
    return site, site


def is_gemma_scope_2(path: Path) -> bool:
    """Whether a folder holds a dictionary of Gemma Scope 2."""
    if path.is_file():
        return "w_enc" in tensor_names(path)
    return (path / WEIGHTS_2).is_file() or any(
        "w_enc" in tensor_names(file) for file in _layer_files(path)[:1]
    )


def open_gemma_scope_2(path: Path, answers: Answers) -> Dictionary:
    """The dictionary in `params.safetensors`, or the cross-layer transcoder of a folder of `layer_{n}.safetensors`.

    Raises:
        AmbiguousDictionary: there is no config.json, and nobody says which site.
        BadFile: a layer of a cross-layer transcoder is missing.
    """
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if config.get("architecture", "jump_relu") not in ("jump_relu", "jumprelu"):
        raise UnknownGate(
            f'The architecture "{config["architecture"]}" is not known.',
            got=config["architecture"],
            because="its codes are computed by a rule that we do not have",
            instead="jump_relu",
        )
    source = Source(
        model=str(config.get("model_name") or answers.model or ""),
        bos=True,
        trained_as="jumprelu",
        made_by="Gemma Scope 2",
    )
    files = _layer_files(folder)
    if path.is_dir() and not (path / WEIGHTS_2).is_file() and files:
        return _cross_layer(files, config, answers, source)
    return _one_layer(path / WEIGHTS_2 if path.is_dir() else path, config, answers, source)


def _one_layer(file: Path, config: Mapping[str, Any], answers: Answers, source: Source) -> Dictionary:
    saved = read_safetensors(file)
    tensors = _renamed(saved, file)
    if "affine_skip_connection" in saved:
        tensors["W_skip"] = saved["affine_skip_connection"].T
    hook = str(config.get("hf_hook_point_in") or "")
    hook_out = str(config.get("hf_hook_point_out") or hook)
    read = settle_site(answers, site_from_module(hook, "output"), hook)
    written = read
    if hook_out != hook or answers.writes is not None:
        written = settle_site(answers, site_from_module(hook_out, "output"), hook_out, which="writes")
    settings = Settings(
        reads=(port_at(read, tensors["W_enc"].shape[0], answers),),
        writes=(port_at(written, tensors["W_dec"].shape[1], answers),),
        n_latents=len(tensors["b_enc"]),
        gate=Gate(rule="jumprelu"),
        has_skip="W_skip" in tensors,
        source=source,
    )
    return Dictionary(settings, in_one_dtype(tensors))


def _renamed(saved: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    names = [name.lower() if name.startswith("W") else name for name in _KEYS]
    refuse_others(saved, {*names, "affine_skip_connection"}, file)
    tensors = dict(zip(_KEYS, take(saved, *names, path=file), strict=True))
    return tensors | {"threshold": tensors["threshold"].clamp_min(0)}


def _layer_files(folder: Path) -> list[Path]:
    found = {
        int(match[1]): file
        for file in folder.glob("layer_*.safetensors")
        if (match := _LAYER.fullmatch(file.name))
    }
    return [found[layer] for layer in sorted(found)]


_LAYER = re.compile(r"layer_(\d+)\.safetensors")


def _cross_layer(
    files: list[Path], config: Mapping[str, Any], answers: Answers, source: Source
) -> Dictionary:
    numbers = [int(_LAYER.fullmatch(file.name)[1]) for file in files]  # pyright: ignore[reportOptionalSubscript]
    if numbers != list(range(len(files))):
        raise BadFile(
            "A layer of this cross-layer transcoder is missing.",
            got=f"layers {numbers}",
            because="what the others write is only a part of the whole",
            instead="layers 0 to the last, as they were published",
        )
    layers = [_renamed(read_safetensors(file), file) for file in files]
    n, each, width = len(layers), len(layers[0]["b_enc"]), layers[0]["W_dec"].shape[-1]
    tensors: dict[str, Tensor] = {
        "W_enc": torch.stack([layer["W_enc"] for layer in layers]),
        "b_dec": torch.stack([layer["b_dec"] for layer in layers]),
    }
    for name in ("b_enc", "threshold"):
        tensors[name] = torch.cat([layer[name] for layer in layers])
    for index, layer in enumerate(layers):
        if tuple(layer["W_dec"].shape) != (each, n, width):
            raise BadFile(
                f"{files[index].name} writes to another number of layers than there are files.",
                got=list(layer["W_dec"].shape),
                because=f"{n} layers of {each} latents write [{each}, {n}, {width}]",
            )
        if bool(layer["W_dec"][:, :index].any()):
            raise DictionaryError(
                f"{files[index].name} writes to layers below its own.",
                got=f"non-zero decoders for layers under {index}",
                because="a model has computed those layers already",
                instead="a cross-layer transcoder whose latents write to their own and later layers",
            )
        tensors[f"W_dec.{index}"] = layer["W_dec"][:, index:]
    reads, writes = _ports(config, answers, n, layers[0]["W_enc"].shape[0], width)
    settings = Settings(
        reads=reads,
        writes=writes,
        n_latents=n * each,
        gate=Gate(rule="jumprelu"),
        is_cross_layer=True,
        targets=tuple(tuple(range(index, n)) for index in range(n)),
        source=source,
    )
    return Dictionary(settings, in_one_dtype(tensors))


def _ports(
    config: Mapping[str, Any], answers: Answers, n: int, d_in: int, d_out: int
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Sites of every layer, from the settings of one or from the answers."""
    hook, out = str(config.get("hf_hook_point_in") or ""), str(config.get("hf_hook_point_out") or "")
    read = settle_site(answers, site_from_module(hook, "output"), hook)
    written = settle_site(answers, site_from_module(out, "output"), out, which="writes")
    return (
        tuple(Port(site=Site(read.point, layer), shape=(d_in,)) for layer in range(n)),
        tuple(Port(site=Site(written.point, layer), shape=(d_out,)) for layer in range(n)),
    )
