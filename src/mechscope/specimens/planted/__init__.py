"""Planted activations: sparse features in superposition, with the truth on record, and the score of a dictionary.

A dictionary is required to find what was planted here before anyone trusts it on a model nobody understands.
"""

from mechscope.specimens.planted.firings import Firings, dense_to_firings, topk_to_firings
from mechscope.specimens.planted.score import PlantedScore, score_dictionary
from mechscope.specimens.planted.scoring import (
    Absorption,
    Detection,
    Matching,
    detect_features,
    direction_precision,
    match_directions,
    measure_absorption,
    split_features,
)
from mechscope.specimens.planted.settings import (
    VARIANTS,
    PlantedSettings,
    correlated,
    heavy_tailed,
    hierarchical,
    noisy,
    reference,
)
from mechscope.specimens.planted.stream import PlantedBatch, PlantedStream, draw_codes, shuffle_coordinates
from mechscope.specimens.planted.truth import Truth, plant

__all__ = [
    "VARIANTS",
    "Absorption",
    "Detection",
    "Firings",
    "Matching",
    "PlantedBatch",
    "PlantedScore",
    "PlantedSettings",
    "PlantedStream",
    "Truth",
    "correlated",
    "dense_to_firings",
    "detect_features",
    "direction_precision",
    "draw_codes",
    "heavy_tailed",
    "hierarchical",
    "match_directions",
    "measure_absorption",
    "noisy",
    "plant",
    "reference",
    "score_dictionary",
    "shuffle_coordinates",
    "split_features",
    "topk_to_firings",
]
