"""Crosscoders of the forks of dictionary_learning: `model.safetensors` and `config.json`, or a torch state.

One code for several layers, or for one layer of several models; which they are, no file says. A BatchTopK compares
pre-activation x decoder norm with one threshold; which norm of several sites is stated by `code_normalization`.
Input statistics are buffers beside the weights; NaN there means that there are none.
"""

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
    read_safetensors,
    refuse_others,
    refuse_shape,
    take,
    tensor_names,
)
from mechscope.dictionaries.formats.writing import cannot_write, plainly, write_folder
from mechscope.dictionaries.settings import Gate, Normalization, Port, Settings, Source
from mechscope.vocabulary.errors import BadFile, DictionaryError, UnknownGate
from mechscope.vocabulary.sites import Site

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_NAME = "dictionary_learning_crosscoder"
_PARTS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_STATISTICS = {"activation_mean", "activation_std", "activation_global_scale", "target_rms"}
_KNOWN = {*_PARTS, *_STATISTICS, "code_normalization_id", "k", "threshold"}
_NORMALIZATIONS = ("CROSSCODER", "SAE", "MIXED", "NONE", "DECOUPLED")
"""In the order of their ids, which begin at 1."""

_COMPARED = {
    "pre": "NONE",
    "pre_times_decoder_norm": "SAE",
    "pre_times_sum_of_decoder_norms": "CROSSCODER",
}


def is_crosscoder(path: Path) -> bool:
    """Whether a folder holds a crosscoder."""
    names = tensor_names(path / WEIGHTS)
    return names >= set(_PARTS) and names <= _KNOWN and (path / CONFIG).is_file()


def open_crosscoder(path: Path, answers: Answers) -> Dictionary:
    """The crosscoder in a folder; see `crosscoder_of`."""
    return crosscoder_of(read_safetensors(path / WEIGHTS), read_json(path / CONFIG), answers, path / WEIGHTS)


def crosscoder_of(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], answers: Answers, file: Path
) -> Dictionary:
    """A crosscoder from its tensors.

    Raises:
        AmbiguousDictionary: sites are not named (never by the file), or a threshold is without its norm.
        UnknownGate: codes of its own for each layer (DECOUPLED).
        BadFile: tensors of shapes that do not belong together.
    """
    refuse_others(tensors, _KNOWN, file)
    encoder, bias, decoder, b_dec = take(tensors, *_PARTS, path=file)
    n_reads, width, n_latents = encoder.shape
    refuse_shape("decoder.weight", decoder, (len(decoder), n_latents, width), file)
    refuse_shape("decoder.bias", b_dec, (len(decoder), width), file)
    places = _places(len(decoder), answers)
    writes = tuple(Port(site=site, shape=(width,), model=model) for site, model in places)
    layers = config.get("encoder_layers")
    layers = list(range(len(decoder))) if layers is None else [int(layer) for layer in layers]
    if len(layers) != n_reads:
        raise BadFile(
            f"{file.name} encodes another number of layers than its settings say.",
            got=f"{n_reads} in the weights, {len(layers)} in the settings",
            instead="the weights and the settings that were saved together",
        )
    reads = tuple(writes[layer] for layer in layers)
    gate, more = _gate(tensors, config, answers)
    statistics = _statistics(tensors, layers)
    settings = Settings(
        reads=reads,
        writes=writes,
        n_latents=n_latents,
        gate=gate,
        normalization=Normalization(rule="affine" if statistics else "none"),
        source=Source(
            model=answers.model or "",
            trained_as="batch_topk" if "threshold" in tensors else "relu",
            made_by="dictionary_learning (crosscoder)",
        ),
    )
    ours = {
        "W_enc": encoder if n_reads > 1 else encoder[0],
        "b_enc": bias,
        "W_dec": decoder.transpose(0, 1) if len(decoder) > 1 else decoder[0],
        "b_dec": b_dec if len(decoder) > 1 else b_dec[0],
    }
    return Dictionary(settings, in_one_dtype(ours | more | statistics))


