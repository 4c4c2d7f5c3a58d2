"""Compiled specimens: programs turned into exact transformer weights, with their true edges on record.

Owns: the language (`tokens`, `select`, `copy`, ...), the compiler, the bundled programs and their truth.
`ms.load("compiled/reverse")` opens a bundled one.
"""

from mechscope.specimens.compiled import micro, symbolic_ioi
from mechscope.specimens.compiled.compiler import Compiled, compile_program
from mechscope.specimens.compiled.pairs import ProgramPair, draw_pairs
from mechscope.specimens.compiled.programs import PROGRAMS
from mechscope.specimens.compiled.rasp import (
    Program,
    add,
    apply,
    copy,
    evaluate,
    everything,
    indices,
    mean,
    select,
    tokens,
    width,
)
from mechscope.specimens.compiled.record import Truth, find_truth, truth_of
from mechscope.specimens.compiled.stock import to_gpt2
from mechscope.specimens.compiled.streams import Streams
from mechscope.specimens.compiled.tokenizer import vocabulary_of

__all__ = [
    "PROGRAMS",
    "Compiled",
    "Program",
    "ProgramPair",
    "Streams",
    "Truth",
    "add",
    "apply",
    "compile_program",
    "copy",
    "draw_pairs",
    "evaluate",
    "everything",
    "find_truth",
    "indices",
    "mean",
    "micro",
    "select",
    "symbolic_ioi",
    "to_gpt2",
    "tokens",
    "truth_of",
    "vocabulary_of",
    "width",
]
