"""What people write becomes one left-padded batch; a beginning of sequence is never added twice."""

import numpy as np
import pytest
import torch

from chat_tokenizer import TEMPLATE, chat_tokenizer, words_model
from mechscope.models.inputs import Reader, TokenBatch, batch_of
from mechscope.vocabulary.errors import (
    EmptyPrompt,
    InputError,
    MissingTokenizer,
    NotOneToken,
    PositionOutOfRange,
    PromptTooLong,
    ShapeError,
)
from small_models import model_of

BOS = 1
IDS = [5, 9, 2]


def reader(**settings: bool) -> Reader:
    return Reader(chat_tokenizer(**settings), d_vocab=37, n_context=12)


def rows_of(batch: TokenBatch) -> list[list[int]]:
    return [batch.row(index) for index in range(len(batch))]


@pytest.mark.parametrize(
    "given",
    [
        [IDS, [7]],
        [tuple(IDS), (7,)],
        [torch.tensor(IDS), torch.tensor([7])],
        [np.array(IDS), np.array([7])],
        ((5, 9, 2), [7]),
        batch_of([IDS, [7]], pad_id=0),
    ],
)
def test_rows_of_ids_in_any_container_become_one_left_padded_batch(given: object) -> None:
    batch = reader().batch(given)
    assert rows_of(batch) == [IDS, [7]]
    assert batch.n_pad.tolist() == [0, 2]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.bos == "given"


@pytest.mark.parametrize(
    "given",
    [
        IDS,
        tuple(IDS),
        torch.tensor(IDS),
        np.array(IDS),
        torch.tensor([IDS]),
        [np.int64(i) for i in IDS],
        [torch.tensor(i) for i in IDS],
    ],
)
def test_one_prompt_of_ids_is_one_row(given: object) -> None:
    assert rows_of(reader().batch(given)) == [IDS]


def test_the_callers_lists_are_left_alone() -> None:
    given = [list(IDS), [7]]
    reader().batch(given, bos=True)
    assert given == [IDS, [7]]


def test_text_is_tokenised_as_the_checkpoint_does_it() -> None:
    tokenizer = chat_tokenizer()
    batch = reader().batch(["cat sees dog", "cat"])
    assert rows_of(batch) == tokenizer(["cat sees dog", "cat"])["input_ids"]
    assert batch.bos == "tokenizer"
    assert batch.row(0)[0] == BOS
    assert rows_of(reader().batch("cat")) == [batch.row(1)]


@pytest.mark.parametrize(
    ("adds_bos", "bos", "n_bos", "record"),
    [
        (True, None, 1, "tokenizer"),
        (True, True, 1, "tokenizer"),
        (True, False, 0, "removed"),
        (False, None, 0, "tokenizer"),
        (False, True, 1, "added"),
        (False, False, 0, "tokenizer"),
    ],
)
def test_bos_is_forced_and_never_doubled_and_the_record_says_which(
    adds_bos: bool, bos: bool | None, n_bos: int, record: str
) -> None:
    batch = reader(adds_bos=adds_bos).batch("cat sees", bos=bos)
    assert batch.row(0).count(BOS) == n_bos
    assert batch.bos == record


@pytest.mark.parametrize("bos", [True, False])
def test_whatever_reads_text_reads_it_with_or_without_bos_as_told(bos: bool) -> None:
    model = words_model(adds_bos=not bos)
    batch = model.tokens("cat sees", bos=bos)
    logits, cache = model.run_with_cache("cat sees", bos=bos)
    assert logits is not None and logits.shape[1] == batch.shape[1] == 2 + bos
    assert torch.equal(cache["resid_post", 1], model.run_with_cache(batch)[1]["resid_post", 1])
    told = model.generate("cat sees", bos=bos, max_new_tokens=3, returns="tokens")
    assert told == model.generate(batch, max_new_tokens=3, returns="tokens")
    assert model.tokens("cat sees").shape[1] != batch.shape[1], "the tokenizer alone does otherwise"


def test_bos_is_not_doubled_when_the_text_begins_with_it() -> None:
    doubled = chat_tokenizer()("<s>cat")["input_ids"]
    assert doubled.count(BOS) == 2, "the tokenizer alone would double it"
    assert reader().batch("<s>cat").row(0).count(BOS) == 1


