"""Inputs: text, token lists, tensors and chats become one left-padded batch of token ids.

Text is tokenised as the checkpoint's tokenizer does it; a beginning-of-sequence token is never added twice, and
the batch says what was done. Refuses empty prompts, prompts longer than the context and unknown ids.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechscope.vocabulary.errors import (
    EmptyPrompt,
    InputError,
    MissingTokenizer,
    NotOneToken,
    PositionOutOfRange,
    PromptTooLong,
    ShapeError,
    UnreadableText,
)

Bos = Literal["tokenizer", "added", "removed", "given"]
Inputs = Any
"""str, list of str, list of ids, list of lists of ids, tensor [pos] or [batch, pos], chat messages, or a batch."""


@dataclass(frozen=True)
class TokenBatch:
    """Prompts as one left-padded tensor.

    Args:
        ids: Token ids, [batch, pos], padded on the left.
        n_pad: Padding columns of each row, [batch].
        bos: What was done about the beginning-of-sequence token: "tokenizer" (as the checkpoint does it),
            "added" or "removed" (because `bos=` said so and it made a difference), or "given" (ids came from
            the caller).
    """

    ids: Int[Tensor, "batch pos"]
    n_pad: Int[Tensor, " batch"]
    bos: Bos = field(default="given")

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, pos)."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def n_real(self) -> Int[Tensor, " batch"]:
        """Real tokens of each row."""
        return self.ids.shape[1] - self.n_pad

    @property
    def mask(self) -> Int[Tensor, "batch pos"]:
        """1 at real tokens, 0 at padding."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (columns[None, :] >= self.n_pad[:, None]).long()

    @property
    def is_padded(self) -> bool:
        """True if any row has padding."""
        return bool(self.n_pad.any())

    def row(self, index: int) -> list[int]:
        """Real token ids of one row."""
        return self.ids[index, int(self.n_pad[index]) :].tolist()

    def select(self, rows: Sequence[int] | Tensor) -> "TokenBatch":
        """Some rows, with columns that are padding in all of them cut off."""
        index = torch.as_tensor(rows, dtype=torch.long)
        n_pad = self.n_pad[index]
        cut = int(n_pad.min()) if len(n_pad) else 0
        return TokenBatch(self.ids[index][:, cut:], n_pad - cut, self.bos)


def batch_of(rows: Sequence[Sequence[int]], *, pad_id: int, bos: Bos = "given") -> TokenBatch:
    """Left-pad lists of ids.

    Raises:
        EmptyPrompt: a row is empty, or there are no rows.
    """
    if not rows or any(len(row) == 0 for row in rows):
        raise EmptyPrompt(
            "A prompt has no tokens." if rows else "There are no prompts.",
            got=f"lengths {[len(row) for row in rows][:10]}",
            because="a transformer needs at least one token to run on",
            instead="give text or token ids; bos=True adds a beginning-of-sequence token",
        )
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    return TokenBatch(ids, torch.tensor([width - len(row) for row in rows]), bos)


