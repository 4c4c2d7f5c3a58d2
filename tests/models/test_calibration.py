"""Reference norms: the unit of doses, by hand."""

import pytest
import torch

import mechscope as ms
from chat_tokenizer import chat_tokenizer, words_model
from mechscope.models.calibration import calibration_batch
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import InterventionMismatch
from small_models import direction, model_of, prompts
from tiny_models import tiny


@pytest.mark.parametrize(
    ("family", "at"),
    [
        ("llama", "resid_post.1"),
        ("gpt2", "mlp_out.0"),
        ("gemma2", "attn_out.2"),
        ("llama", "z.1"),
        ("llama", "ln_final"),
    ],
)
def test_a_reference_norm_is_the_median_norm_of_the_calibration_text(family: str, at: str) -> None:
    model = model_of(family)
    batch = calibration_batch(model)
    value = model.run(batch, capture=[at])[at]
    wanted = (
        value.flatten(0, 1).norm(dim=-1).median()
    )  # of one head where there are heads: directions are as wide
    assert model.reference_norm(at) == pytest.approx(float(wanted), rel=1e-12)
    assert not batch.is_padded


def test_padding_and_special_tokens_do_not_count() -> None:
    model = words_model()
    batch = calibration_batch(model)
    value = model.run(batch, capture=["resid_post.1"])["resid_post.1"].norm(dim=-1)
    special = torch.tensor(model.tokenizer.all_special_ids)
    usual = batch.mask.bool() & ~torch.isin(batch.ids, special)
    assert batch.is_padded and int(usual.sum()) > 20
    assert model.reference_norm("resid_post.1") == pytest.approx(float(value[usual].median()), rel=1e-12)
    assert float(value[batch.mask.bool()].median()) != pytest.approx(float(value[usual].median()), rel=1e-9)


def test_it_is_measured_once_for_all_layers() -> None:
    model, calls = wrap(tiny("llama", torch.float64), check=False), []
    handle = model.hf.register_forward_pre_hook(lambda *_: calls.append(1))
    norms = [model.reference_norm(f"resid_post.{layer}") for layer in (0, 1, 2, 0)]
    model.run(prompts(), interventions=[ms.add("resid_post.*", direction(32), dose=0.1)])
    handle.remove()
    assert len(calls) == 2, "one for the norms, one for the run"
    assert len(set(norms)) == 3


def test_a_context_shorter_than_the_text_cuts_the_text() -> None:
    model = wrap(tiny("gpt2", torch.float64, n_positions=9), chat_tokenizer(), check=False)
    assert calibration_batch(model).shape[1] == 9
    assert model.reference_norm("resid_post.1") > 0


def test_what_has_no_norm_is_refused() -> None:
    for family, at in (
        ("llama", "scores.1"),
        ("llama", "pattern.0"),
        ("mixtral", "expert_choice.1"),
        ("gpt_oss", "sink.1"),
    ):
        with pytest.raises(InterventionMismatch, match="no reference norm"):
            model_of(family).reference_norm(at)
