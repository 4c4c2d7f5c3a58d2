"""Node attribution: against gradients, against real patches, and on a model whose heads are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.precision import double
from family_cases import opened, oracle
from mechscope.attribution.node_scores import NodeScores
from mechscope.attribution.nodes import attribute
from mechscope.attribution.settings import NodeSettings, steps_of
from mechscope.attribution.verification import bound_of
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import KL
from mechscope.patching.grid import patch_grid
from mechscope.specimens.induction import truth
from mechscope.vocabulary.errors import BadPairs, InterventionMismatch, NoGradient
from mechscope.vocabulary.sites import Site
from patching.drawn_pairs import DrawnPairs, induction_pairs, random_pairs, specimen

LINEAR = (
    "native_attention_only"  # without norms, what the last layer's heads write reaches the logits linearly
)


def pairs_of(name: str) -> DrawnPairs:
    return random_pairs(opened(name), lengths=(7, 7), differ_at=(1, 3))


@pytest.mark.parametrize("site", ["z", "resid_pre", "mlp_post", "pattern", "k", "attn_out"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_scores_are_differences_times_gradients(site: str, direction: str) -> None:
    name = "llama"
    model, pairs = opened(name), pairs_of(name)
    donor, recipient = (
        (pairs.corrupt, pairs.clean) if direction == "noising" else (pairs.clean, pairs.corrupt)
    )
    answers, wrong = pairs.metric.answers, pairs.metric.wrong  # type: ignore[union-attr]
    with double(name):
        found = attribute(model, pairs, site=site, direction=direction, positions="all")  # type: ignore[arg-type]
        gradients = model.gradients(
            recipient,
            of=lambda x: sum(x[i, -1, answers[i][0]] - x[i, -1, wrong[i][0]] for i in range(2)),
            at=f"{site}.*",
        )
        given, own = (model.run(b, capture=f"{site}.*") for b in (donor, recipient))
        for layer in range(model.n_layers):
            at = Site(site, layer)
            product = (given[at] - own[at]) * gradients[at]
            axis = next((i for i, a in enumerate(at.row.axes) if a in ("head", "kv_head", "d_mlp")), None)
            others = [i for i in range(product.ndim) if i not in (0, axis)]
            wanted = product.sum(others).detach().movedim(0, -1).numpy()
            np.testing.assert_allclose(found.per_pair.values[layer], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["attribution", "ig"])
def test_where_the_rest_is_linear_scores_are_real_patches(method: str) -> None:
    with double(LINEAR):
        predicted = attribute(
            opened(LINEAR), pairs_of(LINEAR), site="z.2", method=method, direction="noising"
        )
        measured = patch_grid(opened(LINEAR), pairs_of(LINEAR), site="z.2", direction="noising")
    np.testing.assert_allclose(predicted.scores.values, measured.effects.values, rtol=0, atol=1e-9)
    assert predicted.scores.coords == measured.effects.coords


@pytest.mark.parametrize("site", ["q.2", "k.2"])
@pytest.mark.parametrize("positions", ["all", "each"])
def test_a_recomputed_softmax_makes_query_and_key_patches_exact(site: str, positions: str) -> None:
    settings = NodeSettings(n_verified=2, n_subsets=0)
    said = {"site": site, "direction": "noising", "positions": positions}
    with double(LINEAR):
        fixed = attribute(opened(LINEAR), pairs_of(LINEAR), method="atp*", settings=settings, **said)  # type: ignore[arg-type]
        plain = attribute(opened(LINEAR), pairs_of(LINEAR), **said)  # type: ignore[arg-type]
        grid = patch_grid(opened(LINEAR), pairs_of(LINEAR), **said)  # type: ignore[arg-type]
    wanted = grid.per_pair.values - grid.clean.values
    np.testing.assert_allclose(fixed.per_pair.values, np.abs(wanted), rtol=0, atol=1e-9)
    assert np.abs(np.abs(plain.per_pair.values) - np.abs(wanted)).max() > 1e-4  # without it they are not
    assert fixed.measured is not None and fixed.bound is None
    is_verified = ~np.isnan(fixed.measured.values)
    assert is_verified.sum() == 2
    effects = grid.effects.values
    np.testing.assert_allclose(fixed.measured.values[is_verified], effects[is_verified], rtol=0, atol=1e-9)


def one_layer_dropped_at_a_time(name: str, pairs: DrawnPairs, point: str) -> np.ndarray:
    """|difference x gradient| with each layer's contributions to the stream held in turn, over L - 1: by definition."""
    arithmetic, metric = oracle(name), pairs.metric
    answers, wrong = (torch.tensor(ids) for ids in (metric.answers, metric.wrong))  # type: ignore[union-attr]
    donor = arithmetic.run(pairs.clean.ids, pairs.clean.n_pad)
    n_layers = arithmetic.n_layers
    total = 0.0
    for dropped in range(n_layers):
        before: dict[str, torch.Tensor] = {}

        def hold(
            site: str, before: dict[str, torch.Tensor] = before
        ) -> Callable[[torch.Tensor], torch.Tensor]:
            def edit(value: torch.Tensor) -> torch.Tensor:
                before[site] = value
                return value.detach()

            return edit

        edits = {f"{kind}.{dropped}": hold(f"{kind}.{dropped}") for kind in ("attn_out", "mlp_out")}
        with torch.enable_grad():
            edits["embed"] = lambda value: value.detach().requires_grad_()
            values = arithmetic.run(pairs.corrupt.ids, pairs.corrupt.n_pad, edits)
            last = values["logits"][:, -1]
            measured = (last.gather(1, answers) - last.gather(1, wrong)).sum()
            at = [before.get(f"{point}.{i}", values[f"{point}.{i}"]) for i in range(n_layers)]
            found = torch.autograd.grad(measured, at, allow_unused=True)
        effects = []
        for i, (own, gradient) in enumerate(zip(at, found, strict=True)):
            slope = torch.zeros_like(own) if gradient is None else gradient
            product = ((donor[f"{point}.{i}"] - own) * slope).detach()
            axes = [1, 3] if point == "z" else [1, 2]
            effects.append(product.sum(axes).abs())
        total = total + torch.stack(effects)
    return (total / (n_layers - 1)).numpy()


