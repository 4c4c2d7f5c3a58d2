"""SAELens: `cfg.json` and `sae_weights.safetensors`, version 6, the flat files before it, and training checkpoints.

A checkpoint has the file names of an inference folder, but keeps `batchtopk` with its running threshold, or
`log_threshold`; scalers lie beside it. Everything that changes codes is either read, folded exactly, or refused:
nothing is dropped. Their top-k with rescaled codes is kept as the same function on unit decoder rows.
"""

from dataclasses import dataclass, replace
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
    refuse_shape,
    take,
)
from mechscope.dictionaries.formats.naming import port_at, settle_site, site_from_hook
from mechscope.dictionaries.formats.sae_lens_flat import as_version_6, is_flat
from mechscope.dictionaries.settings import Calibration, Gate, Normalization, Settings, Source
from mechscope.vocabulary.errors import BadFile, DictionaryError, UnknownGate
from mechscope.vocabulary.foreign_names import HOOK_KEY

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
_GATES = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "matching_pursuit": "matching_pursuit",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
_FACTORS = ("scaling_factor", "finetuning_scaling_factor")
_KNOWN = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", "log_threshold", "topk_threshold"}
_KNOWN |= {"b_gate", "b_mag", "r_mag", "W_skip", *_FACTORS}


@dataclass
class Reading:
    """What is being read: settings as version 6 has them, tensors by our names, and what the caller answered."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    answers: Answers
    folder: Path

    @property
    def architecture(self) -> str:
        return str(self.config.get("architecture"))

    @property
    def metadata(self) -> dict[str, Any]:
        return self.config.get("metadata") or {}

    @property
    def is_transcoder(self) -> bool:
        return self.architecture.endswith("transcoder")


def is_sae_lens(path: Path) -> bool:
    """Whether a folder holds a dictionary of SAELens."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def open_sae_lens(path: Path, answers: Answers) -> Dictionary:
    """The dictionary in a folder of SAELens, of any version, inference or checkpoint.

    Raises:
        UnknownGate: an architecture whose encoder we do not have.
        AmbiguousDictionary: a scale or basis that the files leave open.
        DictionaryError: something that would have to be dropped.
    """
    stated = read_json(path / CONFIG)
    config = as_version_6(stated) if is_flat(stated) else dict(stated)
    if config.get("architecture") not in _GATES:
        raise UnknownGate(
            f'The architecture "{config.get("architecture")}" is not known.',
            got=config.get("architecture"),
            because="its codes are computed by a rule that we do not have",
            instead=", ".join(_GATES),
        )
    reading = Reading(config, read_safetensors(path / WEIGHTS), answers, path)
    refuse_others(reading.tensors, _KNOWN, path / WEIGHTS)
    _refuse_one_head(reading)
    _refuse_shapes(reading)
    _fold_finetuned_scale(reading)
    gate = _gate(reading)
    _fold_decoder_norm(reading)
    _bound_threshold(reading)
    settings = _settings(reading, gate)
    settings = _with_basis(reading, settings)
    return Dictionary(settings, in_one_dtype(reading.tensors))


def _refuse_one_head(reading: Reading) -> None:
    head = reading.metadata.get("hook_head_index")
    if head is not None and int(head) >= 0:
        raise DictionaryError(
            "This dictionary reads a single head.",
            got=f"hook_head_index {head}",
            because="a dictionary here reads whole sites",
            instead="the same weights padded with zeros to all heads",
        )