def _places(n: int, answers: Answers) -> list[tuple[Site, str]]:
    """Site and model of each layer; several models at one site are named by `model`."""
    question = f"Which {n} sites does this crosscoder read and write, in order?"
    named = str(
        answers.needed("site", question, readings='"resid_post.4,resid_post.8", or one site and model="a,b"')
    )
    sites = [Site.parse(part.strip()) for part in named.split(",")]
    models = [part.strip() for part in (answers.model or "").split(",")]
    sites = sites * n if len(sites) == 1 and len(models) == n else sites
    if len(sites) != n:
        raise DictionaryError(
            "A crosscoder has one site for each layer.",
            got=f"site={named!r}, model={answers.model!r}",
            because=f"its decoder writes {n}",
            instead=f"{n} sites, or one site and the names of {n} models, joined by commas",
        )
    return list(zip(sites, models if len(models) == n else [""] * n, strict=True))


def _gate(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], answers: Answers
) -> tuple[Gate, dict[str, Tensor]]:
    if "threshold" not in tensors:
        return Gate(rule="relu"), {}
    norms = _norms(tensors, config, answers)
    value = float(tensors["threshold"])
    if value < 0:
        question = "The threshold of this crosscoder was never set: it is -1. Where do latents open?"
        value = float(answers.needed("threshold", question, readings="0 opens all positive ones"))
    # A latent that writes nothing is never above the threshold.
    return Gate(rule="jumprelu"), {"threshold": torch.where(norms > 0, value / norms, torch.inf)}


def _norms(tensors: Mapping[str, Tensor], config: Mapping[str, Any], answers: Answers) -> Tensor:
    """What a pre-activation is multiplied with before it is compared, [latent]."""
    rule = _stated(tensors, config)
    if rule is None:
        question = "With which norm of the decoder is the threshold compared? The file does not say"
        rule = _COMPARED.get(str(answers.needed("compares", question, readings=", ".join(_COMPARED))))
    if rule not in _NORMALIZATIONS or rule == "DECOUPLED" or tensors["threshold"].numel() != 1:
        raise UnknownGate(
            f'The code normalisation "{rule}" is not known here.',
            got=rule,
            because="each layer has a code of its own under it, and a crosscoder here has one"
            if rule == "DECOUPLED"
            else "latents would open elsewhere than in training",
            instead=", ".join(_NORMALIZATIONS[:4]),
        )
    rows = tensors["decoder.weight"].double().norm(dim=2)
    together, apart = rows.square().sum(0).sqrt(), rows.sum(0)
    if rule == "MIXED":
        weights = [config.get(f"code_normalization_alpha_{part}") for part in ("sae", "cc")]
        if None in weights:
            raise BadFile(
                "The settings of this crosscoder lack the weights of its mixed norm.",
                got=sorted(config),
                because="MIXED adds two norms",
                instead="code_normalization_alpha_sae and code_normalization_alpha_cc in config.json",
            )
        return float(weights[0]) * together + float(weights[1]) * apart  # pyright: ignore[reportArgumentType]
    return {"SAE": together, "CROSSCODER": apart, "NONE": torch.ones_like(apart)}[rule]


