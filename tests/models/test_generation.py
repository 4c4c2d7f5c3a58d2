"""Generation: rows, phases, seeds and ends. Cached equals uncached at every point: test_family_generation.py."""

import pytest
import torch

import mechscope as ms
from chat_tokenizer import words_model
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import InputError, InterventionMismatch, PositionOutOfRange, PromptTooLong
from mechscope.vocabulary.where import Where
from nudge import Nudge
from small_models import direction, model_of, prompts, random_rows
from tiny_models import tiny

FAMILIES = ("gpt2", "llama", "gemma2")
N = 6


def tokens_of(model: ms.Model, batch: object = None, **settings: object) -> list[list[int]]:
    batch = prompts() if batch is None else batch
    return model.generate(batch, returns="tokens", max_new_tokens=N, **settings)  # type: ignore


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_is_the_librarys_own(family: str) -> None:
    model = model_of(family)
    for row in range(2):
        ids = torch.tensor([prompts().row(row)])
        out = model.hf.generate(
            input_ids=ids, max_new_tokens=N, do_sample=False, pad_token_id=0, eos_token_id=None
        )  # type: ignore
        assert tokens_of(model, ids) == out[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_padded_row_gives_what_it_gives_alone(family: str, temperature: float) -> None:
    model = model_of(family)
    writes = [
        ms.add("resid_post.1", direction(32), dose=0.5, positions=[0, -1]),
        Nudge("k.1"),
        Nudge("v.0", Where(units=(1, 2))),
    ]
    together = tokens_of(model, interventions=writes, temperature=temperature, seed=3)
    alone = [
        tokens_of(model, [prompts().row(i)], interventions=writes, temperature=temperature, seed=3)[0]
        for i in range(2)
    ]
    assert together == alone
    assert together != tokens_of(model, temperature=temperature, seed=3), "the interventions matter"


def test_rows_with_their_own_doses_give_what_they_give_alone() -> None:
    model, v = model_of(), direction(32)
    batch = random_rows((6, 6, 6))
    doses = [0.0, 0.4, 1.2]
    together = tokens_of(model, batch, interventions=[ms.add("resid_post.1", v, dose=doses)])
    alone = [
        tokens_of(model, [batch.row(i)], interventions=[ms.add("resid_post.1", v, dose=d)])[0]
        for i, d in enumerate(doses)
    ]
    assert together == alone
    assert together[0] == tokens_of(model, batch)[0]
    assert together[2] != tokens_of(model, batch)[2]


def logits_by_step(model: ms.Model, writes: list, n: int = 4) -> list[torch.Tensor]:
    heard: list[torch.Tensor] = []
    handle = model.hf.register_forward_hook(lambda _m, _a, out: heard.append(out.logits[:, -1].clone()))
    try:
        model.generate(prompts(), interventions=writes, max_new_tokens=n, returns="tokens")
    finally:
        handle.remove()
    return heard


@pytest.mark.parametrize("at", ["resid_post.1", "k.1", "v.1", "z.0"])
def test_phases_split_prompt_and_generated_tokens(at: str) -> None:
    model = model_of()
    plain, generated, prompt, both = (
        logits_by_step(model, [] if phase is None else [Nudge(at, Where(phase=phase))])
        for phase in (None, "generated", "prompt", "both")
    )
    assert torch.equal(generated[0], plain[0]), "nothing was generated yet"
    assert torch.allclose(prompt[0], both[0], atol=1e-12), "there is only the prompt yet"
    assert not torch.allclose(prompt[0], plain[0], atol=1e-3)
    # The writes of the two phases together are the whole write.
    split = logits_by_step(model, [Nudge(at, Where(phase="prompt")), Nudge(at, Where(phase="generated"))])
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(split, both, strict=True))


def test_positions_stay_those_of_the_prompt_while_generating() -> None:
    model = model_of()
    last = logits_by_step(model, [Nudge("v.1", Where.of(-1))])
    named = logits_by_step(model, [Nudge("v.1", Where.of([[7], [4]]))])
    assert all(torch.equal(a, b) for a, b in zip(last, named, strict=True)), (
        "-1 is the prompt's last token at every step"
    )
    later = logits_by_step(model, [Nudge("v.1", Where.of([[8], [5]]))])
    plain = logits_by_step(model, [])
    assert torch.equal(later[0], plain[0])
    assert not torch.allclose(later[1], plain[1], atol=1e-3), (
        "the first generated token has the next position"
    )


def test_a_seed_gives_the_same_text_and_equal_prompts_different_draws() -> None:
    model = model_of()
    batch = [prompts().row(0)] * 3
    one = tokens_of(model, batch, temperature=1.5, seed=1)
    assert one == tokens_of(model, batch, temperature=1.5, seed=1)
    assert one != tokens_of(model, batch, temperature=1.5, seed=2)
    assert len({tuple(row) for row in one}) == 3
    assert len({tuple(row) for row in tokens_of(model, batch)}) == 1, "greedy rows are equal"


