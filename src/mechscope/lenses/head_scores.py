"""head_scores: how much each head attends as a known kind of head does, on random tokens said twice or on prompts.

Random tokens have no meaning to guess from, so what is measured there is position and repetition alone. A head that
learnt to match within a language need not do it on them, so prompts of one's own can be given.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechscope.figures.labelled import Label, LabelledArray
from mechscope.lenses.result import LensResult, hash_of, mean_over_prompts
from mechscope.models.capturing import cache_at
from mechscope.models.frame import Frame
from mechscope.models.inputs import Inputs, TokenBatch, batch_of
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import InterventionMismatch, PromptTooLong
from mechscope.vocabulary.where import Where

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
    model: Model,
    kind: Kind = "induction",
    *,
    prompts: Inputs | None = None,
    positions: Any = None,
    n_prompts: int = 8,
    n_tokens: int | None = None,
    seed: int = 0,
) -> HeadScores:
    """Score every head as an induction, previous-token or duplicate-token head.

    Args:
        model: An open model.
        kind: "induction": prefix matching. "previous-token". "duplicate-token".
        prompts: Where to look, such as `behavior.train.clean`; None is random tokens said twice. A score is then the
            weight on all places that the kind attends to (after, or at, earlier occurrences of the token), mean over
            the tokens that have one.
        positions: Of prompts: from which tokens, -1 for each prompt's last; None is all.
        n_prompts: Random sequences.
        n_tokens: Tokens before they repeat; None is 25, or what fits.
        seed: Of the tokens.

    Returns:
        `values` [layer, head], 0 to 1; compare with `chance`.

    Raises:
        InterventionMismatch: an unknown kind, or a prompt without a token that the kind says something of.
        PromptTooLong: two times `n_tokens` do not fit into the context, or into the vocabulary without repeats.

    Cost: one run of n_prompts x (2 n_tokens + 1) tokens with all patterns.
    Caveat: a head that attends so on random tokens need not do so, or matter, in a behaviour.
        docs/methods/attention_heads.md.
    """
    if kind not in OFFSETS:
        raise InterventionMismatch(f'"{kind}" is no kind of head.', got=kind, instead=", ".join(OFFSETS))
    settings: dict[str, Any] = {"kind": kind}
    if prompts is None:
        batch, n_first, length = repeated_tokens(model, n_prompts=n_prompts, n_tokens=n_tokens, seed=seed)
        looked_at = _repeats(batch, kind, n_first=n_first, length=length)
        told = f"{length} random, twice"
        settings |= {"n_prompts": n_prompts, "n_tokens": length, "seed": seed}
    else:
        batch = model.tokens(prompts)
        looked_at = _recurrences(batch, kind, positions)
        told = "those of the prompts" if positions is None else f"at {positions} of the prompts"
        settings |= {"n_prompts": len(batch), "positions": "all" if positions is None else str(positions)}
    cache = cache_at(model, batch, "pattern.*")
    sites = list(cache)
    scores = torch.stack([_weight_on(cache[site].detach().double(), looked_at).cpu() for site in sites])
    per_prompt = LabelledArray(
        scores.transpose(1, 2).numpy(),
        ("layer", "head", "prompt"),
        coords={"layer": [site.layer or 0 for site in sites]},
        unit="attention weight",
        title=f"{kind} score",
        conventions={"weight": OFFSETS[kind], "tokens": told, "prompts": len(batch)},
    )
    even = _even(batch, is_causal=model.binding.anatomy.is_causal)
    return HeadScores(
        per_prompt=per_prompt,
        chance=float(_weight_on(even, looked_at).mean()),
        settings=settings | {"bos": batch.bos},
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


def _repeats(batch: TokenBatch, kind: str, *, n_first: int, length: int) -> Bool[Tensor, "batch query key"]:
    """Where a kind of head attends to in tokens said twice."""
    n = batch.shape[1]
    if kind == "previous-token":
        queries = torch.arange(max(1, n_first), n)
        keys = queries - 1
    else:
        queries = torch.arange(n_first + length, n)
        keys = queries - length + (1 if kind == "induction" else 0)
    found = torch.zeros(n, n, dtype=torch.bool)
    found[queries, keys] = True
    return found.expand(len(batch), -1, -1)


def _recurrences(batch: TokenBatch, kind: str, positions: Any) -> Bool[Tensor, "batch query key"]:
    """Where a kind of head attends to in any prompts: at or after earlier occurrences, or at the token before.

    Raises:
        InterventionMismatch: a prompt in which there is no such place.
    """
    ids, real, n = batch.ids.cpu(), batch.mask.bool().cpu(), batch.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool).tril(-1)
    if kind == "previous-token":
        found = torch.eye(n, dtype=torch.bool).roll(-1, dims=1) & earlier
        found = found.expand(len(batch), -1, -1)
    else:
        found = (ids[:, :, None] == ids[:, None]) & earlier & real[:, None]
        if kind == "induction":
            found = torch.cat([torch.zeros_like(found[:, :, :1]), found[:, :, :-1]], dim=2) & earlier
    found = found & real[:, None] & real[:, :, None]
    frame = Frame.of(batch)
    chosen = frame.selected(Where.of(positions), frame.last_columns(n))
    if chosen is not None:
        found = found & chosen.cpu()[:, :, None]
    without = (~found.flatten(1).any(1)).nonzero()[:, 0].tolist()
    if without:
        raise InterventionMismatch(
            f'Some prompts have no place that a head of the kind "{kind}" would attend to.',
            got=f"{len(without)} of {len(batch)} prompts, the first is number {without[0]}",
            because=f"it attends {OFFSETS[kind]}",
            instead="prompts in which a token comes again at the positions asked for; None asks for all of them",
        )
    return found


def _weight_on(
    pattern: Float[Tensor, "#batch head query key"], looked_at: Bool[Tensor, "batch query key"]
) -> Float[Tensor, "batch head"]:
    """Weight on some keys, mean over the queries that have any."""
    where = looked_at.to(pattern.device)
    has = where.any(-1)[:, None].to(pattern)
    weight = (pattern * where[:, None]).sum(-1)
    return (weight * has).sum(-1) / has.sum(-1)


def _even(batch: TokenBatch, *, is_causal: bool) -> Float[Tensor, "batch 1 query key"]:
    """The pattern of a head that attends evenly to all that it may see."""
    width = batch.shape[1]
    seen = torch.ones(width, width, dtype=torch.float64)
    seen = (torch.tril(seen) if is_causal else seen) * batch.mask.cpu().double()[:, None]
    return (seen / seen.sum(-1, keepdim=True).clamp_min(1))[:, None]
