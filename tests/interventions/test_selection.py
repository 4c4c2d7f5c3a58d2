"""Where an intervention acts: positions, heads, units, rows, words; what lies outside is left to the bit."""

import pytest
import torch

import mechscope as ms
from chat_tokenizer import words_model
from mechscope.interventions.intervention import Intervention
from mechscope.vocabulary.where import Matching
from small_models import model_of, prompts

AT = "resid_post.1"
BATCH = prompts()  # rows of 8 and 5 tokens: the second has 3 columns of padding


def touched(write: Intervention, at: str = AT) -> set[tuple[int, int]]:
    """(row, position) pairs whose value the write changes; padding is not counted."""
    model = model_of()
    before = model.run(BATCH, capture=[at])[at]
    after = model.run(BATCH, interventions=[write], capture=[at])[at]
    if "query" in write_axes(at):
        before, after = before.transpose(1, 2), after.transpose(1, 2)
    changed = (before != after).flatten(2).any(-1)
    pairs = {(int(r), int(c) - int(BATCH.n_pad[r])) for r, c in changed.nonzero()}
    return {(row, position) for row, position in pairs if position >= 0}


def write_axes(at: str) -> tuple[str, ...]:
    return model_of().binding.site(at).row.axes


def both(*positions: int) -> set[tuple[int, int]]:
    return {(row, position) for row in (0, 1) for position in positions}


EVERYWHERE = {(0, p) for p in range(8)} | {(1, p) for p in range(5)}
WORD = int(BATCH.ids[0, 2])


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (None, EVERYWHERE),
        (2, both(2)),
        (0, both(0)),
        (-1, {(0, 7), (1, 4)}),
        ([0, -2], both(0) | {(0, 6), (1, 3)}),
        (slice(1, 3), both(1, 2)),
        (slice(-2, None), {(0, 6), (0, 7), (1, 3), (1, 4)}),
        (slice(6, None), {(0, 6), (0, 7)}),
        (range(2), both(0, 1)),
        ([[7, 0], [-1]], {(0, 7), (0, 0), (1, 4)}),
        ([[], [1]], {(1, 1)}),
        (Matching((WORD,)), {(r, p) for r in (0, 1) for p, t in enumerate(BATCH.row(r)) if t == WORD}),
    ],
)
def test_positions_count_the_real_tokens_of_each_row(
    positions: object, expected: set[tuple[int, int]]
) -> None:
    assert touched(ms.scale(AT, 2.0, positions=positions)) == expected


def test_rows_phase_and_units_narrow_a_selection() -> None:
    write = ms.scale(AT, 2.0, positions=[1, 2])
    assert touched(write.only(rows=[1])) == {(1, 1), (1, 2)}
    assert touched(write.only(phase="prompt")) == both(1, 2)
    assert touched(write.only(phase="generated")) == set()
    model = model_of()
    before, after = (
        model.run(BATCH, interventions=w, capture=[AT])[AT] for w in ([], [write.only(units=[3, 5])])
    )
    changed = (before != after).any(0).any(0)
    assert changed.nonzero().flatten().tolist() == [3, 5]


@pytest.mark.parametrize(("at", "n_heads"), [("q.1", 4), ("z.1", 4), ("k.1", 2), ("v.1", 2), ("k_proj.0", 2)])
def test_heads_count_the_points_own_head_axis(at: str, n_heads: int) -> None:
    model = model_of()
    before = model.run(BATCH, capture=[at])[at]
    write = ms.edit(at, lambda value: value + 1.0, heads=[n_heads - 1])
    after = model.run(BATCH, interventions=[write], capture=[at])[at]
    assert before.shape[2] == n_heads
    assert torch.equal(before[:, :, : n_heads - 1], after[:, :, : n_heads - 1])
    assert torch.equal(before[:, :, -1] + 1.0, after[:, :, -1])


def test_a_key_value_head_feeds_its_group_of_query_heads() -> None:
    model = model_of()
    before = model.run(BATCH, capture=["z.1"])["z.1"]
    after = model.run(BATCH, interventions=[ms.edit("v.1", lambda v: v + 1.0, heads=[1])], capture=["z.1"])[
        "z.1"
    ]
    assert torch.equal(before[0, :, :2], after[0, :, :2])
    assert torch.allclose(before[0, :, 2:] + 1.0, after[0, :, 2:])


@pytest.mark.parametrize("at", ["pattern.1", "scores.1"])
def test_units_of_an_attention_map_are_key_positions_of_each_row(at: str) -> None:
    model = model_of()
    write = ms.edit(at, lambda value: value + 0.25, heads=[2], positions=[3]).only(units=[1])
    before = model.run(BATCH, capture=[at])[at]
    after = model.run(BATCH, interventions=[write], capture=[at])[at]
    wanted = before.clone()
    wanted[0, 2, 3, 1] += 0.25
    wanted[1, 2, 3 + 3, 1 + 3] += 0.25
    assert torch.equal(after, wanted)


def test_masked_entries_of_a_map_ignore_writes() -> None:
    model = model_of()
    future = ms.edit("scores.1", lambda value: value + 9.0, positions=[0]).only(units=[1, 2])
    assert torch.equal(
        model.logits(BATCH, interventions=[future])[0], model.run(BATCH, capture=["scores.1"]).logits[0]
    )


def test_a_word_selects_its_tokens_with_and_without_a_leading_space() -> None:
    model = words_model()
    batch = model.tokens(["cat sees cat", "dog sees dog"])
    before = model.run(batch, capture=[AT])[AT]
    after = model.run(batch, interventions=[ms.scale(AT, 2.0, positions="cat")], capture=[AT])[AT]
    changed = (before != after).any(-1)
    cats = torch.tensor(
        [[s.strip() == "cat" for s in row] for row in model.str_tokens(["cat sees cat", "dog sees dog"])]
    )
    assert torch.equal(changed, cats)
    several = ms.scale(AT, 2.0, positions=["cat", "dog"])
    changed = (before != model.run(batch, interventions=[several], capture=[AT])[AT]).any(-1)
    assert int(changed.sum()) == 4


def test_what_is_not_selected_keeps_its_value_to_the_bit_under_every_kind() -> None:
    model = model_of()
    before = model.run(BATCH, capture=[AT])[AT]
    donor = model.run(prompts(1), capture=[AT])
    v = torch.ones(32, dtype=torch.float64)
    kinds = [
        ms.patch(AT, donor, positions=2),
        ms.ablate(AT, "zero", positions=2),
        ms.add(AT, v, dose=1.0, positions=2),
        ms.project_out(AT, v, positions=2),
        ms.scale(AT, 2.0, positions=2),
        ms.cap(AT, v, at_most=-9.0, positions=2),
        ms.freeze(AT, to=donor, positions=2),
        ms.edit(AT, torch.zeros_like, positions=2),
    ]
    for write in kinds:
        after = model.run(BATCH, interventions=[write], capture=[AT])[AT]
        same = (before == after).all(-1)
        assert same[0].tolist() == [True, True, False] + [True] * 5, write
        assert same[1].tolist() == [True] * 5 + [False] + [True] * 2, write
