"""clt-training: a cross-layer transcoder as a folder of sparsify-like folders, one for each layer, named by modules.

The coder of layer i has a decoder for each of its `n_targets`: its own layer and the next ones. A later layer's output
is what all coders write there, its biases and skips included, in the units of its own `out_norm`. Refuses what has no
place here: biases after the encoder that are not zero, and latents that are ranked again across layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
)
from mechscope.dictionaries.formats.naming import site_from_module
from mechscope.dictionaries.formats.sparsify import CONFIG, WEIGHTS, model_beside
from mechscope.dictionaries.settings import Gate, Normalization, Port, Settings, Source
from mechscope.vocabulary.errors import AmbiguousDictionary, BadFile, DictionaryError, UnknownGate
from mechscope.vocabulary.sites import Site

_FIRST = {"W_dec": "W_decs.0", "b_dec": "b_decs.0", "W_skip": "W_skips.0"}
"""Names under which the first of a list is saved a second time."""


@dataclass(frozen=True)
class _Coder:
    """One layer's coder.

    Args:
        file: Its weights.
        config: Its settings.
        tensors: Its tensors.
        read: Site read.
        written: Site of its own layer that is written.
    """

    file: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    read: Site
    written: Site

    @property
    def n_targets(self) -> int:
        return int(self.config["n_targets"])

    @property
    def d_in(self) -> int:
        return int(self.config["d_in"])

    def of_target(self, stem: str, target: int) -> Tensor:
        """A list's entry; where one is shared by all targets, that."""
        name = (
            stem.removesuffix("s")
            if stem == "W_decs" and self.config.get("per_source_tied")
            else f"{stem}.{target}"
        )
        return take(self.tensors, name, path=self.file)[0]

    def decoder(self, target: int) -> Tensor:
        """What its latents write to a target, [latent, d]; a scale of the target is taken up."""
        rows = self.of_target("W_decs", target)
        if self.config.get("post_encoder_scale"):
            rows = rows * self.of_target("post_enc_scales", target)[:, None]
        return rows


def is_clt_training(path: Path) -> bool:
    """Whether a folder holds the layers of a cross-layer transcoder of clt-training."""
    return path.is_dir() and not (path / CONFIG).is_file() and len(_folders(path)) > 0


def open_clt_training(path: Path, answers: Answers) -> Dictionary:
    """The cross-layer transcoder of a folder.

    Raises:
        BadFile: a layer is missing, or layers of other sizes.
        DictionaryError: something that would be dropped silently.
        UnknownGate: a rule that ranks over a batch or over layers.
    """
    coders = sorted((_coder(folder) for folder in _folders(path)), key=lambda one: one.read)
    _refuse_unequal(coders)
    n, width = len(coders), coders[0].d_in
    targets = tuple(tuple(range(i, i + one.n_targets)) for i, one in enumerate(coders))
    if any(layer >= n for one in targets for layer in one):
        raise BadFile(
            "A layer of this cross-layer transcoder is missing.",
            got=", ".join(one.file.parent.name for one in coders),
            because=f"they write to {[one.n_targets for one in coders]} layers from their own on",
            instead="the folders of all layers",
        )
    shares = _shares(coders, targets)
    tensors = {
        "W_enc": torch.stack([one.tensors["encoder.weight"].T for one in coders]),
        "b_enc": torch.cat([one.tensors["encoder.bias"] for one in coders]),
        "b_dec": torch.zeros(n, width),
    }
    skip = torch.zeros(n * width, n * width)
    for i, one in enumerate(coders):
        rows = []
        for target, layer in enumerate(targets[i]):
            share = 1.0 if layer == i else shares[layer]
            rows.append(share * one.decoder(target))
            tensors["b_dec"][layer] += share * one.of_target("b_decs", target)
            if one.config.get("skip_connection"):
                place = slice(layer * width, (layer + 1) * width), slice(i * width, (i + 1) * width)
                skip[place] = share * one.of_target("W_skips", target)
        tensors[f"W_dec.{i}"] = torch.stack(rows, dim=1)
    has_skip = any(one.config.get("skip_connection") for one in coders)
    tensors |= ({"W_skip": skip} if has_skip else {}) | _scales(coders, width)
    settings = Settings(
        reads=tuple(Port(site=one.read, shape=(width,)) for one in coders),
        writes=tuple(Port(site=one.written, shape=(width,)) for one in coders),
        n_latents=len(tensors["b_enc"]),
        gate=_gate(coders),
        normalization=Normalization(rule="affine" if coders[0].config.get("normalize_io") else "none"),
        has_skip=has_skip,
        is_cross_layer=True,
        targets=targets,
        source=Source(
            model=model_beside(coders[0].file.parent) or answers.model or "",
            trained_as=str(coders[0].config.get("activation", "topk")),
            made_by="clt-training",
        ),
    )
    return Dictionary(settings, in_one_dtype(tensors))


