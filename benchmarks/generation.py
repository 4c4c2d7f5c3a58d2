"""Generation: steering must not slow it down, and many doses as rows must cost one batch."""

import torch
from torch import Tensor

from benchmarks.lines import Line, line_of
from benchmarks.pairing import time_pairs
from benchmarks.shapes import opened, random_ids, random_model
from mechscope.interventions.steering import add

N_PROMPT = 16
FEWEST_TOKENS_PER_SECOND = 0.95
"""Of plain `generate`'s."""


def steered(shape: str, *, n_rows: int, n_new: int, n_pairs: int) -> Line:
    """Greedy generation with a direction added at the middle layer, one dose a row, against plain `generate`."""
    model, hf = opened(shape), random_model(shape)
    one = random_ids(shape, 1, N_PROMPT)
    ids = one.expand(n_rows, -1).contiguous()
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    doses = [1.0 + row for row in range(n_rows)]
    write = add(f"resid_post.{model.n_layers // 2}", direction, absolute=doses)
    _refuse_other_lengths(plain_ids(hf, ids, n_new), n_new)
    pairs = time_pairs(
        lambda: model.generate(ids, interventions=[write], max_new_tokens=n_new, returns="tokens"),
        lambda: plain_ids(hf, ids, n_new),
        n_pairs=n_pairs,
        n_warmups=1,
    )
    name = f"steered generation {shape}" if n_rows == 1 else f"{n_rows} doses as one batch {shape}"
    line = line_of(
        name,
        pairs,
        limit_ratio=1 / FEWEST_TOKENS_PER_SECOND,
        n_rows=n_rows,
        n_new_tokens=n_new,
    )
    line.details["tokens_per_second"] = n_rows * n_new / line.seconds
    line.details["plain_tokens_per_second"] = n_rows * n_new / line.details["baseline_seconds"]
    return line


def plain_ids(hf: torch.nn.Module, ids: Tensor, n_new: int) -> Tensor:
    """The library's own greedy generation."""
    return hf.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_new, do_sample=False, pad_token_id=0
    )


def _refuse_other_lengths(found: Tensor, n_new: int) -> None:
    if found.shape[1] != N_PROMPT + n_new:
        raise ArithmeticError(f"plain generation stopped after {found.shape[1] - N_PROMPT} of {n_new} tokens")
