"""The addition table modulo p as tokens, answers and a split."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechscope.records.seeds import generator_for


@dataclass(frozen=True, eq=False)
class AdditionTable:
    """All pairs in the order a * p + b: tokens a, b and "=" (the number p), and the sum."""

    modulus: int
    tokens: Int[Tensor, "pair 3"]
    answers: Int[Tensor, " pair"]
    is_train: Bool[Tensor, " pair"]

    def to(self, device: str) -> "AdditionTable":
        """The same table on a device."""
        return AdditionTable(
            self.modulus, self.tokens.to(device), self.answers.to(device), self.is_train.to(device)
        )


def make_table(modulus: int, *, train_share: float = 0.3, seed: int = 0) -> AdditionTable:
    """The whole table, a random `train_share` of it marked for training."""
    pair = torch.arange(modulus * modulus)
    first, second = pair // modulus, pair % modulus
    tokens = torch.stack([first, second, torch.full_like(pair, modulus)], dim=1)
    order = generator_for(seed, "grokking", "split").permutation(len(pair))
    is_train = torch.zeros(len(pair), dtype=torch.bool)
    is_train[torch.from_numpy(order[: round(train_share * len(pair))])] = True
    return AdditionTable(modulus, tokens, (first + second) % modulus, is_train)