def _folders(path: Path) -> list[Path]:
    """Folders of coders with several targets."""
    return [
        file.parent
        for file in sorted(path.glob(f"*/{CONFIG}"))
        if (file.parent / WEIGHTS).is_file() and int(read_json(file).get("n_targets") or 0) > 0
    ]


def _coder(folder: Path) -> _Coder:
    config, saved = read_json(folder / CONFIG), dict(read_safetensors(folder / WEIGHTS))
    read, written = (site_from_module(folder.name, side) for side in ("input", "output"))
    if read is None or written is None:
        raise AmbiguousDictionary(
            f"Which sites are read and written by the coder in {folder.name}?",
            got=folder.name,
            because="it is named by no module that we know",
            instead="folders named like layers.3.mlp",
        )
    for alias, first in _FIRST.items():
        if first in saved and alias in saved and torch.equal(saved[alias], saved[first]):
            del saved[alias]
    coder = _Coder(folder / WEIGHTS, config, saved, read, written)
    _refuse_unplaced(coder)
    n, width = len(saved["encoder.bias"]), coder.d_in
    for name, tensor in saved.items():
        if name.startswith("W_dec"):
            refuse_shape(name, tensor, (n, width), coder.file)
    refuse_shape("encoder.weight", saved["encoder.weight"], (n, width), coder.file)
    return coder


def _refuse_unplaced(coder: _Coder) -> None:
    config, tensors = coder.config, coder.tensors
    ranked = str(config.get("coalesce_topk", "none")) != "none" or bool(config.get("secondary_target_tied"))
    if ranked or not config.get("transcode"):
        raise UnknownGate(
            "The latents of this coder are combined by a rule that has no place here.",
            got=", ".join(
                f"{k}={config.get(k)}" for k in ("coalesce_topk", "secondary_target_tied", "transcode")
            ),
            because="a code belongs to one layer here, and each layer decodes by itself",
            instead='coalesce_topk "none"',
        )
    n = coder.n_targets
    lists = ("b_decs", "post_encs", "post_enc_scales", "W_decs", "W_skips")
    known = {f"{stem}.{i}" for stem in lists for i in range(n)}
    known |= {"encoder.weight", "encoder.bias", "in_norm", "out_norm"}
    refuse_others(tensors, known | ({"W_dec"} if config.get("per_source_tied") else set()), coder.file)
    take(tensors, "encoder.weight", "encoder.bias", path=coder.file)
    shifts = [name for name, one in tensors.items() if name.startswith("post_encs") and bool(one.any())]
    if shifts:
        raise DictionaryError(
            "This cross-layer transcoder adds a bias to each code after the encoder.",
            got=", ".join(shifts),
            because="a code would mean another number at each layer that it is written to",
            instead="a transcoder trained with train_post_encoder=False",
        )


def _refuse_unequal(coders: list[_Coder]) -> None:
    sizes = {(len(one.tensors["encoder.bias"]), one.d_in) for one in coders}
    ways = {(bool(one.config.get("normalize_io")), one.config.get("k")) for one in coders}
    layers = [one.read.layer for one in coders]
    if len(sizes) > 1 or len(ways) > 1 or len(set(layers)) < len(layers):
        raise BadFile(
            "The layers of this cross-layer transcoder do not belong together.",
            got=f"latents and widths {sorted(sizes)}, normalised and k {sorted(ways, key=str)}, layers {layers}",
            because="it is one dictionary of equal layers",
            instead="the folders of one training run",
        )


def _gate(coders: list[_Coder]) -> Gate:
    rules = {str(one.config.get("activation", "topk")) for one in coders}
    if len(rules) > 1 or not rules <= {"topk", "groupmax"}:
        raise UnknownGate(
            "These activations are not known.",
            got=", ".join(sorted(rules)),
            because="a batch's top-k depends on the batch, and the file keeps no threshold",
            instead="topk or groupmax in every layer",
        )
    return Gate(rule=rules.pop(), k=int(coders[0].config["k"]))


def _shares(coders: list[_Coder], targets: tuple[tuple[int, ...], ...]) -> list[float]:
    """By what earlier layers' writing to each layer is multiplied."""
    found: list[float] = []
    for layer, one in enumerate(coders):
        n_earlier = sum(layer in targets[i] for i in range(layer))
        found.append(1 / max(1, n_earlier) if one.config.get("divide_cross_layer") else 1.0)
    return found


def _scales(coders: list[_Coder], width: int) -> dict[str, Tensor]:
    if not coders[0].config.get("normalize_io"):
        return {}
    found: dict[str, Tensor] = {}
    for name, norm in (("in_scale", "in_norm"), ("out_scale", "out_norm")):
        norms = [take(one.tensors, norm, path=one.file)[0].reshape(1) for one in coders]
        found[name] = torch.cat([(width**0.5 / one).expand(width) for one in norms])
    return found
