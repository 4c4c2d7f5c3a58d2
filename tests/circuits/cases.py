"""What the tests of circuits share: pairs for tiny random models, and the induction specimen's behaviour."""

from functools import cache

import torch

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.loading import load as load_behavior
from mechscope.behaviors.own import from_tokens
from mechscope.behaviors.split import Split
from mechscope.models.model import Model
from mechscope.models.opening import load
from mechscope.vocabulary.edges import Edge
from tiny_models import VOCABULARY


@cache
def pairs(n: int = 3, n_tokens: int = 6, seed: int = 5) -> Split:
    """Random pairs for a tiny model: the corrupt twin differs in two tokens."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, VOCABULARY, (n, n_tokens), generator=generator)
    corrupt = clean.clone()
    corrupt[:, [1, 3]] = (corrupt[:, [1, 3]] + 7) % VOCABULARY
    return from_tokens(clean, corrupt, answers=[3] * n, wrong=[4] * n).train


@cache
def padded_pairs(seed: int = 5) -> Split:
    """Random pairs of two lengths for a tiny model."""
    whole = pairs(4, 7, seed)
    clean = [row[i % 2 :] for i, row in enumerate(whole.clean.ids.tolist())]
    corrupt = [row[i % 2 :] for i, row in enumerate(whole.corrupt.ids.tolist())]
    return from_tokens(clean, corrupt, answers=[3, 5, 3, 6], wrong=[4] * 4, splits=["train"] * 4).train


@cache
def induction() -> tuple[Model, Behavior]:
    """The hand-written induction model and its behaviour."""
    model = load("induction")
    return model, load_behavior("induction", model, n=120, seed=0)


TRUE_EDGES = tuple(Edge.parse(name) for name in ("embed->a0.5.v", "a0.5->a1.11.k", "a1.11->logits"))
"""Edges that resampling the key's token can break."""
