"""What dictionaries say of prompts: codes at the last token and the largest of each prompt, and how well some tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.known_prompts import Pair

N_PAIRS = {"train": 300, "validation": 150, "held_out": 300}


@dataclass(frozen=True, eq=False)
class Side:
    """What the dictionaries say of one split's prompts.

    Args:
        tables: By dictionary and reading, [prompt, latent].
        labels: True where the thing is there.
        units: Which entities a prompt is about.
    """

    tables: dict[tuple[str, str], np.ndarray]
    labels: np.ndarray
    units: np.ndarray


def read_side(model: Any, dictionaries: dict[str, Any], pairs: Sequence[Pair], *, batch: int = 64) -> Side:
    """Run the prompts and encode every dictionary's site: codes at the last token, and the largest of the prompt."""
    import torch

    texts = [pair.clean for pair in pairs] + [pair.corrupt for pair in pairs]
    sites = sorted({str(site) for one in dictionaries.values() for site in one.reads})
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for start in range(0, len(texts), batch):
        tokens = model.tokens(texts[start : start + batch])
        with torch.no_grad():
            cache = model.run(tokens, capture=sites).cache
            counts = tokens.mask.bool().clone()
            counts[torch.arange(len(tokens)), tokens.n_pad] = False  # the beginning-of-sequence token
            for name, dictionary in dictionaries.items():
                codes = dictionary.encode(cache[str(dictionary.reads[0])]) * counts[..., None]
                found.setdefault((name, "last"), []).append(codes[:, -1].numpy())
                found.setdefault((name, "largest"), []).append(codes.amax(1).numpy())
    numbers = {entities: i for i, entities in enumerate(dict.fromkeys(pair.entities for pair in pairs))}
    units = np.array([numbers[pair.entities] for pair in pairs] * 2)
    labels = np.repeat([True, False], len(pairs))
    return Side({key: np.concatenate(parts) for key, parts in found.items()}, labels, units)


def scored(
    train: Side, test: Side, site: str, reading: str, latents: tuple[int, ...]
) -> tuple[float, np.ndarray]:
    """AUROC on other prompts of a logistic regression on some latents; of one latent, of its activation."""
    from mechscope.dictionaries.evaluation.probing import auroc, fitted_probe

    columns = list(latents)
    fit, table = train.tables[site, reading][:, columns], test.tables[site, reading][:, columns]
    if not columns:
        score = np.zeros(len(test.labels))
    elif len(columns) == 1:
        score = table[:, 0].astype(float)
    else:
        probe, mean, scale = fitted_probe(fit, train.labels)
        score = probe.decision_function((table - mean) / scale)
    return auroc(score, test.labels), score
