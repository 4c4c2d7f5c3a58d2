"""head_scores: how much each head attends as a known kind of head does, on random tokens said twice.

Random tokens have no meaning to guess from, so what is measured is position and repetition alone.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.figures.labelled import Label, LabelledArray
from mechscope.lenses.result import LensResult, hash_of, mean_over_prompts
from mechscope.models.capturing import cache_at
from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import InterventionMismatch, PromptTooLong

Kind = Literal["induction", "previous-token", "duplicate-token"]
OFFSETS: dict[str, str] = {
    "induction": "from a token's second occurrence to the token after its first (prefix matching)",
    "previous-token": "from each token to the one before it",
    "duplicate-token": "from a token's second occurrence to its first",
}
"""What each kind attends to; the score is the mean weight there, over prompts and positions."""


@dataclass(frozen=True, kw_only=True)
class HeadScores(LensResult):
    """Result of `head_scores`.

    Args:
        per_prompt: [layer, head, prompt], mean attention weight, 0 to 1.
        chance: The score of a head that attends evenly to all that it may see.
    """

    lens: ClassVar[str] = "head-scores"
    per_prompt: LabelledArray
    chance: float

    @property
    def values(self) -> LabelledArray:
        """Mean over prompts, [layer, head]."""
        return mean_over_prompts(self.per_prompt)

    def top(
        self, k: int = 10, by: Literal["magnitude", "largest", "smallest"] = "largest"
    ) -> list[tuple[dict[str, Label], float]]:
        """The k heads with the highest scores."""
        return self.values.top(k, by)

    def plot(self) -> Any:
        """A Plotly heatmap, layer by head."""
        return self.values.plot()

    def __repr__(self) -> str:
        return f"HeadScores, chance {self.chance:.3g}\n{self.values!r}"

    def _repr_html_(self) -> str:
        return self.values._repr_html_()


def head_scores(
    model: Model, kind: Kind = "induction", *, n_prompts: int = 8, n_tokens: int | None = None, seed: int = 0
) -> HeadScores:
    """Score every head as an induction, previous-token or duplicate-token head.

    Args:
        model: An open model.
        kind: "induction": prefix matching. "previous-token". "duplicate-token".
        n_prompts: Random sequences.
        n_tokens: Tokens before they repeat; None is 25, or what fits.
        seed: Of the tokens.

    Returns:
        `values` [layer, head], 0 to 1; compare with `chance`.

    Raises:
        PromptTooLong: two times `n_tokens` do not fit into the context, or into the vocabulary without repeats.

    Cost: one run of n_prompts x (2 n_tokens + 1) tokens with all patterns.
    Caveat: a head that attends so on random tokens need not do so, or matter, in a behaviour.
        docs/methods/attention_heads.md.
    """
    if kind not in OFFSETS:
        raise InterventionMismatch(f'"{kind}" is no kind of head.', got=kind, instead=", ".join(OFFSETS))
    batch, n_first, length = repeated_tokens(model, n_prompts=n_prompts, n_tokens=n_tokens, seed=seed)
    cache = cache_at(model, batch, "pattern.*")
    sites = list(cache)
    scores = torch.stack(
        [_score(cache[site].detach().double(), kind, n_first, length).cpu() for site in sites]
    )
    per_prompt = LabelledArray(
        scores.transpose(1, 2).numpy(),
        ("layer", "head", "prompt"),
        coords={"layer": [site.layer or 0 for site in sites]},
        unit="attention weight",
        title=f"{kind} score",
        conventions={"weight": OFFSETS[kind], "tokens": f"{length} random, twice", "prompts": n_prompts},
    )
    width = batch.shape[1]
    even = torch.ones(width, width, dtype=torch.float64)
    even = torch.tril(even) if model.binding.anatomy.is_causal else even
    even = (even / even.sum(-1, keepdim=True))[None, None]
    return HeadScores(
        per_prompt=per_prompt,
        chance=float(_score(even, kind, n_first, length).mean()),
        settings={
            "kind": kind,
            "n_prompts": n_prompts,
            "n_tokens": length,
            "seed": seed,
            "bos": batch.bos,
        },
        model=model.fingerprint,
        data_sha256=hash_of(batch),
    )


def repeated_tokens(
    model: Model, *, n_prompts: int, n_tokens: int | None, seed: int
) -> tuple[TokenBatch, int, int]:
    """Rows of different random tokens said twice, after a beginning-of-sequence token if the tokenizer has one.

    Returns:
        The batch, tokens before the first one, and tokens before they repeat.
    """
    tokenizer = model.tokenizer
    special = set() if tokenizer is None else set(tokenizer.all_special_ids)
    bos = None if tokenizer is None else tokenizer.bos_token_id
    start = [] if bos is None else [int(bos)]
    pool = np.array([index for index in range(model.d_vocab) if index not in special])
    longest = min(len(pool), (model.n_context - len(start)) // 2)
    length = min(25, longest) if n_tokens is None else n_tokens
    if not 2 <= length <= longest:
        raise PromptTooLong(
            "No such repeated sequence fits the model.",
            got=f"n_tokens={length}",
            because=f"the context holds {model.n_context} tokens and the vocabulary {len(pool)} different ones",
            instead=f"n_tokens from 2 to {longest}",
        )
    rng = generator_for(seed, "head scores", length)
    rows = [rng.choice(pool, size=length, replace=False).tolist() for _ in range(n_prompts)]
    source = "added" if start else "given"
    return batch_of([[*start, *row, *row] for row in rows], pad_id=0, bos=source), len(start), length


def _score(
    pattern: Float[Tensor, "batch head query key"], kind: str, n_first: int, length: int
) -> Float[Tensor, "batch head"]:
    """Mean weight of the entries that a kind of head attends to."""
    n = pattern.shape[-1]
    if kind == "previous-token":
        queries = torch.arange(max(1, n_first), n)
        keys = queries - 1
    else:
        queries = torch.arange(n_first + length, n)
        keys = queries - length + (1 if kind == "induction" else 0)
    return pattern[:, :, queries, keys].mean(-1)
