"""sparsify: `sae.safetensors` and `cfg.json`, one folder for each hookpoint, named by the module.

`b_dec` is subtracted from the input unless it is a transcoder; ReLU comes before the top-k; the decoder is stored by
rows. Refuses single layers of clt-training, which have the same names and other tensors: see `clt_training`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.formats.answers import Answers
from mechscope.dictionaries.formats.files import (
    in_one_dtype,
    read_json,
    read_safetensors,
    refuse_others,
    refuse_shape,
    take,
)
from mechscope.dictionaries.formats.naming import port_at, settle_site, site_from_module
from mechscope.dictionaries.formats.writing import cannot_write, plainly, write_folder
from mechscope.dictionaries.settings import Gate, Settings, Source
from mechscope.vocabulary.errors import DictionaryError, UnknownGate

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
_NAME = "sparsify"
_KNOWN = {"encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip"}


def is_sparsify(path: Path) -> bool:
    """Whether a folder holds a dictionary of sparsify."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def open_sparsify(path: Path, answers: Answers) -> Dictionary:
    """The dictionary in a folder with `sae.safetensors`.

    Raises:
        UnknownGate: an activation other than topk and groupmax.
        DictionaryError: tensors of a fork that mean something else.
    """
    config, tensors = read_json(path / CONFIG), read_safetensors(path / WEIGHTS)
    if config.get("n_targets"):
        raise DictionaryError(
            "This is one layer of a cross-layer transcoder.",
            got=f"n_targets={config['n_targets']}",
            because="it writes to later layers together with others",
            instead=f"ms.dictionaries.open of the folder above, {path.resolve().parent.name}",
        )
    refuse_others(tensors, _KNOWN, path / WEIGHTS)
    encoder, bias, decoder, b_dec = take(
        tensors, "encoder.weight", "encoder.bias", "W_dec", "b_dec", path=path / WEIGHTS
    )
    d_in = int(config.get("d_in", encoder.shape[1]))
    n = int(config.get("num_latents") or 0) or d_in * int(config.get("expansion_factor", 32))
    refuse_shape("encoder.weight", encoder, (n, d_in), path / WEIGHTS)
    refuse_shape("W_dec", decoder, (n, d_in), path / WEIGHTS)
    transcodes = bool(config.get("transcode", False))
    has_skip = bool(config.get("skip_connection", "W_skip" in tensors))
    ours = {"W_enc": encoder.T, "b_enc": bias, "W_dec": decoder, "b_dec": b_dec}
    if has_skip:
        ours["W_skip"] = take(tensors, "W_skip", path=path / WEIGHTS)[0]
    site, written = _sites(path, transcodes, answers)
    settings = Settings(
        reads=(port_at(site, d_in, answers),),
        writes=(port_at(written, d_in, answers),),
        n_latents=n,
        gate=_gate(config, answers),
        applies_b_dec_to_input=not transcodes,
        has_skip=has_skip,
        source=Source(
            model=model_beside(path) or answers.model or "",
            trained_as=str(config.get("activation", "topk")),
            made_by="sparsify",
            notes={"hookpoint": _hookpoint(path)} | ({"is_transcoder": True} if transcodes else {}),
        ),
    )
    return Dictionary(settings, in_one_dtype(ours))


def _gate(config: Mapping[str, Any], answers: Answers) -> Gate:
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise UnknownGate(
            f'The activation "{activation}" is not known.',
            got=activation,
            because="a dictionary read under another rule gives other codes, silently",
            instead="topk or groupmax",
        )
    k = answers.settled("k", config.get("k"), "How many latents does a token have?")
    if activation == "groupmax":
        return Gate(rule="groupmax", k=int(k))
    return Gate(rule="topk", k=int(k), negatives="ranked_by_size" if config.get("signed") else "zeroed")


def _hookpoint(path: Path) -> str:
    """The folder is named after the module; a seed's folder lies inside it."""
    path = path.resolve()
    return path.parent.name if re.fullmatch(r"seed\d+", path.name) else path.name


def _sites(path: Path, transcodes: bool, answers: Answers) -> tuple[Any, Any]:
    hookpoint = _hookpoint(path)
    if not transcodes:
        stated = site_from_module(hookpoint, "output")
        site = settle_site(answers, stated, hookpoint)
        return site, site
    read = settle_site(answers, site_from_module(hookpoint, "input"), hookpoint)
    return read, settle_site(answers, site_from_module(hookpoint, "output"), hookpoint, which="writes")


def model_beside(path: Path) -> str:
    """The model that the `config.json` above a coder's folder names, or ""."""
    for folder in (path.resolve().parent, path.resolve().parent.parent):
        if (folder / "config.json").is_file():
            config = read_json(folder / "config.json")
            return str(config.get("model") or "")
    return ""


def write_sparsify(dictionary: Dictionary, path: str | Path) -> None:
    """Write `sae.safetensors` and `cfg.json`.

    Raises:
        DictionaryError: sparsify has no such gate, or reads b_dec otherwise.
    """
    written = plainly(dictionary, _NAME, kinds=("sae", "transcoder", "skip_transcoder"))
    settings, gate, own = written.settings, written.settings.gate, written.tensors
    if gate.rule not in ("topk", "groupmax") or gate.compares != "pre" or gate.negatives != "zeroed":
        raise cannot_write(
            _NAME, f"the gate {gate.rule}", "it knows topk and groupmax of positive pre-activations"
        )
    if settings.d_in != settings.d_out:
        raise cannot_write(_NAME, f"{settings.d_in} in, {settings.d_out} out", "both have one width there")
    transcodes = written.kind != "sae"
    if transcodes and settings.applies_b_dec_to_input:
        raise cannot_write(_NAME, f"a {written.kind} that reads b_dec", "its transcoders do not")
    bias = own["b_enc"]
    if not transcodes and not settings.applies_b_dec_to_input:
        bias = bias + own["b_dec"] @ own["W_enc"]  # it will subtract b_dec: the same pre-activation
    tensors: dict[str, Tensor] = {
        "encoder.weight": own["W_enc"].T,
        "encoder.bias": bias,
        "W_dec": own["W_dec"],
        "b_dec": own["b_dec"],
    }
    if settings.has_skip:
        tensors["W_skip"] = own["W_skip"]
    config = {
        "activation": gate.rule,
        "expansion_factor": max(1, settings.n_latents // settings.d_in),
        "normalize_decoder": True,
        "num_latents": settings.n_latents,
        "k": gate.k,
        "multi_topk": False,
        "skip_connection": settings.has_skip,
        "transcode": transcodes,
        "d_in": settings.d_in,
    }
    write_folder(path, weights=WEIGHTS, tensors=tensors, config=CONFIG, settings=config)
