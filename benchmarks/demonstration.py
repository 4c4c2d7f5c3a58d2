"""Demonstration: `mechscope demo` in fresh processes, from start to report, against the promised 90 seconds."""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.lines import Line, line_of
from benchmarks.pairing import Pairs

LIMIT_SECONDS = 90.0
N_RUNS = 5
"""A demo takes a minute; its interval is over so many."""


def demo_line(*, n_pairs: int) -> Line:
    """Seconds of the whole command, the interpreter's start included."""
    n = min(n_pairs, N_RUNS)
    found, limit = np.array([_seconds() for _ in range(n)]), np.full(n, LIMIT_SECONDS)
    return line_of("mechscope demo", Pairs(found, limit, limit), limit_ratio=1.0)


def _seconds() -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mechscope", "demo", "--out", str(Path(folder) / "report")]
        start = perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return perf_counter() - start
