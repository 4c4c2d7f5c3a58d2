"""Every architecture's loss, and the gradient of every tensor, equal a few lines of plain arithmetic and autograd."""

import pytest
import torch
from torch import Tensor

from dictionaries.test_training import CONFIGS, HERE, D, F, blocks, training
from mechscope.dictionaries.training.learner import Learner, Moment
from mechscope.dictionaries.training.objective import compute_outcome
from mechscope.dictionaries.training.spec import Job, Revival, Schedule

K, L0, LOOSE, PRESSURE, DONE = 4, 4.0, 1.25, 46 / 60, 45 / 60
DEAD, AUX_K, AUX_WEIGHT = torch.arange(0, F, 5), 4, 1 / 8
Tensors = dict[str, Tensor]
Fired = tuple[Tensor, Tensor | float]
"""Codes [row, latent], and all of the loss but the reconstruction's."""


def pre(x: Tensor, p: Tensors) -> Tensor:
    return (x - p["b_dec"]) @ p["enc"].T + p.get("b_enc", 0)


def largest(values: Tensor, k: int, dim: int = -1) -> Tensor:
    return torch.zeros_like(values).scatter(dim, values.topk(k, dim=dim).indices, 1.0)


def ramp(distance: Tensor) -> Tensor:
    """A step that is linear in the band: its slope is what a straight-through estimator passes on."""
    return (distance / CONFIGS["jumprelu"].bandwidth + 0.5).clamp(0, 1)


def through(a: Tensor, threshold: Tensor) -> Tensor:
    """Zero, with the gradient of the ramp with respect to the threshold."""
    smooth = ramp(a.detach() - threshold)
    return smooth - smooth.detach()


def topk(x: Tensor, p: Tensors) -> Fired:
    a = pre(x, p)
    return (a * largest(a, round(K * LOOSE))).relu(), 0.0


def batch_topk(x: Tensor, p: Tensors) -> Fired:
    a = pre(x, p)
    chosen = largest(a.reshape(-1), round(K * LOOSE * len(x))).reshape(a.shape)
    return (a * chosen).relu(), 0.0


def jumprelu(x: Tensor, p: Tensors, kind: str = "quadratic") -> Fired:
    config, a, limit = (
        CONFIGS["jumprelu" if kind == "quadratic" else f"jumprelu {kind}"],
        pre(x, p),
        p["threshold"],
    )
    is_on = (a > limit).to(a)
    f = a * is_on + limit.detach() * through(a, limit)
    count = (is_on + through(a, limit)).sum(1).mean() / (L0 * LOOSE)
    cost = {"quadratic": (count - 1) ** 2, "step": count}.get(kind)
    if cost is None:
        cost = (config.steepness * f * p["dec"].norm(dim=1)).tanh().sum(1).mean() / (L0 * LOOSE)
    return f, PRESSURE * config.coefficient * cost


def relu(x: Tensor, p: Tensors) -> Fired:
    f = pre(x, p).relu()
    cost = (f * p["dec"].norm(dim=1)).sum(1).mean() / D**0.5
    return f, CONFIGS["relu"].l1 * PRESSURE * cost


def p_anneal(x: Tensor, p: Tensors) -> Fired:
    config, f = CONFIGS["p_anneal"], pre(x, p).relu()
    power = 1 + (config.p - 1) * (DONE - config.begins) / (1 - config.begins)
    size = f * p["dec"].norm(dim=1)
    powered = torch.where(size > 0, size.clamp_min(1e-8) ** power, 0.0)
    factor = (size.sum() / powered.sum()).detach()
    return f, config.l1 * PRESSURE * factor * powered.sum(1).mean() / D**0.5


def gated(x: Tensor, p: Tensors) -> Fired:
    bare = pre(x, p)
    opening = bare + p["b_gate"]
    f = torch.where(opening > 0, (bare * p["r_mag"].exp() + p["b_mag"]).relu(), 0.0)
    gate = opening.relu()
    cost = CONFIGS["gated"].l1 * PRESSURE * (gate * p["dec"].norm(dim=1)).sum(1).mean() / D**0.5
    return f, cost + (gate @ p["dec"].detach() + p["b_dec"].detach() - x).pow(2).mean()


def groupmax(x: Tensor, p: Tensors) -> Fired:
    a = pre(x, p).reshape(len(x), K, -1)
    return (a * largest(a, 1)).relu().reshape(len(x), -1), 0.0


