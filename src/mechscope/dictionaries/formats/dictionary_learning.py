"""dictionary_learning: `ae.pt` (a torch pickle) and `config.json`.

Their normalisation leaves weights alone and scales biases and thresholds, so a finished file takes raw values. A
mid-run backup has the same name and another schema, with biases still in normalised units: they are scaled here by
the factor that lies in it. The class is not in the weights: it comes from `config.json`, or is a question.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.formats.answers import Answers
from mechscope.dictionaries.formats.crosscoders import crosscoder_of
from mechscope.dictionaries.formats.files import in_one_dtype, read_json, read_pickle, refuse_others, take
from mechscope.dictionaries.formats.naming import port_at, settle_site, site_from_submodule
from mechscope.dictionaries.formats.writing import cannot_write, plainly
from mechscope.dictionaries.settings import Gate, Settings, Source
from mechscope.records.files import save_json, write_atomically
from mechscope.vocabulary.errors import BadFile, UnknownGate
from mechscope.vocabulary.sites import Site

WEIGHTS, CONFIG = "ae.pt", "config.json"
_NAME = "dictionary_learning"
_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
_KEYS: dict[str, set[str]] = {
    "AutoEncoder": _LINEAR | {"bias"},
    "AutoEncoderNew": _LINEAR | {"decoder.bias"},
    "AutoEncoderTopK": _LINEAR | {"b_dec", "k", "threshold"},
    "BatchTopKSAE": _LINEAR | {"b_dec", "k", "threshold"},
    "MatryoshkaBatchTopKSAE": {"W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes"},
    "JumpReluAutoEncoder": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "GatedAutoEncoder": {
        "encoder.weight",
        "decoder.weight",
        "decoder_bias",
        "r_mag",
        "gate_bias",
        "mag_bias",
    },
}
"""Names of a class's tensors. Top-k and BatchTopK share theirs: only the settings tell them apart."""

_BIASES = ("bias", "encoder.bias", "decoder.bias", "b_enc", "b_dec", "decoder_bias", "mag_bias", "gate_bias")


def is_dictionary_learning(path: Path) -> bool:
    """Whether a folder or file holds a dictionary of dictionary_learning."""
    return (path / WEIGHTS).is_file() or (
        path.is_file() and path.suffix == ".pt" and path.stem.startswith("ae")
    )


def open_dictionary_learning(path: Path, answers: Answers) -> Dictionary:
    """The dictionary in a folder with `ae.pt`, or in that file (`config.json` beside or one folder up).

    Raises:
        UnsafeFile: the pickle holds more than tensors.
        AmbiguousDictionary: class, site or threshold are left open.
    """
    file = path / WEIGHTS if path.is_dir() else path
    saved = read_pickle(file)
    trainer, buffer = _config(file, saved)
    tensors = _finished(saved, answers, file)
    if _is_crosscoder(tensors):
        return crosscoder_of(tensors, trainer, answers, file)
    name = _class_of(tensors, trainer, answers, file)
    refuse_others(tensors, _KEYS[name] | {"k", "threshold"}, file)
    ours, gate, applies = _READERS[name](tensors, answers, trainer, file)
    site, written = _sites(trainer, buffer, answers)
    width = ours["W_enc"].shape[0]
    groups = tensors.get("group_sizes")
    settings = Settings(
        reads=(port_at(site, width, answers),),
        writes=(port_at(written, ours["W_dec"].shape[1], answers),),
        n_latents=len(ours["W_dec"]),
        gate=gate,
        applies_b_dec_to_input=applies,
        prefixes=() if groups is None else tuple(torch.as_tensor(groups).cumsum(0).tolist()),
        source=Source(
            model=str(trainer.get("lm_name") or answers.model or ""),
            trained_as=name,
            made_by="dictionary_learning",
            notes={
                k: trainer[k] for k in ("steps", "lr", "seed", "submodule_name") if trainer.get(k) is not None
            },
        ),
    )
    return Dictionary(settings, in_one_dtype(ours))


def _is_crosscoder(tensors: Mapping[str, Any]) -> bool:
    weight = tensors.get("encoder.weight")
    return isinstance(weight, Tensor) and weight.ndim == 3


