"""Interventions as values: equality, hash, JSON with tensors, and what cannot be saved."""

import json

import pytest
import torch

import mechscope as ms
from mechscope.interventions.intervention import Intervention, Value, intervention_from_json, register_kind
from mechscope.interventions.replace import Edit
from mechscope.interventions.steering import Scale
from mechscope.vocabulary.errors import (
    BadFile,
    InterventionMismatch,
    NotSerializable,
    RegistrationError,
    ShapeError,
)
from mechscope.vocabulary.where import Matching
from small_models import LinearCodec, biggest, direction, model_of, prompts, random_rows

V = direction(32)


def every_kind() -> list[Intervention]:
    model = model_of()
    run = model.run(prompts(1), capture=["resid_post.1", "z.*"])
    resampled = ms.resolve(model, [ms.ablate("z.1", "resample", reference=random_rows((8, 8), 3))])[0]
    return [
        ms.patch("resid_post.1", run, positions=[0, -1]),
        ms.patch("z.*", run, heads=[1], phase="generated"),
        ms.patch("resid_post.1", V, positions=slice(1, None), subspace=direction(32, n=2)),
        ms.freeze("z.1", to=run, positions=[[0], [1, 2]]),
        ms.freeze("z.1"),
        ms.ablate("mlp_out.0", "zero", positions="word"),
        ms.ablate("mlp_out.0", "mean", reference=["a text", "another"], by_position=True),
        resampled,
        ms.add("resid_post.1", V, dose=0.5, positions=Matching((int(prompts().ids[0, 2]), 4))),
        ms.add("resid_post.1", V, absolute=[0.1, 0.2], mode="norm_preserving"),
        ms.add("resid_post.1", V, dose=1.0, mode="rotate").only(rows=[1], phase="prompt"),
        ms.project_out("resid_post.1", direction(32, n=2), fraction=0.5),
        ms.scale("mlp_post.1", 2.0, units=[3, 4]),
        ms.cap("resid_post.1", V, at_most=1.5),
    ]  # type: ignore


def test_every_kind_survives_json_with_its_tensors() -> None:
    for write in every_kind():
        tensors: dict[str, torch.Tensor] = {}
        text = json.dumps(write.to_json(tensors))
        again = intervention_from_json(
            json.loads(text), {key: value.clone() for key, value in tensors.items()}
        )
        assert again == write
        assert hash(again) == hash(write)
        assert type(again) is type(write)
        assert json.dumps(again.to_json()) == text


def test_what_comes_back_from_json_does_the_same() -> None:
    model = model_of()
    for write in every_kind():
        if "word" in str(write.where) or not getattr(write, "is_resolved", True):
            continue
        tensors: dict[str, torch.Tensor] = {}
        again = intervention_from_json(json.loads(json.dumps(write.to_json(tensors))), tensors)
        a, b = (model.logits(prompts(), interventions=[one]) for one in (write, again))
        assert biggest(a, b, prompts()) == 0.0


def test_different_interventions_are_different() -> None:
    kinds = every_kind()
    assert len(set(kinds)) == len(kinds)
    assert ms.add("z.1", V, dose=1.0) != ms.add("z.1", V, dose=1.1)
    assert ms.add("z.1", V, dose=1.0) != ms.add("z.1", -V, dose=1.0)
    assert ms.add("z.1", V, dose=1.0) != ms.add("z.1", V, absolute=1.0)
    assert ms.scale("z.1", 2.0, heads=[1]) != ms.scale("z.1", 2.0, heads=[2])
    assert ms.add("z.1", V, dose=1.0) == ms.add("z.1", V.clone(), dose=1.0)
    assert Value(V) != Value(V.float())
    assert Value(V) != Value(V[None])


def test_a_digest_is_of_dtype_shape_and_content_not_of_memory_layout() -> None:
    matrix = direction(6, n=4)
    assert Value(matrix) == Value(matrix.T.contiguous().T)
    assert Value(torch.zeros(0, 3)) == Value(torch.zeros(0, 3))
    assert Value(matrix.bfloat16()) == Value(matrix.bfloat16().clone())


def test_a_missing_tensor_or_an_unknown_kind_is_refused() -> None:
    for write in every_kind():
        tensors: dict[str, torch.Tensor] = {}
        saved = write.to_json(tensors)
        if tensors:
            with pytest.raises(BadFile, match="tensor is missing"):
                intervention_from_json(saved, {})
    with pytest.raises(BadFile, match='"melt" is not an intervention'):
        intervention_from_json({"kind": "melt", "at": "z.1"})


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(RegistrationError, match='"scale"'):
        register_kind("scale")(Scale)


def test_an_edit_cannot_be_saved_and_says_where_it_was_written() -> None:
    write = ms.edit("z.1", lambda value: value)  # this line
    assert "test_values.py:" in repr(write)
    with pytest.raises(NotSerializable, match="function") as refused:
        write.to_json()
    assert isinstance(write, Edit) and write.written_at in str(refused.value)


def test_an_edit_that_returns_something_else_is_refused_with_its_line() -> None:
    for function in (lambda value: value[..., :3], lambda value: None):
        with pytest.raises(InterventionMismatch, match="same shape") as refused:
            model_of().logits(prompts(), interventions=[ms.edit("z.1", function)])
        assert "test_values.py:" in str(refused.value)


def test_directions_and_doses_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InterventionMismatch, match=r"either dose= or absolute="):
        ms.add("z.1", V)
    with pytest.raises(InterventionMismatch, match=r"either dose= or absolute="):
        ms.add("z.1", V, dose=1.0, absolute=1.0)
    with pytest.raises(InterventionMismatch, match="not a way to add"):
        ms.add("z.1", V, dose=1.0, mode="spin")
    for make in (
        lambda v: ms.add("z.1", v, dose=1.0),
        lambda v: ms.project_out("z.1", v),
        lambda v: ms.cap("z.1", v, at_most=1.0),
    ):
        for bad in (torch.zeros(32), torch.full((32,), float("nan"))):
            with pytest.raises(InterventionMismatch, match="points nowhere"):
                make(bad)
    with pytest.raises(InterventionMismatch, match="needs a limit"):
        ms.cap("z.1", V)
    with pytest.raises(InterventionMismatch, match="nothing between them"):
        ms.cap("z.1", V, at_most=1.0, at_least=2.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda v: ms.add("resid_post.1", v, dose=1.0),
        lambda v: ms.project_out("resid_post.1", v),
        lambda v: ms.cap("resid_post.1", v, at_most=1.0),
    ],
)
def test_a_direction_of_another_width_is_refused_with_both_widths(make: object) -> None:
    with pytest.raises(ShapeError) as refused:
        model_of().logits(prompts(), interventions=[make(direction(10))])  # type: ignore
    assert "width 10" in str(refused.value) and "d_model = 32" in str(refused.value)


def test_fewer_doses_than_rows_are_refused() -> None:
    with pytest.raises(ShapeError, match="fewer doses"):
        model_of().logits(
            random_rows((4, 4, 4)), interventions=[ms.add("resid_post.1", V, absolute=[1.0, 2.0])]
        )


def test_a_clamp_that_acts_before_it_is_read_is_refused_and_no_clamp_is_saved() -> None:
    one = ms.Site("resid_post", 1)
    with pytest.raises(InterventionMismatch, match="one forward pass"):
        ms.clamp(LinearCodec(one, ms.Site("mlp_out", 1)), feature=0, to=1.0)
    with pytest.raises(NotSerializable, match="dictionary"):
        ms.clamp(LinearCodec(one), feature=0, to=1.0).to_json()
