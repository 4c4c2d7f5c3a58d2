"""OpenAI's sparse autoencoders: one torch pickle of named tensors, an activation's name and its settings.

Their top-k models normalise each token (unbiased deviation, 1e-5 outside the root) and undo it on the output; read as
plain ReLU models they give nonsense without an error. The file does not say which site it reads.
"""

from pathlib import Path
from typing import Any

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.formats.answers import Answers
from mechscope.dictionaries.formats.files import in_one_dtype, read_pickle, refuse_others, take
from mechscope.dictionaries.formats.naming import port_at, settle_site
from mechscope.dictionaries.settings import Gate, Normalization, Settings, Source
from mechscope.vocabulary.errors import UnknownGate

_TENSORS = ("encoder.weight", "pre_bias", "latent_bias")
_KNOWN = {*_TENSORS, "decoder.weight", "stats_last_nonzero", "activation", "activation_state_dict"}


def is_openai(path: Path) -> bool:
    """Whether a file may be one of theirs: a torch file that dictionary_learning would name otherwise."""
    return path.is_file() and path.suffix == ".pt" and not path.stem.startswith("ae")


def open_openai(path: Path, answers: Answers) -> Dictionary:
    """The dictionary in one `.pt` file.

    Raises:
        UnsafeFile: the pickle holds more than tensors and plain values.
        AmbiguousDictionary: which site, or which activation, is left open.
    """
    saved = read_pickle(path)
    refuse_others(saved, _KNOWN, path)
    encoder, pre_bias, latent_bias = take(saved, *_TENSORS, path=path)
    decoder = saved["decoder.weight"].T if "decoder.weight" in saved else encoder  # tied
    stated = saved.get("activation")
    activation = answers.settled(
        "gate",
        stated,
        'Is the activation "TopK", with inputs normalised token by token, or "ReLU"?',
        readings='"TopK" or "ReLU"',
    )
    site = settle_site(answers, None, path.stem)
    port = port_at(site, encoder.shape[1], answers)
    settings = Settings(
        reads=(port,),
        writes=(port,),
        n_latents=len(latent_bias),
        gate=_gate(activation, saved.get("activation_state_dict") or {}, answers),
        normalization=Normalization(rule="layer_norm" if activation == "TopK" else "none", eps=1e-5),
        applies_b_dec_to_input=True,
        source=Source(
            model=answers.model or "", trained_as=str(activation), made_by="OpenAI sparse_autoencoder"
        ),
    )
    tensors = {"W_enc": encoder.T, "b_enc": latent_bias, "W_dec": decoder, "b_dec": pre_bias}
    return Dictionary(settings, in_one_dtype(tensors))


def _gate(activation: str, state: Any, answers: Answers) -> Gate:
    if activation == "ReLU":
        return Gate(rule="relu")
    if activation != "TopK":
        raise UnknownGate(
            f'The activation "{activation}" is not known.',
            got=activation,
            because="a dictionary read under another rule gives other codes, silently",
            instead="TopK or ReLU",
        )
    k = answers.settled("k", state.get("k"), "How many latents does a token have?")
    return Gate(rule="topk", k=int(k))