def _config(file: Path, saved: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    for folder in (file.parent, file.parent.parent):
        if (folder / CONFIG).is_file():
            config = read_json(folder / CONFIG)
            return dict(config.get("trainer") or {}), dict(config.get("buffer") or {})
    inside = saved.get("config")
    return (dict(inside) if isinstance(inside, Mapping) else {}), {}


def _finished(saved: Mapping[str, Any], answers: Answers, file: Path) -> dict[str, Tensor]:
    """The state as at the end of training: of a backup, the biases and the threshold in raw units."""
    if not isinstance(saved.get("ae"), Mapping):
        return dict(saved)
    state = dict(saved["ae"])
    factor = saved.get("norm_factor")
    if factor is None:
        question = (
            "This is a backup from the middle of training, and does not say by how much its inputs were divided. "
            "By which number were they multiplied?"
        )
        factor = 1 / answers.needed(
            "scale", question, readings="1 if training did not normalise, else 1 / norm_factor"
        )
    for name in _BIASES:
        if name in state:
            state[name] = state[name] * float(factor)
    if "threshold" in state:
        threshold = state["threshold"]
        state["threshold"] = torch.where(threshold >= 0, threshold * float(factor), threshold)
    return state


def _class_of(tensors: Mapping[str, Tensor], trainer: Mapping[str, Any], answers: Answers, file: Path) -> str:
    stated = trainer.get("dict_class")
    if stated is not None:
        if stated not in _KEYS:
            raise UnknownGate(
                f'The class "{stated}" is not known.',
                got=stated,
                because="its codes are computed by a rule that we do not have",
                instead=", ".join(_KEYS),
            )
        take(tensors, *sorted(_KEYS[stated] - {"threshold", "k"}), path=file)
        return str(stated)
    fitting = [name for name, keys in _KEYS.items() if keys == set(tensors)]
    if fitting == ["AutoEncoderTopK", "BatchTopKSAE"]:
        question = (
            "Is this top-k or BatchTopK? Their weights have the same names, and no config.json lies beside"
        )
        gate = answers.needed(
            "gate", question, readings='"topk": k of each token; "batchtopk": above the threshold'
        )
        return {"topk": "AutoEncoderTopK", "batchtopk": "BatchTopKSAE"}[_one_of(gate, ("topk", "batchtopk"))]
    if len(fitting) != 1:
        raise BadFile(
            f"{file.name} holds no dictionary of a class that we know.",
            got=", ".join(sorted(map(str, tensors))),
            because="no class of dictionary_learning has tensors of these names",
            instead="; ".join(f"{name}: {', '.join(sorted(keys))}" for name, keys in _KEYS.items()),
        )
    return fitting[0]


def _one_of(value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UnknownGate(f'"{value}" is no gate of this format.', got=value, instead=", ".join(known))
    return value


Read = tuple[dict[str, Tensor], Gate, bool]


def _linear(tensors: Mapping[str, Tensor], b_dec: str) -> dict[str, Tensor]:
    """Rows and columns as ours: their linear layers are [out, in]."""
    ours = {
        "W_enc": tensors["encoder.weight"].T,
        "W_dec": tensors["decoder.weight"].T,
        "b_dec": tensors[b_dec],
    }
    if "encoder.bias" in tensors:
        ours["b_enc"] = tensors["encoder.bias"]
    return ours


def _autoencoder(tensors: dict[str, Tensor], *_: Any) -> Read:
    return _linear(tensors, "bias"), Gate(rule="relu"), True


def _autoencoder_new(tensors: dict[str, Tensor], *_: Any) -> Read:
    return _linear(tensors, "decoder.bias"), Gate(rule="relu"), False


def _gated(tensors: dict[str, Tensor], *_: Any) -> Read:
    more = {"r_mag": tensors["r_mag"], "b_gate": tensors["gate_bias"], "b_mag": tensors["mag_bias"]}
    return _linear(tensors, "decoder_bias") | more, Gate(rule="gated"), True


def _topk(tensors: dict[str, Tensor], answers: Answers, trainer: Mapping[str, Any], _file: Path) -> Read:
    stated = tensors.get("k", trainer.get("k"))
    k = answers.settled("k", None if stated is None else int(stated), "How many latents does a token have?")
    return _linear(tensors, "b_dec"), Gate(rule="topk", k=int(k)), True


def _batch_topk(tensors: dict[str, Tensor], answers: Answers, *_: Any) -> Read:
    ours = _linear(tensors, "b_dec")
    return ours | {"threshold": _threshold(tensors, answers, len(ours["b_enc"]))}, Gate(rule="jumprelu"), True


def _matryoshka(tensors: dict[str, Tensor], answers: Answers, *_: Any) -> Read:
    ours = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    return ours | {"threshold": _threshold(tensors, answers, len(ours["b_enc"]))}, Gate(rule="jumprelu"), True


def _jumprelu(tensors: dict[str, Tensor], answers: Answers, trainer: Mapping[str, Any], _file: Path) -> Read:
    ours = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    ours["threshold"] = tensors["threshold"].clamp_min(0)  # they take the positive part as well
    question = "Is b_dec subtracted from the input? The file does not keep it, and no config.json says who trained it"
    applies = answers.settled(
        "applies_b_dec_to_input",
        False if trainer else None,
        question,
        readings="False as dictionary_learning trains it; what the original says if it was imported",
    )
    return ours, Gate(rule="jumprelu"), bool(applies)


def _threshold(tensors: Mapping[str, Tensor], answers: Answers, n: int) -> Tensor:
    """One threshold for all; -1 means that training never set it."""
    value = float(tensors["threshold"]) if "threshold" in tensors else -1.0
    if value < 0:
        question = (
            "The threshold of this BatchTopK dictionary was never set: it is -1. Where do latents open?"
        )
        value = float(answers.needed("threshold", question, readings="0 opens all positive ones"))
    return torch.full((n,), value, dtype=torch.float64)


_READERS = {
    "AutoEncoder": _autoencoder,
    "AutoEncoderNew": _autoencoder_new,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
    "GatedAutoEncoder": _gated,
}


def _sites(trainer: Mapping[str, Any], buffer: Mapping[str, Any], answers: Answers) -> tuple[Site, Site]:
    submodule = str(trainer.get("submodule_name") or "")
    stated = site_from_submodule(submodule)
    io = str(buffer.get("io") or "out")
    if io == "out" or (stated is None and answers.writes is None):
        site = settle_site(answers, stated, submodule)
        return site, settle_site(answers, None, "", which="writes") if answers.writes else site
    site = settle_site(answers, None, f"{submodule}, io {io}")
    return site, settle_site(
        answers, None, f"{submodule}, io {io}", which="writes"
    ) if answers.writes else site


def write_dictionary_learning(dictionary: Dictionary, path: str | Path) -> None:
    """Write `ae.pt` (tensors only) and `config.json`.

    Raises:
        DictionaryError: dictionary_learning has no such class.
    """
    written = plainly(dictionary, _NAME)
    name, tensors, more = _as_theirs(written)
    folder = Path(path)
    state = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    with write_atomically(folder / WEIGHTS) as file:
        torch.save(state, file)
    settings, source = written.settings, written.settings.source
    site = settings.reads[0].site
    trainer: dict[str, Any] = {
        "dict_class": name,
        "trainer_class": source.trained_as or name,
        "activation_dim": settings.d_in,
        "dict_size": settings.n_latents,
        "layer": site.layer,
        "lm_name": source.model,
        "submodule_name": f"{site.point}_layer_{site.layer}" if site.point == "resid_post" else None,
    }
    save_json(
        folder / CONFIG, {"trainer": trainer | more, "buffer": {"d_submodule": settings.d_in, "io": "out"}}
    )


def _as_theirs(dictionary: Dictionary) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    settings, gate, own = dictionary.settings, dictionary.settings.gate, dictionary.tensors
    linear = {"decoder.weight": own["W_dec"].T}
    if "W_enc" in own:
        linear["encoder.weight"] = own["W_enc"].T
    if "b_enc" in own:
        linear["encoder.bias"] = own["b_enc"]
    if gate.rule == "relu":
        name, bias = (
            ("AutoEncoder", "bias") if settings.applies_b_dec_to_input else ("AutoEncoderNew", "decoder.bias")
        )
        return name, linear | {bias: own["b_dec"]}, {}
    if gate.rule == "gated" and settings.applies_b_dec_to_input:
        more = {"r_mag": own["r_mag"], "gate_bias": own["b_gate"], "mag_bias": own["b_mag"]}
        return "GatedAutoEncoder", linear | more | {"decoder_bias": own["b_dec"]}, {}
    is_plain = gate.negatives == "zeroed" and gate.compares == "pre"
    if gate.rule == "topk" and settings.applies_b_dec_to_input and is_plain:
        buffers = {"k": torch.tensor(gate.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", linear | buffers | {"b_dec": own["b_dec"]}, {"k": gate.k}
    if gate.rule == "jumprelu":
        return _jumprelu_as_theirs(dictionary, linear)
    raise cannot_write(
        _NAME,
        f"gate {gate.rule}, b_dec {'' if settings.applies_b_dec_to_input else 'not '}subtracted from the input",
        "it has no such class",
    )


def _jumprelu_as_theirs(
    dictionary: Dictionary, linear: dict[str, Tensor]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """A JumpReLU that reads b_dec is their BatchTopK if it has one threshold; others have b_dec taken up by b_enc."""
    own, threshold = dictionary.tensors, dictionary.threshold
    if dictionary.settings.gate.compares == "pre_times_decoder_norm":
        threshold = threshold / dictionary.decoder_norms()
    if bool((threshold < 0).any()):
        raise cannot_write(_NAME, "negative thresholds", "it sets negative codes to zero")
    applies = dictionary.settings.applies_b_dec_to_input
    if applies and bool((threshold == threshold[0]).all()):
        k = max(1, round(dictionary.settings.calibration.l0 or 1))
        buffers = {"k": torch.tensor(k, dtype=torch.int), "threshold": threshold[0].to(torch.float32)}
        return "BatchTopKSAE", linear | buffers | {"b_dec": own["b_dec"]}, {"k": k}
    b_enc = own["b_enc"] - own["b_dec"] @ own["W_enc"] if applies else own["b_enc"]
    tensors = {name: own[name] for name in ("W_enc", "W_dec", "b_dec")} | {
        "b_enc": b_enc,
        "threshold": threshold,
    }
    return "JumpReluAutoEncoder", tensors, {}
