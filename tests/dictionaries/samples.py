"""Dictionaries with random tensors, every kind and every gate, for the tests of this folder."""

from dataclasses import replace

import torch

from mechscope.dictionaries.blocks import shapes_of
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Normalization, Port, Settings
from mechscope.vocabulary.sites import Site

D, F = 6, 12

GATES = {
    "relu": Gate(rule="relu"),
    "gated": Gate(rule="gated"),
    "topk": Gate(rule="topk", k=3),
    "topk by norm": Gate(rule="topk", k=3, compares="pre_times_decoder_norm"),
    "topk by size": Gate(rule="topk", k=3, negatives="ranked_by_size"),
    "topk keeping negatives": Gate(rule="topk", k=9, negatives="kept"),
    "jumprelu": Gate(rule="jumprelu"),
    "jumprelu by norm": Gate(rule="jumprelu", compares="pre_times_decoder_norm"),
    "groupmax": Gate(rule="groupmax", k=3),
    "matching pursuit": Gate(rule="matching_pursuit", k=3),
}


def ports(*names: str, width: int = D) -> tuple[Port, ...]:
    return tuple(Port(site=Site.parse(name), shape=(width,)) for name in names)


RESID = ports("resid_post.1")
KINDS: dict[str, dict] = {
    "sae": {"reads": RESID, "writes": RESID},
    "transcoder": {"reads": ports("mlp_in.1"), "writes": ports("mlp_out.1")},
    "skip_transcoder": {"reads": ports("mlp_in.1"), "writes": ports("mlp_out.1"), "has_skip": True},
    "crosscoder": {
        "reads": ports("resid_post.0", "resid_post.1"),
        "writes": ports("resid_post.0", "resid_post.1"),
    },
    "cross_layer_transcoder": {
        "reads": ports("mlp_in.0", "mlp_in.1"),
        "writes": ports("mlp_out.0", "mlp_out.1"),
        "is_cross_layer": True,
        "targets": ((0, 1), (1,)),
    },
}


def settings_of(kind: str = "sae", gate: str = "relu", **more) -> Settings:
    return Settings(n_latents=F, gate=GATES[gate], **{**KINDS[kind], **more})


def random_tensors(settings: Settings, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=dtype)
        for name, shape in shapes_of(settings).items()
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    return tensors


def random_dictionary(kind: str = "sae", gate: str = "relu", *, seed: int = 0, **more) -> Dictionary:
    settings = settings_of(kind, gate, **more)
    return Dictionary(settings, random_tensors(settings, seed))


def normalized_dictionary(dictionary: Dictionary, form: str, seed: int = 5) -> Dictionary:
    """The dictionary with an affine input normalisation: form is "number", "vector" or "matrix"."""
    generator = torch.Generator().manual_seed(seed)
    settings, tensors = dictionary.settings, dict(dictionary.tensors)
    for side, width in (("in", settings.d_in), ("out", settings.d_out)):
        if side == "out" and settings.reads == settings.writes:
            continue
        scale = torch.rand(width, generator=generator, dtype=torch.float64) + 0.5
        tensors[f"{side}_mean"] = torch.randn(width, generator=generator, dtype=torch.float64)
        mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
        tensors[f"{side}_scale"] = {
            "number": scale[0].clone(),
            "vector": scale,
            "matrix": torch.linalg.qr(mixing).Q * scale,
        }[form]
    return Dictionary(replace(settings, normalization=Normalization(rule="affine")), tensors)


def values_for(dictionary: Dictionary, n: int = 7, seed: int = 9) -> torch.Tensor:
    reads = dictionary.settings.reads
    generator = torch.Generator().manual_seed(seed)
    shape = (n, *reads[0].shape) if len(reads) == 1 else (n, len(reads), *reads[0].shape)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
