"""Session: the only place that registers hooks. One per run; nothing of it survives the run.

A session takes readers and writers by site, places exactly the hooks that they need, and removes them on exit,
also on an exception. Writers see and return the point's own tensor; readers see it after the writers.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mechscope.models.anatomy import Part
from mechscope.models.attention import (
    MAP_TAPS,
    Call,
    Desk,
    Tap,
    attend,
    desks_at,
    narrow_masks,
    tap_inputs,
)
from mechscope.models.binding import Binding
from mechscope.models.experts import ROUTING_POINTS, experts_at, routing_hook, runnable_experts
from mechscope.models.layouts import Plain
from mechscope.models.naming import ATTENTION_POINTS
from mechscope.vocabulary.sites import Site

Writer = Callable[[Tensor], Tensor]
Reader = Callable[[Tensor], None]


class Stopped(Exception):
    """The run reached its last site; caught by whoever started it."""


@dataclass
class Plan:
    """What a session does, by site.

    Args:
        writers: New value from old, in the point's axes.
        readers: Called with the value that the rest of the model sees.
        stop_after: End the forward pass once this site and all that is read have been computed.
        calls: By layer, called with that layer's attention call, queries, keys and values as they act.
        desk: Replaces ordinary attention (the engine's packed replay); from the layer and its taps.
        shape: [batch, pos] of the forward pass under way, for modules that see tokens in one flat axis.
        seen: Sites computed so far in a pass that is to end early.
        is_ours: Our attention computes even where the model's own could go on.
    """

    writers: dict[Site, Writer] = field(default_factory=dict)
    readers: dict[Site, Reader] = field(default_factory=dict)
    stop_after: Site | None = None
    calls: dict[int, Callable[[Call], None]] = field(default_factory=dict)
    desk: Callable[[int, Mapping[str, Tap]], Desk] | None = None
    shape: tuple[int, int] = (0, 0)
    seen: set[Site] = field(default_factory=set)
    is_ours: bool = False

    @property
    def sites(self) -> set[Site]:
        """All sites that something happens at."""
        stop = set() if self.stop_after is None else {self.stop_after}
        return set(self.writers) | set(self.readers) | stop

    def ends_at(self, site: Site) -> bool:
        """Whether the pass may end now that a site is computed; modules run in another order than the table's."""
        self.seen.add(site)
        if self.stop_after not in self.seen or not self.seen.issuperset(self.readers):
            return False
        self.seen.clear()
        return True


@contextmanager
def session(binding: Binding, plan: Plan) -> Generator[None, None, None]:
    """Carry out `plan` in every forward pass inside the block."""
    outputs: dict[nn.Module, list[_Step]] = defaultdict(list)
    inputs: dict[nn.Module, list[_Step]] = defaultdict(list)
    taps: dict[int, dict[str, Tap]] = defaultdict(dict)
    mixture: dict[int, dict[str, Tap]] = defaultdict(dict)
    for site in sorted(plan.sites):
        _place(site, binding, plan, (outputs, inputs, taps, mixture))
    with ExitStack() as stack:
        stack.enter_context(runnable_experts(binding.experts.values()))
        _place_mixture(binding, plan, mixture, stack)
        if torch.is_grad_enabled():
            embedding = binding.hf.get_submodule(binding.anatomy.ends["embed"].module)
            stack.callback(embedding.register_forward_hook(_begin_graph).remove)
        for module, steps in inputs.items():
            handle = module.register_forward_pre_hook(_input_hook(steps), with_kwargs=True)
            stack.callback(handle.remove)
        for module, steps in outputs.items():
            handle = module.register_forward_hook(_output_hook(steps))
            stack.callback(handle.remove)
        if binding.mask_overflows and not binding.anatomy.attention.has_interface:
            stack.enter_context(narrow_masks(binding.hf.config))
        has_desks = bool(taps or plan.calls or plan.desk) or binding.mask_overflows or plan.is_ours
        if has_desks and binding.anatomy.attention.has_interface:
            # The implementation is switched for the whole model, so every attention module needs a desk.
            make = plan.desk or (lambda i, tap: _ordinary_desk(binding, tap, plan.calls.get(i)))
            desks = {m: make(i, taps.get(i, {})) for i, m in enumerate(binding.attentions)}
            keeps_own = _keeps_own_attention(binding, plan, taps)
            stack.enter_context(desks_at(desks, binding.anatomy.attention, keeps_own=keeps_own))
        yield


@dataclass(frozen=True)
class _Step:
    """One thing done to a module's input or output: read a part, write it back if it changed.

    `is_own`: others use the tensor too (the skip connection, another branch), and gradients at this site shall
    count this use only, so that a graph gets a tensor of its own here.
    """

    part: Part
    act: Callable[[Tensor], Tensor]
    plan: Plan
    is_own: bool = False


def _place(
    site: Site,
    binding: Binding,
    plan: Plan,
    into: tuple[dict[Any, Any], dict[Any, Any], dict[int, Any], dict[int, Any]],
) -> None:
    outputs, inputs, taps, mixture = into
    act = _act(site, plan)
    if site.layer is not None and site.point in (*ROUTING_POINTS, "expert_out"):
        mixture[site.layer][site.point] = act
        return
    if site.layer is not None and site.point in ATTENTION_POINTS and binding.anatomy.attention.has_interface:
        if site.row.is_attention_map:
            _place_map(site, plan, taps[site.layer])
        else:
            taps[site.layer][site.point] = act
        return
    place = binding.place(site)
    part = place.part or Part("")
    is_branch = site.point == "resid_mid" and part.side == "input"  # the skip connection goes another way
    if is_branch and (site in plan.writers or (part.is_flat and torch.is_grad_enabled())):
        _place_mid(site, binding, plan, inputs, outputs)
        return
    is_own = part.side == "input" and site.point != "resid_mid"
    (outputs if part.side == "output" else inputs)[place.module].append(_Step(part, act, plan, is_own))


def _place_map(site: Site, plan: Plan, taps: dict[str, Tap]) -> None:
    # Masked entries ignore writes, and readers see the map as it acts.
    if site in plan.writers:
        taps[site.point] = plan.writers[site]
    if site in plan.readers or site == plan.stop_after:
        taps[f"used {site.point}"] = _act(site, replace(plan, writers={}))


def _place_mixture(
    binding: Binding, plan: Plan, mixture: dict[int, dict[str, Tap]], stack: ExitStack
) -> None:
    spec = binding.anatomy.experts
    outputs: dict[nn.Module, Tap | None] = dict.fromkeys(binding.experts.values())
    for layer, acts in mixture.items():
        assert spec is not None
        if "expert_out" in acts:
            outputs[binding.experts[layer]] = _unflattened(acts["expert_out"], plan)
        if any(point in acts for point in ROUTING_POINTS):
            router = binding.layers[layer].get_submodule(spec.router)
            handle = router.register_forward_hook(routing_hook(acts, spec, lambda: plan.shape))
            stack.callback(handle.remove)
    if any(act is not None for act in outputs.values()):
        stack.enter_context(experts_at(outputs))


def _unflattened(act: Tap, plan: Plan) -> Tap:
    return lambda flat: act(flat.unflatten(0, plan.shape)).flatten(0, 1)


def _act(site: Site, plan: Plan) -> Callable[[Tensor], Tensor]:
    writer, reader = plan.writers.get(site), plan.readers.get(site)

    def act(value: Tensor) -> Tensor:
        if writer is not None:
            value = writer(value)
        if reader is not None:
            if torch.is_grad_enabled() and value.is_floating_point() and not value.requires_grad:
                value = value.detach().requires_grad_()  # a frozen parameter, as a sink is
            reader(value)
        if plan.stop_after is not None and plan.ends_at(site):
            raise Stopped
        return value

    return act


def _place_mid(
    site: Site,
    binding: Binding,
    plan: Plan,
    inputs: dict[nn.Module, list[_Step]],
    outputs: dict[nn.Module, list[_Step]],
) -> None:
    # The skip connection is a local variable of the layer, so a write to the stream between attention and MLP
    # is made by adding the difference to what attention adds.
    assert site.layer is not None
    arriving: dict[str, Tensor] = {}
    act = _act(site, plan)

    def remember(value: Tensor) -> Tensor:
        arriving["resid_pre"] = value
        return value

    def add_difference(added: Tensor) -> Tensor:
        before = arriving["resid_pre"] + added
        written = act(before)
        if torch.is_grad_enabled():
            return written - arriving["resid_pre"]  # `before` must not cancel out of the graph
        return added + (written - before)

    pre = binding.place(Site("resid_pre", site.layer))
    inputs[pre.module].append(_Step(pre.part or Part(""), remember, plan))
    out = binding.place(Site("attn_out", site.layer))
    outputs[out.module].append(_Step(out.part or Part(""), add_difference, plan))


def _keeps_own_attention(binding: Binding, plan: Plan, taps: Mapping[int, Mapping[str, Tap]]) -> bool:
    """Whether the model's own attention computes between the taps, so that reading them adds nothing."""
    # Under a graph ours computes: its additive masks keep gradients of fully masked rows, the padding's, finite.
    if plan.is_ours or plan.desk is not None or binding.mask_overflows or torch.is_grad_enabled():
        return False
    return not any(name in MAP_TAPS for some in taps.values() for name in some)


def _ordinary_desk(
    binding: Binding, taps: Mapping[str, Tap], keep: Callable[[Call], None] | None = None
) -> Desk:
    anatomy = binding.anatomy.attention
    late = {name: tap for name, tap in taps.items() if name not in ("q", "k", "v")}

    def desk(call: Call) -> tuple[Tensor, Tensor | None]:
        call = tap_inputs(call, taps)
        if keep is not None:
            keep(replace(call, own=None))  # what is kept outlives the model
        return attend(call, anatomy, late)

    return desk


def _begin_graph(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
    """Let a graph reach every site although the weights are frozen."""
    return None if output.requires_grad else output.detach().requires_grad_()


def _input_hook(steps: list[_Step]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = args[0] if args else kwargs["hidden_states"]
        value = _through(steps, first)
        if value is first:
            return None
        return ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})

    return hook


def _output_hook(steps: list[_Step]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            value = _through(steps, output)
            return None if value is output else value
        if isinstance(output, tuple):
            parts = list(output)
            for step in steps:
                parts[step.part.index] = _through([step], parts[step.part.index])
            return tuple(parts)
        value = _through(steps, output.logits)
        if value is not output.logits:
            output.logits = value
        return output

    return hook


def _through(steps: list[_Step], raw: Tensor) -> Tensor:
    for step in steps:
        layout = step.part.layout
        grad = torch.is_grad_enabled()
        value = layout.read(raw.view_as(raw) if step.is_own and grad else raw)
        if step.part.is_flat:
            value = value.unflatten(0, step.plan.shape)
        new = step.act(value)
        if new is value and not (grad and value is not raw):
            continue  # with gradients, what was read must be what goes on, not a view beside the path
        if step.part.is_flat:
            new = new.flatten(0, 1)
        raw = new if isinstance(layout, Plain) else layout.write(raw, new)
    return raw
