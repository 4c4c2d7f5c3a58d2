"""Experts: routing and expert outputs of a mixture, for every family that calls the library's experts interface.

An intervention on routing follows the order of the table. Writing `router_logits` recomputes choice and weights
by the family's own rule; writing `expert_choice` takes the choice as written and recomputes its weights from the
logits; writing `expert_weight` leaves choice and logits alone. The configuration is left as it was found.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mechscope.models.anatomy import Experts
from mechscope.models.attention import configurations
from mechscope.vocabulary.errors import InterventionMismatch

IMPLEMENTATION = "mechscope"
ROUTING_POINTS = ("router_logits", "expert_choice", "expert_weight")
"""Points that the router returns."""

Act = Callable[[Tensor], Tensor]
_DESKS: dict[nn.Module, Act] = {}


def choose_experts(logits: Tensor, spec: Experts) -> Tensor:
    """Indices of the experts that the family's rule chooses, best first: [..., expert] to [..., choice]."""
    return _preferences(logits, spec).topk(spec.n_chosen, dim=-1).indices


def weigh_experts(logits: Tensor, choice: Tensor, spec: Experts) -> Tensor:
    """Weights that the family's rule gives to chosen experts: [..., expert], [..., choice] to [..., choice]."""
    weights = _preferences(logits, spec).gather(-1, choice)
    if not spec.is_softmax_first:
        weights = weights.softmax(-1)
    elif spec.is_renormalised:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype) if spec.has_narrow_weights else weights


def _preferences(logits: Tensor, spec: Experts) -> Tensor:
    # The families take this softmax in single precision whatever the activations' dtype.
    return logits.to(torch.float32).softmax(-1) if spec.is_softmax_first else logits


def routing_hook(acts: Mapping[str, Act], spec: Experts, shape: Callable[[], tuple[int, int]]) -> Any:
    """A forward hook for a router that returns (logits, weights, choice) of flat tokens.

    Args:
        acts: By point; each takes [batch, pos, ...] and returns what the rest of the model shall see.
        shape: [batch, pos] of the pass under way.
    """

    def through(point: str, flat: Tensor) -> Tensor:
        if point not in acts:
            return flat
        seen = flat.unflatten(0, shape())
        new = acts[point](seen)
        # With gradients, what was read must be what goes on, and what follows must follow from it.
        return flat if new is seen and not torch.is_grad_enabled() else new.flatten(0, 1)

    def hook(_module: nn.Module, _args: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        given, weights, own_choice = output
        logits = through("router_logits", given)
        chosen = own_choice if logits is given else choose_experts(logits, spec)
        choice = through("expert_choice", chosen)
        if choice is not chosen:
            _refuse_unknown_experts(choice, spec)
        if logits is not given or choice is not chosen:
            weights = weigh_experts(logits, choice, spec)
        return logits, through("expert_weight", weights), choice

    return hook


@contextmanager
def experts_at(modules: Mapping[nn.Module, Act | None]) -> Generator[None, None, None]:
    """Form each chosen expert's output, [token, choice, d_model], and pass it through the module's act.

    Args:
        modules: Every experts module of the model, since they share configurations; None only sums.
    """
    configs = configurations(modules)
    before = {key: config._experts_implementation_internal for key, config in configs.items()}
    _DESKS.update({module: act for module, act in modules.items() if act is not None})
    try:
        for config in configs.values():
            config._experts_implementation_internal = IMPLEMENTATION
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation_internal = before[key]
        for module in modules:
            _DESKS.pop(module, None)


@contextmanager
def runnable_experts(modules: Iterable[nn.Module]) -> Generator[None, None, None]:
    """Take the eager experts where the library's grouped product would raise: float64, or rows not 16-byte aligned."""
    configs = configurations(m for m in modules if not _suits_grouped_product(m))
    grouped = [c for c in configs.values() if c._experts_implementation_internal == "grouped_mm"]
    try:
        for config in grouped:
            config._experts_implementation_internal = "eager"
        yield
    finally:
        for config in grouped:
            config._experts_implementation_internal = "grouped_mm"


def _suits_grouped_product(module: nn.Module) -> bool:
    fused = [weight for weight in module.parameters(recurse=False) if weight.ndim == 3]
    is_aligned = all(weight.shape[-1] * weight.element_size() % 16 == 0 for weight in fused)
    return is_aligned and all(weight.dtype != torch.float64 for weight in fused)


def expert_outputs(module: Any, tokens: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    """Weighted output of each chosen expert, [token, choice, d_model].

    Args:
        module: An experts module with fused weights, as `use_experts_implementation` declares it.
        tokens: What the experts read, [token, d_model].
        choice: Expert indices, [token, choice].
        weights: Their weights, [token, choice].
    """
    outputs = tokens.new_zeros(*choice.shape, tokens.shape[-1])
    for expert in choice.unique().tolist():
        at = torch.where(choice == expert)
        inner = _linear(module, "gate_up_proj" if module.has_gate else "up_proj", expert, tokens[at[0]])
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        outputs = outputs.index_put(at, _linear(module, "down_proj", expert, inner))
    return outputs * weights[..., None]


def _linear(module: Any, name: str, expert: int, value: Tensor) -> Tensor:
    weight = module.get_parameter(name)[expert]
    bias = module.get_parameter(f"{name}_bias")[expert] if module.has_bias else None
    return F.linear(value, weight.T if module.is_transposed else weight, bias)


def _experts(module: nn.Module, tokens: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    outputs = expert_outputs(module, tokens, choice, weights)
    act = _DESKS.get(module)
    return (outputs if act is None else act(outputs)).sum(dim=-2).to(tokens.dtype)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts)


def _refuse_unknown_experts(choice: Tensor, spec: Experts) -> None:
    if bool(((choice < 0) | (choice >= spec.n_experts)).any()):
        raise InterventionMismatch(
            "An intervention chose an expert that does not exist.",
            got=f"indices {int(choice.min())} to {int(choice.max())}",
            because=f"the mixture has {spec.n_experts} experts",
            instead=f"indices 0 to {spec.n_experts - 1}",
        )
