"""Writing SAELens, version 6: inference folders that it opens with `SAE.load_from_disk`."""

from pathlib import Path
from typing import Any

from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.formats.naming import hook_of
from mechscope.dictionaries.formats.sae_lens import CONFIG, WEIGHTS
from mechscope.dictionaries.formats.writing import cannot_write, notes_of, plainly, write_folder
from mechscope.vocabulary.foreign_names import HEAD_OUTPUTS_HOOK, HOOK_KEY

VERSION = "6.0.0"
"""The version whose layout is written."""

_NAME = "SAELens"
_PER_TOKEN = {"layer_norm": "layer_norm", "token_norm": "constant_norm_rescale"}


def write_sae_lens(dictionary: Dictionary, path: str | Path) -> None:
    """Write `cfg.json` and `sae_weights.safetensors`.

    Raises:
        DictionaryError: SAELens has no such gate, kind or site.
    """
    norm = dictionary.settings.normalization
    is_per_token = norm.is_per_token and dictionary.kind == "sae"
    kinds = ("sae", "transcoder", "skip_transcoder")
    written = dictionary if is_per_token else plainly(dictionary, _NAME, kinds=kinds)
    architecture, tensors, more = _architecture(written)
    settings = written.settings
    port, out = settings.reads[0], settings.writes[0]
    is_transcoder = written.kind != "sae"
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": settings.d_in,
        "d_sae": settings.n_latents,
        "dtype": str(written.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": settings.applies_b_dec_to_input,
        "normalize_activations": _PER_TOKEN[norm.rule] if is_per_token else "none",
        "reshape_activations": HEAD_OUTPUTS_HOOK
        if port.site.point == "z" and len(port.shape) == 2
        else "none",
        "metadata": _metadata(written, hook_of(port.site), hook_of(out.site) if is_transcoder else None),
    }
    if is_transcoder:
        config["d_out"] = settings.d_out
    write_folder(path, weights=WEIGHTS, tensors=tensors, config=CONFIG, settings=config | more)


def _architecture(dictionary: Dictionary) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    settings, gate = dictionary.settings, dictionary.settings.gate
    tensors = {name: one for name, one in dictionary.tensors.items() if not name.startswith(("in_", "out_"))}
    if dictionary.kind != "sae":
        return _transcoder(dictionary, tensors)
    if gate.rule in ("relu", "gated"):
        return {"relu": "standard", "gated": "gated"}[gate.rule], tensors, {}
    if gate.rule == "jumprelu":
        return "jumprelu", tensors | {"threshold": _threshold(dictionary)}, {}
    if gate.rule == "topk":
        return _topk(dictionary, tensors)
    if gate.rule == "matching_pursuit":
        if not settings.applies_b_dec_to_input and bool(tensors["b_dec"].any()):
            raise cannot_write(
                _NAME,
                "a matching pursuit with a bias that it does not read",
                "it writes b_dec only if it is read",
            )
        norms = dictionary.decoder_norms()
        if float((norms - 1).abs().max()) > 1e-4:
            raise cannot_write(
                _NAME, "matching pursuit with rows of other norms than one", "its steps would differ"
            )
        more = {
            "max_iterations": gate.k,
            "residual_threshold": gate.stop_at,
            "stop_on_duplicate_support": gate.stops_at_repeat,
        }
        return "matching_pursuit", tensors, more
    raise cannot_write(_NAME, f"the gate {gate.rule}", "it has no such architecture")


def _transcoder(
    dictionary: Dictionary, tensors: dict[str, Tensor]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    rule = dictionary.settings.gate.rule
    if dictionary.settings.applies_b_dec_to_input:
        raise cannot_write(_NAME, "a transcoder that reads b_dec", "its transcoders do not")
    if rule == "jumprelu":
        tensors = tensors | {"threshold": _threshold(dictionary)}
    elif rule != "relu":
        raise cannot_write(
            _NAME, f"a transcoder with the gate {rule}", "its transcoders are ReLU or JumpReLU"
        )
    stem = "jumprelu_" if rule == "jumprelu" else ""
    return stem + ("skip_transcoder" if dictionary.settings.has_skip else "transcoder"), tensors, {}


def _topk(
    dictionary: Dictionary, tensors: dict[str, Tensor]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    gate = dictionary.settings.gate
    if gate.negatives == "kept":
        raise cannot_write(_NAME, "a top-k that keeps negative values", "it sets them to zero")
    if gate.compares != "pre":
        raise cannot_write(
            _NAME,
            "a top-k that ranks by decoder norms and does not rescale codes",
            "with_unit_decoder() gives rescaled codes, which it can hold",
        )
    name = "abstopk" if gate.negatives == "ranked_by_size" else "topk"
    return name, tensors, {"k": gate.k, "rescale_acts_by_decoder_norm": False}


def _threshold(dictionary: Dictionary) -> Tensor:
    """Their gate compares the bare pre-activation and takes its positive part."""
    threshold = dictionary.threshold
    if dictionary.settings.gate.compares == "pre_times_decoder_norm":
        threshold = threshold / dictionary.decoder_norms()
    if bool((threshold < 0).any()):
        raise cannot_write(_NAME, "negative thresholds", "it sets negative codes to zero")
    return threshold


def _metadata(dictionary: Dictionary, hook: str, hook_out: str | None) -> dict[str, Any]:
    settings, source = dictionary.settings, dictionary.settings.source
    known = dict(notes_of(dictionary))
    return {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": source.model or None,
        HOOK_KEY: hook,
        "hook_head_index": None,
        "hook_name_out": hook_out,
        "context_size": known.get("context_size"),
        "prepend_bos": source.bos,
        "dataset_path": known.get("dataset_path"),
        "neuronpedia_id": known.get("neuronpedia_id"),
        "model_from_pretrained_kwargs": known.get("model_from_pretrained_kwargs"),
        "l0": settings.calibration.l0,
        "training_architecture": source.trained_as or None,
    }
