"""Every architecture's loss, and the gradient of every tensor, equal a few lines of plain arithmetic and autograd.

In every kind: what is read and written, what is subtracted, and what a latent is priced at are written out here again.
"""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from dictionaries.test_training import CONFIGS, HERE, KINDS, D, F, blocks, training
from mechscope.dictionaries.architectures.base import decoder_norms
from mechscope.dictionaries.training.learner import Learner, Moment
from mechscope.dictionaries.training.objective import _auxiliary, compute_outcome
from mechscope.dictionaries.training.spec import Job, Revival, Schedule

K, L0, LOOSE, PRESSURE, DONE = 4, 4.0, 1.25, 46 / 60, 45 / 60
DEAD, AUX_K, AUX_WEIGHT = torch.arange(0, F, 5), 4, 1 / 8
Tensors = dict[str, Tensor]
Fired = tuple[Tensor, Tensor | float]
"""Codes [row, latent], and what sparsity costs."""


def pre(x: Tensor, p: Tensors) -> Tensor:
    return (x - p.get("shift", 0)) @ p["enc"].T + p.get("b_enc", 0)


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
    ranked = a * p["price"] if "is by site" in p else a
    chosen = largest(ranked.reshape(-1), round(K * LOOSE * len(x))).reshape(a.shape)
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
        cost = (config.steepness * f * p["price"]).tanh().sum(1).mean() / (L0 * LOOSE)
    return f, PRESSURE * config.coefficient * cost


def relu(x: Tensor, p: Tensors) -> Fired:
    f = pre(x, p).relu()
    cost = (f * p["price"]).sum(1).mean() / x.shape[1] ** 0.5
    return f, CONFIGS["relu"].l1 * PRESSURE * cost


def p_anneal(x: Tensor, p: Tensors) -> Fired:
    config, f = CONFIGS["p_anneal"], pre(x, p).relu()
    power = 1 + (config.p - 1) * (DONE - config.begins) / (1 - config.begins)
    size = f * p["price"]
    powered = torch.where(size > 0, size.clamp_min(1e-8) ** power, 0.0)
    factor = (size.sum() / powered.sum()).detach()
    return f, config.l1 * PRESSURE * factor * powered.sum(1).mean() / x.shape[1] ** 0.5


def gated(x: Tensor, p: Tensors) -> Fired:
    bare = pre(x, p)
    opening = bare + p["b_gate"]
    f = torch.where(opening > 0, (bare * p["r_mag"].exp() + p["b_mag"]).relu(), 0.0)
    cost = (opening.relu() * p["price"]).sum(1).mean() / x.shape[1] ** 0.5
    return f, CONFIGS["gated"].l1 * PRESSURE * cost


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
    """Of an SAE."""
    return loss_of(name, x, x, [Coder(p | {"shift": p["b_dec"], "price": p["dec"].norm(dim=1)})], p["b_dec"])


@dataclass
class Coder:
    """One encoder with its latents: its tensors, and the columns that it reads and writes."""

    p: Tensors
    reads: slice = field(default_factory=lambda: slice(None))
    writes: slice = field(default_factory=lambda: slice(None))


def loss_of(name: str, x: Tensor, y: Tensor, coders: list[Coder], base: Tensor) -> Tensor:
    """The sum of what all coders write, on a base, is held to the target; so is that of their dead latents."""
    fired = [ORACLES[name](x[:, one.reads], one.p) for one in coders]
    sizes = CONFIGS[name].prefixes or (F,)
    written = [base + total(y, coders, [f[:, :n] for f, _cost in fired]) for n in sizes]
    loss = sum((one - y).pow(2).mean() for one in written) / len(sizes) + sum(cost for _f, cost in fired)
    if name == "gated":  # the gate path reconstructs too, through decoders that do not move for it
        gates = [(pre(x[:, one.reads], one.p) + one.p["b_gate"]).relu() for one in coders]
        loss = loss + (base.detach() + total(y, coders, gates, frozen=True) - y).pow(2).mean()
    if name == "matching_pursuit":
        return loss
    half = len(x) // 2
    for one in coders:
        left = (y - written[-1]).detach()[:half, one.writes]
        a = pre(x[:half, one.reads], one.p)[:, DEAD]
        nearest = (a * largest(a, AUX_K)).relu() @ one.p["dec"][DEAD]
        spread = (left - left.mean(0)).pow(2).mean()
        loss = loss + AUX_WEIGHT * (nearest - left).pow(2).mean() / spread
    return loss


def total(y: Tensor, coders: list[Coder], codes: list[Tensor], *, frozen: bool = False) -> Tensor:
    found = torch.zeros_like(y)
    for one, f in zip(coders, codes, strict=True):
        rows = one.p["dec"][: f.shape[1]]
        part = torch.zeros_like(y)
        part[:, one.writes] = f @ (rows.detach() if frozen else rows)
        found = found + part
    return found


def coders_of(kind: str, p: Tensors) -> list[Coder]:
    """The coders of a kind from all its tensors, as the learner names them."""
    own = [{k.removesuffix(f".{i}"): v for k, v in p.items() if k.endswith(f".{i}")} for i in range(2)]
    if kind == "cross-layer":  # the first writes to both sites, and its row is priced as one vector
        priced = [one | {"price": one["dec"].norm(dim=1)} for one in own]
        return [Coder(priced[0], slice(0, D)), Coder(priced[1], slice(D, 2 * D), slice(D, 2 * D))]
    if kind == "crosscoder":
        price = own[0]["dec"][:, :D].norm(dim=1) + own[0]["dec"][:, D:].norm(dim=1)
        return [Coder(own[0] | {"shift": p["b_dec"], "price": price, "is by site": price})]
    return [Coder(own[0] | {"price": own[0]["dec"].norm(dim=1)})]


