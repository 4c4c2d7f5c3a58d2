"""Calibration: the reference norm of each site, the unit in which doses are given.

A dose of 1 adds a vector as long as the site's typical activation: the median norm over ordinary tokens of a fixed
text. Measured once per point, kept in the model's record.
"""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mechscope.models.inputs import TokenBatch, batch_of
from mechscope.models.ordinary_tokens import ordinary_tokens
from mechscope.vocabulary.errors import InterventionMismatch
from mechscope.vocabulary.sites import Site

if TYPE_CHECKING:
    import mechscope.models.model

TEXT = (
    "The river had risen in the night, and by morning the lower road was under water.",
    "She counted the coins twice, wrote the sum in the margin, and closed the book.",
    "In general, a larger sample gives a narrower interval, but it does not remove a bias.",
    "The train from the coast was late again; nobody on the platform seemed surprised.",
    "To make the dough, mix the flour with warm water and a little salt, then let it rest.",
    "He asked whether the meeting could be moved to Thursday, since the hall was taken.",
    "Light from the window fell across the table, the maps, and the unopened letters.",
    "Most birds of this region leave in autumn, although a few stay near the harbour.",
    "The committee agreed on the first point and left the second for another year.",
    "When the engine stopped, they could hear the bells of the village across the lake.",
    "A good question is often harder to find than a good answer.",
    "The children ran down the hill, shouting the names of the boats as they came in.",
)
"""Ordinary English, ours; bundled specimens bring text in their own language."""

_N_RANDOM, _N_TOKENS = 8, 24


def measure_norms(model: "mechscope.models.model.Model", site: Site) -> dict[str, float]:
    """Median norms of one point at every layer where it is formed, by site; of one head where there are heads.

    Raises:
        InterventionMismatch: the point has no norm: attention scores (-inf where masked) and choices.
    """
    if site.row.is_attention_map or site.point in ("expert_choice", "sink") or not site.row.is_formed:
        raise InterventionMismatch(
            f"{site} has no reference norm.",
            got=str(site),
            because="its entries are no vector that a direction could be added to, or are masked",
            instead="absolute= instead of dose=, or a site with a width of its own",
        )
    batch = calibration_batch(model)
    sites = [s for s in model.binding.formed if s.point == site.point]
    stop = sites[-1] if sites[-1].point != "logits" else None
    cache = model.run(batch, capture=sites, stop_after=stop).cache
    usual = ordinary_tokens(model, batch)
    norms: dict[str, float] = {}
    for found in sites:
        value = cache[found].to(torch.promote_types(cache[found].dtype, torch.float32))
        # Directions lie along the last axis, so heads count one by one.
        norms[str(found)] = float(value[usual.to(value.device)].norm(dim=-1).median())
    return norms


def calibration_batch(model: "mechscope.models.model.Model") -> TokenBatch:
    """The calibration text as tokens, cut to the context; seeded random tokens if there is no tokenizer."""
    if model.tokenizer is not None:
        longer = replace(model.reader, n_context=sys.maxsize)
        batch = longer.batch(list(model.identity.calibration or TEXT))
        rows = [batch.row(index)[: model.n_context] for index in range(len(batch))]
        return batch_of(rows, pad_id=model.reader.pad_id, bos=batch.bos)
    generator = torch.Generator().manual_seed(0)
    n_tokens = min(_N_TOKENS, model.n_context)
    return model.tokens(torch.randint(0, model.d_vocab, (_N_RANDOM, n_tokens), generator=generator))