def test_bos_is_forced_on_ids_too_but_only_when_asked() -> None:
    assert rows_of(reader().batch([IDS])) == [IDS]
    added = reader().batch([IDS, [BOS, 7]], bos=True)
    assert (rows_of(added), added.bos) == ([[BOS, *IDS], [BOS, 7]], "added")
    assert rows_of(reader().batch(added, bos=False)) == [IDS, [7]]
    kept = reader().batch([[BOS, 7]], bos=True)
    assert (rows_of(kept), kept.bos) == ([[BOS, 7]], "given")


def test_chats_go_through_the_template_with_its_own_bos() -> None:
    chat = [{"role": "user", "content": "cat sees"}]
    batch = reader().batch(chat)
    assert batch.row(0).count(BOS) == 1
    text = words_model().tokenizer.decode(batch.row(0))
    assert text == "<s>user:cat sees\n assistant:", (text, TEMPLATE)
    assert rows_of(reader().batch([chat, chat])) == [batch.row(0)] * 2
    assert rows_of(reader().batch((tuple(chat), chat))) == [batch.row(0)] * 2


def test_a_batch_row_gives_what_it_gives_alone() -> None:
    batch = reader().batch([IDS, [7], [3, 4]])
    picked = batch.select([1, 2])
    assert picked.shape == (2, 2)
    assert rows_of(picked) == [[7], [3, 4]]
    assert reader().batch(batch) is batch


def test_readable_tokens_and_words() -> None:
    model = words_model()
    assert model.str_tokens("cat sees") == ["<s>", "cat", " sees"]
    assert model.str_tokens(["cat", "dog"]) == [["<s>", "cat"], ["<s>", "dog"]]
    assert model.token("cat") == 4
    assert model.token("sees") == model.token(" sees"), "with a leading space where only that is a token"
    assert model.reader.token_forms("cat") == (4, 5)
    assert model_of().str_tokens([[3, 4]]) == ["<3>", "<4>"]


def test_a_word_of_several_tokens_is_refused_with_its_cuts() -> None:
    with pytest.raises(NotOneToken) as refused:
        words_model().token("unknown")
    assert "'un', 'known'" in str(refused.value)
    with pytest.raises(NotOneToken):
        words_model().token("zzz")


@pytest.mark.parametrize(
    "given",
    [
        [],
        "",
        [[]],
        [[3], []],
        torch.zeros(0, 4, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long),
        ["cat", ""],
    ],
)
def test_empty_prompts_are_refused(given: object) -> None:
    with pytest.raises(EmptyPrompt):
        reader(adds_bos=False).batch(given)


def test_a_batch_with_a_row_of_nothing_but_padding_is_refused() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(EmptyPrompt, match="no tokens"):
        reader().batch(TokenBatch(ids, torch.tensor([0, 3])))


def test_prompts_beyond_the_context_and_ids_beyond_the_vocabulary_are_refused() -> None:
    reader().batch([[3] * 12])
    with pytest.raises(PromptTooLong, match="longer than the model's context") as refused:
        reader().batch([[3] * 13])
    assert "13 tokens" in str(refused.value) and "12" in str(refused.value)
    for ids in ([36, 37], [-1, 3]):
        with pytest.raises(PositionOutOfRange, match="outside the vocabulary"):
            reader().batch([ids])


@pytest.mark.parametrize(
    "given", [torch.rand(2, 3), torch.zeros(1, 1, 1, dtype=torch.long), torch.tensor([True, False])]
)
def test_tensors_that_are_not_ids_are_refused(given: object) -> None:
    with pytest.raises(ShapeError, match="must hold integers"):
        reader().batch(given)


@pytest.mark.parametrize(
    "given",
    [3.5, None, b"bytes", {"role": "user"}, ["cat", [3, 4]], [[1.5, 2.0]], [[3, "cat"]], [True, False], 7],
)
def test_what_is_no_prompt_is_refused(given: object) -> None:
    with pytest.raises(InputError, match="not prompts"):
        reader().batch(given)


def test_text_and_chats_need_what_they_need() -> None:
    bare = Reader(None, d_vocab=37, n_context=12)
    for given in ("cat", ["cat"], [{"role": "user", "content": "cat"}]):
        with pytest.raises(MissingTokenizer, match="needs a tokenizer"):
            bare.batch(given)
    with pytest.raises(MissingTokenizer, match="chat template"):
        reader(has_chat=False).batch([{"role": "user", "content": "cat"}])
    with pytest.raises(MissingTokenizer, match="beginning-of-sequence"):
        bare.batch([[3]], bos=True)
