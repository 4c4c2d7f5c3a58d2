"""Holding: a linearization carried out inside the model's own forward pass, by a few backward rules.

Every rule leaves the forward value as it is and replaces what gradients see of it. Refuses rules for parts that a
family does not form.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from mechscope.attribution.linearization import Linearization
from mechscope.models.anatomy import Norm
from mechscope.models.binding import Binding
from mechscope.models.derived import centred, norm_scale, norm_weight
from mechscope.models.model import Model
from mechscope.models.running import standing_in
from mechscope.vocabulary.errors import PointUnavailable
from mechscope.vocabulary.sites import Site

Writer = Callable[[Tensor], Tensor]


@contextmanager
def holding(model: Model, linearization: Linearization) -> Generator[dict[Site, Writer], None, None]:
    """Hold norm denominators for the duration of a block; gives the writers that hold the rest.

    Raises:
        PointUnavailable: the family does not form what a rule needs.
    """
    norms = _held_norms(model.binding) if linearization.norms == "held" else {}
    with standing_in(norms):
        yield rules(model, linearization)


def rules(model: Model, linearization: Linearization) -> dict[Site, Writer]:
    """The writers of a linearization, by site: values unchanged, gradients as it says."""
    found: dict[Site, Writer] = {}
    for layer in range(model.n_layers):
        has_mlp = "mlp_out" in model.binding.parts_of(layer)
        if linearization.patterns == "held":
            found[_formed(model, "pattern", layer)] = Tensor.detach
        if has_mlp and linearization.mlps == "held":
            found[_formed(model, "mlp_in", layer)] = Tensor.detach
        if has_mlp and linearization.has_mlp_rule:
            found |= _mlp_rules(model, layer, linearization)
    return found


def with_value_of(value: Tensor, path: Tensor) -> Tensor:
    """`value` in the forward pass; gradients go along `path`."""
    return value.detach() + (path - path.detach())


def _formed(model: Model, point: str, layer: int) -> Site:
    site = Site(point, layer)
    if site not in model.binding.formed:
        raise PointUnavailable(
            f"This linearization needs {site}, which {model.identity.name} does not form.",
            got=f"{model.binding.anatomy.family}, layer {layer}",
            because=model.binding.anatomy.why_missing.get(point, "this architecture forms no such tensor"),
            instead="a linearization that holds nothing there: Linearization(norms='held'), or plain()",
        )
    return site


def _mlp_rules(model: Model, layer: int, linearization: Linearization) -> dict[Site, Writer]:
    """Rules at the neurons of one MLP: its inputs are remembered, and its neurons follow them as the rule says."""
    pre, post = _formed(model, "mlp_pre", layer), _formed(model, "mlp_post", layer)
    gate = Site("mlp_gate", layer)
    seen: dict[str, Tensor] = {}

    def remembering(name: str) -> Writer:
        def remember(value: Tensor) -> Tensor:
            seen[name] = value
            return value

        return remember

    if gate not in model.binding.formed:
        if linearization.activations == "derivative":
            return {}
        return {
            pre: remembering("pre"),
            post: lambda value: with_value_of(value, _along(seen["pre"], value)),
        }

    def gated(value: Tensor) -> Tensor:
        along_up = _along(seen["pre"], value)
        if linearization.gates == "held":
            return with_value_of(value, along_up)
        share = 0.5 if linearization.gates == "half" else 1.0
        if linearization.activations == "derivative":
            return with_value_of(value, share * value)
        return with_value_of(value, share * (along_up + _along(seen["gate"], value)))

    return {pre: remembering("pre"), gate: remembering("gate"), post: gated}


def _along(factor: Tensor, product: Tensor) -> Tensor:
    """`product` as its held ratio to a factor, times the factor; nothing where the factor is zero."""
    is_zero = factor == 0
    ratio = product.detach() / factor.detach().masked_fill(is_zero, 1.0)
    return factor * ratio.masked_fill(is_zero, 0.0)


def _held_norms(binding: Binding) -> Mapping[nn.Module, Callable[..., Tensor]]:
    return {module: _holding_denominator(module, norm) for module, norm in norms_of(binding).items()}


def norms_of(binding: Binding) -> dict[nn.Module, Norm]:
    """Every norm of the residual stream and of what is added to it, with what it does.

    Raises:
        PointUnavailable: a norm behind attention or MLP is of a kind that is not known.
    """
    found: dict[nn.Module, Norm] = {}
    known = binding.anatomy.norms
    if binding.final_norm is not None and "ln_final" in known:
        found[binding.final_norm] = known["ln_final"]
    for index, layer in enumerate(binding.layers):
        parts = binding.parts_of(index)
        for point in ("ln1", "ln2"):
            if point in known and (point in parts or known[point].is_on_stream):
                found[layer.get_submodule(known[point].module)] = known[point]
        for name in ("attn", "mlp"):
            raw, out = parts.get(f"{name}_raw"), parts.get(f"{name}_out")
            if raw is None or out is None or raw.module == out.module:
                continue
            module = layer.get_submodule(out.module)
            if type(module) is not type(binding.final_norm):
                raise PointUnavailable(
                    f"Layer {index} has a norm behind its {name} of an unknown kind.",
                    got=type(module).__name__,
                    because="its denominator cannot be held without its formula",
                    instead="Linearization(norms='free')",
                )
            found[module] = replace(known["ln_final"], module=out.module)
    return found


def _holding_denominator(module: nn.Module, norm: Norm) -> Callable[..., Tensor]:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            value = own(x)
            scale = norm_scale(x, norm)
        weight = norm_weight(module, norm)["weight"]
        path = centred(x, norm) / scale
        return with_value_of(value, path if weight is None else path * weight.detach())

    return forward
