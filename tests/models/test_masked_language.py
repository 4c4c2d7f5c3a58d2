"""Masked language models: logits are about the token at their own position, so the next token is nobody's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mechscope as ms
from bert_cases import WORDS, masking_tokenizer, reading_bert
from family_cases import opened, rows
from mechscope.attribution.settings import NodeSettings
from mechscope.dictionaries.evaluation.spec import EvaluationSettings
from mechscope.engine.edge_runs.ablations import mean_of, zero
from mechscope.features.relations import relations_of
from mechscope.graphs.replacement import random_transcoders
from mechscope.vocabulary.errors import NoNextToken, PointUnavailable
from patching.drawn_pairs import random_pairs

TEXT = "the cat sees a [MASK]"


def test_top_reads_at_the_mask() -> None:
    model = reading_bert()
    found = model.top(f"{TEXT} sleeps", k=3)
    at = model.logits(f"{TEXT} sleeps")[0, 5].float().softmax(-1).topk(3)
    assert model.str_tokens(f"{TEXT} sleeps")[5] == "[MASK]"  # type: ignore
    assert [chance for _, chance in found] == pytest.approx(at.values.tolist())
    last = model.logits(f"{TEXT} sleeps")[0, -1].float().softmax(-1).topk(3)
    assert [chance for _, chance in found] != pytest.approx(last.values.tolist())


ABOUT_THE_NEXT: dict[str, Callable[[ms.Model], Any]] = {
    "top without a mask": lambda m: m.top("the cat sees"),
    "top with two": lambda m: m.top("the [MASK] sees a [MASK]"),
    "loss": lambda m: m.loss("the cat sees"),
    "generate": lambda m: m.generate("the cat", max_new_tokens=2),
    "a named behavior": lambda m: ms.behaviors.load("ioi", m),
    "a causal trace": lambda m: ms.causal_trace(m, ["the cat sees"], subject=[1], answers=["bird"]),
    "what a dictionary costs": lambda m: ms.dictionaries.evaluate(
        random_transcoders(m, 32, kind="sae")[0], m, ["the cat sees a bird"]
    ),
}


@pytest.mark.parametrize("what", ABOUT_THE_NEXT)
def test_what_is_about_the_next_token_is_refused_in_four_lines(what: str) -> None:
    with pytest.raises(NoNextToken) as refused:
        ABOUT_THE_NEXT[what](reading_bert())
    text = str(refused.value)
    assert (
        all(label in text for label in ("  got:", "  because:", "  instead:")) and len(text.splitlines()) == 4
    )


def test_a_file_of_texts_and_what_follows_them_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("clean,corrupt,answer\nthe cat,the dog,sees\n")
    with pytest.raises(NoNextToken, match="from_tokens"):
        ms.behaviors.from_pairs(path, reading_bert())
    assert ms.behaviors.names(reading_bert()) == []


def test_pairs_that_end_in_the_mask_are_patched_and_traced() -> None:
    model = reading_bert()
    mask = model.tokenizer.mask_token_id
    ids = {word: model.token(word) for word in WORDS}
    clean = [[ids["the"], ids["cat"], ids["sees"], mask], [ids["a"], ids["cat"], ids["sees"], mask]]
    corrupt = [[row[0], ids["dog"], *row[2:]] for row in clean]
    pairs = ms.behaviors.from_tokens(clean, corrupt, answers=[ids["bird"]] * 2, wrong=[ids["Mary"]] * 2)
    grid = ms.patch_grid(model, pairs, site="resid_pre")
    with torch.no_grad():
        logits = model.logits(clean)[:, -1]
    gap = float((logits[:, ids["bird"]] - logits[:, ids["Mary"]]).mean())
    # The clean stream everywhere at the first layer is the clean run; at one token it is the clean word.
    assert float(grid.values.values[0, 1]) == pytest.approx(gap, abs=1e-9)
    trace = ms.causal_trace(model, clean, subject=[1], answers=ids["bird"])
    assert trace.values.values.shape == (3, 4)


def test_what_a_dictionary_reconstructs_needs_no_prediction() -> None:
    model = reading_bert()
    dictionary = random_transcoders(model, 32, kind="sae")[0]
    found = ms.dictionaries.evaluate(
        dictionary, model, ["the cat sees a bird"] * 3, settings=EvaluationSettings(losses=False)
    )
    assert found.figures["fvu"].value > 0


def given_pairs() -> ms.behaviors.Behavior:
    """Pairs of ids, as a behavior."""
    return ms.behaviors.from_tokens(
        [[1, 2, 3], [1, 4, 3]], [[1, 5, 3], [1, 6, 3]], answers=[7, 8], wrong=[9, 10]
    )


NEED_A_SUM: dict[str, Callable[[ms.Model], Any]] = {
    "decompose": lambda m: m.run(rows(), capture="*").cache.decompose("resid_post.1"),
    "logit effects": lambda m: m.run(rows(), capture="*").cache.logit_effects([1]),
    "direct logit attribution": lambda m: ms.direct_logit_attribution(m, rows(), answers=[1, 2]),
    "edge attribution": lambda m: ms.attribute_edges(m, random_pairs(m)),
    "edge attribution, integrated": lambda m: ms.attribute_edges(m, random_pairs(m), method="eap-ig"),
    "mean ablation of edges": lambda m: mean_of(m, rows()),
    "zero ablation of edges": zero,
    "circuits": lambda m: ms.discover(m, given_pairs(), method="eap", n_edges=3),
    "path patching": lambda m: ms.path_patch(m, random_pairs(m), receivers=["logits"]),
    "attribution graphs": lambda m: ms.attribution_graph(m, random_transcoders(m, 32), [1, 2, 3]),
}


@pytest.mark.parametrize("family", ["bert", pytest.param("bert_decoder", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", NEED_A_SUM)
def test_what_needs_a_stream_that_is_a_sum_is_refused_in_four_lines(what: str, family: str) -> None:
    with pytest.raises(PointUnavailable, match="need a residual stream that is a sum") as refused:
        NEED_A_SUM[what](opened(family))
    text = str(refused.value)
    assert (
        all(label in text for label in ("  got:", "  because:", "  instead:")) and len(text.splitlines()) == 4
    )


def test_a_latent_has_no_direct_effect_on_logits_where_no_path_is_linear() -> None:
    said = {"n_neighbors": 3, "n_effects": 2, "norm_scale": 1.0}
    for name, has_effects in (("bert", False), ("gpt2", True)):
        model = opened(name)
        found = relations_of(model, random_transcoders(model, 32, kind="sae")[0], **said)  # type: ignore
        assert "decoder/latents" in found and ("top/tokens" in found) == has_effects


def test_components_would_not_add_up() -> None:
    run = opened("bert").run(rows(), capture="*")
    parts = [run[f"{point}.{layer}"] for layer in range(2) for point in ("attn_out", "mlp_out")]
    total = run["resid_pre.0"] + sum(parts)
    assert float((total - run["resid_post.1"]).abs().max()) > 1.0


def test_the_logit_lens_ends_in_the_models_own_predictions() -> None:
    model, batch = opened("bert"), rows()
    lens = ms.logit_lens(model, batch)
    with torch.no_grad():
        best = model.logits(batch).argmax(-1)
    real = batch.mask.bool().numpy()
    assert (lens.token_ids.values[:, -1, :, 0][real] == best.numpy()[real]).all()


def test_nodes_are_attributed_as_patches_measure_them() -> None:
    model = opened("bert")
    pairs = random_pairs(model, lengths=(7, 7), differ_at=(2,))
    at: dict[str, Any] = {"site": "resid_mid.1", "positions": "all"}
    found = ms.attribute(model, pairs, method="ig", settings=NodeSettings(steps=200), **at)
    grid = ms.patch_grid(model, pairs, **at)
    assert found.scores.values.item() == pytest.approx(grid.effects.values.item(), rel=2e-3)
    assert abs(grid.effects.values.item()) > 1e-2


def test_chance_of_heads_counts_what_they_may_see() -> None:
    both, causal = (
        ms.head_scores(opened(name), "previous-token", n_prompts=2) for name in ("bert", "bert_decoder")
    )
    width = 2 * both.settings["n_tokens"]
    assert both.chance == pytest.approx(1 / width)
    assert causal.chance > both.chance


def test_a_text_stands_between_its_special_tokens() -> None:
    assert masking_tokenizer().mask_token_id == 4
    assert reading_bert().str_tokens("the cat") == ["[CLS]", "the", "cat", "[SEP]"]
