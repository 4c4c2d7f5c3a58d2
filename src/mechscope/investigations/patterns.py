"""Attention patterns of the heads found, on real prompts, for the report."""

from typing import Any

import numpy as np

from mechscope.claims.mechanisms import Components
from mechscope.figures.labelled import LabelledArray
from mechscope.models.model import Model

MOST_HEADS = 6


def patterns_of_heads(
    model: Model, split: Any, mechanism: Components, *, n_prompts: int = 2
) -> list[tuple[str, LabelledArray]]:
    """Patterns [head, query, key] of a mechanism's heads on the first prompts of a split, with the prompt's text."""
    heads = mechanism.heads[:MOST_HEADS]
    if not heads:
        return []
    shown: list[tuple[str, LabelledArray]] = []
    for row in range(min(n_prompts, len(split.clean))):
        prompt = split.clean.select([row])
        layers = sorted({layer for layer, _ in heads})
        cache = model.run(prompt, capture=[f"pattern.{layer}" for layer in layers]).cache
        maps = np.stack([cache["pattern", layer][0, head].float().numpy() for layer, head in heads])
        tokens = model.reader.strings(prompt.row(0))
        array = LabelledArray(
            maps,
            dims=("head", "query", "key"),
            coords={"head": [f"{layer}.{head}" for layer, head in heads]},
            texts={"query": tokens, "key": tokens},
            unit="weight",
            title=f"Where the heads look, prompt {row + 1}",
            low=None,
        )
        shown.append((split.texts[row][0], array))
    return shown
