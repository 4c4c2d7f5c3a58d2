"""The contract that every family must pass: every point has its shape, its value and its effects.

Values and effects are compared with `arithmetic_forward`, which shares no code with adapters or sessions. Each
write has a row of one batch to itself, so that a family's sites, all layers of them, are tried in one pass.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from arithmetic_forward import in_double
from family_cases import FAMILIES, cases, difference, edit_of_row, opened, oracle, rows, sites_of
from mechscope.models.binding import Binding
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.running import Order, forward
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where
from nudge import Nudge

EXACT = 1e-10
LOGITS = Site("logits")
ONE_OF_EACH_KIND = (
    "embed",
    "q_proj",
    "pattern",
    "resid_mid",
    "mlp_in",
    "router_logits",
    "expert_out",
    "logits",
)


@dataclass(frozen=True)
class Trial:
    """A batch whose row i runs under a write at `sites[i]`: what the model gives, and what arithmetic gives."""

    sites: list[Site]
    batch: TokenBatch
    got: dict[Site, Tensor]
    wanted: dict[str, Tensor]
    plain: Tensor


@cache
def trial(name: str) -> Trial:
    model, sites = opened(name), sites_of(name)
    batch = rows(len(sites))
    writes = [Nudge(str(site), Where(rows=(i,))) for i, site in enumerate(sites)]
    edits = {str(site): edit_of_row(name, site, i, batch) for i, site in enumerate(sites)}
    with torch.no_grad(), in_double():
        run = model.run(batch, interventions=writes, capture=model.binding.formed)
        plain = model.logits(batch)
        wanted = oracle(name).run(batch.ids, batch.n_pad, edits)
    return Trial(sites, batch, {site: run.cache[site] for site in model.binding.formed}, wanted, plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_point_has_its_value_and_shape(name: str) -> None:
    model, batch = opened(name), rows()
    with torch.no_grad(), in_double():
        run = model.run(batch, capture=model.binding.formed)
        wanted = oracle(name).run(batch.ids, batch.n_pad)
    assert {str(site) for site in model.binding.formed} == set(wanted), (
        "each point is formed, and nothing else"
    )
    sizes = model.sizes | {"batch": 2, "pos": 9, "query": 9, "key": 9}
    for site in model.binding.formed:
        assert difference(site, run.cache[site], wanted[str(site)], batch) < EXACT, site
        shape = run.cache[site].shape
        assert all(sizes.get(axis, n) == n for axis, n in zip(site.row.axes, shape, strict=True)), (
            site,
            shape,
        )


WITHOUT_HEAD_OUTPUTS = ("bloom", "falcon_7b", "falcon_40b", "falcon_rw")
"""Families in which no head's own output can be derived."""

NORMS = ("ln1", "ln2", "ln_final")


@pytest.mark.parametrize("name", FAMILIES)
def test_head_outputs_sum_to_what_attention_returns_less_its_bias(name: str) -> None:
    model, batch = opened(name), rows()
    sites = {str(site) for site in model.sites}
    assert ("head_out.1" in sites) == (name not in WITHOUT_HEAD_OUTPUTS)
    if "head_out.1" not in sites:
        return
    with torch.no_grad(), in_double():
        cache = model.run(batch, capture=["z.1", "attn_raw.1"]).cache
        total = cache["head_out.1"].sum(2)
        if model.weights.has("b_O", 1):
            total = total + model.weights["b_O", 1]
    assert difference(Site("attn_raw", 1), total, cache["attn_raw.1"], batch) < EXACT


@pytest.mark.parametrize("name", FAMILIES)
def test_a_norms_output_is_a_line_in_each_coordinate_of_its_unscaled_output(name: str) -> None:
    """Weight and bias act on each coordinate by itself; the slopes are found by least squares, not read."""
    model, batch = opened(name), rows()
    real = batch.mask.bool()
    with torch.no_grad(), in_double():
        cache = model.run(batch, capture="*").cache
        for norm in NORMS:
            at = "" if norm == "ln_final" else ".1"
            if f"{norm}_normalized{at}" not in {str(site) for site in model.sites}:
                continue
            before, after = cache[f"{norm}_normalized{at}"][real], cache[f"{norm}{at}"][real]
            x, y = before - before.mean(0), after - after.mean(0)
            slope = (x * y).sum(0) / x.square().sum(0)
            assert float((y - slope * x).abs().max() / y.abs().max()) < EXACT, norm
            if name != "native_bidirectional":  # its weights are 1
                assert float((y - x).abs().max() / y.abs().max()) > 1e-6, "weights of 1 would show nothing"


