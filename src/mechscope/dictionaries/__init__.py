"""Floor 5: sparse autoencoders, transcoders, cross-layer transcoders and crosscoders."""

from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.result import Evaluation
from mechscope.dictionaries.evaluation.run import evaluate
from mechscope.dictionaries.evaluation.spec import EvaluationSettings
from mechscope.dictionaries.formats import export_dictionary as export
from mechscope.dictionaries.opening import open_dictionary as open
from mechscope.dictionaries.settings import Calibration, Gate, Normalization, Port, Settings, Source

__all__ = [
    "Calibration",
    "Dictionary",
    "Evaluation",
    "EvaluationSettings",
    "Gate",
    "Normalization",
    "Port",
    "Settings",
    "Source",
    "SparseCodes",
    "evaluate",
    "export",
    "open",
]
