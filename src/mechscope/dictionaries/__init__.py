"""Floor 5: sparse autoencoders, transcoders, cross-layer transcoders and crosscoders."""

from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.formats import export_dictionary as export
from mechscope.dictionaries.opening import open_dictionary as open
from mechscope.dictionaries.settings import Calibration, Gate, Normalization, Port, Settings, Source

__all__ = [
    "Calibration",
    "Dictionary",
    "Gate",
    "Normalization",
    "Port",
    "Settings",
    "Source",
    "SparseCodes",
    "export",
    "open",
]
