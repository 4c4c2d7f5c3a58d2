"""Everything that a grokking run depends on."""

from dataclasses import dataclass

from mechscope.vocabulary.errors import InputError


@dataclass(frozen=True, kw_only=True)
class GrokkingSettings:
    """A run; the defaults are those of the published one (Nanda et al. 2023) with a third of the pairs for training.

    Args:
        modulus: p, an odd number; the task is (a + b) mod p.
        train_share: Of the p * p pairs; the others are the test.
        d_model: Width of the residual stream; heads are a quarter as wide, the MLP four times.
        n_heads: Attention heads.
        n_steps: Full-batch steps of AdamW.
        learning_rate: Constant after 10 steps.
        weight_decay: 1 makes it generalise; 0 is the twin that only learns by heart.
        seed: Of the split and the initial weights.
    """

    modulus: int = 113
    train_share: float = 0.3
    d_model: int = 128
    n_heads: int = 4
    n_steps: int = 25_000
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.modulus < 5 or self.modulus % 2 == 0:
            problems.append(f"modulus {self.modulus}: an odd number from 5")
        if not 0 < self.train_share < 1:
            problems.append(f"train_share {self.train_share}: between 0 and 1")
        if self.n_heads < 1 or self.d_model % self.n_heads:
            problems.append(f"d_model {self.d_model} over {self.n_heads} heads")
        if self.n_steps < 1:
            problems.append(f"n_steps {self.n_steps}")
        if problems:
            raise InputError(
                "These settings are no grokking run.",
                got="; ".join(problems),
                instead="the defaults of the rest",
            )