@dataclass(frozen=True)
class Reader:
    """Turns what people write into token batches, for one model.

    Args:
        tokenizer: A transformers tokenizer, or None.
        d_vocab: Ids at or above it are refused.
        n_context: Longest prompt, in tokens.
    """

    tokenizer: Any
    d_vocab: int
    n_context: int

    @property
    def pad_id(self) -> int:
        """Id written into padding columns; they are masked, so any id would do."""
        pad = None if self.tokenizer is None else self.tokenizer.pad_token_id
        return 0 if pad is None or pad >= self.d_vocab else int(pad)

    def batch(self, inputs: Inputs, *, bos: bool | None = None) -> TokenBatch:
        """Prompts as a left-padded batch.

        Args:
            inputs: See `Inputs`. A tensor [batch, pos] is taken as unpadded.
            bos: None leaves the beginning-of-sequence token to the tokenizer; True and False force it.
                Ids that the caller gives are changed only if `bos` is set.
        """
        if isinstance(inputs, TokenBatch) and bos is None:
            return self._checked(inputs)
        rows, source = self._rows(inputs)
        source = self._force_bos(rows, source, bos)
        return self._checked(batch_of(rows, pad_id=self.pad_id, bos=source))

    def token(self, word: str) -> int:
        """The id of a text that is one token; tried as written, then with a leading space.

        Raises:
            NotOneToken: the message shows how the tokenizer cuts it.
        """
        return self.token_forms(word)[0]

    def token_forms(self, word: str) -> tuple[int, ...]:
        """The ids of a word that is one token: as written, and with a leading space where that is one too.

        Raises:
            NotOneToken: neither is.
        """
        tokenizer = self._need_tokenizer(word)
        cuts = _tokenise(tokenizer, [word, " " + word], add_special_tokens=False)
        unknown = tokenizer.unk_token_id
        found = [
            ids[0] for ids in cuts if len(ids) == 1 and (ids[0] != unknown or word == tokenizer.unk_token)
        ]
        if found:
            return tuple(dict.fromkeys(int(index) for index in found))
        shown = [tokenizer.convert_ids_to_tokens(ids) for ids in cuts]
        raise NotOneToken(
            f"{word!r} is not one token.",
            got=f"{shown[0]}, with a leading space {shown[1]}",
            because="an answer is read from one column of the logits",
            instead="choose a word that the tokenizer keeps whole, or give its first token's id",
        )

    def ids_of_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts of any length, as the tokenizer gives them, its beginning-of-sequence token included once."""
        return self._encode(list(texts))[0] if texts else []

    def strings(self, ids: Sequence[int]) -> list[str]:
        """One readable string per id."""
        if self.tokenizer is None:
            return [f"<{index}>" for index in ids]
        return [self.tokenizer.decode([int(index)]) for index in ids]

    def _rows(self, inputs: Inputs) -> tuple[list[list[int]], Bos]:
        if isinstance(inputs, TokenBatch):
            return [inputs.row(index) for index in range(len(inputs))], inputs.bos
        if isinstance(inputs, Tensor):
            return _rows_of_tensor(inputs), "given"
        if isinstance(inputs, str):
            return self._encode([inputs])
        if not isinstance(inputs, Iterable) or isinstance(inputs, bytes | Mapping):
            raise _not_prompts(inputs)
        items = list(inputs)
        if not items:
            return [], "given"
        if all(isinstance(item, str) for item in items):
            return self._encode(items)
        if all(isinstance(item, Mapping) for item in items):
            return self._chat(items)
        if all(_is_chat(item) for item in items):
            return [row for chat in items for row in self._chat(list(chat))[0]], "tokenizer"
        if all(_is_id(item) for item in items):
            return [[operator.index(item) for item in items]], "given"
        return [_ids_of(row) for row in items], "given"

    def _encode(self, texts: list[str]) -> tuple[list[list[int]], Bos]:
        tokenizer = self._need_tokenizer(texts[0])
        rows = [list(row) for row in _tokenise(tokenizer, texts)]
        bos_id = tokenizer.bos_token_id
        for row in rows:
            # The text itself may begin with the token that the tokenizer adds.
            if bos_id is not None and row[:2] == [bos_id, bos_id]:
                del row[0]
        return rows, "tokenizer"

    def _chat(self, messages: list[Any]) -> tuple[list[list[int]], Bos]:
        # The template writes its own beginning-of-sequence token, so nothing is added afterwards.
        tokenizer = self._need_tokenizer(str(messages))
        if tokenizer.chat_template is None:
            raise MissingTokenizer(
                "Chat messages need a chat template, and this tokenizer has none.",
                got=str(messages)[:60],
                because="how turns are marked is the checkpoint's own convention",
                instead="give text, or set tokenizer.chat_template",
            )
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return [list(_tokenise(tokenizer, [text], add_special_tokens=False)[0])], "tokenizer"

    def _force_bos(self, rows: list[list[int]], source: Bos, bos: bool | None) -> Bos:
        if bos is None:
            return source
        bos_id = None if self.tokenizer is None else self.tokenizer.bos_token_id
        if bos_id is None:
            raise MissingTokenizer(
                "There is no beginning-of-sequence token to add or remove.",
                got=f"bos={bos}",
                because="the model was opened without a tokenizer, or its tokenizer defines none",
                instead="leave bos=None and give token ids",
            )
        before = [len(row) for row in rows]
        for row in rows:
            if bos and (not row or row[0] != bos_id):
                row.insert(0, bos_id)
            elif not bos and row and row[0] == bos_id:
                del row[0]
        is_changed = before != [len(row) for row in rows]
        return ("added" if bos else "removed") if is_changed else source

    def _need_tokenizer(self, got: str) -> Any:
        if self.tokenizer is None:
            raise MissingTokenizer(
                "Text needs a tokenizer, and this model was opened without one.",
                got=repr(got[:60]),
                because="ms.wrap was called with tokenizer=None, or the folder holds no tokenizer",
                instead="give token ids, or ms.wrap(model, tokenizer)",
            )
        return self.tokenizer

    def _checked(self, batch: TokenBatch) -> TokenBatch:
        if len(batch) == 0 or int(batch.n_real.min()) < 1:
            raise EmptyPrompt(
                "A prompt has no tokens." if len(batch) else "There are no prompts.",
                got=f"a batch of shape {list(batch.shape)}, padding {batch.n_pad.tolist()[:10]}",
                because="a transformer needs at least one token to run on",
                instead="leave empty rows out",
            )
        longest = int(batch.n_real.max())
        if longest > self.n_context:
            raise PromptTooLong(
                "A prompt is longer than the model's context.",
                got=f"{longest} tokens",
                because=f"the context holds {self.n_context}",
                instead="shorten it, or cut it into pieces",
            )
        refuse_unknown_ids(batch.ids, self.d_vocab)
        return batch


def _tokenise(tokenizer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    """Ids of texts.

    Raises:
        UnreadableText: the tokenizer has no token for a word, and none for unknown words.
    """
    try:
        return tokenizer(texts, **options)["input_ids"]
    except Exception as error:
        if "[UNK]" not in str(error):  # the Rust tokenizers raise a bare Exception
            raise
        raise UnreadableText(
            "The tokenizer can't express this text.",
            got=repr(texts[0][:80]) + (f" and {len(texts) - 1} more" if len(texts) > 1 else ""),
            because="a word is not in its vocabulary, and it has no token for unknown words",
            instead="words that model.tokenizer.get_vocab() lists",
        ) from error


def _rows_of_tensor(ids: Tensor) -> list[list[int]]:
    if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ShapeError(
            "A token tensor must hold integers, [pos] or [batch, pos].",
            got=f"shape {list(ids.shape)}, {ids.dtype}",
            instead='ids as the tokenizer gives them; embeddings are written with ms.patch("embed", ...)',
        )
    return (ids[None] if ids.ndim == 1 else ids).tolist()


def refuse_unknown_ids(ids: Tensor | Iterable[int], d_vocab: int) -> None:
    """Refuse ids that no token has; a negative one would read a column counted from the vocabulary's end.

    Raises:
        PositionOutOfRange
    """
    every = torch.as_tensor(ids if isinstance(ids, Tensor) else list(ids))
    low, high = (int(every.min()), int(every.max())) if every.numel() else (0, 0)
    if low < 0 or high >= d_vocab:
        raise PositionOutOfRange(
            "A token id is outside the vocabulary.",
            got=f"ids from {low} to {high}",
            because=f"the embedding has {d_vocab} rows",
            instead="use this model's own tokenizer",
        )


def is_one_text(inputs: Inputs) -> bool:
    """True for what is answered by one text and not by a list of them: a text, or one chat."""
    return isinstance(inputs, str) or _is_chat(inputs)


def _is_chat(item: Any) -> bool:
    return isinstance(item, list | tuple) and bool(item) and all(isinstance(turn, Mapping) for turn in item)


def _is_id(item: Any) -> bool:
    """True for integers of Python, NumPy and torch, but not for True and False."""
    if isinstance(item, Tensor):
        return item.ndim == 0 and not item.is_floating_point() and item.dtype != torch.bool
    return isinstance(item, SupportsIndex) and not isinstance(item, bool) and np.ndim(item) == 0  # pyright: ignore


def _ids_of(row: Any) -> list[int]:
    if isinstance(row, str | bytes | Mapping) or not isinstance(row, Iterable):
        raise _not_prompts(row)
    items = list(row)
    if not all(_is_id(item) for item in items):
        raise _not_prompts(row)
    return [operator.index(item) for item in items]


def _not_prompts(got: Any) -> InputError:
    return InputError(
        "These are not prompts.",
        got=f"{type(got).__name__}: {str(got)[:60]}",
        because="a batch is all text, all lists of ids, or all chats",
        instead="a text, a list of texts, ids, lists of ids, a tensor of ids, or chat messages",
    )
