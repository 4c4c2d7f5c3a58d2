"""Binding: an anatomy laid over one loaded model, so that sites become modules.

Owns which sites are formed and why others are not. Refuses paths that the model does not have. It registers
nothing and runs nothing; sessions do.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from mechscope.models.anatomy import Anatomy, Part
from mechscope.models.naming import ATTENTION_POINTS, Names
from mechscope.vocabulary.errors import UnsupportedModel
from mechscope.vocabulary.points import POINTS, Point
from mechscope.vocabulary.sites import Site, is_pattern, select_sites

_DERIVED_FROM: dict[str, tuple[str, ...]] = {
    "ln1_scale": ("ln1",),
    "ln1_normalized": ("ln1",),
    "ln2_scale": ("ln2",),
    "ln2_normalized": ("ln2",),
    "ln_final_scale": ("ln_final",),
    "ln_final_normalized": ("ln_final",),
    "head_out": ("z",),
}


@dataclass(frozen=True)
class Place:
    """A formed site's module, and the part that says how to read it. For attention points `part` is None."""

    module: nn.Module
    part: Part | None


class Binding:
    """An anatomy bound to the modules of one model.

    Args:
        hf: The transformers model.
        anatomy: Its family's anatomy.

    Raises:
        UnsupportedModel: the anatomy names a module that the model does not have; all such paths are listed.
    """

    def __init__(self, hf: nn.Module, anatomy: Anatomy) -> None:
        self.hf = hf
        self.anatomy = anatomy
        self.layers: list[nn.Module] = list(_module_at(hf, anatomy.layers))  # pyright: ignore[reportArgumentType]
        self.attentions = [_module_at(layer, anatomy.attention.module) for layer in self.layers]
        self.experts = self._experts_modules()
        self.head = _module_at(hf, anatomy.head.module)
        self.final_norm = (
            _module_at(hf, anatomy.ends["ln_final"].module) if "ln_final" in anatomy.ends else None
        )
        signature = inspect.signature(type(hf).forward).parameters
        parameters = set(signature)
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values())
        self.takes_positions = "position_ids" in parameters
        self.takes_cache = "use_cache" in parameters or takes_any
        self.takes_logits_to_keep = "logits_to_keep" in parameters
        self.layer_returns_tuple: bool | None = None  # found out when a run first starts from a layer
        self._refuse_missing_modules()

    def _experts_modules(self) -> dict[int, nn.Module]:
        """Experts modules by layer; empty unless this is a mixture."""
        spec = self.anatomy.experts
        mixed = [i for i in range(len(self.layers)) if spec is not None and "expert_out" in self.parts_of(i)]
        return {i: _module_at(self.layers[i], self.parts_of(i)["expert_out"].module) for i in mixed}

    @property
    def embedding_device(self) -> torch.device:
        """Where token ids go; other layers may live elsewhere under a `device_map`."""
        return next(self.hf.get_submodule(self.anatomy.ends["embed"].module).parameters()).device

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def formed(self) -> list[Site]:
        """Sites that the model forms and that are in reach, in the order of the forward pass."""
        sites: list[Site] = []
        for row in POINTS.values():
            if row.basis == "layer":
                sites += [Site(row.name, i) for i in range(self.n_layers) if self._is_formed(row, i)]
            elif self._is_formed(row, None):
                sites.append(Site(row.name))
        return sorted(sites)

    @cached_property
    def readable(self) -> list[Site]:
        """Formed sites and those derived from them."""
        # What a transform feeds its norm is no point, so the norm's denominator can't be told from one.
        hidden = ("ln_final_scale", "ln_final_normalized") if self.anatomy.head.transform else ()
        derived = [
            Site(name, site.layer)
            for name, sources in _DERIVED_FROM.items()
            for site in self.formed
            if site.point == sources[0] and name not in hidden
        ]
        return sorted(self.formed + derived)

    @property
    def mask_overflows(self) -> bool:
        """The model's own attention gives NaN in padded batches, so ours takes its place in every run.

        The library's eager attention adds the smallest double to the scores and then takes a single-precision
        softmax, where it is -inf; fully masked rows of the padding become NaN and reach the real tokens.
        """
        config: Any = self.attentions[0].config if self.anatomy.attention.has_interface else self.hf.config
        return config._attn_implementation_internal == "eager" and self.head.weight.dtype == torch.float64

    def parts_of(self, layer: int) -> Mapping[str, Part]:
        """Parts of one layer, exceptions applied."""
        special = self.anatomy.layer_parts.get(layer)
        return self.anatomy.parts if special is None else special

    def place(self, site: Site) -> Place:
        """The module and part of a formed site."""
        if site.layer is None:
            if site.point == "logits":
                return Place(self.hf, Part("", "output"))
            part = self.anatomy.ends[site.point]
            return Place(_module_at(self.hf, part.module), part)
        layer = self.layers[site.layer]
        if site.point == "resid_pre":
            return Place(layer, Part("", "input"))
        if site.point == "resid_post":
            return Place(layer, Part("", "output"))
        if site.point in ATTENTION_POINTS and self.anatomy.attention.has_interface:
            return Place(self.attentions[site.layer], None)
        part = self.parts_of(site.layer)[site.point]
        return Place(_module_at(layer, part.module), part)

    @cached_property
    def names(self) -> Names:
        """What names mean in this model; holds no module."""
        return Names(self.anatomy, self.n_layers, tuple(self.readable))

    def site(self, name: "str | Site | Sequence[str | int]") -> Site:
        """The one readable site that a name means here; see `Names.site`."""
        return self.names.site(name)

    def select(self, wanted: "str | Site | Sequence[str | Site]", *, readable: bool = True) -> list[Site]:
        """All sites that names and patterns mean here, in the order of the forward pass."""
        pool = self.readable if readable else self.formed
        found: set[Site] = set()
        for name in [wanted] if isinstance(wanted, str | Site) else wanted:
            if isinstance(name, str) and "," in name:
                found.update(self.select([part.strip() for part in name.split(",")], readable=readable))
            elif isinstance(name, str) and is_pattern(name):
                found.update(select_sites(name, pool))
            else:
                found.add(self.site(name))
        return sorted(found)

    def _is_formed(self, row: Point, layer: int | None) -> bool:
        if not row.is_formed:
            return False
        name, attention = row.name, self.anatomy.attention
        if layer is None:
            return name == "logits" or name in self.anatomy.ends
        if name in ("resid_pre", "resid_post"):
            return True
        if name == "resid_mid" and self.anatomy.is_parallel:
            return False
        if name in ("q_pre", "k_pre") and not attention.is_rotary:
            return False
        if name == "sink":
            return attention.has_sinks and attention.has_interface
        if name in ATTENTION_POINTS and attention.has_interface:
            return True
        return name in self.parts_of(layer)

    def _refuse_missing_modules(self) -> None:
        missing = [
            f"layers.{index}.{part.module}"
            for index, layer in enumerate(self.layers)
            for part in self.parts_of(index).values()
            if not _has_module(layer, part.module)
        ]
        if missing:
            raise UnsupportedModel(
                f'The adapter "{self.anatomy.family}" does not fit this model.',
                got=type(self.hf).__name__,
                because=f"these modules do not exist: {', '.join(sorted(set(missing))[:8])}",
                instead="open an issue with the configuration, or write an adapter (CONTRIBUTING.md)",
            )


def _module_at(root: nn.Module, path: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModel(
            f'The model has no module "{path}".',
            got=type(root).__name__,
            because=str(error),
            instead="write an adapter (CONTRIBUTING.md)",
        ) from error


def _has_module(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def anatomy_of(config: Any, families: Mapping[str, Any]) -> Anatomy | None:
    """The registered anatomy for a configuration, or None."""
    describe = families.get(config.model_type)
    return None if describe is None else describe(config)
