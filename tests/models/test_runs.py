"""Runs: what is computed and what is not, gradients against finite differences, starting and stopping."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor

import mechscope as ms
from arithmetic_forward import in_double
from mechscope.models import running
from mechscope.models.opening import wrap
from mechscope.models.writing import to_token_form
from mechscope.vocabulary.errors import PointUnavailable, ShapeError, SiteAfterStop, UnknownSite
from nudge import Nudge
from small_models import biggest, direction, model_of, prompts, random_rows
from tiny_models import tiny

EXACT = 1e-11
FAMILIES = ("gpt2", "llama", "gemma2")


def layers_run(model: ms.Model, **order: object) -> list[int]:
    """Which layers' modules are called during a run."""
    called: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: called.append(i))
        for i, layer in enumerate(model.binding.layers)
    ]
    handles += [
        layer.register_forward_pre_hook(lambda *_, i=i: called.append(-i - 1))
        for i, layer in enumerate(model.binding.layers)
    ]
    try:
        model.run(prompts(), **order)  # type: ignore
    finally:
        for handle in handles:
            handle.remove()
    return called


def test_nothing_after_the_stop_is_computed() -> None:
    model = model_of()
    assert layers_run(model, stop_after="resid_post.0") == [-1, 0]
    assert layers_run(model, stop_after="attn_out.1") == [-1, 0, -2], "layer 1 is entered and not left"
    assert layers_run(model) == [-1, 0, -2, 1, -3, 2]
    heads: list[int] = []
    handle = model.binding.head.register_forward_hook(lambda *_: heads.append(1))
    try:
        assert model.run(prompts(), stop_after="ln_final").logits is None
        assert heads == []
        model.run(prompts())
        assert heads == [1]
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_site_can_be_stopped_at_with_all_before_it_captured(family: str) -> None:
    model, batch = model_of(family), prompts()
    whole = model.run(batch, capture=model.sites).cache
    for stop in [site for site in model.sites if site.layer in (None, 1)]:
        if stop.point == "logits":
            continue
        before = [site for site in model.sites if site <= stop]
        cache = model.run(batch, capture=before, stop_after=stop).cache
        for site in before:
            got, wanted = cache[site], whole[site]
            assert torch.equal(got[:, -5:], wanted[:, -5:]) or biggest_finite(got, wanted) < 1e-10, (
                stop,
                site,
            )


def biggest_finite(a: Tensor, b: Tensor) -> float:
    finite = torch.isfinite(a) & torch.isfinite(b)
    return float((a - b)[finite].abs().max())


