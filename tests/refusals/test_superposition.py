"""Toy models and measures refuse what can't be."""

import pytest
import torch

from mechscope.specimens.grokking import GrokkingSettings, new_model, open_published
from mechscope.superposition import PhaseSettings, ToySettings, measure_interference, measure_polysemanticity
from mechscope.superposition.interference import measure_neighborhood
from mechscope.superposition.modular_addition import split_frequencies
from mechscope.vocabulary.errors import (
    InputError,
    NonFiniteActivations,
    PositionOutOfRange,
    ShapeError,
    UnsupportedModel,
)


def test_a_density_that_is_no_probability_is_refused() -> None:
    with pytest.raises(InputError, match="above 0, at most 1"):
        ToySettings(densities=(0.5, 1.5))


def test_a_phase_diagram_without_analysis_is_refused() -> None:
    with pytest.raises(InputError, match="n=4, m=2"):
        PhaseSettings(n_features=4, n_hidden=2)


def test_a_direction_of_norm_zero_is_refused_with_how_many() -> None:
    with pytest.raises(ShapeError, match="1 of 3 rows"):
        measure_interference(torch.tensor([[1.0, 0], [0, 0], [0, 1]]))


def test_a_center_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PositionOutOfRange, match="3 directions"):
        measure_neighborhood(torch.eye(3), 7, k=1)


def test_contexts_of_other_tokens_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"contexts \[4\]"):
        measure_polysemanticity(torch.ones(5, 2), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("contexts", [torch.arange(5) - 1, torch.arange(5.0)])
def test_contexts_that_are_not_numbered_from_0_are_refused(contexts: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="numbered from 0"):
        measure_polysemanticity(torch.ones(5, 2), contexts)


def test_relations_of_too_few_contexts_are_refused_and_not_left_uncounted() -> None:
    for n in (2, 4):
        with pytest.raises(ShapeError, match="3 contexts"):
            measure_polysemanticity(
                torch.rand(6, 2), torch.arange(6) % 3, related=torch.eye(n, dtype=torch.bool)
            )
    measure_polysemanticity(torch.rand(6, 2), torch.arange(6) % 3, related=torch.eye(3, dtype=torch.bool))


def test_activations_with_nan_are_refused() -> None:
    with pytest.raises(NonFiniteActivations):
        measure_polysemanticity(torch.full((5, 2), torch.nan), torch.zeros(5, dtype=torch.long))


def test_logits_of_a_part_of_the_table_are_refused() -> None:
    with pytest.raises(ShapeError, match="all pairs in the order"):
        split_frequencies(torch.zeros(48, 7))


def test_grokking_settings_are_refused_all_at_once() -> None:
    with pytest.raises(InputError) as refused:
        GrokkingSettings(modulus=8, train_share=1.5, n_heads=3)
    assert all(word in str(refused.value) for word in ("modulus 8", "train_share 1.5", "3 heads"))


def test_a_model_of_something_else_is_no_modular_addition() -> None:
    from mechscope.models.native import NativeConfig, NativeForCausalLM, native_to_transformer_lens

    other = NativeForCausalLM(NativeConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=9, n_ctx=3))
    with pytest.raises(UnsupportedModel, match="modulo p"):
        open_published(*native_to_transformer_lens(other))
    fine = new_model(GrokkingSettings(modulus=7, d_model=8, n_heads=2))
    assert open_published(*native_to_transformer_lens(fine)).config.d_vocab == 8
