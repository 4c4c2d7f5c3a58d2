"""Attention patterns are the model's own, and head scores find the heads that the specimen is known to have."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mechscope.lenses.attention_patterns import AttentionPatterns, attention_patterns
from mechscope.lenses.head_scores import HeadScores, _repeats, _weight_on, head_scores, repeated_tokens
from mechscope.models.inputs import batch_of
from mechscope.models.opening import wrap
from mechscope.specimens.induction import truth
from mechscope.vocabulary.errors import InterventionMismatch, PositionOutOfRange, PromptTooLong, ShapeError
from patching.drawn_pairs import specimen
from tiny_models import tiny

PROMPT = [3, 14, 15, 9, 2, 6]


def test_patterns_are_those_that_the_untouched_model_returns() -> None:
    hf = tiny("llama", torch.float64, attn_implementation="eager")
    with torch.no_grad():
        expected = hf(torch.tensor([PROMPT]), output_attentions=True).attentions
    found = attention_patterns(wrap(hf, check=False), PROMPT)
    assert found.values.shape == (12, 6, 6)
    for layer in range(3):
        for head in range(4):
            mine = found.values.sel(head=f"{layer}.{head}").values
            assert np.abs(mine - expected[layer][0, head].numpy()).max() < 1e-6
    assert np.abs(found.values.values.sum(-1) - 1).max() < 1e-6


def test_chosen_heads_are_shown_in_the_order_given() -> None:
    model = wrap(tiny("gpt2"), check=False)
    found = attention_patterns(model, PROMPT, heads=[(2, 1), "0.3"])
    assert found.values.coords["head"] == ("2.1", "0.3")
    whole = attention_patterns(model, PROMPT)
    assert np.array_equal(found.values.values[1], whole.values.sel(head="0.3").values)
    assert len(found.plot().data) == 2 and "<svg" in found._repr_html_()
    assert all(cell["key"] != 0 for cell, _ in whole.top(20))


def test_what_cannot_be_shown_is_refused() -> None:
    model = wrap(tiny("gpt2", n_layer=5), check=False)
    with pytest.raises(PositionOutOfRange, match="no such head"):
        attention_patterns(model, PROMPT, heads=["1.9"])
    with pytest.raises(PositionOutOfRange, match="no such head"):
        attention_patterns(model, PROMPT, heads=["one"])
    with pytest.raises(ShapeError, match="one prompt"):
        attention_patterns(model, [PROMPT, PROMPT])
    with pytest.raises(ShapeError, match="too many heads"):
        attention_patterns(model, PROMPT).plot()


@pytest.mark.parametrize(
    ("kind", "head"),
    [("induction", truth.INDUCTION), ("previous-token", truth.PREVIOUS_TOKEN)],
)
def test_the_specimens_heads_are_found(kind: str, head: tuple[int, int]) -> None:
    scores = head_scores(specimen(), kind)  # type: ignore[arg-type]
    assert scores.values.sel(layer=head[0], head=head[1]).values > 0.99
    assert scores.chance < 0.2
    other = truth.PREVIOUS_TOKEN if kind == "induction" else truth.INDUCTION
    assert scores.values.sel(layer=other[0], head=other[1]).values < 0.05


def test_a_random_model_has_no_such_heads() -> None:
    model = wrap(tiny("gpt2", torch.float64), check=False)
    for kind in ("induction", "previous-token", "duplicate-token"):
        scores = head_scores(model, kind, n_tokens=12)  # type: ignore[arg-type]
        assert scores.top(1)[0][1] < 0.25


@pytest.mark.parametrize(
    ("kind", "offset"), [("induction", 4), ("previous-token", 1), ("duplicate-token", 5)]
)
def test_a_perfect_head_of_each_kind_scores_1_and_0_on_the_others(kind: str, offset: int) -> None:
    n = 11  # one token before five, twice
    pattern = torch.zeros(1, 1, n, n, dtype=torch.float64)
    for query in range(n):
        pattern[0, 0, query, max(0, query - offset)] = 1
    for scored in ("induction", "previous-token", "duplicate-token"):
        expected = 1.0 if scored == kind else 0.0
        assert float(scored_as(pattern, scored)) == pytest.approx(expected, abs=0.11)
    assert float(scored_as(pattern, kind)) == 1.0


def scored_as(pattern: torch.Tensor, kind: str) -> torch.Tensor:
    batch = batch_of([list(range(11))], pad_id=0)
    return _weight_on(pattern, _repeats(batch, kind, n_first=1, length=5))


SAID = ([7, 3, 9, 3, 5, 3], [4, 4, 8, 4])
"""Prompts of two lengths in which a token recurs, twice in the first one's end."""