@pytest.mark.parametrize("point", ["attn_out", "mlp_out", "z", "resid_pre"])
def test_gradients_are_averaged_with_one_layer_dropped_at_a_time(point: str) -> None:
    pairs, settings = pairs_of("gpt2"), NodeSettings(n_verified=0, n_subsets=0)
    with double("gpt2"):
        found = attribute(
            opened("gpt2"), pairs, site=point, method="atp*", positions="all", settings=settings
        )
        wanted = one_layer_dropped_at_a_time("gpt2", pairs, point)
    got = found.per_pair.values
    got = got.swapaxes(1, 2) if point == "z" else got
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)
    assert np.abs(wanted).max() > 1e-3


def test_a_softmax_with_shared_keys_windows_and_a_soft_cap_is_recomputed_too() -> None:
    settings = NodeSettings(n_verified=0, n_subsets=0)
    with double("gemma2"):
        pairs = random_pairs(opened("gemma2"), lengths=(8, 6), differ_at=(1, 3))
        single = attribute(
            opened("gemma2"), pairs, site="k", method="atp*", positions="from-end", settings=settings
        )
        named = {"one": [[3, 4], [3, 4]], "two": [[1], [1]]}
        wide = attribute(opened("gemma2"), pairs, site="k", method="atp*", positions=named, settings=settings)
        same = {"two": [[1], [1]], "three": [[2], [2]]}
        narrow = attribute(
            opened("gemma2"), pairs, site="k", method="atp*", positions=same, settings=settings
        )
    np.testing.assert_allclose(
        wide.per_pair.sel(pos="two").values, narrow.per_pair.sel(pos="two").values, rtol=0, atol=1e-10
    )
    assert single.per_pair.shape == (3, 2, 6, 2)


def test_integrated_gradients_add_up_to_the_patch_of_the_whole_layer() -> None:
    name = "llama"
    with double(name):
        pairs = pairs_of(name)
        errors: dict[int, float] = {}
        for steps in (4, 64):
            settings = NodeSettings(steps=steps)
            found = attribute(
                opened(name), pairs, site="resid_mid.1", method="ig", positions="all", settings=settings
            )
            grid = patch_grid(opened(name), pairs, site="resid_mid.1", positions="all")
            whole = grid.per_pair.values - grid.corrupt.values
            errors[steps] = float(np.abs(found.per_pair.values - whole).max() / np.abs(whole).max())
        once = attribute(opened(name), pairs, site="resid_mid.1", positions="all")
    assert errors[64] < 1e-3 and errors[64] < errors[4] / 20
    assert (
        float(np.abs(once.per_pair.values - whole).max() / np.abs(whole).max()) > 0.02
    )  # one gradient does not


