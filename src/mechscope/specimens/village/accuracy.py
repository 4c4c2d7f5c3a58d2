"""How often the village answers as its language would: the measurement behind the card.

Owns: `answer_rates` of one behaviour. Invariant: nothing is filtered; every drawn pair counts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mechscope.specimens.village.pairs import VillagePair
from mechscope.specimens.village.prompts import draw_pairs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class AnswerRates:
    """Counts over `n` pairs, each by the most probable next word (for a set of answers: by more than half the mass)."""

    n: int
    n_clean_right: int
    n_corrupt_gives_clean: int
    n_corrupt_right: int
    n_clean_gives_corrupt: int
    clean_mass: float
    by_template: dict[str, tuple[int, int]]


def answer_rates(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    behavior: str,
    split: str = "held_out",
    n: int = 400,
    seed: int = 0,
) -> AnswerRates:
    """Measure a behaviour on `n` fresh pairs of a split.

    Cost: 2n short rows through the model.
    """
    pairs = draw_pairs(behavior, split=split, n=n, seed=seed)
    clean = next_word_probabilities(model, tokenizer, texts=[pair.clean for pair in pairs])
    corrupt = next_word_probabilities(model, tokenizer, texts=[pair.corrupt for pair in pairs])
    right = [
        _gives(row, pair.answers or (pair.answer,), tokenizer) for row, pair in zip(clean, pairs, strict=True)
    ]
    leak = [
        _gives(row, pair.answers or (pair.answer,), tokenizer)
        for row, pair in zip(corrupt, pairs, strict=True)
    ]
    other = [
        _gives(row, pair.wrongs or (pair.wrong,), tokenizer) for row, pair in zip(corrupt, pairs, strict=True)
    ]
    astray = [
        _gives(row, pair.wrongs or (pair.wrong,), tokenizer) for row, pair in zip(clean, pairs, strict=True)
    ]
    return AnswerRates(
        n=n,
        n_clean_right=sum(hit for hit, _ in right),
        n_corrupt_gives_clean=sum(hit for hit, _ in leak),
        n_corrupt_right=sum(hit for hit, _ in other),
        n_clean_gives_corrupt=sum(hit for hit, _ in astray),
        clean_mass=sum(mass for _, mass in right) / n,
        by_template=_count_by_template(pairs, [hit for hit, _ in right]),
    )


def next_word_probabilities(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, texts: list[str]
) -> "torch.Tensor":
    """Return [text, d_vocab]: the distribution of the word after each text."""
    import torch

    rows = tokenizer(texts)["input_ids"]
    length = max(len(row) for row in rows)
    probabilities = []
    for start in range(0, len(rows), 256):
        part = rows[start : start + 256]
        ids = torch.full((len(part), length), 0)
        for index, row in enumerate(part):
            ids[index, : len(row)] = torch.tensor(row)
        # Padding stands on the right, behind the causal mask: it cannot be seen from the position read.
        with torch.no_grad():
            hidden = model.model(input_ids=ids, attention_mask=None, use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(part)), torch.tensor([len(row) - 1 for row in part])]
            probabilities.append(model.lm_head(last).float().softmax(-1))
    return torch.cat(probabilities)


def _gives(
    row: "torch.Tensor", words: tuple[str, ...], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[bool, float]:
    ids = cast("list[int]", tokenizer.convert_tokens_to_ids(list(words)))
    mass = row[ids].sum().item()
    return (mass > 0.5 if len(words) > 1 else row.argmax().item() == ids[0]), mass


def _count_by_template(pairs: list[VillagePair], hits: list[bool]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for pair, hit in zip(pairs, hits, strict=True):
        right, total = counts.get(pair.template, (0, 0))
        counts[pair.template] = (right + hit, total + 1)
    return counts
