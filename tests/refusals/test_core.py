"""What the core refuses, in four lines, before anything runs. Without shape checks, as users meet it."""

import pytest
import torch

import mechscope as ms
from mechscope.interventions.metrics import Rank
from mechscope.vocabulary.errors import (
    InputError,
    InterventionMismatch,
    MechscopeError,
    MissingTokenizer,
    PointUnavailable,
    PositionOutOfRange,
    ShapeError,
    UnknownSite,
)
from small_models import direction, model_of, prompts

V = direction(32)

CASES = [
    (lambda: ms.scale("resid_psot.1", 2.0), UnknownSite, ("resid_post.0",)),
    (lambda: ms.scale("z.7", 2.0), UnknownSite, ("3 layers", "z.0 to z.2")),
    (lambda: ms.scale("blocks.7.attn.hook_z", 2.0), UnknownSite, ("3 layers",)),
    (lambda: ms.scale("mlp_gate.1", 2.0), PointUnavailable, ("mlp_pre.1",)),
    (lambda: ms.scale("head_out.1", 2.0), PointUnavailable, ("read but not written", "z.1")),
    (lambda: ms.scale("ln1_scale.1", 2.0), PointUnavailable, ("read but not written", "ln1.1")),
    (lambda: ms.scale("z.1", 2.0, positions=5), PositionOutOfRange, ("position 5", "shortest row has 5")),
    (lambda: ms.scale("z.1", 2.0, positions=-6), PositionOutOfRange, ("position -6",)),
    (lambda: ms.scale("z.1", 2.0, positions=[[7], [5]]), PositionOutOfRange, ("position 5", "5 positions")),
    (lambda: ms.scale("z.1", 2.0, positions=[[0]]), PositionOutOfRange, ("2 rows",)),
    (lambda: ms.scale("z.1", 2.0, positions=slice(8, None)), PositionOutOfRange, ("Span",)),
    (lambda: ms.scale("z.1", 2.0, positions=ms_matching(99)), PositionOutOfRange, ("99",)),
    (lambda: ms.scale("z.1", 2.0, heads=[4]), PositionOutOfRange, ("head", "there are 4")),
    (lambda: ms.scale("resid_post.1", 2.0, heads=[0]), PositionOutOfRange, ("batch pos d_model",)),
    (lambda: ms.scale("resid_post.1", 2.0, units=[32]), PositionOutOfRange, ("unit [32]", "there are 32")),
    (lambda: ms.scale("z.1", 2.0).only(rows=[2]), PositionOutOfRange, ("row", "2 rows")),
    (lambda: ms.scale("z.1", 2.0).only(rows=[-1]), PositionOutOfRange, ("row",)),
    (lambda: ms.scale("z.1", 2.0, positions="cat"), MissingTokenizer, ("tokenizer",)),
    (lambda: "ablate z.1", InterventionMismatch, ("not an intervention",)),
    (lambda: ms.patch("z.1", [1.0, 2.0]), InterventionMismatch, ("a tensor or a run", "list")),
    (lambda: ms.scale("z.1", 2.0, positions=torch.tensor([1])), InterventionMismatch, ("list of indices",)),
    (lambda: ms.scale("z.1", 2.0, heads=True), InterventionMismatch, ("list of indices",)),
    (lambda: ms.scale("z.1", 2.0, heads=[True, False]), InterventionMismatch, ("a mask's",)),
    (lambda: ms.scale("z.1", 2.0, positions=[True, False, True]), InterventionMismatch, ("a mask's",)),
    (lambda: ms.scale("z.1", 2.0, positions=[[True], [False]]), InterventionMismatch, ("a mask's",)),
    (lambda: ms.scale("z.1", 2.0, positions=[1.9]), InterventionMismatch, ("no whole number",)),
    (lambda: ms.scale("z.1", 2.0, positions=[[0], 1]), InterventionMismatch, ("list of indices",)),
    (lambda: ms.scale("z.1", 2.0).only(units=[0.5]), InterventionMismatch, ("no whole number",)),
    (lambda: ms.add("resid_post.1", V, dose=[1.0, 2.0, 3.0]), ShapeError, ("more doses", "2 rows")),
    (lambda: ms.add("resid_post.1", V, dose=[]), InterventionMismatch, ("a number",)),
    (lambda: ms.add("resid_post.1", V, absolute="much"), InterventionMismatch, ("a number", "much")),
    (lambda: ms.add("resid_post.1", V.numpy(), dose=1.0), InterventionMismatch, ("no tensor", "ndarray")),
    (lambda: ms.patch("resid_post.1", torch.zeros(3, 32)), ShapeError, ("3 donor rows, 2 prompts",)),
    (lambda: ms.patch("resid_post.1", torch.zeros(2, 9, 32)), ShapeError, ("9 columns, 8 in the batch",)),
    (lambda: ms.freeze("z.1", to=torch.zeros(2, 5, 4, 8)), ShapeError, ("5 columns, 8 in the batch",)),
]


def ms_matching(token: int) -> object:
    from mechscope.vocabulary.where import Matching

    return Matching((token,))


