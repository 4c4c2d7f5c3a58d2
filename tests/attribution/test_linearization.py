"""What a linearization holds: against a plain-arithmetic forward with the same parts detached."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from arithmetic_forward import Arithmetic
from attribution.precision import double
from family_cases import opened, rows
from mechscope.attribution.linearization import Linearization, attribution_graph, plain, relp
from mechscope.attribution.passes import Request, run_backward
from mechscope.interventions.metrics import LogitDifference
from mechscope.vocabulary.errors import PointUnavailable
from mechscope.vocabulary.sites import Site

EMBEDDED = Site("resid_pre", 0)
METRIC = LogitDifference(answers=((3,), (5,)), wrong=((7,), (1,)))
SETTINGS = {
    "plain": plain(),
    "relp": relp(),
    "attribution graph": attribution_graph(),
    "patterns": Linearization(patterns="held"),
    "norms": Linearization(norms="held"),
    "ratios": Linearization(activations="ratio"),
    "gates": Linearization(gates="held"),
    "halves": Linearization(gates="half"),
}


class Detached(Arithmetic):
    """The arithmetic forward with a linearization's parts detached."""

    def __init__(self, hf: Any, linearization: Linearization) -> None:
        super().__init__(hf)
        self.held = linearization

    def norm(self, path: str, kind: str | None = None) -> Callable[[Tensor], Tensor]:
        if self.held.norms == "free":
            return super().norm(path, kind)
        weight, bias = self.weights.get(path + ".weight"), self.weights.get(path + ".bias")
        weight = torch.ones(()) if weight is None else weight + self.names.offset

        def apply(x: Tensor) -> Tensor:
            x = x - x.mean(-1, keepdim=True) if (kind or self.names.kind) == "layer" else x
            scale = (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt().detach()
            return x / scale * weight + (0 if bias is None else bias)

        return apply

    def softmax(self, here: str, scores: Tensor, at: Any) -> Tensor:
        found = super().softmax(here, scores, at)
        return found.detach() if self.held.patterns == "held" else found

    def mlp(self, index: int, x: Tensor, at: Any) -> Tensor:
        if self.held.mlps == "held":
            return super().mlp(index, x.detach(), at)
        names, here = self.names, self.names.layer.format(index)
        up = self.linear(here + names.up)(x)
        act = self.act if self.held.activations == "ratio" else names.act
        if names.gate is None:
            inner = act(up)
        else:
            gate = act(self.linear(here + names.gate)(x))
            inner = gate * up
            if self.held.gates == "half":
                inner = inner / 2 + inner.detach() / 2
            if self.held.gates == "held":
                inner = gate.detach() * up
        return self.linear(here + names.down)(inner)

    def act(self, x: Tensor) -> Tensor:
        return x * (self.names.act(x) / x).detach()


def gradient_by_hand(name: str, linearization: Linearization) -> Tensor:
    batch = rows()
    arithmetic = Detached(opened(name).hf, linearization)
    plainly = Arithmetic(opened(name).hf).run(batch.ids, batch.n_pad)
    leaf = plainly["resid_pre.0"].clone().requires_grad_()
    logits = arithmetic.run(batch.ids, batch.n_pad, {"resid_pre.0": lambda _: leaf})["logits"][:, -1]
    (logits[0, 3] - logits[0, 7] + logits[1, 5] - logits[1, 1]).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "native_parallel", "bert"])
@pytest.mark.parametrize("which", SETTINGS)
def test_gradients_are_those_of_the_model_with_the_held_parts_detached(name: str, which: str) -> None:
    with double(name):
        request = Request(at=(EMBEDDED,), linearization=SETTINGS[which])
        found = run_backward(opened(name), rows(), METRIC, request)
        wanted = gradient_by_hand(name, SETTINGS[which])
    torch.testing.assert_close(found.gradients[EMBEDDED], wanted, rtol=0, atol=1e-10)


def test_each_setting_gives_another_gradient() -> None:
    with double("llama"):
        found = [
            run_backward(opened("llama"), rows(), METRIC, Request(at=(EMBEDDED,), linearization=setting))
            for setting in SETTINGS.values()
        ]
    for i, one in enumerate(found):
        torch.testing.assert_close(
            one.measured, found[0].measured, rtol=0, atol=1e-12
        )  # the forward is the model's
        for other in found[:i]:
            assert float((one.gradients[EMBEDDED] - other.gradients[EMBEDDED]).abs().max()) > 1e-6


def test_a_rule_for_neurons_that_are_not_formed_is_refused() -> None:
    with pytest.raises(PointUnavailable, match=r"mlp_pre\.0"):
        run_backward(opened("mixtral"), rows(), METRIC, Request(at=(EMBEDDED,), linearization=relp()))
