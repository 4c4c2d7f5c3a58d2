"""Floor 7: why features share neurons: toy models, geometry, interference, and how polysemantic units are."""

from mechscope.superposition.absolute_value import AbsoluteValueSettings, train_absolute_value
from mechscope.superposition.facts import FactSettings, learn_facts
from mechscope.superposition.geometry import (
    STICKY,
    Shape,
    feature_dimensionality,
    find_shapes,
    nearest_sticky,
)
from mechscope.superposition.interference import Interference, measure_interference, measure_neighborhood
from mechscope.superposition.phase import PhaseSettings, draw_phase_diagram
from mechscope.superposition.polysemanticity import (
    Polysemanticity,
    compare_units,
    measure_polysemanticity,
    rotate_units,
)
from mechscope.superposition.toy import ToySettings, train_toy
from mechscope.superposition.toy_report import write_toy_figures

__all__ = [
    "STICKY",
    "AbsoluteValueSettings",
    "FactSettings",
    "Interference",
    "PhaseSettings",
    "Polysemanticity",
    "Shape",
    "ToySettings",
    "compare_units",
    "draw_phase_diagram",
    "feature_dimensionality",
    "find_shapes",
    "learn_facts",
    "measure_interference",
    "measure_neighborhood",
    "measure_polysemanticity",
    "nearest_sticky",
    "rotate_units",
    "train_absolute_value",
    "train_toy",
    "write_toy_figures",
]
