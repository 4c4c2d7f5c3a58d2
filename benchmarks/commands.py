"""Commands: whole commands in fresh processes, from start to exit, against the seconds that are promised."""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.lines import Line, line_of
from benchmarks.pairing import Pairs

DEMO_SECONDS, FEATURES_SECONDS = 90.0, 1.0
N_DEMOS = 5
"""A demo takes a minute; its interval is over so many."""


def demo_line(*, n_pairs: int) -> Line:
    """`mechscope demo`, report and all, against 90 s."""
    with tempfile.TemporaryDirectory() as folder:
        return _line(
            ["demo", "--out", str(Path(folder) / "report")], limit=DEMO_SECONDS, n=min(n_pairs, N_DEMOS)
        )


def features_line(*, n_pairs: int) -> Line:
    """`mechscope features village`, what is in the bundled index, against a second."""
    return _line(["features", "village"], limit=FEATURES_SECONDS, n=n_pairs)


def _line(command: list[str], *, limit: float, n: int) -> Line:
    found = np.array([_seconds(command) for _ in range(n)])
    allowed = np.full(n, limit)
    return line_of(f"mechscope {command[0]}", Pairs(found, allowed, allowed), limit_ratio=1.0)


def _seconds(command: list[str]) -> float:
    start = perf_counter()
    subprocess.run([sys.executable, "-m", "mechscope", *command], capture_output=True, check=True)
    return perf_counter() - start
