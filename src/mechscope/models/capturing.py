"""Capturing: the values at some sites, run no further than the last of them: no logits are computed."""

from collections.abc import Sequence

from mechscope.models.cache import Cache
from mechscope.models.inputs import Inputs
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site


def cache_at(model: Model, inputs: Inputs, sites: str | Site | Sequence[str | Site]) -> Cache:
    """Values of a plain run at the sites that names and patterns mean.

    Cost: one forward pass up to the last of them, and what is kept.
    """
    found = model.binding.select(sites)
    return model.run(inputs, capture=found, stop_after=max(found, default=None)).cache
