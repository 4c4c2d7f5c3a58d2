"""Listing features: `mechscope features village` from a cold start takes a second at most, and less than torch does."""

import subprocess
import sys
from functools import partial

import numpy as np

from benchmarks.lines import Line, line_of
from benchmarks.pairing import Pairs, time_pairs

LIMIT_SECONDS = 1.0
_LISTED = """
import sys
sys.argv = ["mechscope", "features", "village", "--json"]
from mechscope.cli.main import run
try:
    run()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
_TORCH = "import torch"


def list_features(*, n_pairs: int) -> list[Line]:
    """Seconds of the command in a process of its own: against a second, and against `import torch` in another."""
    if _run(_LISTED).split()[-1] != "False":
        raise ArithmeticError("mechscope features village brought torch")
    pairs = time_pairs(partial(_run, _LISTED), partial(_run, _TORCH), n_pairs=n_pairs)
    limit = np.full(n_pairs, LIMIT_SECONDS)
    second = Pairs(pairs.ours, limit, limit * pairs.again / pairs.baseline, pairs.others_cpu)
    return [
        line_of("mechscope features village, against a second", second, limit_ratio=1.0),
        line_of("mechscope features village, against import torch", pairs, limit_ratio=1.0),
    ]


def _run(code: str) -> str:
    """What a fresh process says on its error stream; refuses one that fails."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