@pytest.mark.parametrize(("name", "point"), cases())
def test_a_write_has_the_effects_of_arithmetic_and_no_other(name: str, point: str) -> None:
    tried = trial(name)
    for row, site in enumerate(tried.sites):
        if site.point == point:
            for found, value in tried.got.items():
                assert difference(found, value, tried.wanted[str(found)], tried.batch, row) < EXACT, (
                    site,
                    found,
                )
            assert difference(LOGITS, tried.got[LOGITS], tried.plain, tried.batch, row) > 1e-3, site


def test_the_law_catches_a_resid_mid_write_that_reaches_the_mlp_only() -> None:
    model, batch, site = opened("llama"), rows(), Site("resid_mid", 1)
    norm = model.binding.layers[1].get_submodule("post_attention_layernorm")
    edit = edit_of_row("llama", site, 0, batch)
    with torch.no_grad(), in_double():
        handle = norm.register_forward_pre_hook(lambda _m, args: (edit(args[0]),))
        try:
            wrong = model.logits(batch)
        finally:
            handle.remove()
        wanted = oracle("llama").run(batch.ids, batch.n_pad, {str(site): edit})["logits"]
    assert difference(LOGITS, wrong, wanted, batch, 0) > 0.1
    assert difference(LOGITS, wrong, wanted, batch, 1) < EXACT


@pytest.mark.parametrize("point", ["scores", "pattern", "sink", "q"])
def test_a_cache_shows_the_maps_that_were_used_under_a_write(point: str) -> None:
    model, batch = opened("gpt_oss"), rows()
    with torch.no_grad():
        _, cache = model.run_with_cache(batch, interventions=[Nudge(f"{point}.1")])
        asked = model.run(batch, interventions=[Nudge(f"{point}.1")], capture=["scores.1", "pattern.1"])
        _, plain = model.run_with_cache(batch)
        for name in ("scores.1", "pattern.1"):
            assert difference(Site.parse(name), cache[name], asked[name], batch) < 1e-6
        assert difference(Site("pattern", 1), cache["pattern.1"], plain["pattern.1"], batch) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_write_to_the_whole_batch_equals_writes_to_its_rows(name: str) -> None:
    model, batch = opened(name), rows()
    sites = [site for site in sites_of(name) if site.layer in (None, 1)]
    with torch.no_grad(), in_double():
        whole = model.logits(batch, interventions=[Nudge(str(site)) for site in sites])
        each = [Nudge(str(site), Where(rows=(row,))) for site in sites for row in range(2)]
        assert difference(LOGITS, whole, model.logits(batch, interventions=each), batch) < EXACT
        assert difference(LOGITS, whole, model.logits(batch, interventions=each[:-1]), batch) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_writing_own_values_back_changes_nothing(name: str) -> None:
    model, batch = opened(name, torch.float32), rows()
    with torch.no_grad():
        plain = forward(model.binding, Frame.of(batch), Order()).logits
        same = forward(
            model.binding, Frame.of(batch), Order(writers=dict.fromkeys(sites_of(name), torch.clone))
        ).logits
    assert plain is not None and same is not None
    assert difference(LOGITS, same, plain, batch) < 5e-6 * float(plain.max() - plain.min())


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_at_every_point_match_finite_differences(name: str) -> None:
    model = opened(name)
    sites = [site for site in sites_of(name) if site.point != "expert_choice"]
    batch = rows(len(sites))
    with in_double():
        weight = torch.randn(model.logits(batch).shape, generator=torch.Generator().manual_seed(7)).double()
        weight = weight * batch.mask[:, :, None]
        gradients = model.gradients(batch, of=lambda logits: (logits * weight).sum(), at=sites)
        steps = {site: step_along(gradients[site], row) for row, site in enumerate(sites)}
        wanted = slopes(model.binding, batch, steps, weight)
    for row, site in enumerate(sites):
        got = float((gradients[site] * steps[site]).sum())
        assert abs(float(wanted[row])) > 1e-6, f"no gradient arrives at {site}"
        assert abs(got - float(wanted[row])) <= 2e-5 * max(1.0, abs(got)), (site, got, float(wanted[row]))


def step_along(gradient: Tensor, row: int) -> Tensor:
    """A random step of one row, in the gradient's own support: masked scores and padding have none."""
    noise = torch.rand(gradient.shape, generator=torch.Generator().manual_seed(11)).double()
    chosen = (torch.arange(len(gradient)) == row).reshape(-1, *[1] * (gradient.ndim - 1))
    return noise * gradient.sign() * chosen


