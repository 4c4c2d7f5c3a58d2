"""A card reproduces the record of a rightly read dictionary, and flags the same tensors read wrongly."""

from dataclasses import replace

import pytest
import torch

from dictionaries.evaluation.known import SITE, texts
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.card import Card, card
from mechscope.dictionaries.settings import Gate, Normalization, sae_settings
from small_models import model_of

SCALE = 0.05


def recorded() -> Dictionary:
    """A JumpReLU dictionary in scaled units whose decoder norms differ, with its own figures on record."""
    model, generator = model_of("llama"), torch.Generator().manual_seed(0)
    values = model.run(texts(), capture=[SITE]).cache[SITE][texts().mask.bool()].double()
    mean = values.mean(0)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64)).Q
    norms = 0.4 + 3 * torch.rand(64, generator=generator, dtype=torch.float64)
    rows = torch.cat([basis, -basis])
    gate = Gate(rule="jumprelu", compares="pre_times_decoder_norm")
    settings = sae_settings(SITE, width=32, n_latents=64, gate=gate)
    settings = replace(settings, normalization=Normalization(rule="affine"), applies_b_dec_to_input=True)
    tensors = {
        "W_enc": (rows / norms[:, None]).T.contiguous(),
        "b_enc": torch.zeros(64).double(),
        "W_dec": rows * norms[:, None],
        "b_dec": mean * SCALE,
        "threshold": torch.full((64,), float(SCALE * values.std() * 1.2)).double(),
        "in_scale": torch.tensor(SCALE).double(),
    }
    one = Dictionary(settings, tensors)
    return one.with_settings(calibration=card(one, model, texts()).calibration())


@pytest.fixture(scope="module")
def good() -> Dictionary:
    return recorded()


def found(dictionary: Dictionary) -> Card:
    return card(dictionary, model_of("llama"), texts())


def test_a_rightly_read_dictionary_reproduces_its_record(good: Dictionary) -> None:
    shown = found(good)
    assert shown.is_consistent, shown.flags
    assert shown.l0.value == pytest.approx(good.settings.calibration.l0)
    assert shown.fvu.value == pytest.approx(good.settings.calibration.fvu)
    assert shown.data_sha256 == good.settings.calibration.data_sha256


def test_a_dictionary_gives_its_own_card(good: Dictionary) -> None:
    text = texts(6)
    assert good.card(model_of("llama"), text).to_json() == card(good, model_of("llama"), text).to_json()


def test_folding_changes_no_figure(good: Dictionary) -> None:
    shown = found(good.folded())
    assert shown.is_consistent, shown.flags
    assert shown.fvu.value == pytest.approx(good.settings.calibration.fvu, rel=1e-9)


def without(good: Dictionary, *names: str, **changes) -> Dictionary:
    tensors = {name: one for name, one in good.tensors.items() if name not in names}
    return Dictionary(replace(good.settings, **changes), tensors)


def test_a_dropped_threshold_is_flagged(good: Dictionary) -> None:
    shown = found(without(good, "threshold", gate=Gate(rule="relu")))
    assert any("l0" in flag and "on record" in flag for flag in shown.flags)


def test_a_missing_fold_is_flagged(good: Dictionary) -> None:
    shown = found(without(good, "in_scale", normalization=Normalization()))
    assert not shown.is_consistent
    assert any("on record" in flag for flag in shown.flags)


def test_the_wrong_gate_reading_is_flagged_and_the_right_one_named(good: Dictionary) -> None:
    shown = found(without(good, gate=Gate(rule="jumprelu")))
    assert any(
        "it would be right with a gate that compares pre_times_decoder_norm" in flag for flag in shown.flags
    )


def test_a_misplaced_bias_is_flagged(good: Dictionary) -> None:
    shown = found(without(good, applies_b_dec_to_input=False))
    assert any("right with b_dec subtracted from the input" in flag for flag in shown.flags)


def test_a_misread_dictionary_without_a_record_is_flagged_by_what_is_possible(good: Dictionary) -> None:
    blank = type(good.settings.calibration)()
    shown = found(without(good, "in_scale", normalization=Normalization(), calibration=blank))
    assert any("a threshold may be missing" in flag for flag in shown.flags)


def test_a_dictionary_read_as_relu_is_flagged_without_a_record(good: Dictionary) -> None:
    blank = type(good.settings.calibration)()
    ranked = without(good, "threshold", gate=Gate(rule="topk", k=8, compares="pre_times_decoder_norm"))
    for one in (good, ranked):
        names = [name for name in ("threshold",) if name in one.tensors]
        shown = found(without(one, *names, gate=Gate(rule="relu"), calibration=blank))
        assert any("a threshold or a top-k may be missing" in flag for flag in shown.flags)
        right = found(one.with_settings(calibration=blank))
        assert not any("may be missing" in flag for flag in right.flags)


def test_many_active_latents_are_no_flag_where_they_are_on_record(good: Dictionary) -> None:
    bare = without(good, "threshold", gate=Gate(rule="relu"), calibration=type(good.settings.calibration)())
    shown = found(bare.with_settings(calibration=found(bare).calibration()))
    assert shown.l0.value > 16 and shown.is_consistent, shown.flags


def test_the_text_is_pinned_where_none_is_given(good: Dictionary) -> None:
    model = model_of("llama")
    blank = good.with_settings(calibration=type(good.settings.calibration)())
    first, second = card(blank, model), card(blank, model)
    assert first.data_sha256 == second.data_sha256
    assert first.l0 == second.l0
    assert "fvu" in repr(first)
    assert first.to_json()["n_tokens"] == first.n_tokens