def test_a_site_after_the_stop_is_refused_while_a_pattern_means_what_is_before_it() -> None:
    model = model_of()
    run = model.run(prompts(), capture=["resid_post.*", "z.*"], stop_after="resid_post.1")
    assert {str(site) for site in run.cache} == {"resid_post.0", "resid_post.1", "z.0", "z.1"}
    with pytest.raises(SiteAfterStop, match=r"mlp_out\.2 lies behind"):
        model.run(prompts(), capture=["mlp_out.2"], stop_after="resid_post.1")
    with pytest.raises(SiteAfterStop, match="was not captured"):
        run.cache["z.2"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_run_from_a_layer_equals_the_whole_run(family: str, layer: int) -> None:
    model, batch = model_of(family), prompts()
    whole = model.run(batch, capture=["resid_pre.*", "z.2"])
    run = model.run(batch, start=(("resid_pre", layer), whole[f"resid_pre.{layer}"]), capture=["z.*"])
    assert biggest(run.logits, whole.logits, batch) < EXACT
    assert biggest(run["z.2"], whole["z.2"], batch) < EXACT
    assert {site.layer for site in run.cache} == set(range(layer, 3))
    other = model.run(batch, start=(f"resid_pre.{layer}", whole[f"resid_pre.{layer}"] + 0.1 * direction(32)))
    assert biggest(other.logits, whole.logits, batch) > 1e-3
    assert biggest(model.logits(batch), whole.logits, batch) < EXACT, "the layers are back"


def test_a_run_from_a_layer_works_where_layers_return_tuples() -> None:
    model = wrap(tiny("native", torch.float64), check=False)
    running.find_out_what_layers_return(model.binding)
    assert model.binding.layer_returns_tuple is False
    model.binding.layer_returns_tuple = None
    layers = model.binding.layers
    original = layers[0].forward
    layers[0].forward = lambda *a, **k: (original(*a, **k),)  # type: ignore
    with suppress(Exception):  # the model itself expects a tensor; what the layer returned is known by then
        running.find_out_what_layers_return(model.binding)
    assert model.binding.layer_returns_tuple is True


def test_a_forward_that_another_library_put_on_a_layer_survives_a_run_from_a_layer() -> None:
    model = wrap(tiny("llama", torch.float64), check=False)
    layer = model.binding.layers[0]
    own = layer.forward

    def theirs(*args: object, **kwargs: object) -> object:
        return own(*args, **kwargs)

    layer.forward = theirs  # type: ignore
    run = model.run(prompts(), capture=["resid_pre.1"])
    model.run(prompts(), start=("resid_pre.1", run["resid_pre.1"]))
    assert layer.__dict__["forward"] is theirs


def test_starts_that_do_not_fit_are_refused() -> None:
    model, value = model_of(), torch.zeros(2, 8, 32, dtype=torch.float64)
    with pytest.raises(SiteAfterStop, match="starts from a layer's input"):
        model.run(prompts(), start=("resid_post.1", value))
    with pytest.raises(ShapeError, match=r"\[2, 8, 32\]"):
        model.run(prompts(), start=("resid_pre.1", value[:, :5]))
    with pytest.raises(SiteAfterStop, match=r"z\.0 lies before"):
        model.run(prompts(), start=("resid_pre.1", value), capture=["z.0"])
    with pytest.raises(SiteAfterStop, match="no effect"):
        model.run(prompts(), start=("resid_pre.1", value), interventions=[ms.scale("z.0", 2.0)])
    for bad, error in (("z.7", UnknownSite), ("zz.1", UnknownSite), ("sink.1", PointUnavailable)):
        with pytest.raises(error):
            model.run(prompts(), capture=[bad])


GRADIENT_SITES = (
    "embed",
    "resid_pre.1",
    "ln1.1",
    "q_proj.1",
    "q.1",
    "k.1",
    "v.1",
    "scores.1",
    "pattern.1",
    "z.1",
    "attn_raw.1",
    "attn_out.1",
    "resid_mid.1",
    "mlp_in.1",
    "mlp_pre.1",
    "mlp_post.1",
    "mlp_out.1",
    "resid_post.1",
    "ln_final",
    "logits",
)


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_finite_differences(family: str, is_frozen: bool) -> None:
    model = wrap(tiny(family, torch.float64), check=False)
    model.hf.requires_grad_(not is_frozen)
    sites = [at for at in GRADIENT_SITES if at in {str(s) for s in model.binding.formed}]

    def scalar(logits: Tensor) -> Tensor:
        return logits[0, -1].log_softmax(-1)[3] + logits[1, -1].log_softmax(-1)[5]

    with in_double():  # the library's norms compute in single precision, too coarse for differences
        check_gradients(model, scalar, sites)


def check_gradients(model: ms.Model, scalar: Callable[[Tensor], Tensor], sites: list[str]) -> None:
    batch = prompts()
    captured = model.run(batch, capture=sites)
    for site, gradient in model.gradients(batch, of=scalar, at=sites).items():
        assert gradient.shape == captured[site].shape
        toward = nudge_like(gradient)
        step = 1e-6
        up, down = (
            scalar(model.logits(batch, interventions=[ms.edit(str(site), moving(toward, sign * step, site))]))
            for sign in (1, -1)
        )
        real = torch.where(torch.isfinite(gradient), gradient, torch.zeros_like(gradient))
        assert float((real * toward).sum()) == pytest.approx(
            float(up - down) / (2 * step), abs=2e-5, rel=1e-4
        ), site


def nudge_like(value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(value.shape, generator=generator, dtype=torch.float64)


def moving(toward: Tensor, step: float, site: ms.Site) -> Callable[[Tensor], Tensor]:
    return lambda value: value + step * to_token_form(toward, site.row).reshape(value.shape)


def test_captured_tensors_get_their_gradients_from_a_backward_pass() -> None:
    model = wrap(tiny("gpt2", torch.float64), check=False)
    run = model.run(prompts(), capture=["resid_post.1"], grad=True)
    run.logits[:, -1, 3].sum().backward()
    wanted = model.gradients(prompts(), of=lambda logits: logits[:, -1, 3].sum(), at=["resid_post.1"])
    assert torch.allclose(run["resid_post.1"].grad, wanted[ms.Site("resid_post", 1)])
    assert not model.run(prompts(), capture=["resid_post.1"])["resid_post.1"].requires_grad


def test_gradients_of_more_than_a_number_are_refused_and_parameters_get_none() -> None:
    model = wrap(tiny("gpt2", torch.float64), check=False)
    with pytest.raises(ShapeError, match="one number"):
        model.gradients(prompts(), of=lambda logits: logits[:, -1, 3], at=["z.1"])
    model.gradients(prompts(), of=lambda logits: logits.sum(), at=["z.1"])
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_gradients_are_there_whatever_mode_the_caller_is_in() -> None:
    model, batch = wrap(tiny("gpt2", torch.float64).requires_grad_(False), check=False), prompts()
    site = ms.Site("z", 1)
    wanted = model.gradients(batch, of=lambda logits: logits[:, -1, 3].sum(), at=[site])[site]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = model.gradients(batch, of=lambda logits: logits[:, -1, 3].sum(), at=[site])[site]
        assert torch.equal(found, wanted)
        with mode():
            assert not model.logits(batch).requires_grad


def test_a_site_that_the_scalar_does_not_depend_on_has_a_zero_gradient() -> None:
    model = model_of()
    found = model.gradients(
        prompts(), of=lambda logits: logits[:, 3].sum(), at=["resid_post.2", "resid_post.1"]
    )
    assert float(found[ms.Site("resid_post", 2)][:, 4:].abs().max()) == 0.0
    assert float(found[ms.Site("resid_post", 1)][0, 4:].abs().max()) == 0.0, "the future has no effect"
    assert float(found[ms.Site("resid_post", 1)][0, :4].abs().min()) > 0.0


def test_losses_and_top_tokens_are_those_of_the_logits() -> None:
    model, batch = model_of(), prompts()
    logits = model.logits(batch)
    per_token = model.loss(batch, per_token=True)
    for row, column in ((0, 0), (0, 6), (1, 3), (1, 6)):
        wanted = -logits[row, column].log_softmax(-1)[batch.ids[row, column + 1]]
        assert float(per_token[row, column]) == pytest.approx(float(wanted), rel=1e-12)
    assert per_token.isnan().tolist()[1] == [True] * 3 + [False] * 4
    assert float(model.loss(batch)) == pytest.approx(float(per_token[~per_token.isnan()].mean()), rel=1e-12)
    top = model.top(batch.row(0), k=3)
    probabilities = logits[0, -1].softmax(-1)
    assert [text for text, _ in top] == [f"<{i}>" for i in probabilities.topk(3).indices.tolist()]
    assert top[0][1] == pytest.approx(float(probabilities.max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precisions_run_capture_intervene_and_generate(dtype: torch.dtype) -> None:
    model = wrap(tiny("llama", dtype), check=False)
    batch = random_rows((8, 5))
    run = model.run(batch, capture="*", interventions=[ms.add("resid_post.1", direction(32), dose=0.5)])
    assert run.logits.dtype == dtype
    assert all(value.dtype == dtype for value in run.cache.values())
    exact = model_of("llama").run(batch, capture=["resid_post.1"])
    mine = model.run(batch, capture=["resid_post.1"])
    span = float(exact["resid_post.1"].abs().max())
    assert biggest(mine["resid_post.1"].double(), exact["resid_post.1"], batch) < 0.05 * span
    assert (
        len(
            model.generate(batch, max_new_tokens=3, returns="tokens", interventions=[ms.scale("z.1", 0.5)])[0]
        )
        == 3
    )
    assert torch.isfinite(model.loss(batch))


@pytest.mark.gpu
def test_on_a_gpu_everything_is_what_it_is_on_the_cpu() -> None:
    cpu = model_of("llama")
    gpu = wrap(tiny("llama", torch.float64).cuda(), check=False)
    batch = prompts()
    donor = gpu.run(prompts(1), capture="*")
    for writes in (
        [],
        [ms.patch("z.1", donor)],
        [ms.scale("pattern.1", 0.5, positions=-1)],
        [Nudge("resid_mid.1")],
    ):
        a, b = cpu.logits(batch, interventions=writes), gpu.logits(batch, interventions=writes).cpu()
        assert biggest(a, b, batch) < 1e-9
    cache = donor.cache.to("cpu")
    assert cache["head_out.1"].device.type == cache["pattern.1"].device.type == "cpu"
    assert gpu.generate(batch, max_new_tokens=4, returns="tokens") == cpu.generate(
        batch, max_new_tokens=4, returns="tokens"
    )
