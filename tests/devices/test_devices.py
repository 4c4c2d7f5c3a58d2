"""What is computed on another device is what the CPU computes, and devices are not mixed on the way.

The other device is pretended (`pretended.py`): no GPU is needed, and nothing is shown about a GPU's kernels or speed.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from devices.cases import ALONE, FAMILIES, cases

NAMES = (*(f"self-check, {family}" for family in FAMILIES), *cases())


@cache
def told() -> dict[str, dict[str, Any]]:
    """What the script says of each case; it is run once."""
    script = Path(__file__).with_name("cases.py")
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=surroundings)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-2000:]
    return {line["name"]: line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_another_device_gives_what_the_cpu_gives(name: str) -> None:
    line = told()[name]
    assert not line["error"], line["error"]
    assert line["difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_what_a_gpu_refuses_is_refused(name: str) -> None:
    """Twin: the pretended device is no CPU under another name."""
    assert told()[name]["error"], "mixed devices went through"