def _refuse_shapes(reading: Reading) -> None:
    config, tensors = reading.config, reading.tensors
    path = reading.folder / WEIGHTS
    try:
        d_in, d_sae = int(config["d_in"]), int(config["d_sae"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{CONFIG} lacks d_in or d_sae.", got=sorted(config), because=str(error)) from error
    d_out = int(config.get("d_out", d_in)) if reading.is_transcoder else d_in
    take(tensors, "W_dec", "b_dec", path=path)
    refuse_shape("W_dec", tensors["W_dec"], (d_sae, d_out), path)
    if reading.architecture != "matching_pursuit":
        take(tensors, "W_enc", path=path)
        refuse_shape("W_enc", tensors["W_enc"], (d_in, d_sae), path)
    if "W_skip" in tensors:
        refuse_shape("W_skip", tensors["W_skip"], (d_out, d_in), path)
    elif "skip" in reading.architecture:
        take(tensors, "W_skip", path=path)


def _fold_finetuned_scale(reading: Reading) -> None:
    """Version 5 multiplied codes by a factor before the decoder: into its rows, or a refusal; never dropped."""
    for name in _FACTORS:
        factor = reading.tensors.pop(name, None)
        if factor is None or torch.equal(factor, torch.ones_like(factor)):
            continue
        if not (reading.config.get("finetuning_scaling_factor") or name == "finetuning_scaling_factor"):
            raise ambiguous(
                "format",
                f'The file holds "{name}" other than one, and its settings say that it is not used. Which is right?',
                "remove the tensor if it is not used, or set finetuning_scaling_factor to true in cfg.json",
            )
        reading.tensors["W_dec"] = reading.tensors["W_dec"] * factor.reshape(-1, 1).to(
            reading.tensors["W_dec"]
        )


def _gate(reading: Reading) -> Gate:
    config, architecture = reading.config, reading.architecture
    rule = _GATES[architecture]
    if rule == "topk":
        k = reading.answers.settled("k", config.get("k"), "How many latents does a token have?")
        return Gate(
            rule="topk", k=int(k), negatives="ranked_by_size" if architecture == "abstopk" else "zeroed"
        )
    if rule == "matching_pursuit":
        return _pursuit(reading)
    if rule == "jumprelu":
        _settle_threshold(reading)
    return Gate(rule=rule)


def _settle_threshold(reading: Reading) -> None:
    tensors = reading.tensors
    n = len(tensors["W_dec"])
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if "topk_threshold" in tensors:
        running = float(tensors.pop("topk_threshold"))
        if running <= 0:
            question = (
                "The running threshold of this checkpoint was never set: it is 0. Where do latents open?"
            )
            running = float(
                reading.answers.needed("threshold", question, readings="0 opens all positive ones")
            )
        tensors["threshold"] = torch.full((n,), running, dtype=torch.float64)
    if "threshold" not in tensors:
        take(tensors, "threshold", path=reading.folder / WEIGHTS)


def _pursuit(reading: Reading) -> Gate:
    """Their step is x . d, ours divides by |d|^2: equal for unit rows only. b_dec is written only if it is read."""
    tensors, config = reading.tensors, reading.config
    norms = tensors["W_dec"].to(torch.float64).norm(dim=-1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-4):
        raise DictionaryError(
            "Matching pursuit is read with unit decoder rows only.",
            got=f"norms from {float(norms.min()):.4g} to {float(norms.max()):.4g}",
            because="with others the two implementations take different steps",
            instead="normalise the rows, if they were normalised in training",
        )
    if not config.get("apply_b_dec_to_input", True):
        tensors["b_dec"] = torch.zeros_like(tensors["b_dec"])
    k = config.get("max_iterations") or int(config["d_in"])
    return Gate(
        rule="matching_pursuit",
        k=int(k),
        stop_at=float(config.get("residual_threshold", 1e-2)),
        stops_at_repeat=bool(config.get("stop_on_duplicate_support", True)),
    )


def _fold_decoder_norm(reading: Reading) -> None:
    """Codes rescaled by decoder norms are the codes of unit rows: same gate, same codes, same reconstruction."""
    if not reading.config.get("rescale_acts_by_decoder_norm", False) or reading.architecture == "jumprelu":
        return
    tensors = reading.tensors
    norms = tensors["W_dec"].norm(dim=-1).clamp_min(1e-8)
    tensors["W_enc"] = tensors["W_enc"] * norms
    tensors["b_enc"] = tensors["b_enc"] * norms
    tensors["W_dec"] = tensors["W_dec"] / norms[:, None]


def _bound_threshold(reading: Reading) -> None:
    """They take the positive part as well: a negative threshold acts as zero."""
    if "threshold" in reading.tensors:
        reading.tensors["threshold"] = reading.tensors["threshold"].clamp_min(0)


def _settings(reading: Reading, gate: Gate) -> Settings:
    config, answers = reading.config, reading.answers
    metadata = reading.metadata
    hook = str(metadata.get(HOOK_KEY) or config.get(HOOK_KEY) or "")
    site = settle_site(answers, site_from_hook(hook), hook)
    d_out, d_in = reading.tensors["W_dec"].shape[1], int(config["d_in"])
    reads = writes = (port_at(site, d_in, answers),)
    if reading.is_transcoder:
        out = str(metadata.get("hook_name_out") or config.get("hook_name_out") or "")
        written = settle_site(answers, site_from_hook(out), out, which="writes")
        writes = (port_at(written, d_out, answers),)
    applies = bool(config.get("apply_b_dec_to_input", not reading.is_transcoder))
    prefixes = config.get("matryoshka_widths") or ()
    n = len(reading.tensors["W_dec"])
    return Settings(
        reads=reads,
        writes=writes,
        n_latents=n,
        gate=gate,
        normalization=_normalization(reading),
        applies_b_dec_to_input=applies and not reading.is_transcoder,
        has_skip="W_skip" in reading.tensors,
        prefixes=tuple(sorted({*map(int, prefixes), n})) if prefixes else (),
        source=_source(reading),
        calibration=_calibration(metadata, n),
    )


def _normalization(reading: Reading) -> Normalization:
    rule = reading.config.get("normalize_activations") or "none"
    if rule == "none":
        return Normalization()
    if reading.is_transcoder:
        raise DictionaryError(
            "A transcoder with normalised inputs is not readable without doubt.",
            got=f"normalize_activations {rule}",
            because="its output is written at another site, and the file does not say how that is scaled back",
            instead="the transcoder with its normalisation folded",
        )
    if rule in ("layer_norm", "constant_norm_rescale"):
        return Normalization(rule="layer_norm" if rule == "layer_norm" else "token_norm")
    if rule == "expected_average_only_in":
        reading.tensors["in_scale"] = torch.tensor(float(_scale(reading)), dtype=torch.float64)
        return Normalization(rule="affine")
    if rule == "covariance_whitening":
        mean, matrix = _whitening(reading)
        reading.tensors |= {"in_mean": mean, "in_scale": matrix}
        return Normalization(rule="affine")
    raise DictionaryError(
        f'"{rule}" is no normalisation that we know.',
        got=rule,
        because="codes of values that were scaled otherwise mean nothing",
        instead="none, layer_norm, constant_norm_rescale, expected_average_only_in or covariance_whitening",
    )


def _scale(reading: Reading) -> Any:
    beside = reading.folder / SCALER
    stated = read_json(beside).get("scaling_factor") if beside.is_file() else None
    if stated is None:
        stated = reading.config.get("norm_scaling_factor")
    question = (
        "By which number were the inputs multiplied in training? The file says that they were scaled to a mean norm "
        "of sqrt(d_in), and not by how much"
    )
    return reading.answers.settled(
        "scale",
        stated,
        question,
        readings="sqrt(d_in) / mean norm; the release's directory lists it; 1 if folded",
    )


def _whitening(reading: Reading) -> tuple[Tensor, Tensor]:
    path = reading.folder / WHITENING
    if not path.is_file():
        raise ambiguous(
            "format",
            "With which mean and matrix were the inputs whitened? The settings say that they were",
            f"put {WHITENING} of the training run beside the weights",
        )
    mean, matrix = take(read_safetensors(path), "mean", "matrix", path=path)
    return mean, matrix


def _source(reading: Reading) -> Source:
    metadata, config = reading.metadata, reading.config
    version = metadata.get("sae_lens_version") or metadata.get("sae_lens_training_version") or ""
    kept = (HOOK_KEY, "hook_name_out", "context_size", "dataset_path", "neuronpedia_id", "seqpos_slice")
    notes = {name: metadata[name] for name in kept if metadata.get(name) is not None}
    if kwargs := metadata.get("model_from_pretrained_kwargs"):
        notes["model_from_pretrained_kwargs"] = kwargs
    if config.get("reshape_activations") not in (None, "none"):
        notes["reshape_activations"] = config["reshape_activations"]
    bos = metadata.get("prepend_bos")
    return Source(
        model=str(metadata.get("model_name") or reading.answers.model or ""),
        dtype=str(config.get("dtype") or ""),
        bos=None if bos is None else bool(bos),
        trained_as=str(metadata.get("training_architecture") or reading.architecture),
        made_by=f"SAELens {version}".strip(),
        notes=notes,
    )


def _calibration(metadata: dict[str, Any], n_latents: int) -> Calibration:
    l0, dead = metadata.get("l0"), metadata.get("num_dead_features")
    return Calibration(
        l0=None if l0 is None else float(l0), dead=None if dead is None else float(dead) / n_latents
    )


def _with_basis(reading: Reading, settings: Settings) -> Settings:
    """A model whose writing weights were centred has another residual stream: the caller says which one it is."""
    kwargs = reading.metadata.get("model_from_pretrained_kwargs") or {}
    is_residual = settings.reads[0].site.point.startswith("resid") or settings.reads[0].site.point.endswith(
        "_out"
    )
    if not kwargs.get("center_writing_weights") or not is_residual:
        return settings
    basis = reading.answers.needed(
        "basis",
        "The dictionary was trained where weight processing had centred what is written to the residual stream. "
        "Is the model that it will read centred?",
        readings='"centred" folds the centring into the encoder, for a model as published; "as_is" if it is centred',
    )
    if basis == "as_is":
        return settings
    if basis != "centred":
        raise ambiguous("basis", f'"{basis}" is no basis.', '"centred" or "as_is"')
    return _centred(reading, settings)


def _centred(reading: Reading, settings: Settings) -> Settings:
    """The encoder reads x less its own mean. What is written stays centred, which norms cannot tell."""
    tensors = reading.tensors
    if settings.normalization.is_pending or "W_enc" not in tensors:
        raise DictionaryError(
            "Centring can't be folded into this encoder.",
            got=f"normalisation {settings.normalization.rule}, gate {settings.gate.rule}",
            because="it would have to happen before the normalisation",
            instead='a model with centred weights, and basis="as_is"',
        )
    w = tensors["W_enc"]
    if settings.applies_b_dec_to_input:
        shift = tensors["b_dec"].to(w) @ w
        for name in ("b_enc", "b_gate"):
            if name in tensors:
                tensors[name] = tensors[name] - shift
        if "b_mag" in tensors:
            tensors["b_mag"] = tensors["b_mag"] - shift * tensors["r_mag"].exp()
    tensors["W_enc"] = w - w.mean(0, keepdim=True)
    notes = {**settings.source.notes, "basis": "centred, folded into the encoder"}
    return replace(settings, applies_b_dec_to_input=False, source=replace(settings.source, notes=notes))
