"""Floor 6: prompts and metric: what a model is supposed to do, measurably."""

from mechscope.behaviors.baseline import Baseline, Estimate, measure
from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.loading import load, names
from mechscope.behaviors.own import from_pairs, from_tokens
from mechscope.behaviors.registry import behavior
from mechscope.behaviors.split import Split

__all__ = [
    "Baseline",
    "Behavior",
    "Estimate",
    "Split",
    "behavior",
    "from_pairs",
    "from_tokens",
    "load",
    "measure",
    "names",
]