@pytest.mark.parametrize("kind", ["induction", "duplicate-token", "previous-token"])
@pytest.mark.parametrize("positions", [None, -1])
def test_scores_on_prompts_are_the_weight_where_a_token_recurs(kind: str, positions: int | None) -> None:
    model = wrap(tiny("gpt2", torch.float64), check=False)
    found = head_scores(model, kind, prompts=[list(row) for row in SAID], positions=positions)  # type: ignore[arg-type]
    chances = []
    for number, row in enumerate(SAID):
        patterns = model.run(list(row), capture="pattern.*").cache
        weights, even = [], []
        for query in range(len(row)) if positions is None else [len(row) - 1]:
            earlier = [at for at in range(query) if row[at] == row[query]]
            keys = {
                "induction": [at + 1 for at in earlier if at + 1 < query],
                "duplicate-token": earlier,
                "previous-token": [query - 1] if query else [],
            }[kind]
            if keys:
                layers = [patterns[f"pattern.{layer}"][0, :, query][:, keys].sum(-1) for layer in range(3)]
                weights.append(torch.stack(layers))
                even.append(len(keys) / (query + 1))
        wanted = torch.stack(weights).mean(0).numpy()
        assert np.abs(found.per_prompt.values[:, :, number] - wanted).max() < 1e-6
        chances.append(np.mean(even))
    assert found.chance == pytest.approx(np.mean(chances))


def test_on_repeated_tokens_both_ways_say_the_same() -> None:
    batch, _, _ = repeated_tokens(specimen(), n_prompts=3, n_tokens=9, seed=0)
    given = head_scores(specimen(), prompts=batch)
    drawn = head_scores(specimen(), n_prompts=3, n_tokens=9)
    # The first token that comes again is the one after the beginning: all others are the same.
    assert np.abs(given.values.values - drawn.values.values).max() < 1e-6


def test_prompts_without_a_recurrence_are_refused() -> None:
    model = wrap(tiny("gpt2"), check=False)
    with pytest.raises(InterventionMismatch, match=r"(?s)1 of 2 prompts, the first is number 1"):
        head_scores(model, prompts=[[1, 2, 5, 1], [1, 2, 3, 4]])
    with pytest.raises(InterventionMismatch, match=r"(?s)2 of 2 prompts"):
        head_scores(model, prompts=[[1, 2, 1, 3], [1, 2, 1, 4]], positions=-1)


def test_an_even_head_scores_chance() -> None:
    model = wrap(tiny("gpt2", torch.float64), check=False)
    with torch.no_grad():
        for block in model.hf.transformer.h:  # type: ignore[union-attr]
            block.attn.c_attn.weight.zero_()
            block.attn.c_attn.bias.zero_()
    scores = head_scores(model, n_tokens=10)
    assert np.abs(scores.values.values - scores.chance).max() < 1e-6


def test_the_tokens_repeat_differ_and_are_not_special() -> None:
    model = specimen()
    batch, n_first, length = repeated_tokens(model, n_prompts=3, n_tokens=9, seed=1)
    assert (n_first, length, batch.shape) == (1, 9, (3, 19))
    special = set(model.tokenizer.all_special_ids)
    for row in range(3):
        first, second = batch.row(row)[1:10], batch.row(row)[10:]
        assert first == second and len(set(first)) == 9 and not special & set(first)
    again, _, _ = repeated_tokens(model, n_prompts=3, n_tokens=9, seed=1)
    assert torch.equal(batch.ids, again.ids)


def test_impossible_scores_are_refused() -> None:
    model = wrap(tiny("gpt2"), check=False)
    with pytest.raises(PromptTooLong, match="from 2 to 24"):
        head_scores(model, n_tokens=25)


def test_scores_and_patterns_are_saved_and_read_back_equal(tmp_path: Path) -> None:
    model = wrap(tiny("gpt2"), check=False)
    scores, patterns = head_scores(model, n_tokens=5), attention_patterns(model, PROMPT, heads=["1.1"])
    scores.save(tmp_path / "scores.json")
    patterns.save(tmp_path / "patterns.json")
    assert HeadScores.load(tmp_path / "scores.json") == scores
    assert AttentionPatterns.load(tmp_path / "patterns.json") == patterns
    assert "chance" in repr(scores)
