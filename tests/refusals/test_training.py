"""A training that can't be is refused before anything is read, with all that is wrong with it."""

from typing import Any

import pytest
import torch

import mechscope as ms
from mechscope.dictionaries.training.trainer import Trainer
from mechscope.engine.harvest.blocks import TensorBlocks
from mechscope.vocabulary.errors import DictionaryError, UnknownGate
from mechscope.vocabulary.sites import Site

d = ms.dictionaries


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"batch": -4},
        {"n_tokens": 0},
        {"n_tokens": -5},
        {"rate": 0.0},
        {"rate": -1.0},
        {"betas": (2.0, 0.9)},
        {"precision": "half"},
        {"normalization": "unit"},
        {"decoder_norm": "one"},
    ],
)
def test_numbers_and_words_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(DictionaryError, match=f"{name}="):
        d.Training(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"check_every": 0},
        {"dead_after_tokens": 0},
        {"aux_k": -1},
        {"aux_share": 3.0},
        {"aux_share": 0.0},
        {"resample_at": (0.5, 2.0)},
    ],
)
def test_a_revival_that_can_not_be_is_refused_by_its_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(DictionaryError, match=rf"revival\.{name}="):
        d.Training(revival=d.Revival(**wrong))


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(DictionaryError, match=r"batch=0, revival\.aux_k=-2, precision='half'"):
        d.Training(batch=0, precision="half", revival=d.Revival(aux_k=-2))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (d.BatchTopK(width=8, k=0), "batch_topk of 8 latents with k=0"),
        (d.BatchTopK(width=8, k=9.5), "with k=9.5"),
        (d.Matryoshka(width=8, k=-1), "with k=-1"),
        (d.JumpReLU(width=8, l0=0), "with l0=0"),
        (d.JumpReLU(width=8, sparsity="cubic"), "sparsity='cubic'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_an_architecture_without_an_aim_that_a_token_can_have_is_refused(
    config: d.Architecture, told: str
) -> None:
    blocks = TensorBlocks({Site("resid_post", 0): torch.randn(64, 4)}, tokens_per_block=32)
    with pytest.raises(DictionaryError, match=told):
        Trainer(blocks, [d.job_at("resid_post.0", config)], training=d.Training(batch=16))


def test_a_top_k_is_whole_and_a_dictionary_reads_something() -> None:
    with pytest.raises(UnknownGate, match="whole k"):
        d.Gate(rule="topk", k=2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DictionaryError, match="at least one site"):
        d.job_at([], d.TopK(width=8, k=2))
