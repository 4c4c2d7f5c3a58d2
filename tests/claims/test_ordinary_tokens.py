"""Continuous controls are spread as ordinary tokens are: [BOS] and its like would make all of them one direction."""

import numpy as np
import pytest
import torch

from chat_tokenizer import chat_tokenizer
from mechscope.claims.control_families import covariance_at, draw_family
from mechscope.claims.controls import DIRECTIONS
from mechscope.claims.mechanisms import Direction
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import NotEnoughEvidence
from tiny_models import tiny

SITE = "resid_post.0"
TEXTS = [
    "cat sees dog",
    "dog sees cat cat",
    " dog : user user cat",
    "cat dog : un known",
    " cat sees  dog a t",
]
HUGE = 100.0


@pytest.fixture(scope="module")
def bos_is_huge() -> Model:
    """A model whose stream at [BOS] is long beside that of every word, as trained models make it."""
    hf, tokenizer = tiny("llama", torch.float64), chat_tokenizer()
    with torch.no_grad():
        hf.get_input_embeddings().weight[tokenizer.bos_token_id] *= HUGE
    return wrap(hf, tokenizer, check=False)


@pytest.fixture(scope="module")
def first_is_huge() -> Model:
    """A model without [BOS] whose stream is long wherever a prompt begins, as GPT-2's is."""
    hf = tiny("gpt2", torch.float64)
    with torch.no_grad():
        hf.transformer.wpe.weight[0] *= 100 * HUGE
    return wrap(hf, None, check=False)


def spread(model: Model, reference) -> float:
    """Median |cosine| between two controls of a direction."""
    of = Direction(SITE, (1.0, *[0.0] * (model.d_model - 1)))
    drawn = draw_family(model, of, reference=reference, family=DIRECTIONS, n_draws=40, seed=0)
    rows = np.array([member.vector for member in drawn.mechanisms])
    return float(np.median(np.abs(rows @ rows.T)[~np.eye(len(rows), dtype=bool)]))


def test_controls_of_a_direction_are_not_all_the_direction_of_bos(bos_is_huge: Model) -> None:
    assert spread(bos_is_huge, bos_is_huge.tokens(TEXTS)) < 0.6


def test_controls_of_a_direction_are_not_all_the_direction_of_the_first_token(first_is_huge: Model) -> None:
    tokens = torch.randint(0, first_is_huge.d_vocab, (20, 6), generator=torch.Generator().manual_seed(0))
    assert spread(first_is_huge, first_is_huge.tokens(tokens)) < 0.6


def test_the_covariance_is_that_of_words_alone(bos_is_huge: Model) -> None:
    batch = bos_is_huge.tokens(TEXTS)
    value = bos_is_huge.run(batch, capture=[SITE]).cache[SITE]
    words = np.concatenate(
        [row[int(n_pad) + 1 :].numpy() for row, n_pad in zip(value, batch.n_pad, strict=True)]
    )
    everything = value[batch.mask.bool()].numpy()
    found = covariance_at(bos_is_huge, SITE, batch)
    assert np.allclose(found, np.cov(words, rowvar=False), rtol=1e-10)
    top = np.linalg.eigvalsh(np.cov(everything, rowvar=False))
    assert top[-1] > 0.9 * top.sum(), "with [BOS] one direction would hold nearly all variance"


def test_prompts_of_no_word_have_no_spread(bos_is_huge: Model) -> None:
    with pytest.raises(NotEnoughEvidence, match="ordinary"):
        covariance_at(bos_is_huge, SITE, bos_is_huge.tokens([[1], [1]]))
