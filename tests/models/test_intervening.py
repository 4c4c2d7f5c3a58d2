"""Other people's code under our interventions: the same tokens as ours, in every way that they call the model."""

import pytest
import torch

import mechscope as ms
from mechscope.models.inputs import TokenBatch
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import InterventionMismatch, ModelBusy, PositionOutOfRange, ShapeError
from mechscope.vocabulary.where import Matching, Where
from nudge import Nudge
from small_models import direction, model_of, prompts
from tiny_models import WINDOW, tiny

N = 6


def theirs(model: ms.Model, writes: list, **settings: object) -> list[list[int]]:
    batch = prompts()
    with model.intervening(writes) as hf:
        out = hf.generate(  # type: ignore
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=N,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            **settings,
        )
    return out[:, batch.shape[1] :].tolist()


def ours(model: ms.Model, writes: list) -> list[list[int]]:
    return model.generate(prompts(), interventions=writes, max_new_tokens=N, returns="tokens")


def writes_of() -> list:
    return [
        ms.add("resid_post.1", direction(32), dose=0.6, positions=[0, -1]),
        Nudge("k.1", Where.of(slice(1, None))),
        Nudge("v.0", Where(rows=(1,))),
        Nudge("v.2", Where.of([[2, 7, 9], [0, 4]])),
        ms.scale("mlp_out.2", 0.5).only(phase="generated"),
        ms.scale("pattern.1", 0.1, units=[6, 7]).only(phase="generated"),
        ms.edit("scores.2", lambda value: value + 2.0).only(units=[8, 9], rows=[0]),
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2"])
def test_their_generate_gives_our_tokens_padded_and_across_the_window(family: str) -> None:
    assert prompts().shape[1] > WINDOW, "their sliding caches are cropped"
    model = model_of(family)
    for writes in ([write] for write in writes_of()):
        assert theirs(model, writes) == ours(model, writes), writes
    assert theirs(model, writes_of()) == ours(model, writes_of())
    assert ours(model, writes_of()) != ours(model, []), "the interventions matter"


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_their_loop_without_a_cache_is_followed_too(family: str) -> None:
    model = model_of(family)
    assert theirs(model, writes_of(), use_cache=False) == ours(model, writes_of())


def test_words_are_found_among_generated_tokens() -> None:
    model = model_of()
    word = ours(model, [])[0][1]
    writes = [Nudge("v.1", Where(positions=Matching((word,))))]
    assert theirs(model, writes) == ours(model, writes)


def test_a_new_prompt_starts_a_new_count() -> None:
    model, batch = model_of(), prompts(1)
    writes = [ms.scale("resid_post.1", 2.0, positions=-1)]
    with model.intervening(writes) as hf, torch.no_grad():
        first = hf(
            input_ids=prompts().ids, attention_mask=prompts().mask, position_ids=_positions(prompts())
        ).logits
        second = hf(input_ids=batch.ids[:, :6], use_cache=True).logits
    assert torch.allclose(first[:, -1], model.logits(prompts(), interventions=writes)[:, -1])
    assert torch.allclose(second, model.logits(batch.ids[:, :6], interventions=writes))


def _positions(batch: TokenBatch) -> torch.Tensor:
    return (batch.mask.cumsum(1) - 1).clamp(min=0)


def test_a_prompt_read_before_the_block_keeps_its_positions() -> None:
    from transformers import DynamicCache

    model, ids = model_of(), torch.tensor([prompts().row(0)])
    past = DynamicCache()
    with torch.no_grad():
        model.hf(input_ids=ids[:, :6], past_key_values=past, use_cache=True)
        with model.intervening([ms.scale("resid_post.1", 2.0, positions=7)]) as hf:
            got = hf(input_ids=ids[:, 6:], past_key_values=past, use_cache=True).logits
    wanted = model.logits(ids, interventions=[ms.scale("resid_post.1", 2.0, positions=7)])
    assert torch.allclose(got, wanted[:, 6:])
    assert not torch.allclose(got[:, -1], model.logits(ids)[:, -1])


def test_selections_are_checked_when_prompts_arrive() -> None:
    model = model_of()
    for write in (ms.scale("z.1", 2.0).only(rows=[2]), ms.scale("z.1", 2.0, positions=[[0]] * 3)):
        with pytest.raises(PositionOutOfRange), model.intervening([write]) as hf:
            hf(input_ids=prompts().ids)


def test_right_padding_and_embeddings_are_refused() -> None:
    model, ids = model_of(), prompts().ids
    with pytest.raises(ShapeError, match="padded on the left"), model.intervening([]) as hf:
        hf(input_ids=ids, attention_mask=torch.tensor([[1] * 8, [1] * 5 + [0] * 3]))
    with pytest.raises(InterventionMismatch, match="without token ids"), model.intervening([]) as hf:
        hf(inputs_embeds=torch.zeros(1, 3, 32, dtype=torch.float64))
    with pytest.raises(InterventionMismatch, match="no values"), model.intervening([ms.freeze("z.1")]):
        pass


def test_gradients_flow_through_other_peoples_code() -> None:
    model = wrap(tiny("llama", torch.float64), check=False)
    with model.intervening([ms.scale("z.1", 0.5)]) as hf:
        hf(input_ids=prompts().ids).logits.sum().backward()
    assert all(p.grad is not None for n, p in hf.named_parameters() if "embed" in n or "mlp" in n)
    model.hf.requires_grad_(False)
    with model.intervening([]) as hf, torch.no_grad():
        assert not hf(input_ids=prompts().ids).logits.requires_grad


def test_the_block_holds_the_model() -> None:
    model = model_of()
    with model.intervening([]), pytest.raises(ModelBusy, match="in use"):
        model.logits(prompts())
    model.logits(prompts())
