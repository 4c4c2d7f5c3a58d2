"""Importing: `import mechscope` is quick and brings no torch."""

import subprocess
import sys

import numpy as np

from benchmarks.lines import Line, line_of
from benchmarks.pairing import Pairs

LIMIT_SECONDS = 0.3
_TIMED = """
import sys, time
start = time.perf_counter()
import mechscope
print(time.perf_counter() - start, "torch" in sys.modules)
"""


def import_mechscope(*, n_pairs: int) -> Line:
    """Seconds of the import statement in fresh processes, against 0.3 s."""
    found = np.array([_seconds_in_fresh_process() for _ in range(2 * n_pairs)])
    limit = np.full(n_pairs, LIMIT_SECONDS)
    pairs = Pairs(found[::2], limit, limit * found[1::2] / found[::2])
    return line_of("import mechscope", pairs, limit_ratio=1.0)


def _seconds_in_fresh_process() -> float:
    done = subprocess.run([sys.executable, "-c", _TIMED], capture_output=True, text=True, check=True)
    seconds, has_torch = done.stdout.split()
    if has_torch == "True":
        raise ArithmeticError("import mechscope brought torch")
    return float(seconds)
