"""Ablation values: what each convention puts in place, and that nothing unresolved runs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import mechscope as ms
from mechscope.interventions.ablation import Ablation
from mechscope.interventions.resolve import _one_cycle
from mechscope.models.inputs import TokenBatch
from mechscope.vocabulary.errors import EmptyPrompt, InterventionMismatch, UnresolvedIntervention
from small_models import biggest, direction, model_of, prompts, random_rows

REFERENCE = random_rows((8, 8, 8, 8), seed=5)
UNEVEN = random_rows((8, 3), seed=5)


def after(writes: list, at: str, batch: TokenBatch | None = None) -> Tensor:
    model = model_of()
    return model.run(
        prompts() if batch is None else batch, interventions=ms.resolve(model, writes), capture=[at]
    )[at]


def test_zero_writes_zeros() -> None:
    got = after([ms.ablate("z.1", "zero", heads=[2], positions=-1)], "z.1")
    plain = after([], "z.1")
    assert float(got[:, -1, 2].abs().max()) == 0.0
    assert torch.equal(got[:, -1, :2], plain[:, -1, :2])


@pytest.mark.parametrize("at", ["mlp_out.1", "z.1", "v.0"])
def test_the_mean_is_over_the_reference_sets_real_tokens(at: str) -> None:
    value = model_of().run(UNEVEN, capture=[at])[at]
    mean = torch.cat([value[0], value[1, 5:]]).mean(0)
    got = after([ms.ablate(at, reference=UNEVEN)], at)
    assert torch.allclose(got[0, 0], mean)
    assert torch.allclose(got[1, -1], mean)
    with_padding = value.flatten(0, 1).mean(0)
    assert not torch.allclose(with_padding, mean)


@pytest.mark.parametrize("at", ["mlp_out.1", "pattern.1"])
def test_the_mean_by_position_is_each_positions_own(at: str) -> None:
    value = model_of().run(REFERENCE, capture=[at])[at].mean(0)
    got = after([ms.ablate(at, reference=REFERENCE, by_position=True)], at)
    if at == "mlp_out.1":
        assert torch.allclose(got[0], value)
        assert torch.allclose(got[1, 3:], value[:5])
    else:
        assert torch.allclose(got[0], value)
        assert torch.allclose(got[1, :, 3:, 3:], value[:, :5, :5])


@pytest.mark.parametrize("at", ["mlp_out.1", "z.0", "pattern.1"])
def test_resampling_gives_each_row_another_reference_prompts_values(at: str) -> None:
    value = model_of().run(REFERENCE, capture=[at])[at]
    batch = REFERENCE
    got = after([ms.ablate(at, "resample", reference=REFERENCE)], at, batch)
    source = [next(j for j in range(4) if torch.equal(got[i], value[j])) for i in range(4)]
    assert sorted(source) == [0, 1, 2, 3]
    assert all(i != j for i, j in enumerate(source)), "no row is its own control"
    other = after([replace(ms.ablate(at, "resample", reference=REFERENCE), seed=3)], at, batch)
    assert not torch.equal(got, other), "another seed, another draw"


def test_resampling_more_rows_than_the_reference_has_goes_round() -> None:
    value = model_of().run(REFERENCE, capture=["z.0"])["z.0"]
    batch = random_rows((8,) * 6, seed=7)
    got = after([ms.ablate("z.0", "resample", reference=REFERENCE)], "z.0", batch)
    assert torch.equal(got[4], got[0])
    assert any(torch.equal(got[5], value[j]) for j in range(4))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_resampling_order_is_one_cycle(n: int) -> None:
    for seed in range(20):
        order = _one_cycle(n, seed).tolist()
        at, seen = 0, []
        for _ in range(n):
            seen.append(at)
            at = order[at]
        assert sorted(seen) == list(range(n))
    assert _one_cycle(1, 0).tolist() == [0]


def test_an_ablation_inside_a_subspace_keeps_the_rest() -> None:
    rows = direction(32, n=2)
    got = after([ms.ablate("resid_post.1", "zero", subspace=rows)], "resid_post.1")[0]
    removed = after([ms.project_out("resid_post.1", rows)], "resid_post.1")[0]
    assert torch.allclose(got, removed)


def test_a_reference_set_is_run_once_whatever_is_ablated_on_it() -> None:
    model, calls = model_of(), []
    handle = model.hf.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        writes = [ms.ablate(at, reference=REFERENCE) for at in ("z.0", "mlp_out.1", "resid_post.2", "z.*")]
        writes.append(ms.ablate("mlp_out.0", "resample", reference=REFERENCE))
        resolved = ms.resolve(model, [*writes, ms.scale("z.0", 2.0)])
        assert len(calls) == 1
        ms.resolve(model, [*resolved, ms.ablate("z.0", reference=UNEVEN)])
        assert len(calls) == 2, "what is resolved is left alone, another set is another run"
    finally:
        handle.remove()
    assert [type(write).__name__ for write in resolved] == ["Ablation"] * 5 + ["Scale"]


def test_texts_ids_tensors_and_batches_are_references() -> None:
    ids = REFERENCE.ids.tolist()
    wanted = ms.ablate("z.0", reference=REFERENCE)
    assert ms.ablate("z.0", reference=ids) == ms.ablate("z.0", reference=REFERENCE.ids) == wanted
    assert ms.ablate("z.0", reference=ids[0]).reference == (tuple(ids[0]),)
    assert ms.ablate("z.0", reference="one text").reference == ("one text",)


def test_an_unresolved_ablation_is_refused_before_the_run() -> None:
    model = model_of()
    for write in (ms.ablate("z.1", reference=REFERENCE), ms.ablate("z.1", "resample", reference=REFERENCE)):
        with pytest.raises(UnresolvedIntervention, match=r"ms\.resolve"):
            model.logits(prompts(), interventions=[write])
    with pytest.raises(UnresolvedIntervention, match=r"ms\.learn_optimal"):
        model.logits(prompts(), interventions=[ms.ablate("z.1", "optimal", reference=REFERENCE)])
    with pytest.raises(UnresolvedIntervention, match=r"ms\.learn_optimal"):
        ms.resolve(model, [ms.ablate("z.1", "optimal", reference=REFERENCE)])
    assert biggest(model.logits(prompts()), model.logits(prompts()), prompts()) == 0.0, (
        "and nothing is left behind"
    )


def test_values_that_are_not_defined_are_refused() -> None:
    model = model_of()
    with pytest.raises(UnresolvedIntervention, match="reference set"):
        ms.ablate("z.1")
    with pytest.raises(InterventionMismatch, match="not a way to ablate"):
        ms.ablate("z.1", "median", reference=REFERENCE)
    with pytest.raises(InterventionMismatch, match="each query sees another set of keys"):
        ms.resolve(model, [ms.ablate("pattern.1", reference=REFERENCE)])
    with pytest.raises(InterventionMismatch, match="one length"):
        ms.resolve(model, [ms.ablate("z.1", "resample", reference=UNEVEN)])
    with pytest.raises(InterventionMismatch, match="have no mean"):
        ms.resolve(model_of("mixtral"), [ms.ablate("expert_choice.1", reference=REFERENCE)])
    with pytest.raises(EmptyPrompt):
        ms.resolve(model, [ms.ablate("z.1", reference=[])])


def test_a_resolved_ablation_carries_its_values_hash() -> None:
    model = model_of()
    one, same, other = (
        ms.resolve(model, [ms.ablate("z.1", reference=reference)])[0]
        for reference in (REFERENCE, REFERENCE.ids, UNEVEN)
    )
    assert isinstance(one, Ablation)
    assert one == same and hash(one) == hash(same)
    assert one != other
    assert one.donor is not None and one.donor.values[0][1].digest in str(one.to_json())