def _stated(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    if "code_normalization_id" in tensors:
        number = int(tensors["code_normalization_id"])
        return _NORMALIZATIONS[number - 1] if 1 <= number <= len(_NORMALIZATIONS) else str(number)
    stated = config.get("code_normalization")
    return None if stated is None else str(stated).upper()


def _statistics(tensors: Mapping[str, Tensor], layers: list[int]) -> dict[str, Tensor]:
    mean = tensors.get("activation_mean")
    if mean is None or bool(mean.isnan().any()):
        return {}
    scale = tensors["activation_global_scale"][:, None].expand(mean.shape)
    found = {"in_mean": mean[layers].reshape(-1), "in_scale": scale[layers].reshape(-1)}
    if layers == list(range(len(mean))):
        return found
    return found | {"out_mean": mean.reshape(-1), "out_scale": scale.reshape(-1)}


def write_crosscoder(dictionary: Dictionary, path: str | Path) -> None:
    """Write `model.safetensors` and `config.json`.

    Raises:
        DictionaryError: no crosscoder of one width, or thresholds that are no single one under any of their norms.
    """
    statistics = _statistics_as_theirs(dictionary)
    written = dictionary if statistics else plainly(dictionary, _NAME, kinds=("crosscoder",))
    settings, gate, own = written.settings, written.settings.gate, written.tensors
    widths = {port.width for port in (*settings.reads, *settings.writes)}
    layers = [settings.writes.index(port) if port in settings.writes else -1 for port in settings.reads]
    if len(widths) > 1 or -1 in layers or gate.rule not in ("relu", "jumprelu"):
        raise cannot_write(
            _NAME,
            f"gate {gate.rule}, reads {settings.reads}, writes {settings.writes}",
            "it reads some of the layers that it writes, all of one width, by relu or one threshold",
        )
    bias = own["b_enc"]
    if settings.applies_b_dec_to_input:
        bias = bias - own["b_dec"].reshape(-1) @ own["W_enc"].reshape(-1, settings.n_latents)
    tensors = dict(zip(_PARTS, (own["W_enc"], bias, own["W_dec"].transpose(0, 1), own["b_dec"]), strict=True))
    rule = "NONE"
    tensors |= statistics
    if gate.rule == "jumprelu":
        rule, threshold = _one_threshold(written, tensors)
        k = max(1, round(settings.calibration.l0 or 1))
        tensors |= {"threshold": threshold, "k": torch.tensor(k, dtype=torch.int)}
    tensors["code_normalization_id"] = torch.tensor(_NORMALIZATIONS.index(rule) + 1)
    config = {
        "activation_dim": widths.pop(),
        "dict_size": settings.n_latents,
        "num_layers": len(layers),
        "num_decoder_layers": len(settings.writes),
        "encoder_layers": None if layers == list(range(len(settings.writes))) else layers,
        "code_normalization": rule,
        "dict_class": "BatchTopKCrossCoder" if gate.rule == "jumprelu" else "CrossCoder",
    }
    write_folder(path, weights=WEIGHTS, tensors=tensors, config=CONFIG, settings=config)


def _statistics_as_theirs(dictionary: Dictionary) -> dict[str, Tensor]:
    """Mean and one scale for each layer, as buffers; empty where there are none, or others."""
    settings, own = dictionary.settings, dictionary.tensors
    is_affine = settings.normalization.is_pending and settings.normalization.rule == "affine"
    has_other = "out_mean" in own or "out_scale" in own or settings.reads != settings.writes
    scale = own.get("in_scale", torch.ones(()))
    if dictionary.kind != "crosscoder" or not is_affine or has_other or scale.ndim == 2:
        return {}
    whole = torch.zeros_like(dictionary.b_dec)  # [layer, d]
    means = own["in_mean"].reshape(whole.shape) if "in_mean" in own else whole
    scales = (whole.reshape(-1) + scale).reshape(whole.shape)
    if not bool((scales == scales[:, :1]).all()):
        return {}
    # Their scale is target_rms over the root of the summed variances: any deviations that give it will do.
    std = 1 / (scales * scales.shape[1] ** 0.5)
    buffers = {"activation_mean": means, "activation_std": std, "activation_global_scale": scales[:, 0]}
    return buffers | {"target_rms": torch.ones(())}


def _one_threshold(dictionary: Dictionary, tensors: dict[str, Tensor]) -> tuple[str, Tensor]:
    limits = dictionary.threshold.double()
    if dictionary.settings.gate.compares == "pre_times_decoder_norm":
        limits = limits / dictionary.decoder_norms().double()
    for rule in ("NONE", "SAE", "CROSSCODER"):
        told = tensors | {"threshold": torch.zeros(())}
        compared = limits * _norms(told, {"code_normalization": rule}, Answers())
        if bool(((compared - compared[0]).abs() <= 1e-6 * compared[0].abs()).all()):
            return rule, compared[0].float()
    raise cannot_write(
        _NAME, "a threshold for each latent", "one threshold serves all, on a pre-activation x decoder norm"
    )