def slopes(
    binding: Binding, batch: TokenBatch, steps: dict[Site, Tensor], weight: Tensor, size: float = 1e-6
) -> Tensor:
    """Central difference of each row's weighted logits, row i stepping at the i-th site."""
    sums = []
    for sign in (1, -1):
        writers = {site: lambda value, s=sign, at=step: value + s * size * at for site, step in steps.items()}
        with torch.no_grad():
            logits = forward(binding, Frame.of(batch), Order(writers=writers)).logits
        assert logits is not None
        sums.append((logits * weight).sum((1, 2)))
    return (sums[0] - sums[1]) / (2 * size)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_do_not_need_weights_that_learn(name: str) -> None:
    model, batch = opened(name), rows()
    sites = [site for site in sites_of(name) if site.layer in (None, 1) and site.point != "expert_choice"]
    with in_double():
        free = model.gradients(batch, of=lambda logits: logits[:, -1].sin().sum(), at=sites)
        parameters = list(model.hf.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            frozen = model.gradients(batch, of=lambda logits: logits[:, -1].sin().sum(), at=sites)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)
    for site in sites:
        assert torch.allclose(free[site], frozen[site], atol=1e-9), site


@pytest.mark.parametrize("name", FAMILIES)
def test_stopping_early_and_starting_late_equal_the_full_run(name: str) -> None:
    model, batch, nudge = opened(name), rows(), Nudge("attn_out.1")
    with torch.no_grad(), in_double():
        full = model.run(batch, capture=["resid_pre.*", "resid_post.*"])
        stopped = model.run(batch, capture=["resid_post.*"], stop_after="resid_post.1")
        start = ("resid_pre.1", full["resid_pre.1"])
        resumed = model.run(batch, start=start).logits
        changed = model.logits(batch, interventions=[nudge])
        resumed_and_changed = model.run(batch, start=start, interventions=[nudge]).logits
    assert stopped.logits is None and Site("resid_post", 2) not in list(stopped.cache)
    assert torch.equal(stopped["resid_post.1"], full["resid_post.1"])
    assert full.logits is not None and resumed is not None and resumed_and_changed is not None
    assert difference(LOGITS, resumed, full.logits, batch) < EXACT
    assert difference(LOGITS, resumed_and_changed, changed, batch) < EXACT
    assert difference(LOGITS, changed, full.logits, batch) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_padded_row_gives_what_it_gives_alone_under_every_write(name: str) -> None:
    # The nudge of a map depends on the key's column, which padding moves.
    sites = [site for site in sites_of(name) if not site.row.is_attention_map]
    model, padded = opened(name), rows(2)
    alone = padded.select([1] * len(sites))
    together = padded.select([0] + [1] * len(sites))
    with torch.no_grad(), in_double():
        a = model.logits(alone, interventions=[Nudge(str(s), Where(rows=(i,))) for i, s in enumerate(sites)])
        b = model.logits(
            together, interventions=[Nudge(str(s), Where(rows=(i + 1,))) for i, s in enumerate(sites)]
        )
    worst = (b[1:, 3:] - a).abs().amax((1, 2))
    assert float(worst.max()) < EXACT, sites[int(worst.argmax())]


def state_of(hf: nn.Module) -> dict[str, object]:
    """Everything that a run could leave behind."""
    configs = {id(m.config): m.config for m in hf.modules() if "config" in vars(m)}
    modules = list(hf.modules())
    return {
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules),
        "attention": [c._attn_implementation_internal for c in configs.values()],
        "experts": [c._experts_implementation_internal for c in configs.values()],
        "attributes": [sorted(vars(m)) for m in modules],
        "training": [m.training for m in modules],
        "grad": [p.requires_grad for p in hf.parameters()],
    }


class Breaking(Nudge):
    """A write that raises in the middle of a forward pass."""

    def apply(self, value: Tensor, tokens: object) -> Tensor:
        raise ZeroDivisionError


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_left_as_found_also_after_an_exception(name: str) -> None:
    model, batch = opened(name, torch.float32), rows()
    before = state_of(model.hf)
    with torch.no_grad():
        untouched = model.hf(input_ids=batch.ids[:1]).logits
        model.run(batch, interventions=[Nudge(str(s)) for s in sites_of(name)], start=None)
        model.run(batch, start=("resid_pre.1", model.run(batch, capture=["resid_pre.1"])["resid_pre.1"]))
        assert state_of(model.hf) == before
        for site in [
            site for site in sites_of(name) if site.point in ONE_OF_EACH_KIND and site.layer in (None, 2)
        ]:
            with pytest.raises(ZeroDivisionError):
                model.logits(batch, interventions=[Breaking(str(site))])
            assert state_of(model.hf) == before, site
        assert torch.equal(model.hf(input_ids=batch.ids[:1]).logits, untouched)
