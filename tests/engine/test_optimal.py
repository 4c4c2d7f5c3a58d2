"""Optimal ablation: a closed form where there is one, and never worse than the mean elsewhere."""

import pytest
import torch

import mechscope as ms
from mechscope.engine.naive import measure_logits
from mechscope.engine.optimal import Learning
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import KL, LogitDifference, Rank
from mechscope.vocabulary.errors import InterventionMismatch
from mechscope.vocabulary.protocols import Write
from small_models import model_of, random_rows

REFERENCE = random_rows((7,) * 8, seed=4)
FEW = Learning(n_steps=25)


def lost(writes: list[Write], model: ms.Model) -> float:
    """KL from the model's own output under interventions, mean over the reference set."""
    metric = KL(reference=Value(model.logits(REFERENCE)[:, -1]))
    return float(measure_logits(metric, REFERENCE, model.logits(REFERENCE, interventions=writes)).mean())


@pytest.mark.parametrize(("family", "at"), [("gpt2", "z.1"), ("llama", "mlp_out.1")])
def test_an_optimal_ablation_hurts_less_than_the_mean(family: str, at: str) -> None:
    model = model_of(family)
    mean = ms.resolve(model, [ms.ablate(at, reference=REFERENCE)])
    optimal = ms.learn_optimal(model, [ms.ablate(at, "optimal", reference=REFERENCE)], learning=FEW)
    assert 0 < lost(optimal, model) < 0.9 * lost(mean, model)


def test_heads_before_positions_are_learnt_too() -> None:
    model = model_of("gpt_oss")
    # Sinks are the same at every position, so what differs is put there first.
    nudge = ms.edit("sink.1", lambda value: value + torch.arange(value.numel()).reshape(value.shape) % 7)
    optimal = ms.learn_optimal(
        model, [nudge, ms.ablate("sink.1", "optimal", reference=REFERENCE)], learning=FEW
    )
    assert 0 <= lost(optimal, model) < lost([nudge], model)


def test_without_a_step_it_is_the_mean() -> None:
    model = model_of("gpt2")
    optimal = ms.learn_optimal(
        model, [ms.ablate("z.1", "optimal", reference=REFERENCE)], learning=Learning(n_steps=0)
    )
    mean = ms.resolve(model, [ms.ablate("z.1", reference=REFERENCE)])
    assert lost(optimal, model) == pytest.approx(lost(mean, model), rel=1e-12)


def test_at_the_logits_the_best_constant_is_the_mean_probability() -> None:
    model = model_of("llama")
    write = ms.ablate("logits", "optimal", reference=REFERENCE)
    learnt = ms.learn_optimal(model, [write], learning=Learning(n_steps=60, learning_rate=0.3))[0]
    found = learnt.donor.values[0][1].tensor.softmax(-1)  # type: ignore
    wanted = model.logits(REFERENCE)[:, -1].softmax(-1).mean(0)
    assert float((found - wanted).abs().max()) < 5e-3
    mean_logit = model.logits(REFERENCE).flatten(0, 1).mean(0).softmax(-1)
    assert float((mean_logit - wanted).abs().max()) > 2e-2, "the check can fail"


def test_only_the_selected_heads_are_ablated_and_constants_are_learnt_together() -> None:
    model = model_of("gpt2")
    writes = [
        ms.scale("mlp_out.0", 0.5),
        ms.ablate("z.1", "optimal", reference=REFERENCE, heads=[2]),
        ms.ablate("z.2", "optimal", reference=REFERENCE, heads=[0], positions=-1),
        ms.ablate("mlp_out.2", "mean", reference=REFERENCE),
    ]
    learnt = ms.learn_optimal(model, writes, learning=FEW)
    assert [type(w).__name__ for w in learnt] == ["Scale", "Ablation", "Ablation", "Ablation"]
    assert all(getattr(w, "is_resolved", True) for w in learnt)
    before = model.run(REFERENCE, interventions=[learnt[0]], capture=["z.1"])["z.1"]
    after = model.run(REFERENCE, interventions=learnt, capture=["z.1"])["z.1"]
    assert torch.equal(before[:, :, [0, 1, 3]], after[:, :, [0, 1, 3]])
    assert bool((after[:, :, 2] == after[0, 0, 2]).all())
    means = ms.resolve(
        model, [ms.ablate(w.at, reference=REFERENCE).only() if w.at.startswith("z") else w for w in writes]
    )
    assert lost(learnt, model) < lost(means, model)


def test_a_metric_is_raised_by_what_is_learnt_on_it() -> None:
    model = model_of("gpt2")
    metric = LogitDifference(answers=((3,),) * 8, wrong=((4,),) * 8)
    start = ms.learn_optimal(
        model, [ms.ablate("z.1", "optimal", reference=REFERENCE)], metric=metric, learning=Learning(n_steps=0)
    )
    end = ms.learn_optimal(
        model, [ms.ablate("z.1", "optimal", reference=REFERENCE)], metric=metric, learning=FEW
    )
    low, high = (
        measure_logits(metric, REFERENCE, model.logits(REFERENCE, interventions=w)).mean()
        for w in (start, end)
    )
    assert float(high) > float(low)


def test_the_models_parameters_get_no_gradient() -> None:
    model = model_of("gpt2")
    model.hf.zero_grad(set_to_none=True)  # other tests share this model
    ms.learn_optimal(model, [ms.ablate("z.1", "optimal", reference=REFERENCE)], learning=Learning(n_steps=1))
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_what_cannot_be_learnt_is_refused() -> None:
    model, other = model_of("gpt2"), random_rows((7,) * 8, seed=9)
    with pytest.raises(InterventionMismatch, match="one reference set"):
        ms.learn_optimal(model, [ms.ablate("z.1", "optimal", reference=r) for r in (REFERENCE, other)])
    with pytest.raises(InterventionMismatch, match="step function"):
        ms.learn_optimal(
            model, [ms.ablate("z.1", "optimal", reference=REFERENCE)], metric=Rank(answers=((1,),) * 8)
        )
    with pytest.raises(InterventionMismatch, match="another set of keys"):
        ms.learn_optimal(model, [ms.ablate("pattern.1", "optimal", reference=REFERENCE)])
