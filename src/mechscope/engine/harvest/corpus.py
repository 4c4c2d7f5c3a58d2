"""Corpus: text as rows of token ids in one flat tensor, cut to the model's context, with which tokens count.

A document longer than the context becomes several rows, each with the beginning-of-sequence token that the
tokenizer gave the first. Rows are shuffled once, by seed, so that neighbouring rows are unrelated.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechscope.models.inputs import Bos, TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.records.fingerprint import hash_tensors
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import BadFile, EmptyPrompt, PositionOutOfRange

_TEXTS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """Rows of token ids.

    Args:
        ids: All rows end to end, [tokens].
        offsets: Where each row begins, [rows + 1].
        counts: True for tokens whose activations are wanted: special tokens are left out.
        has_bos: Rows begin with a beginning-of-sequence token; None if nobody knows.
        bos: What was done about that token, as `TokenBatch` says it.
    """

    ids: Int[Tensor, " tokens"]
    offsets: Int[Tensor, " rows_and_one"]
    counts: Bool[Tensor, " tokens"]
    has_bos: bool | None
    bos: Bos = "given"

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens whose activations are wanted."""
        return int(self.counts.sum())

    @cached_property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of each row."""
        return self.offsets.diff()

    @cached_property
    def wanted(self) -> Int[Tensor, " rows"]:
        """Tokens of each row whose activations are wanted."""
        total = torch.cat([self.offsets.new_zeros(1), self.counts.cumsum(0)])
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    @cached_property
    def data_sha256(self) -> str:
        """Hash of rows and of which tokens count."""
        return hash_tensors({"ids": self.ids, "offsets": self.offsets, "counts": self.counts})

    def row(self, index: int) -> Int[Tensor, " pos"]:
        """Token ids of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def batch(self, rows: Sequence[int], pad_id: int = 0) -> tuple[TokenBatch, Bool[Tensor, "batch pos"]]:
        """Some rows, left-padded, and which of their tokens count."""
        found = batch_of([self.row(index).tolist() for index in rows], pad_id=pad_id, bos=self.bos)
        mask = torch.zeros(found.shape, dtype=torch.bool)
        for place, index in enumerate(rows):
            part = self.counts[self.offsets[index] : self.offsets[index + 1]]
            mask[place, found.shape[1] - len(part) :] = part
        return found, mask

    def shuffled(self, seed: int) -> "TokenCorpus":
        """The same rows in another order, which depends on the seed and the number of rows only."""
        order = generator_for(seed, "corpus rows").permutation(self.n_rows)
        lengths = self.lengths[torch.from_numpy(order)]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        starts = self.offsets[:-1][torch.from_numpy(order)]
        take = torch.repeat_interleave(starts - offsets[:-1], lengths) + torch.arange(int(offsets[-1]))
        return replace(self, ids=self.ids[take], offsets=offsets, counts=self.counts[take])


Text = Any
"""str, list of str, path of a text file (a document a line), rows of ids, tensor [row, pos], mappings with "text"."""


def corpus_of(model: Model, text: Text, *, n_context: int | None = None) -> TokenCorpus:
    """A corpus in the model's own tokens.

    Args:
        model: Whose tokenizer and context count.
        text: See `Text`; a `TokenCorpus` is returned as it is.
        n_context: Longest row, in tokens; the model's context by default, at most 1,024.

    Raises:
        EmptyPrompt: there are no tokens.
        BadFile: the text file is missing or not UTF-8.
        PositionOutOfRange: an id outside the vocabulary: another tokenizer's.
    """
    if isinstance(text, TokenCorpus):
        return text
    longest = min(model.n_context, n_context or 1024)
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    bos_id = None if model.tokenizer is None else model.tokenizer.bos_token_id
    whole, bos = _rows(model, text)
    rows = [piece for row in whole for piece in _pieces(row, longest, bos_id)]
    if not rows:
        raise EmptyPrompt(
            "There is no text.",
            got=str(text)[:60],
            because="a corpus needs at least one token",
            instead="some text",
        )
    ids = torch.cat([torch.as_tensor(row, dtype=torch.int32) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    if int(ids.min()) < 0 or int(ids.max()) >= model.d_vocab:
        raise PositionOutOfRange(
            "A token id is outside the vocabulary.",
            got=f"ids from {int(ids.min())} to {int(ids.max())}",
            because=f"the embedding has {model.d_vocab} rows",
            instead="this model's own tokenizer",
        )
    counts = ~torch.isin(ids, torch.tensor(sorted(special), dtype=torch.int32))
    if not bool(counts.any()):
        raise EmptyPrompt(
            "The text holds special tokens only.", got=f"{len(ids)} tokens", instead="some text"
        )
    starts_with_bos = None if bos_id is None else all(int(row[0]) == bos_id for row in rows)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return TokenCorpus(ids, offsets, counts, starts_with_bos, bos)


def _rows(model: Model, text: Text) -> tuple[Iterable[Any], Bos]:
    if isinstance(text, TokenBatch):
        return [text.row(index) for index in range(len(text))], text.bos
    if isinstance(text, Tensor):
        return list(text.reshape(-1, text.shape[-1])), "given"
    if isinstance(text, Path):
        text = _lines(text)
    if isinstance(text, str):
        text = [text]
    items = list(text)
    if items and isinstance(items[0], Mapping):
        items = [item["text"] for item in items]
    if not items or not isinstance(items[0], str):
        return items, "given"
    items = [item for item in items if item.strip()]
    parts = [items[start : start + _TEXTS_AT_ONCE] for start in range(0, len(items), _TEXTS_AT_ONCE)]
    return [row for part in parts for row in model.reader.ids_of_texts(part)], "tokenizer"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(
            f"{path.name} is no text that can be read.",
            got=path,
            because=str(error),
            instead="UTF-8, a document a line",
        ) from error


def _pieces(row: Any, longest: int, bos_id: int | None) -> list[Any]:
    if len(row) <= longest:
        return [row] if len(row) else []
    ids = [int(index) for index in row]
    head = ids[:1] if ids[0] == bos_id else []
    body, step = ids[len(head) :], longest - len(head)
    return [head + body[start : start + step] for start in range(0, len(body), step)]