def test_a_row_samples_the_same_wherever_it_stands_in_the_batch() -> None:
    model = model_of()
    rows = [prompts().row(0), prompts().row(1), prompts(1).row(0)]
    forward = tokens_of(model, rows, temperature=1.0, seed=5)
    assert forward == tokens_of(model, rows[::-1], temperature=1.0, seed=5)[::-1]


def test_different_prompts_draw_from_different_streams() -> None:
    """From one stream they would all take the token of the same rank, and samples of prompts would not be apart."""
    model, batch = model_of("gpt2"), random_rows((4,) * 8)
    new = model.generate(batch, max_new_tokens=1, temperature=1e9, returns="tokens", stops_at_eos=False)
    last = model.logits(batch)[:, -1]
    ranks = {int((row > row[chosen]).sum()) for row, (chosen,) in zip(last, new, strict=True)}
    assert len(ranks) > 4


def test_top_p_keeps_the_smallest_set_with_that_much_probability() -> None:
    model = model_of()
    assert tokens_of(model, temperature=1.0, top_p=1e-6) == tokens_of(model), (
        "the most probable token is always in"
    )
    batch = [prompts().row(0)] * 300
    drawn = {
        row[0]
        for row in model.generate(batch, max_new_tokens=1, temperature=1.0, top_p=0.6, returns="tokens")
    }
    probabilities, order = model.logits([prompts().row(0)])[0, -1].softmax(-1).sort(descending=True)
    n_inside = int((probabilities.cumsum(0) - probabilities < 0.6).sum())
    assert drawn <= set(order[:n_inside].tolist())
    free = {row[0] for row in model.generate(batch, max_new_tokens=1, temperature=1.0, returns="tokens")}
    assert not free <= set(order[:n_inside].tolist())


def test_rows_end_at_the_end_of_sequence_and_only_there() -> None:
    model = words_model()
    eos = model.tokenizer.eos_token_id
    force = ms.edit("logits", lambda value: value.index_fill(-1, torch.tensor([eos]), 1e4), positions=[3, 4])
    rows = model.generate(["cat sees dog", "cat"], interventions=[force], max_new_tokens=5, returns="tokens")
    assert rows[0] == [eos], "its last prompt token has position 3"
    assert len(rows[1]) == 3 and rows[1][-1] == eos, "its third generated token comes after position 3"
    whole = model.generate(
        ["cat sees dog", "cat"], interventions=[force], max_new_tokens=5, returns="tokens", stops_at_eos=False
    )
    assert [len(row) for row in whole] == [5, 5]


def test_the_checkpoints_own_ends_count_too() -> None:
    model = wrap(tiny("llama", torch.float64), check=False)
    first = tokens_of(model, [prompts().row(0)])[0]
    model.hf.generation_config.eos_token_id = [first[2], 36]  # type: ignore
    assert tokens_of(model, [prompts().row(0)])[0] == first[: first.index(first[2]) + 1]


def test_text_comes_back_as_text() -> None:
    model = words_model()
    text = model.generate("cat sees", max_new_tokens=3)
    assert isinstance(text, str) and text.startswith("cat sees")
    many = model.generate(["cat sees"], max_new_tokens=3)
    assert many == [text]
    assert model.generate("cat", max_new_tokens=0) == "cat"


def test_one_chat_comes_back_as_one_text_and_several_as_several() -> None:
    model = words_model()
    chat = [{"role": "user", "content": "cat sees"}]
    one = model.generate(chat, max_new_tokens=2)
    assert isinstance(one, str) and one.startswith("user:cat sees")
    assert model.generate([chat], max_new_tokens=2) == [one]
    assert len(model.generate([chat, chat], max_new_tokens=2)) == 2


def test_what_does_not_fit_is_refused_before_a_token_is_made() -> None:
    model, called = model_of(), []
    handle = model.hf.register_forward_pre_hook(lambda *_: called.append(1))
    try:
        with pytest.raises(PromptTooLong, match="exceed the context") as refused:
            model.generate(prompts(), max_new_tokens=41)
        assert "max_new_tokens=40" in str(refused.value)
        for settings in (
            {"temperature": -1.0},
            {"top_p": 0.0},
            {"top_p": 1.5},
            {"max_new_tokens": -1},
            {"returns": "words"},
        ):
            with pytest.raises(InputError, match="mean nothing"):
                model.generate(prompts(), **settings)  # type: ignore
        with pytest.raises(PositionOutOfRange):
            model.generate(prompts(), max_new_tokens=3, interventions=[ms.scale("z.1", 2.0, positions=9)])
        with pytest.raises(InterventionMismatch, match="no values"):
            model.generate(prompts(), max_new_tokens=3, interventions=[ms.freeze("z.1")])
    finally:
        handle.remove()
    assert called == []
    assert len(model.generate(prompts(), max_new_tokens=40, returns="tokens")[0]) == 40
