"""Edge attribution over every edge, against the passes that it stands on.

The baseline is the stock model's own forward and backward passes and nothing else: no hooks, weights without
gradients, logits at the last position only, gradients down to the embeddings. That the scores are right is held by
tests; here the edges of the embedding are compared with its gradient before any timing.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.lines import Line, line_of
from benchmarks.pairing import time_pairs
from benchmarks.shapes import opened, random_ids, random_model
from mechscope.attribution.edge_scores import EdgeScores
from mechscope.attribution.edges import attribute_edges
from mechscope.attribution.settings import EdgeSettings
from mechscope.interventions.metrics import LogitDifference, answer_sets
from mechscope.models.inputs import TokenBatch

N_PROMPTS, N_TOKENS = 16, 20
ANSWER, FOIL = 11, 22
CLOSE = 1e-4
"""Equal results: relative difference of sums."""


class Attribution:
    """One method on one shape, and the passes of its baseline.

    Args:
        shape: Of the model.
        method: "eap" or "eap-ig".
        n_steps: Of "eap-ig".
    """

    def __init__(self, shape: str, method: str, n_steps: int) -> None:
        self.model, self.hf, self.method = opened(shape), random_model(shape), method
        clean, corrupt = (random_ids(shape, N_PROMPTS, N_TOKENS, seed) for seed in (0, 1))
        corrupt[:, 0] = clean[:, 0]
        metric = LogitDifference(
            answers=answer_sets([ANSWER] * N_PROMPTS), wrong=answer_sets([FOIL] * N_PROMPTS)
        )
        unpadded = torch.zeros(N_PROMPTS, dtype=torch.long)
        self.clean, self.corrupt = clean, corrupt
        self.pairs: Any = SimpleNamespace(
            clean=TokenBatch(clean, unpadded), corrupt=TokenBatch(corrupt, unpadded), metric=metric
        )
        self.settings = EdgeSettings(steps=n_steps)
        self.model.fingerprint  # noqa: B018  taken once for each open model, before the clock

    def ours(self) -> EdgeScores:
        """All edges."""
        return attribute_edges(self.model, self.pairs, method=self.method, settings=self.settings)

    def passes(self) -> None:
        """What no method can do without: forward passes, and the backward passes of its gradients."""
        with torch.no_grad():
            for ids in (self.corrupt,) if self.method == "eap" else (self.corrupt, self.clean):
                self._measured(self.hf.transformer.wte(ids))
        for _ in range(1 if self.method == "eap" else self.settings.steps):
            self.gradient()

    def gradient(self) -> Tensor:
        """One forward and one backward pass, to the gradient at the embeddings."""
        embedded = self.hf.transformer.wte(self.clean).requires_grad_()
        self._measured(embedded).backward()
        assert embedded.grad is not None
        return embedded.grad

    def _measured(self, embedded: Tensor) -> Tensor:
        logits = self.hf(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits[:, -1]
        return (logits[:, ANSWER] - logits[:, FOIL]).sum()


def edge_attribution_line(shape: str, method: str, *, n_steps: int, limit: float, n_pairs: int) -> Line:
    """All edges against the method's own passes."""
    case = Attribution(shape, method, n_steps)
    difference = equality(case) if method == "eap" else None
    times = time_pairs(case.ours, case.passes, n_pairs=n_pairs, n_warmups=1)
    return line_of(
        f"edge attribution, {method}",
        times,
        limit_ratio=limit,
        n_edges=case.ours().wiring.n_edges,
        n_prompts=N_PROMPTS,
        n_tokens=N_TOKENS,
        n_steps=n_steps if method != "eap" else None,
        largest_difference=difference,
    )


def equality(case: Attribution) -> float:
    """How far the embedding's edges are from the stock model's gradient at the embedding, relative.

    What the embedding adds is read by every reader, so its edges add up to the whole gradient times its change.

    Raises:
        ArithmeticError: it exceeds `CLOSE`; a speed at other results means nothing.
    """
    found = case.ours()
    words = case.hf.transformer.wte
    change = words(case.corrupt) - words(case.clean)
    wanted = float((case.gradient() * change).sum()) / N_PROMPTS
    mine = torch.tensor([edge.source.kind == "embed" for edge in found.edges])
    difference = abs(float(found.scores[mine].double().sum()) - wanted) / abs(wanted)
    if difference > CLOSE:
        raise ArithmeticError(f"edges of the embedding differ from its gradient by {difference:.2g}")
    return difference