def matching_pursuit(x: Tensor, p: Tensors) -> Fired:
    left, f = x - p["b_dec"], x.new_zeros(len(x), F)
    for _ in range(round(K * LOOSE)):
        best = (left @ p["dec"].T / p["dec"].norm(dim=1)).argmax(1)
        rows = p["dec"][best]
        size = ((left * rows).sum(1) / rows.pow(2).sum(1)).relu()
        f = f.scatter_add(1, best[:, None], size[:, None])
        left = left - size[:, None] * rows
    return f, 0.0


ORACLES = {
    "topk": topk,
    "batch_topk": batch_topk,
    "jumprelu": jumprelu,
    "jumprelu step": lambda x, p: jumprelu(x, p, "step"),
    "jumprelu tanh": lambda x, p: jumprelu(x, p, "tanh"),
    "relu": relu,
    "p_anneal": p_anneal,
    "gated": gated,
    "matryoshka": batch_topk,
    "groupmax": groupmax,
    "matching_pursuit": matching_pursuit,
}


def oracle_loss(name: str, x: Tensor, p: Tensors) -> Tensor:
    f, more = ORACLES[name](x, p)
    sizes = CONFIGS[name].prefixes or (F,)
    errors = [f[:, :n] @ p["dec"][:n] + p["b_dec"] - x for n in sizes]
    loss = sum(error.pow(2).mean() for error in errors) / len(sizes) + more
    if name == "matching_pursuit":
        return loss
    half = len(x) // 2
    left = -errors[-1].detach()[:half]
    a = pre(x[:half], p)[:, DEAD]
    nearest = (a * largest(a, AUX_K)).relu() @ p["dec"][DEAD]
    spread = (left - left.mean(0)).pow(2).mean()
    return loss + AUX_WEIGHT * (nearest - left).pow(2).mean() / spread


def learner_of(name: str) -> tuple[Learner, Tensor]:
    settings = training(
        precision="full",
        revival=Revival(aux_k=AUX_K, aux_share=0.5, aux_weight=AUX_WEIGHT, dead_after_tokens=1000),
        schedule=Schedule(sparsity_warmup=1.0, k_start=2.0, k_decay=1.0),
    )
    learner = Learner(
        Job(config=CONFIGS[name], reads=(HERE,)), settings, shapes=blocks().shapes, dtype=torch.float64
    )
    values = {HERE: blocks().values[HERE][:96]}
    learner.calibrate(values)
    learner.dead = DEAD
    learner.state["since_fired"][::3] = 2000
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # so that no bias is zero, and no row has norm one
        for tensor in learner.params.values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return learner, learner.normalized(values)[0]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_loss_and_gradients_are_those_of_plain_arithmetic(name: str) -> None:
    learner, x = learner_of(name)
    outcome = compute_outcome(learner, x, x, Moment(45, 60))
    outcome.loss.backward()
    leaves = {key: value.detach().clone().requires_grad_() for key, value in learner.params.items()}
    wanted = oracle_loss(name, x, {key.removesuffix(".0"): value for key, value in leaves.items()})
    wanted.backward()
    assert torch.allclose(outcome.loss, wanted, rtol=1e-10)
    for key, leaf in leaves.items():
        found = learner.params[key].grad
        assert found is not None and leaf.grad is not None and leaf.grad.abs().max() > 0, key
        assert torch.allclose(found, leaf.grad, rtol=1e-7, atol=1e-12), key


def test_the_oracle_would_see_a_threshold_that_is_told_wrongly() -> None:
    """The twin: the same loss with another bandwidth has other gradients of thresholds, and only of them."""
    learner, x = learner_of("jumprelu")
    grads = []
    for bandwidth in (0.3, 0.2):
        params = {key: value.detach().clone().requires_grad_() for key, value in learner.params.items()}
        config = CONFIGS["jumprelu"].__class__(width=F, l0=L0, bandwidth=bandwidth)
        other = Learner(
            Job(config=config, reads=(HERE,)), learner.training, shapes=blocks().shapes, dtype=torch.float64
        )
        other.params, other.state, other.dead = params, dict(learner.state), DEAD
        compute_outcome(other, x, x, Moment(45, 60)).loss.backward()
        grads.append({key: value.grad for key, value in params.items()})
    differ = {key for key in grads[0] if not torch.allclose(grads[0][key], grads[1][key])}
    assert differ == {"threshold.0"}
