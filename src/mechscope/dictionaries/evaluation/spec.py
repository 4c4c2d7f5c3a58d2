"""Settings of an evaluation: the conventions that change its numbers."""

from dataclasses import asdict, dataclass
from typing import Any

from mechscope.vocabulary.errors import DictionaryError

ABLATIONS = ("zero", "mean")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How a dictionary is evaluated.

    Args:
        ablation: What "nothing recovered" means at the sites written: "zero", or their "mean" over this text.
        skips_special: Leave special tokens out of the figures, and unchanged when the dictionary is in place. None
            follows what the dictionary was trained with.
        losses: Measure cross entropy and KL: three more forward passes.
        keeps_tokens: Keep every token's error.
        batch_size: Prompts at a time; changes no result.
        seed: Of the resamples.
        n_resamples: Of the intervals.
    """

    ablation: str = "mean"
    skips_special: bool | None = None
    losses: bool = True
    keeps_tokens: bool = False
    batch_size: int = 8
    seed: int = 0
    n_resamples: int = 1_000

    def __post_init__(self) -> None:
        if self.ablation not in ABLATIONS:
            raise DictionaryError(
                f'"{self.ablation}" is no ablation that recovery is measured against.',
                got=self.ablation,
                because="a recovered fraction needs a declared zero",
                instead=" or ".join(ABLATIONS),
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)
