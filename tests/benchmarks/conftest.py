"""The benchmarks are a package beside the library, not inside it: `python -m benchmarks` finds it by the folder."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)