@pytest.mark.parametrize("template", ["key", "query", "value"])
def test_the_heads_of_the_specimen_are_found(template: str) -> None:
    pairs = induction_pairs(specimen(), template, n=8)
    true = set(truth.HEADS_UNDER_RESAMPLING[template])
    for method in ("attribution", "ig"):
        found = attribute(specimen(), pairs, method=method).top(len(true))
        assert {(cell["layer"], cell["head"]) for cell, _ in found} == true
    relevant = attribute(specimen(), pairs, method="relp").top(1)[0][0]
    assert (relevant["layer"], relevant["head"]) == truth.INDUCTION


def test_a_saturated_key_is_found_by_the_recomputed_softmax_and_missed_by_the_gradient() -> None:
    pairs = induction_pairs(specimen(), "key", n=8)
    settings = NodeSettings(n_verified=3, n_subsets=32)
    found = attribute(specimen(), pairs, site="k", method="atp*", settings=settings)
    plain = attribute(specimen(), pairs, site="k")
    measured = patch_grid(specimen(), pairs, site="k").effects
    layer, head = truth.INDUCTION
    real = abs(float(measured.sel(layer=layer, kv_head=head).values))
    assert float(found.scores.sel(layer=layer, kv_head=head).values) == pytest.approx(real, rel=0.02)
    assert abs(float(plain.scores.sel(layer=layer, kv_head=head).values)) < 0.1 * real
    assert found.bound is not None and found.measured is not None
    rest = np.abs(measured.values[np.isnan(found.measured.values)])
    assert rest.max() <= found.bound < 0.1 * real


def test_a_bound_holds_as_often_as_it_says_and_needs_sets() -> None:
    draw = np.random.default_rng(0)
    held = []
    for _ in range(100):
        effects = draw.normal(size=20)
        members = draw.random((64, 20)) < 0.5
        held.append(
            bound_of(members @ effects + 0.1 * draw.normal(size=64), members) >= np.abs(effects).max()
        )
    assert np.mean(held) >= 0.95
    assert bound_of(np.zeros(3), np.ones((3, 5), dtype=bool)) == float("inf")


def test_steps_lie_where_their_rule_says() -> None:
    for rule in ("midpoint", "left", "right", "trapezoid"):
        places, weights = steps_of(4, rule)
        assert float(weights.sum()) == pytest.approx(1)
        assert (places[0] == 0) == (rule in ("left", "trapezoid"))
        assert (places[-1] == 1) == (rule in ("right", "trapezoid"))


def test_scores_are_saved_with_their_convention(tmp_path: Path) -> None:
    pairs = induction_pairs(specimen(), "key", n=4)
    found = attribute(specimen(), pairs, method="atp*", settings=NodeSettings(n_verified=2, n_subsets=8))
    found.save(tmp_path / "nodes.json")
    again = NodeScores.load(tmp_path / "nodes.json")
    assert again.per_pair == found.per_pair and again.bound == found.bound
    assert again.settings["n_subsets"] == 8 and again.top(2) == found.top(2)
    assert "at most" in repr(again) and again.plot() is not None


def test_what_cannot_be_answered_is_refused() -> None:
    pairs = induction_pairs(specimen(), "key", n=2)
    reference = Value(specimen().logits(pairs.clean)[:, -1])
    with pytest.raises(NoGradient, match="minimum in its own reference"):
        attribute(specimen(), replace(pairs, metric=KL(reference=reference)), direction="noising")
    with pytest.raises(InterventionMismatch, match="no gradient while attention patterns are held"):
        attribute(specimen(), pairs, site="q", method="relp")
    with pytest.raises(InterventionMismatch, match="method of attribution"):
        attribute(specimen(), pairs, method="shapley")
    with pytest.raises(BadPairs, match="another model"):
        attribute(opened("gpt2"), pairs)


def test_the_model_is_left_as_it_was() -> None:
    model, pairs = opened("gpt2"), pairs_of("gpt2")
    before = model.logits(pairs.clean)
    grads = [weight.grad for weight in model.hf.parameters()]
    own = [module.__dict__.get("forward") for module in model.hf.modules()]
    attribute(model, pairs, method="relp")
    assert torch.equal(model.logits(pairs.clean), before)
    assert [module.__dict__.get("forward") for module in model.hf.modules()] == own
    assert all(weight.grad is grad for weight, grad in zip(model.hf.parameters(), grads, strict=True))
