"""Grokking: a one-layer transformer that learns addition modulo p, first by heart, then by trigonometry.

Its mechanism is known (Fourier features of the two numbers, added as angles): progress measures are held to it.
The measures themselves are in `superposition/modular_addition.py`.
"""

from mechscope.specimens.grokking.settings import GrokkingSettings
from mechscope.specimens.grokking.table import AdditionTable, make_table
from mechscope.specimens.grokking.train import new_model, open_published, train_grokking

__all__ = [
    "AdditionTable",
    "GrokkingSettings",
    "make_table",
    "new_model",
    "open_published",
    "train_grokking",
]