@pytest.mark.parametrize(("make", "error", "mentions"), CASES, ids=range(len(CASES)))
def test_an_intervention_that_does_not_fit_is_refused_before_the_run(
    make: object, error: type[MechscopeError], mentions: tuple[str, ...]
) -> None:
    model, called = model_of("gpt2"), []
    handle = model.hf.register_forward_pre_hook(lambda *_: called.append(1))
    try:
        with pytest.raises(error) as refused:
            model.run(prompts(), interventions=[make()])  # type: ignore
    finally:
        handle.remove()
    assert called == []
    text = str(refused.value)
    assert all(word in text for word in mentions), text
    assert (
        text.startswith(f"{error.__name__}: ")
        and "  got:" in text
        and text.endswith(f"[docs/errors/{error.slug}]")
    )


def test_the_refused_selections_fit_where_they_exist() -> None:
    model = model_of("gpt2")
    for write in (
        ms.scale("z.1", 2.0, positions=4),
        ms.scale("z.1", 2.0, positions=[[7], [4]]),
        ms.scale("z.1", 2.0, positions=slice(7, None)),
        ms.scale("z.1", 2.0, heads=[3]),
        ms.scale("resid_post.1", 2.0, units=[31]),
        ms.scale("z.1", 2.0).only(rows=[1]),
    ):
        model.run(prompts(), interventions=[write])


def test_a_single_intervention_outside_a_list_is_refused() -> None:
    model, write = model_of("gpt2"), ms.scale("z.1", 2.0)
    with model.intervening([write]):
        pass
    for act in (model.run, model.run_with_cache, model.generate, model.logits):
        with pytest.raises(InterventionMismatch, match="come as a list"):
            act(prompts(), interventions=write)  # type: ignore
    with pytest.raises(InterventionMismatch, match="come as a list"), model.intervening(write):  # type: ignore
        pass
    with pytest.raises(InterventionMismatch, match="come as a list"):
        ms.Experiment(inputs=prompts(), writes=write, metric=Rank(answers=((1,), (2,))))  # type: ignore


@pytest.mark.parametrize("doses", [(0.5, 2.0), torch.tensor([0.5, 2.0]), torch.tensor([0.5, 2.0]).numpy()])
def test_doses_are_numbers_in_any_row_of_them(doses: object) -> None:
    write = ms.add("resid_post.1", V, dose=doses)  # type: ignore
    assert write == ms.add("resid_post.1", V, dose=[0.5, 2.0])
    assert ms.add("resid_post.1", V, dose=torch.tensor(0.5)) == ms.add("resid_post.1", V, dose=0.5)


def test_without_padding_a_wider_donor_fits_its_first_columns() -> None:
    model, long = model_of("gpt2"), prompts().row(0)
    wide = model.run(long, capture=["resid_post.1"])["resid_post.1"]
    same = model.logits(long[:5], interventions=[ms.patch("resid_post.1", wide)])
    torch.testing.assert_close(same, model.logits(long[:5]))


@pytest.mark.parametrize("positions", [-6, [[0], [-6]], slice(-20, -8), 8, slice(11, None)])
def test_positions_that_no_generated_token_can_have_are_refused_while_generating(positions: object) -> None:
    model, write = model_of("gpt2"), ms.scale("z.1", 2.0, positions=positions)
    with pytest.raises(PositionOutOfRange, match=r"z\.1"):
        model.generate(prompts(), interventions=[write], max_new_tokens=3)


@pytest.mark.parametrize("positions", [-5, 7, [[10], [7]], slice(10, None), slice(-3, None)])
def test_positions_that_will_be_generated_are_taken(positions: object) -> None:
    write = ms.scale("z.1", 2.0, positions=positions)
    model_of("gpt2").generate(prompts(), interventions=[write], max_new_tokens=3)


@pytest.mark.parametrize(
    ("at", "instead"), [("head_out.1", "z.1"), ("ln1_scale.1", "ln1.1"), ("ln_final_scale", "ln_final")]
)
def test_gradients_at_derived_points_are_refused_and_not_zero(at: str, instead: str) -> None:
    with pytest.raises(PointUnavailable, match="no gradient") as refused:
        model_of("gpt2").gradients(prompts(), of=lambda logits: logits[:, -1, 3].sum(), at=["z.1", at])
    assert instead in str(refused.value)


def test_a_pattern_that_names_derived_points_among_others_writes_the_others() -> None:
    model = model_of("gpt2")
    run = model.run(prompts(), interventions=[ms.scale("ln1*.1", 0.5)], capture=["ln1.1"])
    assert torch.allclose(run["ln1.1"][0], 0.5 * model.run(prompts(), capture=["ln1.1"])["ln1.1"][0])


def test_more_tokens_than_there_are_and_gradients_of_nothing_are_refused() -> None:
    model = model_of("gpt2")
    with pytest.raises(ShapeError, match="not so many tokens"):
        model.top(prompts().row(0), k=model.d_vocab + 1)
    with pytest.raises(ShapeError, match="taken at sites"):
        model.gradients(prompts(), of=lambda logits: logits.sum(), at=[])


def test_tokens_that_the_model_has_not_are_no_metric_of_its_text() -> None:
    with pytest.raises(InputError, match="tokens that it has not"):
        ms.GeneratedText(mentions=[3, 5000]).refuse_outside(model_of("gpt2").d_vocab)
