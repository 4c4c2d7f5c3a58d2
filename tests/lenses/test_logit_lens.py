"""The logit lens reads each layer as the model reads its last."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mechscope.lenses.head_scores import HeadScores
from mechscope.lenses.logit_lens import LogitLens, logit_lens
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import BadFile, InterventionMismatch, PositionOutOfRange, ShapeError
from tiny_models import tiny

PROMPT = [3, 14, 15, 9, 2, 6]
FAMILIES = ["gpt2", "llama", "gemma2", "granite", "native_attention_only"]


def opened(family: str) -> Model:
    return wrap(tiny(family, torch.float64), check=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_of_the_lens_is_the_model_and_the_first_is_not(family: str) -> None:
    model = opened(family)
    lens = logit_lens(model, PROMPT, target=7)
    log_p = model.logits(PROMPT)[0].log_softmax(-1)
    assert np.abs(lens.log_probability.sel(layer=2).values - log_p[:, 7].numpy()).max() < 1e-10
    assert np.abs(lens.log_probability.sel(layer=0).values - log_p[:, 7].numpy()).max() > 0.1
    ranks = (log_p > log_p[:, 7:8]).sum(-1).numpy()
    assert (lens.rank.sel(layer=2).values == ranks).all()
    best = log_p[-1].exp().topk(3)
    assert [token for token, _ in lens.top(3)] == [f"<{index}>" for index in best.indices.tolist()]
    assert [chance for _, chance in lens.top(3)] == pytest.approx(best.values.tolist())


def test_an_inner_layer_is_the_final_norm_and_unembedding_of_its_residual_stream() -> None:
    hf = tiny("gpt2", torch.float64)
    model = wrap(hf, check=False)
    residual = model.run(PROMPT, capture="resid_post.0")["resid_post.0"]
    expected = hf.lm_head(hf.transformer.ln_f(residual))[0].log_softmax(-1).detach()  # type: ignore[operator, union-attr]
    lens = logit_lens(model, PROMPT, target=7)
    assert np.abs(lens.log_probability.sel(layer=0).values - expected[:, 7].numpy()).max() < 1e-10


def test_without_a_target_the_lens_follows_the_models_own_choice_at_each_position() -> None:
    lens = logit_lens(opened("llama"), PROMPT)
    assert (lens.rank.sel(layer=2).values == 0).all()
    assert (lens.rank.sel(layer=0).values > 0).any()


def test_a_padded_batch_reads_as_its_rows_alone_with_nothing_at_padding() -> None:
    model = opened("llama")
    rows = [PROMPT, PROMPT[2:]]
    both = logit_lens(model, rows, target=[7, 8])
    assert both.log_probability.dims == ("prompt", "layer", "pos")
    for index, (row, target) in enumerate(zip(rows, (7, 8), strict=True)):
        alone = logit_lens(model, row, target=target).log_probability.values
        part = both.log_probability.values[index]
        assert np.abs(part[:, -len(row) :] - alone).max() < 1e-10
        assert np.isnan(part[:, : -len(row)]).all()
    some = logit_lens(model, rows, target=[7, 8], positions=[0, -1])
    assert np.allclose(some.log_probability.values[1], both.log_probability.values[1][:, [2, 5]])


def test_a_lens_is_saved_and_read_back_equal_and_not_by_another_class(tmp_path: Path) -> None:
    lens = logit_lens(opened("gpt2"), [PROMPT, PROMPT[:3]], top=2)
    lens.save(tmp_path / "lens.json")
    assert LogitLens.load(tmp_path / "lens.json") == lens
    with pytest.raises(BadFile, match="another lens"):
        HeadScores.load(tmp_path / "lens.json")


def test_the_figure_shows_the_words_it_reads() -> None:
    lens = logit_lens(opened("gpt2"), PROMPT)
    (trace,) = lens.plot().data
    assert trace.text[2][-1] == lens.top(1)[0][0]
    assert "<svg" in lens._repr_html_() and "nats" in repr(lens)


def test_what_cannot_be_read_is_refused() -> None:
    model = opened("gpt2")
    with pytest.raises(InterventionMismatch, match="residual stream"):
        logit_lens(model, PROMPT, site="mlp_out")
    with pytest.raises(PositionOutOfRange, match="no such position"):
        logit_lens(model, [PROMPT, PROMPT[:2]], positions=[-3])
    with pytest.raises(ShapeError, match="one each"):
        logit_lens(model, [PROMPT, PROMPT, PROMPT], target=[1, 2])
    with pytest.raises(PositionOutOfRange, match="kept 5"):
        logit_lens(model, PROMPT).top(6)