def learner_of(name: str, kind: str = "sae") -> tuple[Learner, Tensor, Tensor]:
    """A learner amid its training, with what it reads and writes, normalised."""
    settings = training(
        precision="full",
        revival=Revival(aux_k=AUX_K, aux_share=0.5, aux_weight=AUX_WEIGHT, dead_after_tokens=1000),
        schedule=Schedule(sparsity_warmup=1.0, k_start=2.0, k_decay=1.0),
    )
    job = Job(config=CONFIGS[name], **KINDS[kind])
    learner = Learner(job, settings, shapes=blocks().shapes, dtype=torch.float64)
    values = {site: value[:96] for site, value in blocks().values.items()}
    learner.calibrate(values)
    learner.dead = torch.cat([DEAD + F * i for i in range(len(learner.blocks))])
    learner.state["since_fired"][::3] = 2000
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # so that no bias is zero, and no row has norm one
        for tensor in learner.params.values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return learner, *learner.normalized(values)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_loss_and_gradients_are_those_of_plain_arithmetic(name: str) -> None:
    learner, x, _ = learner_of(name)
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


def test_few_dead_latents_weigh_less_than_all_that_may_learn() -> None:
    """Two of the four that AuxK takes count half, as where two of its latents were silent."""
    learner, x, _ = learner_of("topk")
    learner.dead, p = DEAD[:2], learner.params
    left = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    found = _auxiliary(learner, learner.views(x, Moment(45, 60)), left)
    wanted, taken = left[: len(left) // 2], x[: len(left) // 2] - p["b_dec"]
    pre = taken @ p["enc.0"][learner.dead].T + p["b_enc.0"][learner.dead]
    error = (pre.relu() @ p["dec.0"][learner.dead] - wanted).square().mean()
    size = (wanted - wanted.mean(0)).square().mean()
    assert found.item() == pytest.approx((AUX_WEIGHT * error / size).item() / 2, rel=1e-9)


def test_a_decoder_of_unit_rows_learns_only_what_keeps_their_length() -> None:
    """The twin: a free decoder's gradient is left as it is."""
    for policy in ("unit", "free"):
        learner, x, _ = learner_of("topk")
        learner.policy, rows = policy, learner.params["dec.0"]
        with torch.no_grad():
            rows.div_(rows.norm(dim=1, keepdim=True))
        compute_outcome(learner, x, x, Moment(45, 60)).loss.backward()
        assert rows.grad is not None
        before = rows.grad.clone()
        with torch.no_grad():
            learner._before_update()
        along = (before * rows).sum(1, keepdim=True)
        assert float(along.detach().abs().max()) > 1e-4
        torch.testing.assert_close(rows.grad, before - along * rows if policy == "unit" else before)


OF_KINDS = [
    (name, kind) for name in CONFIGS for kind in KINDS if kind != "sae" and name != "matching_pursuit"
]


@pytest.mark.parametrize(("name", "kind"), OF_KINDS)
def test_loss_and_gradients_of_every_kind_are_those_of_plain_arithmetic(name: str, kind: str) -> None:
    learner, x, y = learner_of(name, kind)
    outcome = compute_outcome(learner, x, y, Moment(45, 60))
    outcome.loss.backward()
    leaves = {key: value.detach().clone().requires_grad_() for key, value in learner.params.items()}
    base = leaves["b_dec"]
    if kind == "skip":
        base = base + x @ leaves["W_skip"].T
    wanted = loss_of(name, x, y, coders_of(kind, leaves), base)
    wanted.backward()
    assert torch.allclose(outcome.loss, wanted, rtol=1e-10)
    for key, leaf in leaves.items():
        found = learner.params[key].grad
        assert found is not None and leaf.grad is not None and leaf.grad.abs().max() > 0, key
        assert torch.allclose(found, leaf.grad, rtol=1e-7, atol=1e-12), key


def test_a_latent_of_one_site_is_cheaper_than_one_of_both() -> None:
    """Why norms are summed: rows of one length cost more, the more evenly they are spread over the sites."""
    learner, x, _ = learner_of("relu", "crosscoder")
    view = learner.views(x, Moment(45, 60))[0]
    row = torch.nn.functional.normalize(torch.ones(1, D, dtype=torch.float64), dim=1)
    alone, shared = torch.cat([row, 0 * row], 1), torch.cat([row, row], 1) / 2**0.5
    prices = [float(decoder_norms(replace(view, decoder=rows))) for rows in (alone, shared)]
    assert prices == pytest.approx([1, 2**0.5])
    plain = replace(view, widths=())
    assert [float(decoder_norms(replace(plain, decoder=rows))) for rows in (alone, shared)] == pytest.approx(
        [1, 1]
    )


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_a_crosscoder_is_kept_with_the_threshold_that_it_was_ranked_by(name: str) -> None:
    """The threshold x the summed norms is one number, that of training: the rule that the forks' files state."""
    learner, _, _ = learner_of(name, "crosscoder")
    values = {site: value[:96] for site, value in blocks().values.items()}
    learner.step(values, Moment(59, 60))
    found = learner.dictionary()
    rows = found.W_dec
    kept = found.threshold * (rows[:, 0].norm(dim=1) + rows[:, 1].norm(dim=1))
    passed, weight = learner.state["passed.0"]
    assert torch.allclose(kept, (passed / weight).expand(F)) and float(found.threshold.std()) > 0


def test_the_oracle_would_see_a_threshold_that_is_told_wrongly() -> None:
    """The twin: the same loss with another bandwidth has other gradients of thresholds, and only of them."""
    learner, x, _ = learner_of("jumprelu")
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
