"""The model is held for a run, left as it was found after anything, and refused in training mode."""

import threading

import pytest
import torch
from torch import nn

import mechscope as ms
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import ModelBusy, TrainingMode
from small_models import model_of, prompts
from tiny_models import tiny


def traces(hf: nn.Module) -> list[object]:
    """Everything that a run could leave on a model."""
    found: list[object] = [hf.config._attn_implementation]  # type: ignore
    for module in hf.modules():
        found += [len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in module.__dict__]
    return found


class Broken(Exception):
    pass


def broken(_value: torch.Tensor) -> torch.Tensor:
    raise Broken


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
@pytest.mark.parametrize("at", ["resid_post.1", "pattern.1", "mlp_out.2"])
def test_a_model_is_left_as_it_was_found_after_an_exception(family: str, at: str) -> None:
    model = wrap(tiny(family, torch.float64), check=False)
    before, logits = traces(model.hf), model.logits(prompts())
    start = model.run(prompts(), capture=["resid_pre.1"])["resid_pre.1"]
    for call in (
        lambda: model.logits(prompts(), interventions=[ms.edit(at, broken)]),
        lambda: model.run(prompts(), start=("resid_pre.1", start), interventions=[ms.edit(at, broken)]),
        lambda: model.run(prompts(), grad=True, capture=["*"], interventions=[ms.edit(at, broken)]),
        lambda: model.generate(prompts(), max_new_tokens=2, interventions=[ms.edit(at, broken)]),
    ):
        with pytest.raises(Broken):
            call()
        assert traces(model.hf) == before
    with pytest.raises(Broken), model.intervening([ms.edit(at, broken)]) as hf:
        hf(input_ids=prompts().ids)
    with pytest.raises(Broken), model.intervening([]):
        raise Broken
    assert traces(model.hf) == before
    assert torch.equal(model.logits(prompts()), logits)


def test_a_run_inside_a_run_is_refused() -> None:
    model = model_of()
    with pytest.raises(ModelBusy, match="in use"):
        model.logits(
            prompts(), interventions=[ms.edit("z.1", lambda value: value + model.logits(prompts()).sum())]
        )
    model.logits(prompts())


def test_two_views_of_one_model_share_its_lock_and_two_models_do_not() -> None:
    hf = tiny("llama", torch.float64)
    one, two, other = wrap(hf, check=False), wrap(hf, check=False), model_of("gpt2")
    with one.intervening([]):
        with pytest.raises(ModelBusy):
            two.logits(prompts())
        other.logits(prompts())
    two.logits(prompts())


def test_a_model_that_shares_its_configuration_object_runs_beside_a_block() -> None:
    hf = tiny("llama", torch.float64)
    other = type(hf)(hf.config).double().eval()  # type: ignore
    wanted = other(input_ids=prompts().ids[:1]).logits
    with wrap(hf, check=False).intervening([ms.scale("pattern.1", 0.5)]):
        assert torch.allclose(other(input_ids=prompts().ids[:1]).logits, wanted)


def test_of_two_threads_one_runs_and_the_other_is_told() -> None:
    model, entered, go = model_of(), threading.Event(), threading.Event()
    results: list[object] = []

    def wait(value: torch.Tensor) -> torch.Tensor:
        entered.set()
        go.wait(20)
        return value

    def first() -> None:
        results.append(model.logits(prompts(), interventions=[ms.edit("z.0", wait)]))

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert entered.wait(20)
        with pytest.raises(ModelBusy):
            model.logits(prompts())
    finally:
        go.set()
        thread.join()
    assert len(results) == 1
    assert torch.allclose(results[0][0], model.logits(prompts())[0])  # type: ignore


def test_two_models_run_in_two_threads() -> None:
    models = [wrap(tiny("gemma2", torch.float64, seed=seed), check=False) for seed in (1, 2)]
    wanted = [model.run(prompts(), capture=["pattern.1"])["pattern.1"] for model in models]
    got: dict[int, list[bool]] = {0: [], 1: []}

    def work(index: int) -> None:
        for _ in range(5):
            found = models[index].run(prompts(), capture=["pattern.1"])["pattern.1"]
            got[index].append(bool(torch.equal(found, wanted[index])))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {0: [True] * 5, 1: [True] * 5}


def test_training_mode_is_refused() -> None:
    model = wrap(tiny("gpt2", torch.float64), check=False)
    model.hf.train()
    for call in (
        lambda: model.logits(prompts()),
        lambda: model.generate(prompts(), max_new_tokens=1),
        lambda: model.gradients(prompts(), of=lambda x: x.sum(), at=["z.1"]),
    ):
        with pytest.raises(TrainingMode, match=r"training mode"):
            call()
    with pytest.raises(TrainingMode), model.intervening([]):
        pass
    model.hf.eval()
    model.logits(prompts())
